"""Which line of a framework's error says what went wrong."""

from __future__ import annotations

import pytest

from ingot.frameworks.base import first_line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one\ntwo", "one"),
        ("", "ValueError"),
        (
            "Exception encountered when calling Sequential.call().\n\n\x1b[1mInput 0 of layer 'a'"
            " is wrong\x1b[0m\n\nArguments received by Sequential.call():\n  * inputs=1",
            "Input 0 of layer 'a' is wrong",
        ),
        (
            'in user code:\n\n    File "a.py", line 1, in b  *\n        c()\n\n    ValueError:'
            " Exception encountered when calling L.call().\n    \n    Input 0 is wrong\n",
            "Input 0 is wrong",
        ),
        (
            "Exception encountered when calling L.call().\n\nCould not infer the shape. Error"
            " encountered:\n\nCannot reshape 8 elements",
            "Cannot reshape 8 elements",
        ),
        (
            "Graph execution error:\n\nDetected at node add defined at (most recent call last):\n"
            '  File "a.py", line 17, in <module>\n\nIncompatible shapes: [3] vs. [4]\n'
            "\t [[{{node add}}]] [Op:__inference_g_68]",
            "Incompatible shapes: [3] vs. [4]",
        ),
        (
            "{{function_node __wrapped__Equal_device_/job:localhost/device:CPU:0}} Incompatible"
            " shapes: [3] vs. [4] [Op:Equal] name: ",
            "Incompatible shapes: [3] vs. [4]",
        ),
        ("Graph execution error:", "Graph execution error:"),
    ],
)
def test_the_line_of_an_error_that_says_what_went_wrong(text: str, said: str) -> None:
    assert first_line(ValueError(text)) == said
