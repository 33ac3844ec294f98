"""Neuropod's tutorial and overview run with only the import changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ingot
from ingot.compat import neuropod

ADDITION = {
    "input_spec": [
        {"name": "x", "dtype": "float32", "shape": ("length",)},
        {"name": "y", "dtype": "float32", "shape": ("length",)},
    ],
    "output_spec": [{"name": "out", "dtype": "float32", "shape": (None,)}],
    "test_input_data": {
        "x": np.arange(5, dtype=np.float32),
        "y": np.arange(5, dtype=np.float32),
    },
    # Of type int64, as in the tutorial: golden values are compared by value.
    "test_expected_out": {"out": np.arange(5) + np.arange(5)},
}
NODES = {"x": "scope/left:0", "y": "scope/right:0", "out": "scope/sum:0"}

ADD_ARRAYS = """
def load(data_root):
    return lambda x, y: {"out": x + y}
"""

ADD_MODULE = """
import torch

class Addition(torch.nn.Module):
    def forward(self, x, y):
        return {"out": x + y}

def load(data_root):
    return Addition()
"""

DETECTOR = """
import numpy as np

CLASSES = ["vehicle", "person", "motorcycle", "bicycle"]

def detector(surplus):
    def detect(image):
        found = int(image[0, 0, 0])
        return {
            "boxes": np.full((found, 4), image.shape[1], dtype=np.float32),
            "supported_object_classes": np.array(CLASSES),
            "object_class_probability": np.full((found + surplus, 4), 0.25, dtype=np.float32),
        }
    return detect

def load(data_root):
    return detector(0)

def load_inconsistent(data_root):
    return detector(1)
"""

DETECTION = {
    "input_spec": [{"name": "image", "dtype": "uint8", "shape": (1200, 1920, 3)}],
    "output_spec": [
        {"name": "boxes", "dtype": "float32", "shape": ("num_detections", 4)},
        {"name": "supported_object_classes", "dtype": "string", "shape": ("num_classes",)},
        {
            "name": "object_class_probability",
            "dtype": "float32",
            "shape": ("num_detections", "num_classes"),
        },
    ],
}


def code(folder: Path, source: str, entrypoint: str = "load") -> dict[str, Any]:
    """Write ``main.py`` and return the arguments that package it."""
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(source, encoding="utf-8")
    return {
        "data_paths": [],
        "code_path_spec": [{"python_root": str(folder), "dirs_to_package": [""]}],
        "entrypoint_package": "main",
        "entrypoint": entrypoint,
    }


def addition_graph() -> Any:
    v1 = pytest.importorskip("tensorflow").compat.v1
    graph = v1.Graph()
    with graph.as_default(), v1.name_scope("scope"):
        left = v1.placeholder(v1.float32, name="left")
        right = v1.placeholder(v1.float32, name="right")
        v1.add(left, right, name="sum")
    return graph.as_graph_def()


def from_graph_def(path: Path, work: Path, **arguments: Any) -> None:
    neuropod.create_tensorflow_neuropod(
        neuropod_path=path,
        model_name="addition_model",
        graph_def=addition_graph(),
        node_name_mapping=NODES,
        **{**ADDITION, **arguments},
    )


def from_frozen_graph(path: Path, work: Path, **arguments: Any) -> None:
    work.mkdir()
    frozen = work / "frozen.pb"
    frozen.write_bytes(addition_graph().SerializeToString())
    neuropod.create_tensorflow_neuropod(
        neuropod_path=str(path),
        model_name="addition_model",
        frozen_graph_path=str(frozen),
        node_name_mapping=NODES,
        **{**ADDITION, **arguments},
    )


def from_pytorch(path: Path, work: Path, **arguments: Any) -> None:
    pytest.importorskip("torch")
    neuropod.create_pytorch_neuropod(
        neuropod_path=path,
        model_name="addition_model",
        **code(work / "code", ADD_MODULE),
        **{**ADDITION, **arguments},
    )


def from_torchscript(path: Path, work: Path, **arguments: Any) -> None:
    torch = pytest.importorskip("torch")

    class Addition(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x, y):  # type: ignore[no-untyped-def]
            return {"out": x + y}

    neuropod.create_torchscript_neuropod(
        neuropod_path=path,
        model_name="addition_model",
        module=torch.jit.script(Addition()),
        **{**ADDITION, **arguments},
    )


def from_keras(path: Path, work: Path, **arguments: Any) -> None:
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    left = keras.Input(batch_shape=(None,), name="x")
    right = keras.Input(batch_shape=(None,), name="y")
    total = keras.layers.Add(name="out")([left, right])
    neuropod.create_keras_neuropod(
        neuropod_path=path,
        model_name="addition_model",
        sess=object(),
        model=keras.Model(inputs=[left, right], outputs=[total]),
        **{**ADDITION, **arguments},
    )


def from_python(path: Path, work: Path, **arguments: Any) -> None:
    neuropod.create_python_neuropod(
        neuropod_path=path,
        model_name="addition_model",
        **code(work / "code", ADD_ARRAYS),
        **{**ADDITION, **arguments},
    )


PACKAGERS: dict[str, Callable[..., None]] = {
    "graph_def": from_graph_def,
    "frozen_graph": from_frozen_graph,
    "pytorch": from_pytorch,
    "torchscript": from_torchscript,
    "keras": from_keras,
    "python": from_python,
}
PLATFORMS = {
    "graph_def": "tensorflow",
    "frozen_graph": "tensorflow",
    "keras": "tensorflow",
    "torchscript": "torchscript",
    "pytorch": "python",
    "python": "python",
}


@pytest.fixture(scope="module", params=PACKAGERS)
def addition(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The addition model, packaged with each framework: its kind and its path."""
    folder = tmp_path_factory.mktemp("addition")
    path = folder / "package"
    PACKAGERS[request.param](path, folder / "work")
    return request.param, path


@pytest.fixture(scope="module")
def python_addition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python-addition")
    from_python(folder / "package", folder / "work")
    return folder / "package"


def test_the_tutorial_s_inference_with_int64_arrays(addition: tuple[str, Path]) -> None:
    kind, path = addition
    x, y = np.array([1, 2, 3, 4]), np.array([5, 6, 7, 8])
    with neuropod.load_neuropod(path) as model:
        results = model.infer({"x": x, "y": y})
        assert model.name == "addition_model"
        assert model.platform == PLATFORMS[kind]
        assert [spec["name"] for spec in model.inputs] == ["x", "y"]
        assert model.outputs == [{"name": "out", "dtype": "float32", "shape": [None]}]
    assert results["out"].dtype == np.float32
    assert results["out"].tolist() == [6, 8, 10, 12]
    assert x.dtype == np.int64


def test_it_carries_its_test_data_and_passes_load_and_test(addition: tuple[str, Path]) -> None:
    neuropod.load_and_test(addition[1])


def test_the_symbol_ties_both_inputs_together(python_addition: Path) -> None:
    with (
        neuropod.load_neuropod(python_addition) as model,
        pytest.raises(ingot.InputError, match=r"input 'y'.*dimension 0 is 3.*symbol 'length' is 2"),
    ):
        model.infer({"x": np.arange(2), "y": np.arange(3)})


@pytest.mark.parametrize(
    "values",
    [
        np.array([2**24 + 1]),
        np.array([2**63 - 1]),
        np.array([-(2**24) - 1], dtype=np.int32),
        np.array([2**64 - 1], dtype=np.uint64),
    ],
)
def test_integers_that_a_float32_rounds_are_refused(
    python_addition: Path, values: np.ndarray
) -> None:
    with (
        neuropod.load_neuropod(python_addition) as model,
        pytest.raises(ingot.InputError, match=r"input 'x': found dtype u?int.*expected float32"),
    ):
        model.infer({"x": values, "y": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    "values", [np.array([2**24]), np.array([-(2**63)]), np.array([2**63], np.uint64), [7]]
)
def test_integers_that_a_float32_holds_are_cast(python_addition: Path, values: Any) -> None:
    with neuropod.load_neuropod(python_addition) as model:
        out = model.infer({"x": values, "y": np.zeros(1, np.float32)})["out"]
    assert out.dtype == np.float32
    assert [int(value) for value in out] == [int(value) for value in values]


def test_nothing_else_is_cast(python_addition: Path, tmp_path: Path) -> None:
    with neuropod.load_neuropod(python_addition) as model:
        for values in (np.zeros(1, np.float64), np.zeros(1, np.bool_), np.array(["1"])):
            with pytest.raises(ingot.InputError, match="input 'x': found dtype"):
                model.infer({"x": values, "y": np.zeros(1, np.float32)})
    counts = {
        "input_spec": [{"name": "x", "dtype": "int64", "shape": (None,)}],
        "output_spec": [{"name": "out", "dtype": "int64", "shape": (None,)}],
    }
    source = "def load(data_root):\n    return lambda x: {'out': x}\n"
    path = tmp_path / "counts"
    neuropod.create_python_neuropod(path, "counts", **code(tmp_path / "code", source), **counts)
    with neuropod.load_neuropod(path) as model:
        assert model.infer({"x": np.array([1, 2])})["out"].tolist() == [1, 2]
        for values in (np.array([1.0, 2.0]), np.array([1, 2], np.int32)):
            with pytest.raises(ingot.InputError, match="expected int64"):
                model.infer({"x": values})


def test_outside_of_compat_integers_are_not_cast(python_addition: Path) -> None:
    with (
        ingot.load(python_addition, trust_code=True) as model,
        pytest.raises(ingot.InputError, match="found dtype int64; expected float32"),
    ):
        model.infer({"x": np.arange(2), "y": np.arange(2)})


def test_load_neuropod_trusts_code_and_load_does_not(python_addition: Path) -> None:
    with pytest.raises(ingot.UntrustedCodeError, match="runs its author's code"):
        ingot.load(python_addition)
    with neuropod.load_neuropod(python_addition) as model:
        assert model.platform == "python"


def test_a_model_is_usable_without_with_as_in_the_overview(python_addition: Path) -> None:
    model = neuropod.load_neuropod(str(python_addition))
    arrays = {"x": np.array([1, 2, 3, 4]), "y": np.array([5, 6, 7, 8])}
    assert model.infer(arrays)["out"].tolist() == [6, 8, 10, 12]
    assert list(model.infer(arrays, ["out"])) == ["out"]
    with pytest.raises(ingot.InputError, match="'sum'"):
        model.infer(arrays, ["sum"])
    model.close()
    with pytest.raises(ingot.InputError, match="closed"):
        model.infer(arrays)


@pytest.mark.parametrize("kind", ["torchscript", "python"])
def test_a_wrong_expected_output_is_a_value_error_and_leaves_nothing(
    kind: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match="largest absolute difference 1 at") as caught:
        PACKAGERS[kind](
            out / "package",
            tmp_path / "work",
            test_expected_out={"out": np.array([0, 2, 4, 6, 9])},
        )
    assert isinstance(caught.value, ingot.IngotError)
    assert caught.value.exit_code == 4
    assert list(out.iterdir()) == []


def test_an_unknown_keyword_is_refused_before_any_work(tmp_path: Path) -> None:
    for kind in ("python", "torchscript"):
        with pytest.raises(TypeError, match="persist_test_dat"):
            PACKAGERS[kind](tmp_path / "package", tmp_path / kind, persist_test_dat=False)
        assert not (tmp_path / "package").exists()


def test_integers_as_test_input_and_no_persisted_test_data(tmp_path: Path) -> None:
    path = tmp_path / "package"
    integers = {"x": np.arange(5), "y": np.arange(5)}
    from_python(path, tmp_path / "work", test_input_data=integers, persist_test_data=False)
    assert ingot.inspect(path)["golden"] is None
    with pytest.raises(ingot.UsageError, match="no golden data"):
        neuropod.load_and_test(path)


@pytest.mark.parametrize("as_zip", [True, False])
def test_package_as_zip(as_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "package"
    from_python(path, tmp_path / "work", package_as_zip=as_zip)
    assert path.is_file() == as_zip
    neuropod.load_and_test(path)


def test_load_and_test_raises_a_value_error_when_the_model_changed(tmp_path: Path) -> None:
    path = tmp_path / "package"
    from_python(path, tmp_path / "work", package_as_zip=False)
    code = ADD_ARRAYS.replace("x + y", "x - y")
    (path / "0/code/main.py").write_text(code, encoding="utf-8")
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["0/code/main.py"] = hashlib.sha256(code.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ValueError, match="output 'out': 4 of 5 values differ"):
        neuropod.load_and_test(path)


def test_randomify(tmp_path: Path) -> None:
    path = tmp_path / "random"
    neuropod.randomify_neuropod(path, DETECTION["input_spec"], DETECTION["output_spec"])
    image = np.zeros((1200, 1920, 3), np.uint8)
    with neuropod.load_neuropod(path) as model:
        first, second = model.infer({"image": image}), model.infer({"image": image})
    assert first["boxes"].shape[0] == first["object_class_probability"].shape[0]
    assert first["supported_object_classes"].dtype.kind == "U"
    for name, array in first.items():
        assert np.array_equal(array, second[name])


def image_with(detections: int) -> np.ndarray:
    image = np.zeros((1200, 1920, 3), np.uint8)
    image[0, 0, 0] = detections
    return image


def test_the_detection_problem_of_the_overview(tmp_path: Path) -> None:
    path = tmp_path / "detector"
    neuropod.create_python_neuropod(
        neuropod_path=path,
        model_name="detector",
        **code(tmp_path / "code", DETECTOR),
        **DETECTION,
        test_input_data={"image": image_with(2)},
        test_expected_out={
            "boxes": np.full((2, 4), 1920),
            "supported_object_classes": ["vehicle", "person", "motorcycle", "bicycle"],
            "object_class_probability": np.full((2, 4), 0.25),
        },
    )
    neuropod.load_and_test(path)
    with neuropod.load_neuropod(path) as model:
        for detections in (0, 3):
            found = model.infer({"image": image_with(detections)})
            assert found["boxes"].shape == (detections, 4)
            assert found["object_class_probability"].shape == (detections, 4)
            assert found["supported_object_classes"].tolist()[1] == "person"
        with pytest.raises(ingot.InputError, match=r"dimension 0 is 1199; expected 1200"):
            model.infer({"image": image_with(1)[1:]})


def test_detections_that_disagree_are_refused_naming_the_symbol(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = code(tmp_path / "code", DETECTOR, "load_inconsistent")
    symbol = r"'object_class_probability': dimension 0 is 3; expected 2.*'num_detections'"
    with pytest.raises(ingot.InputError, match=symbol):
        neuropod.create_python_neuropod(
            out / "detector",
            "detector",
            **arguments,
            **DETECTION,
            test_input_data={"image": image_with(2)},
        )
    assert list(out.iterdir()) == []
    neuropod.create_python_neuropod(out / "detector", "detector", **arguments, **DETECTION)
    with (
        neuropod.load_neuropod(out / "detector") as model,
        pytest.raises(ingot.InputError, match=symbol),
    ):
        model.infer({"image": image_with(2)})
