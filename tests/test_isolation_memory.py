"""Tensors in shared memory: allocated ones are not copied, outputs are never overwritten."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from isolation_models import identity, inputs, moods, nothing_left, python_model
from models import onnx_add

import ingot

ADDRESSES = """
import numpy as np

kept = []


def build():
    return model


def model(x, keep):
    \"\"\"Return where the input lies, its first value, and those that were kept before.\"\"\"
    old = [array.flat[0] for array in kept]
    if keep:
        kept.append(x[...])
    return {
        "address": np.uint64(x.__array_interface__["data"][0]),
        "first": x[:1].copy(),
        "kept": np.array(old, np.float32),
    }
"""
ADDRESSES_TENSORS = """
inputs:
  - {name: x, dtype: float32, shape: [n]}
  - {name: keep, dtype: bool, shape: []}
outputs:
  - {name: address, dtype: uint64, shape: []}
  - {name: first, dtype: float32, shape: [1]}
  - {name: kept, dtype: float32, shape: [null]}
"""
NO, YES = np.array(False), np.array(True)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("addresses")
    return python_model(folder, ADDRESSES, ADDRESSES_TENSORS)


@pytest.fixture
def model(spec: Path) -> Iterator[ingot.LoadedModel]:
    with ingot.load(spec, isolate=True) as loaded:
        yield loaded


def test_allocated_inputs_are_not_copied(model: ingot.LoadedModel) -> None:
    first, second = (model.allocate("x", (50_000,)) for _ in range(2))
    assert not first.any()
    assert first.dtype == np.float32
    assert first.flags.writeable
    assert first.flags.c_contiguous
    assert first.ctypes.data % 64 == 0
    seen = set()
    for value in range(5):
        for array in (first, second):
            array[:] = value
            found = model.infer({"x": array, "keep": NO})
            assert found["first"] == value
            seen.add(int(found["address"]))
    assert len(seen) == 2, "each one lies at one place in the worker, call after call"
    # Views that lie where a tensor may start are taken as they are, the others copied.
    at = int(model.infer({"x": first, "keep": NO})["address"])
    assert int(model.infer({"x": first[16:], "keep": NO})["address"]) == at + 64
    first[:] = np.arange(50_000)
    for view in (first[1:], first[::2], first[::-1], first[7:9]):
        found = model.infer({"x": view, "keep": NO})
        assert not at <= int(found["address"]) < at + first.nbytes
        assert found["first"] == view[0]


def test_an_allocated_array_outlives_the_model_and_its_workers(spec: Path) -> None:
    with nothing_left():
        with ingot.load(spec, isolate=True) as model:
            array = model.allocate("x", (1000,))
            array[:] = 7
            model.infer({"x": array, "keep": NO})
            other = model.allocate("x", (3,))
        array += 1
        other += 1
        assert (array == 8).all()
        with ingot.load(spec, isolate=True) as model:  # another model's array is copied
            assert model.infer({"x": array, "keep": NO})["first"] == 8
            with ingot.load(spec) as here:
                assert here.infer({"x": array, "keep": NO})["first"] == 8
        del array, other


def test_an_output_may_be_the_next_input(tmp_path: Path) -> None:
    with ingot.load(onnx_add(tmp_path / "add.onnx"), isolate=True) as model:
        x = np.ones(100_000, np.float32)
        for step in range(12):
            x = model.infer({"x": x, "y": x})["out"]
            assert (x == 2 ** (step + 1)).all()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("z", (3,), "unknown input 'z'; expected 'x', 'how'"),
        ("how", (), "input 'how': cannot allocate"),
        ("x", (2, 3), r"input 'x': found the shape \(2, 3\); expected"),
        ("x", (-1,), r"input 'x': found the shape \(-1\); expected"),
    ],
)
def test_impossible_arrays_are_refused(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    path = moods(tmp_path)
    for isolate in (False, True):
        with ingot.load(path, isolate=isolate) as model:
            with pytest.raises(ingot.InputError, match=message):
                model.allocate(name, shape)
            assert model.allocate("x", (0,)).shape == (0,)
        with pytest.raises(ingot.InputError, match="the model is closed"):
            model.allocate("x", (3,))


def test_every_type_can_be_allocated(tmp_path: Path) -> None:
    from ingot.specs.dtypes import DTYPES, numpy_dtype

    for dtype in DTYPES:
        if dtype != "string":
            with ingot.load(identity(tmp_path, dtype), isolate=True) as model:
                array = model.allocate("x", (2, 3, 5))
                assert array.dtype == numpy_dtype(dtype)
                array[:] = np.ones((), numpy_dtype(dtype))
                scalar = model.allocate("scalar", ())
                scalar[...] = array[0, 0, 0]
                found = model.infer({"x": array, "scalar": scalar})
                assert found["x"].tobytes() == array.tobytes()
                assert found["scalar"].tobytes() == scalar.tobytes()


@pytest.mark.parametrize("count", [10, 100_000])
def test_a_model_that_keeps_its_inputs_sees_what_it_got(
    count: int, model: ingot.LoadedModel
) -> None:
    for value in range(40):
        x = np.full(count, value, np.float32)
        found = model.infer({"x": x, "keep": YES if value % 3 == 0 else NO})
        assert found["kept"].tolist() == list(range(0, value, 3))
        assert found["first"] == value


def test_what_is_kept_by_a_failed_call_is_not_overwritten(tmp_path: Path) -> None:
    code = """
    import numpy as np
    kept = []
    def build():
        return model
    def model(x):
        if x[0] < 0:
            kept.append(x)
            raise ValueError("negative")
        return {"out": np.array([array[1] for array in kept], np.float32)}
    """
    tensors = """
inputs: [{name: x, dtype: float32, shape: [n]}]
outputs: [{name: out, dtype: float32, shape: [null]}]
"""
    with ingot.load(python_model(tmp_path, code, tensors), isolate=True) as model:
        for value in range(20):
            with pytest.raises(ingot.ModelError, match="negative"):
                model.infer({"x": np.array([-1, value], np.float32)})
            kept = model.infer({"x": np.array([1, 99], np.float32)})["out"]
            assert kept.tolist() == list(range(value + 1))


@pytest.mark.parametrize("kind", ["python", "onnx"])
@pytest.mark.parametrize("seed", range(3))
def test_outputs_are_not_overwritten_while_they_are_held(
    kind: str, seed: int, tmp_path: Path
) -> None:
    """Outputs, and views of them, are held and let go in a random pattern."""
    rng = random.Random(seed)
    path = moods(tmp_path) if kind == "python" else onnx_add(tmp_path / "add.onnx")
    held: list[tuple[np.ndarray, float]] = []
    with nothing_left():
        with ingot.load(path, isolate=True, workers=2) as model:
            for value in range(150):
                count = rng.choice((3, 3000, 20_000, 20_001, 90_000, 400_000))
                if kind == "python":
                    arrays = {"x": np.full(count, value, np.float32), "how": np.array("")}
                else:
                    x = np.full(count, value, np.float32)
                    arrays = {"x": x, "y": np.ones(count, np.float32)}
                out = model.infer(arrays)["out"]
                assert (out == value + 1).all()
                if rng.random() < 0.6:
                    start = rng.randrange(count)
                    held.append((out[start:] if rng.random() < 0.5 else out, value + 1))
                del out
                if rng.random() < 0.1:
                    with suppress(ProcessLookupError, IndexError):
                        os.kill(rng.choice(model.worker_pids), signal.SIGKILL)
                while held and rng.random() < 0.4:
                    array, expected = held.pop(rng.randrange(len(held)))
                    assert (array == expected).all()
                    del array
                assert all((array == expected).all() for array, expected in held[-5:])
        assert held
        assert all((array == expected).all() for array, expected in held)
        held[-1][0][:] = 5  # they are the caller's own
        held.clear()


def test_the_identity_returns_an_array_of_its_own(tmp_path: Path) -> None:
    with ingot.load(identity(tmp_path, "float32"), isolate=True) as model:
        x = model.allocate("x", (1, 1, 40_000))
        scalar = np.zeros((), np.float32)
        x[:] = 1
        first = model.infer({"x": x, "scalar": scalar})["x"]
        x[:] = 2
        second = model.infer({"x": x, "scalar": scalar})["x"]
        first[:] += 10
        assert [set(array.flat) for array in (first, second, x)] == [{11}, {2}, {2}]


def test_a_model_that_writes_to_its_input_changes_a_copy(tmp_path: Path) -> None:
    with ingot.load(moods(tmp_path), isolate=True) as model:
        x = model.allocate("x", (50_000,))
        given = {"x": x, "how": np.array("write")}
        for _ in range(3):
            assert not model.infer(given)["out"].any()  # -1, and 1 added
            assert not x.any()


def test_large_outputs(tmp_path: Path) -> None:
    with ingot.load(moods(tmp_path), isolate=True) as model:
        out = model.infer(inputs("grow:50000", 1000))["out"]
        assert out.shape == (50_000_000,)
        assert (out.reshape(1000, -1) == np.arange(1000)[:, None]).all()
