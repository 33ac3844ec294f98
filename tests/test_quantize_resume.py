"""A quantization that is killed, at any moment, ends as one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from compress_specs import write_spec
from search_processes import check_kills, whole_search

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("scipy")

# Two bits need training, so that a kill may fall into that, too.
ARGUMENTS = ("--bits", "mixed", "--delta", "0", "--finetune-epochs", "2")


@pytest.mark.slow
def test_killed_at_random_points(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    whole = whole_search("quantize", spec, tmp_path / "whole", *ARGUMENTS)
    assert whole[0]["verdict"]["epochs"] > 0
    check_kills("quantize", spec, tmp_path, ARGUMENTS, 5, whole)
