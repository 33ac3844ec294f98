"""Every call is checked: the "ours" column of the table in section 3 of the Neuropod reference."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from models import onnx_add, write

import ingot
from ingot.runtime.validation import TensorChecker

F32 = np.float32


def specs(*entries: tuple[str, str, list[object]], optional: str = "") -> list[ingot.TensorSpec]:
    return [
        ingot.TensorSpec(name, dtype, tuple(shape), name == optional)  # type: ignore[arg-type]
        for name, dtype, shape in entries
    ]


PAIR = specs(("x", "float32", ["n"]), ("y", "float32", ["n"]))
IMAGE = specs(("image", "uint8", ["batch", 3, None]))


def check(tensors: list[ingot.TensorSpec], **arrays: object) -> dict[str, np.ndarray]:
    return TensorChecker(tensors, "input", "model.ingot")(arrays)


@pytest.mark.parametrize(
    ("tensors", "arrays", "message"),
    [
        (PAIR, {"x": np.zeros(2, F32)}, "input 'y' is missing; expected float32 (n)"),
        (PAIR, {"x": np.zeros(2, F32), "z": 1}, "unknown input 'z'; expected 'x', 'y'"),
        (
            PAIR,
            {"x": np.zeros(2), "y": np.zeros(2, F32)},
            "input 'x': found dtype float64; expected float32",
        ),
        (
            PAIR,
            {"x": np.zeros((2, 2), F32), "y": np.zeros(2, F32)},
            "input 'x': found 2 dimensions, (2, 2); expected 1, (n)",
        ),
        (
            IMAGE,
            {"image": np.zeros((1, 4, 9), np.uint8)},
            "input 'image': dimension 1 is 4; expected 3, as the spec is (batch, 3, any)",
        ),
        (
            PAIR,
            {"x": np.zeros(4, F32), "y": np.zeros(5, F32)},
            "input 'y': dimension 0 is 5; expected 4, because the symbol 'n' is 4 in"
            " dimension 0 of 'x'",
        ),
        (specs(("s", "string", [None])), {"s": np.array([b"a"])}, "found dtype bytes; expected s"),
        (specs(("s", "string", [None])), {"s": np.array([1, "a"], object)}, "found dtype Python"),
        (specs(("s", "string", [None])), {"s": np.ones(2)}, "found dtype float64; expected string"),
        (PAIR, {"x": [[1], [1, 2]], "y": 1}, "input 'x': found a list that is no array: "),
        (specs(("f", "float32", [])), {"f": np.array("a")}, "found dtype string; expected float32"),
    ],
)
def test_what_does_not_fit_is_named(
    tensors: list[ingot.TensorSpec], arrays: dict[str, object], message: str
) -> None:
    with pytest.raises(ingot.InputError, match=re.escape(message)) as caught:
        check(tensors, **arrays)
    assert caught.value.exit_code == 5
    assert caught.value.message.startswith("model.ingot: ")


def test_a_wrong_dtype_names_the_cast_to_use() -> None:
    with pytest.raises(ingot.InputError) as caught:
        check(PAIR, x=np.zeros(2), y=np.zeros(2, F32))
    assert caught.value.hint == "cast it first: x.astype('float32')"


def test_a_misspelled_input_names_the_nearest() -> None:
    with pytest.raises(ingot.InputError) as caught:
        check(IMAGE, imgae=np.zeros((1, 3, 9), np.uint8))
    assert caught.value.hint == "did you mean 'image'?"


def test_an_optional_input_may_be_missing() -> None:
    tensors = specs(("x", "float32", ["n"]), ("y", "float32", ["n"]), optional="y")
    assert list(check(tensors, x=np.zeros(2, F32))) == ["x"]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0,), F32),
        np.zeros((4, 2), F32)[:, 0],
        np.zeros(4, F32)[::-1],
        np.zeros(4, ">f4"),
    ],
    ids=["empty", "strided", "reversed", "big-endian"],
)
def test_unusual_arrays_fit(array: np.ndarray) -> None:
    found = check(PAIR, x=array, y=array)
    assert found["x"].shape == array.shape
    assert found["x"].dtype == F32


def test_scalars_bool_and_float16_fit() -> None:
    tensors = specs(("s", "float16", []), ("b", "bool", [None]))
    found = check(tensors, s=np.float16(2), b=np.array([True]))
    assert found["s"].shape == ()
    assert found["b"].dtype == np.bool_


def test_strings_come_as_unicode_and_the_callers_data_is_not_changed() -> None:
    given = {"s": np.array(["a", "bcd"], object)}
    found = TensorChecker(specs(("s", "string", ["n"])), "input", "m")(given)
    assert found["s"].dtype.kind == "U"
    assert given["s"].dtype == object


def test_symbols_of_inputs_and_outputs_are_separate(tmp_path: Path) -> None:
    """The output's n may differ from the input's n."""
    write(
        tmp_path / "code" / "main.py",
        """
        import numpy as np

        def get_model(data_root):
            def model(x):
                return {"out": np.concatenate([x, x])}

            return model
        """,
    )
    ingot.create_python_package(
        tmp_path / "double",
        "double",
        [{"name": "x", "dtype": "float32", "shape": ["n"]}],
        [{"name": "out", "dtype": "float32", "shape": ["n"]}],
        code_path_spec=[{"python_root": tmp_path / "code", "dirs_to_package": [""]}],
        entrypoint_package="main",
        entrypoint="get_model",
    )
    with ingot.load(tmp_path / "double", trust_code=True) as model:
        assert model.infer({"x": np.ones(3, F32)})["out"].shape == (6,)


@pytest.fixture(scope="module")
def addition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_add(tmp_path_factory.mktemp("onnx") / "add.onnx")


def test_a_requested_output_that_does_not_exist(addition: Path) -> None:
    with (
        ingot.load(addition) as model,
        pytest.raises(ingot.InputError, match="requested the output 'otu'; the model has 'out'"),
    ):
        model.infer({"x": np.ones(2, F32), "y": np.ones(2, F32)}, ["otu"])


def test_checks_can_be_switched_off(addition: Path) -> None:
    with ingot.load(addition, check=False) as model:
        with pytest.raises(ingot.ModelError, match="the model failed"):
            model.infer({"x": np.ones(2), "y": np.ones(2)})
        assert model.infer({"x": np.ones(2, F32), "y": np.ones(2, F32)})["out"].tolist() == [2, 2]


def test_a_closed_model_says_so(addition: Path) -> None:
    model = ingot.load(addition)
    model.close()
    with pytest.raises(ingot.InputError, match="the model is closed"):
        model.infer({"x": np.ones(2, F32), "y": np.ones(2, F32)})


def test_an_output_that_differs_from_its_spec_is_named(tmp_path: Path) -> None:
    write(
        tmp_path / "code" / "main.py",
        """
        def get_model(data_root):
            return lambda x: {"out": x.astype("float64")}
        """,
    )
    with pytest.raises(ingot.InputError, match="output 'out': found dtype float64; expected float"):
        ingot.create_python_package(
            tmp_path / "wrong",
            "wrong",
            [{"name": "x", "dtype": "float32", "shape": ["n"]}],
            [{"name": "out", "dtype": "float32", "shape": ["n"]}],
            code_path_spec=[{"python_root": tmp_path / "code", "dirs_to_package": [""]}],
            entrypoint_package="main",
            entrypoint="get_model",
            test_input_data={"x": np.ones(3, F32)},
        )
    assert not (tmp_path / "wrong").exists()
