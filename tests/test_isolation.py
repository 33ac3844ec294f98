"""A model in worker processes gives what it gives in this process: outputs, types and errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isolation_models import identity, inputs, moods, nothing_left, python_model, same
from models import INPUTS, onnx_add, python_add, torch_scale, torchscript_add, write

import ingot
from ingot.specs.dtypes import DTYPES, numpy_dtype


def savedmodel_add(folder: Path) -> Path:
    import tensorflow as tf

    class Add(tf.Module):
        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.float32, name) for name in ("x", "y")]
        )
        def __call__(self, x, y):
            return {"out": x + y}

    model = Add()
    tf.saved_model.save(model, str(folder / "saved"), signatures=model.__call__)
    return folder / "saved"


def keras_add(folder: Path) -> Path:
    import keras

    x, y = (keras.Input((), name=name) for name in ("x", "y"))
    out = keras.layers.Add(name="out")([x, y])
    keras.Model({"x": x, "y": y}, {"out": out}).save(folder / "add.keras")
    return folder / "add.keras"


def packaged_onnx(folder: Path) -> Path:
    onnx_add(folder / "add.onnx")
    spec = write(
        folder / "add.yaml",
        "name: add\nmodel: {framework: onnx, file: add.onnx}\n"
        "inputs:\n  - {name: x, dtype: float32, shape: [n]}\n"
        "  - {name: y, dtype: float32, shape: [n]}\n"
        "outputs:\n  - {name: out, dtype: float32, shape: [n]}\n",
    )
    return ingot.package(spec, folder / "add.ingot").path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "onnx": lambda folder: onnx_add(folder / "add.onnx"),
    "torchscript": lambda folder: torchscript_add(folder / "add.pt"),
    "torch": torch_scale,
    "python": python_add,
    "package": packaged_onnx,
    "tensorflow": savedmodel_add,
    "keras": keras_add,
}
SLOW = ("tensorflow", "keras")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in MAKERS],
)
def test_every_framework_gives_the_same(kind: str, tmp_path: Path) -> None:
    path = MAKERS[kind](tmp_path)
    with ingot.load(path) as here:
        expected = here.infer(INPUTS)
        with nothing_left(), ingot.load(path, isolate=True, start_timeout=600) as there:
            assert (there.name, there.platform) == (here.name, here.platform)
            assert (there.inputs, there.outputs) == (here.inputs, here.outputs)
            assert there.framework_version == here.framework_version
            assert there.worker_pids != [os.getpid()]
            assert here.worker_pids == []
            for count in (5, 0, 70_000, 5):
                arrays = {name: np.resize(array, count) for name, array in INPUTS.items()}
                same(there.infer(arrays), here.infer(arrays))
            same(there.infer(INPUTS, ["out"]), expected)


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """One model in this process and in a worker."""
    path = moods(tmp_path_factory.mktemp("moods"))
    with ingot.load(path) as here, ingot.load(path, isolate=True) as there:
        yield here, there


@pytest.mark.parametrize(
    ("arrays", "outputs"),
    [
        ({"x": np.zeros(2, np.float32)}, None),
        ({**inputs(), "z": np.zeros(2)}, None),
        ({**inputs(), "x": np.zeros(2)}, None),
        ({**inputs(), "x": np.zeros((2, 2), np.float32)}, None),
        ({**inputs(), "x": [1, "a"]}, None),
        ({**inputs(), "how": np.array(b"sleep")}, None),
        (inputs("raise:no luck"), None),
        (inputs("raise:Grüße \N{SNOWMAN}, 'quoted'\nsecond line"), None),
        (inputs("raise:a file named \udcff"), None),
        (inputs("wrong"), None),
        (inputs(), ["outt"]),
        (inputs(), []),
        (inputs(), "out"),
    ],
)
def test_errors_are_the_same(moody: tuple, arrays: dict, outputs: object) -> None:
    here, there = moody
    pid = there.worker_pids
    with pytest.raises(ingot.IngotError) as expected:
        here.infer(arrays, outputs)
    with pytest.raises(ingot.IngotError) as found:
        there.infer(arrays, outputs)
    assert type(found.value) is type(expected.value)
    assert found.value.message == expected.value.message
    assert found.value.hint == expected.value.hint
    same({"out": there.infer(inputs())["out"]}, {"out": inputs()["x"] + 1})
    assert there.worker_pids == pid, "an error of the model is no reason to end its worker"


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "string"])
def test_every_type_and_layout(dtype: str, check: bool, tmp_path: Path) -> None:
    kind = numpy_dtype(dtype)
    raw = np.random.default_rng(3).integers(0, 2 if dtype == "bool" else 100, (6, 4, 10))
    full = np.asarray(raw, np.float32).astype(kind)
    big = np.repeat(full, 400, axis=0)
    variants = {
        "plain": full,
        "large": big,
        "transposed": full.T,
        "strided": full[::2, 1:3, ::-3],
        "broadcast": np.broadcast_to(full[0, :1], (3, 5, 10)),
        "fortran": np.asfortranarray(full),
        "empty": full[:, :0],
        "read-only": full.copy(),
        "misaligned": np.frombuffer(b"\0" + full.tobytes(), np.uint8)[1:]
        .view(kind)
        .reshape(full.shape),
    }
    variants["read-only"].flags.writeable = False
    if kind.itemsize > 1 and kind.kind in "biufc":
        variants["big-endian"] = full.astype(kind.newbyteorder(">"))
    with ingot.load(identity(tmp_path, dtype), isolate=True, check=check) as model:
        for array in variants.values():
            scalar = full[1, 2, 3].reshape(())
            found = model.infer({"x": array, "scalar": scalar})
            same(found, {"x": array.astype(kind), "scalar": scalar})


TEXTS = st.text(st.characters(exclude_characters="\0"), max_size=12)


def test_strings(tmp_path: Path) -> None:
    with ingot.load(identity(tmp_path, "string"), isolate=True) as model:

        @settings(deadline=None, max_examples=60)
        @given(st.lists(TEXTS, min_size=1, max_size=20))
        def check(texts: list[str]) -> None:
            for array in (np.array(texts), np.array(texts, object), np.array(texts)[::-1]):
                given = {"x": array.reshape(1, -1, 1), "scalar": array[:1].reshape(())}
                found = model.infer(given)
                assert found["x"].ravel().tolist() == array.tolist()
                assert found["scalar"].item() == array.tolist()[0]

        check()
        for array in (
            np.array([[["Grüße \N{SNOWMAN} \U0001f600"]]]),
            np.array([[["", "a"], ["é" * 5000, "\t\n"]]]),
            np.array([[["", ""]]]),
            np.empty((0, 3, 1), "U1"),
            np.array([[["x" * 100_000] * 30]]),
        ):
            found = model.infer({"x": array, "scalar": np.array("")})["x"]
            assert found.dtype.kind == "U"
            assert found.shape == array.shape
            assert found.tolist() == array.tolist()


def test_many_tensors_of_many_types(tmp_path: Path) -> None:
    names = {f"{dtype}_{i}": dtype for dtype in DTYPES for i in range(6)}
    text = "".join(
        f"  - {{name: {name}, dtype: {dtype}, shape: [n]}}\n" for name, dtype in names.items()
    )
    code = "def build():\n    return lambda **x: x\n"
    path = python_model(tmp_path, code, f"inputs:\n{text}outputs:\n{text}")
    with ingot.load(path, isolate=True) as model:
        for count in (3, 0, 5000):
            arrays = {
                name: np.array([f"{name}{i}" for i in range(count)], np.str_)
                if dtype == "string"
                else (np.arange(count) % 2).astype(np.float32).astype(numpy_dtype(dtype))
                for name, dtype in names.items()
            }
            found = model.infer(arrays)
            assert list(found) == list(names)
            for name, array in arrays.items():
                assert found[name].dtype.kind == array.dtype.kind
                assert found[name].tolist() == array.tolist()
            some = ["string_3", "bfloat16_0", "bool_5"]
            assert list(model.infer(arrays, some)) == some
        lent = {
            name: model.allocate(name, (7,)) for name, dtype in names.items() if dtype != "string"
        }
        given = {name: lent.get(name, np.array(["a"] * 7)) for name in names}
        assert list(model.infer(given)) == list(names)  # more blocks than one message may carry


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    with ingot.load(python_add(tmp_path), isolate=True) as model:
        for x in (np.arange(4, dtype=np.float32), np.arange(90_000, dtype=np.float32)):
            same(model.infer({"x": x, "y": x}), {"out": 2 * x})
        x = model.allocate("x", (5,))
        x[:] = 3
        same(model.infer({"x": x, "y": x}), {"out": 2 * x})


def test_sizes_that_depend_on_values(tmp_path: Path) -> None:
    """ONNX Runtime writes into shared memory once it knows the shapes: which may change."""
    from onnx import TensorProto, helper, save

    node = helper.make_node("NonZero", ["x"], ["out"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    out = helper.make_tensor_value_info("out", TensorProto.INT64, [1, "m"])
    graph = helper.make_graph([node], "nonzero", [x], [out])
    opset = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "nonzero.onnx")
    with ingot.load(tmp_path / "nonzero.onnx", isolate=True) as model:
        kept = []
        for count in (90_000, 90_000, 50_000, 100_000, 0, 1, 90_000):
            array = np.zeros(100_000, np.float32)
            array[:count] = 1
            kept.append(model.infer({"x": array})["out"])
            assert kept[-1].tolist() == [list(range(count))]
        assert kept[0].tolist() == kept[-1].tolist() == [list(range(90_000))]


def test_options_without_isolate_are_refused(tmp_path: Path) -> None:
    path = onnx_add(tmp_path / "add.onnx")
    for options in ({"workers": 2}, {"python": "python3"}, {"timeout": 1.0}, {"cpus": "0"}):
        with pytest.raises(ingot.UsageError, match="without isolate"):
            ingot.load(path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: found 0; expected 1 or more"),
        ({"timeout": 0}, "timeout: found 0; expected more than 0 seconds"),
        ({"timeout": float("nan")}, "timeout: found nan"),
        ({"start_timeout": -1}, "start_timeout: found -1"),
        ({"memory_limit": "much"}, "memory_limit: found 'much'; expected a size"),
        ({"memory_limit": 0}, "memory_limit: found 0; expected a size"),
        ({"cpus": "0-"}, "cpus: found '0-'; expected a list"),
        ({"cpus": "70000"}, "cpus: found '70000'; expected a list"),
        ({"cpus": [65_000]}, "cpus: found 65000; expected some of"),
        ({"cpus": []}, r"cpus: found \[\]; expected"),
        ({"install_lock": True}, "install_lock: found no package"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    path = onnx_add(tmp_path / "add.onnx")
    with nothing_left(), pytest.raises(ingot.UsageError, match=message):
        ingot.load(path, isolate=True, **options)
