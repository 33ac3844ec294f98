"""Each adapter on real models: how inputs reach them, and how outputs get their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import EXPECTED, INPUT_SPEC, INPUTS, OUTPUT_SPEC, onnx_add, torch_scale, write

import ingot
from ingot.frameworks import LoadOptions, ModelSource, open_model
from ingot.frameworks.calling import name_outputs
from ingot.frameworks.entrypoints import CodeFolder

GOLDEN = {"test_input_data": INPUTS, "test_expected_out": EXPECTED}
F32 = np.float32


def run(path: Path, **inputs: object) -> dict[str, np.ndarray]:
    with ingot.load(path, trust_code=True) as model:
        return model.infer(inputs)


# --- outputs ---------------------------------------------------------------------------------


def test_outputs_by_name() -> None:
    from collections import namedtuple

    pair = namedtuple("pair", ["b", "a"])
    assert name_outputs({"a": 1, "b": 2}, ["a", "b"], "m") == {"a": 1, "b": 2}
    assert name_outputs((1, 2), ["a", "b"], "m") == {"a": 1, "b": 2}
    assert name_outputs(pair(b=2, a=1), ["a", "b"], "m") == {"a": 1, "b": 2}
    assert name_outputs(({"a": 1}, {"b": 2}), ["a", "b"], "m") == {"a": 1, "b": 2}
    assert name_outputs(1, ["a"], "m") == {"a": 1}
    assert name_outputs(["x", "y"], ["words"], "m") == {"words": ["x", "y"]}
    assert name_outputs((1, 2), [], "m") == {"output_0": 1, "output_1": 2}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned None; expected 2 outputs: a, b"),
        (1, "one bare int; expected 2 outputs: a, b"),
        ((1, 2, 3), "returned 3 values; expected 2 outputs: a, b"),
        (({"a": 1}, {"a": 2}), "returned the output 'a' twice"),
    ],
)
def test_outputs_without_a_name(returned: object, message: str) -> None:
    with pytest.raises(ingot.ModelError, match=message):
        name_outputs(returned, ["a", "b"], "m")


# --- torchscript -----------------------------------------------------------------------------


def scripted(folder: Path, module: object) -> Path:
    import torch

    path = folder / "model.pt"
    torch.jit.script(module).save(str(path))
    return path


NAMED_TUPLE = """
from typing import NamedTuple

import torch


class Pair(NamedTuple):
    total: torch.Tensor
    double: torch.Tensor


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return Pair(x.sum(), 2 * x)
"""


def test_torchscript_outputs(tmp_path: Path) -> None:
    import torch

    write(tmp_path / "named.py", NAMED_TUPLE)
    named = CodeFolder(tmp_path, "named").callable("named:Named")

    class Dicts(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            return {"total": x.sum()}, {"double": 2 * x}

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            return {"total": x.sum()}, {"total": 2 * x}

    inputs = [{"name": "x", "dtype": "float32", "shape": ["n"]}]
    outputs = [
        {"name": "double", "dtype": "float32", "shape": ["n"]},
        {"name": "total", "dtype": "float32", "shape": []},
    ]
    for module in (named(), Dicts()):
        path = tmp_path / type(module).__name__
        ingot.create_torchscript_package(
            path, "m", inputs, outputs, module_path=scripted(tmp_path, module)
        )
        found = run(path, x=np.array([1, 2], F32))
        assert list(found) == ["double", "total"]
        assert found["double"].tolist() == [2, 4]
        assert found["total"] == 3
    with pytest.raises(ingot.ModelError, match="returned the output 'total' twice"):
        ingot.create_torchscript_package(
            tmp_path / "twice",
            "m",
            inputs,
            outputs,
            module_path=scripted(tmp_path, Twice()),
            test_input_data={"x": np.ones(2, F32)},
        )


def test_torchscript_strings_and_a_bare_tensor(tmp_path: Path) -> None:
    import torch

    class Lengths(torch.nn.Module):
        def forward(self, words: list[str]) -> torch.Tensor:
            return torch.tensor([len(word) for word in words])

    ingot.create_torchscript_package(
        tmp_path / "lengths",
        "lengths",
        [{"name": "words", "dtype": "string", "shape": ["n"]}],
        [{"name": "lengths", "dtype": "int64", "shape": ["n"]}],
        module_path=scripted(tmp_path, Lengths()),
    )
    words = np.array(["a", "", "größer"])
    # TorchScript counts bytes.
    assert run(tmp_path / "lengths", words=words)["lengths"].tolist() == [1, 0, 8]


# --- torch -----------------------------------------------------------------------------------


def test_torch_code_is_rebuilt_as_a_module(tmp_path: Path) -> None:
    import torch

    result = ingot.package(torch_scale(tmp_path), tmp_path / "scale.ingot")
    assert result.platform == "python"
    with ingot.load(result.path, trust_code=True) as model:
        assert isinstance(model.native, torch.nn.Module)
        assert not model.native.training
        assert model.native.scale.factor.item() == 3
        out = model.infer({"x": np.ones(2, F32), "y": np.ones(2, F32)})["out"]
        assert out.tolist() == [4, 4]


@pytest.mark.parametrize("form", ["plain", "state_dict", "missing", "unknown", "shape"])
def test_torch_checkpoints(form: str, tmp_path: Path) -> None:
    import torch

    spec = torch_scale(tmp_path)
    state = {"scale.factor": torch.tensor(5.0)}
    contents = {
        "plain": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "missing": {},
        "unknown": {**state, "scale.bias": torch.tensor(0.0)},
        "shape": {"scale.factor": torch.ones(2)},
    }
    torch.save(contents[form], tmp_path / "net.pt")
    errors = {
        "missing": "the file lacks tensor 'scale.factor'",
        "unknown": "the file has the unknown tensor 'scale.bias'",
        "shape": "weights net.pt do not fit: size mismatch for scale.factor",
    }
    arguments = {"overrides": ["model.weights=net.pt"], "output": tmp_path / "out.ingot"}
    if form in errors:
        with pytest.raises(ingot.ModelError, match=errors[form]):
            ingot.package(spec, **arguments)
        return
    path = ingot.package(spec, **arguments).path
    assert run(path, x=np.ones(1, F32), y=np.ones(1, F32))["out"] == 6


def test_kwargs_and_positional_arguments(tmp_path: Path) -> None:
    write(
        tmp_path / "net.py",
        """
        import torch

        class Net(torch.nn.Module):
            def __init__(self, factor):
                super().__init__()
                self.factor = factor

            def forward(self, first, second):
                return first - self.factor * second

        def build(factor=1):
            return Net(factor)
        """,
    )
    spec = write(
        tmp_path / "net.yaml",
        """
        name: net
        model: {framework: torch, entrypoint: net:build, kwargs: {factor: 10}}
        inputs:
          - {name: x, dtype: float32, shape: [n]}
          - {name: y, dtype: float32, shape: [n]}
        outputs:
          - {name: out, dtype: float32, shape: [n]}
        """,
    )
    path = ingot.package(spec, tmp_path / "net.ingot").path
    # By position in the spec's order, whatever the order of the caller's dict.
    assert run(path, y=np.ones(1, F32), x=np.full(1, 5, F32))["out"] == -5


def test_bfloat16(tmp_path: Path) -> None:
    import ml_dtypes

    write(
        tmp_path / "net.py",
        """
        import torch

        class Net(torch.nn.Module):
            def forward(self, x):
                assert x.dtype is torch.bfloat16
                return 2 * x

        def build():
            return Net()
        """,
    )
    np.savez(tmp_path / "in.npz", x=np.array([1, 2.5], ml_dtypes.bfloat16))
    spec = write(
        tmp_path / "net.yaml",
        """
        name: net
        model: {framework: torch, entrypoint: net:build}
        inputs: [{name: x, dtype: bfloat16, shape: [n]}]
        outputs: [{name: out, dtype: bfloat16, shape: [n]}]
        test: {inputs: in.npz}
        """,
    )
    path = ingot.package(spec, tmp_path / "net.ingot").path
    out = run(path, x=np.array([1.5], ml_dtypes.bfloat16))["out"]
    assert out.dtype == ml_dtypes.bfloat16
    assert out.astype(F32).tolist() == [3]


def test_bfloat16_in_onnx_runtime(tmp_path: Path) -> None:
    import ml_dtypes
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["out"])],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n"])],
        [helper.make_tensor_value_info("out", TensorProto.BFLOAT16, ["n"])],
    )
    opset = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(tmp_path / "id.onnx"))
    x = np.array([1.5, -2], ml_dtypes.bfloat16)
    assert run(tmp_path / "id.onnx", x=x)["out"].tolist() == x.tolist()


# --- tensorflow and keras --------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GraphDef with strings and a table, which an init operation fills."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        words = tf.compat.v1.placeholder(tf.string, [None], name="words")
        values = tf.lookup.KeyValueTensorInitializer(["one", "zwei"], [1, 2])
        table = tf.lookup.StaticHashTable(values, -1)
        tf.identity(table.lookup(words), name="numbers")
        tf.strings.join([words, "!"], name="shouted")
        tf.group(tf.compat.v1.tables_initializer(), name="fill")
    path = tmp_path_factory.mktemp("graph") / "frozen.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def test_a_frozen_graph_with_strings_and_an_init_operation(tables: Path, tmp_path: Path) -> None:
    ingot.create_tensorflow_package(
        tmp_path / "tables",
        "tables",
        [{"name": "words", "dtype": "string", "shape": ["n"]}],
        [
            {"name": "numbers", "dtype": "int32", "shape": ["n"]},
            {"name": "shouted", "dtype": "string", "shape": ["n"]},
        ],
        frozen_graph_path=tables,
        node_name_mapping={"words": "words", "numbers": "numbers:0", "shouted": "shouted"},
        init_op_names="fill",
        test_input_data={"words": np.array(["one", "three"])},
        test_expected_out={"numbers": np.array([1, -1]), "shouted": np.array(["one!", "three!"])},
    )
    found = run(tmp_path / "tables", words=np.array(["zwei", "ü"]))
    assert found["numbers"].tolist() == [2, -1]
    assert found["shouted"].tolist() == ["zwei!", "ü!"]
    with ingot.load(tmp_path / "tables") as model:
        assert list(model.infer({"words": np.array(["one"])}, ["shouted"])) == ["shouted"]


def test_a_node_that_the_graph_does_not_have(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(ingot.ModelError, match="'numbers' is 'nubmers:0', which is not in") as info:
        ingot.create_tensorflow_package(
            tmp_path / "bad",
            "bad",
            [{"name": "words", "dtype": "string", "shape": ["n"]}],
            [{"name": "numbers", "dtype": "int32", "shape": ["n"]}],
            frozen_graph_path=tables,
            node_name_mapping={"words": "words", "numbers": "nubmers"},
        )
    assert info.value.hint == "did you mean 'numbers:0'?"
    assert list(tmp_path.iterdir()) == []


def test_a_savedmodel_bare_and_packaged(tmp_path: Path) -> None:
    import tensorflow as tf

    class Add(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)] * 2)
        def __call__(self, x, y):
            return {"out": x + y, "more": x - y}

    module = Add()
    tf.saved_model.save(module, str(tmp_path / "saved"))
    inputs = {"x": np.ones(2, F32), "y": np.ones(2, F32)}
    with ingot.load(tmp_path / "saved") as model:
        assert {spec.name for spec in model.outputs} == {"out", "more"}
        assert model.infer(inputs)["out"].tolist() == [2, 2]
    # The outputs of a SavedModel may be more than the spec names.
    ingot.create_tensorflow_package(
        tmp_path / "add",
        "add",
        INPUT_SPEC,
        OUTPUT_SPEC,
        saved_model_dir=tmp_path / "saved",
        **GOLDEN,
    )
    assert list(run(tmp_path / "add", **inputs)) == ["out"]
    with pytest.raises(ingot.ModelError, match="the model takes the input 'y', which the spec"):
        ingot.create_tensorflow_package(
            tmp_path / "less",
            "less",
            INPUT_SPEC[:1],
            OUTPUT_SPEC,
            saved_model_dir=tmp_path / "saved",
        )


def test_keras_specs_are_read_off_the_model(tmp_path: Path) -> None:
    import keras

    image = keras.Input((4, 4, 1), name="image")
    flat = keras.layers.Flatten()(image)
    outputs = {
        "b": keras.layers.Dense(2, name="two")(flat),
        "a": keras.layers.Dense(3, name="three")(flat),
    }
    model = keras.Model({"image": image}, outputs)
    path = ingot.create_keras_package(tmp_path / "net", "net", model=model)
    again = ingot.create_keras_package(tmp_path / "again", "net", model=model)
    assert path.read_bytes() == again.read_bytes()
    with ingot.load(path) as loaded:
        assert loaded.inputs[0].to_dict() == {
            "name": "image",
            "dtype": "float32",
            "shape": ["batch_size", 4, 4, 1],
        }
        assert [spec.shape for spec in loaded.outputs] == [("batch_size", 3), ("batch_size", 2)]
        x = np.random.default_rng(0).random((5, 4, 4, 1), F32)
        found = loaded.infer({"image": x})
    expected = model({"image": x})
    for name in ("a", "b"):
        np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=1e-5)


def test_a_sequential_keras_model(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.save(tmp_path / "net.keras")
    x = np.ones((2, 3), F32)
    with ingot.load(tmp_path / "net.keras") as loaded:
        (given,), (returned,) = loaded.inputs, loaded.outputs
        assert (given.shape, returned.shape) == (("batch_size", 3), ("batch_size", 2))
        found = loaded.infer({given.name: x})[returned.name]
    np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-5)
    ingot.create_keras_package(tmp_path / "net", "net", model=model)
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ingot.ModelError, match="has no defined inputs"):
        ingot.create_keras_package(tmp_path / "bad", "bad", model=unbuilt)


def test_keras_code_is_refused(tmp_path: Path, ingot_cli) -> None:
    import keras

    x = keras.Input((2,), name="x")
    keras.Model(x, keras.layers.Lambda(lambda value: 2 * value)(x)).save(tmp_path / "code.keras")
    process = ingot_cli("infer", tmp_path / "code.keras", "-i", "x=[[1, 2]]")
    assert process.returncode == 5
    assert "Lambda" in process.stderr
    assert "Traceback" not in process.stderr


# --- onnx ------------------------------------------------------------------------------------


def test_onnx_external_data_travels_along(tmp_path: Path) -> None:
    import onnx

    folder = tmp_path / "source"
    folder.mkdir()
    model = onnx.load(onnx_add(tmp_path / "add.onnx", scale=2))
    weights = onnx.numpy_helper.from_array(np.full(2048, 3, F32), "table")
    model.graph.initializer.append(weights)
    model.graph.node.append(onnx.helper.make_node("Gather", ["table", "zero"], ["entry"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "zero"))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("entry", onnx.TensorProto.FLOAT, [1])
    )
    onnx.save(model, str(folder / "big.onnx"), save_as_external_data=True, location="big.weights")
    path = ingot.create_onnx_package(tmp_path / "big", "big", model_path=folder / "big.onnx")
    names = [entry["name"] for entry in ingot.inspect(path)["files"]]
    assert "0/data/big.weights" in names
    found = run(path, x=np.ones(1, F32), y=np.ones(1, F32))
    assert (found["out"].tolist(), found["entry"].tolist()) == ([4], [3])


def test_onnx_names_that_differ_from_the_spec(tmp_path: Path) -> None:
    with pytest.raises(ingot.ModelError, match="names the output 'sum', which the model does not"):
        ingot.create_onnx_package(
            tmp_path / "bad",
            "bad",
            INPUT_SPEC,
            [{"name": "sum", "dtype": "float32", "shape": ["n"]}],
            model_path=onnx_add(tmp_path / "add.onnx"),
        )


def test_a_missing_gpu_is_a_warning(tmp_path: Path, caplog) -> None:
    with ingot.load(onnx_add(tmp_path / "add.onnx"), device="gpu:7") as model:
        assert model.infer(INPUTS)["out"].tolist() == EXPECTED["out"].tolist()
    assert "device gpu:7: ONNX Runtime sees no such GPU here; running on the CPU" in caplog.text


# --- threads, and what the frameworks never see ----------------------------------------------


def test_threads(tmp_path: Path) -> None:
    source = ModelSource("onnx", "add", path=onnx_add(tmp_path / "add.onnx"))
    model = open_model(source, LoadOptions(threads=3))
    assert model.native.get_session_options().intra_op_num_threads == 3


def test_the_random_stand_in(tmp_path: Path) -> None:
    outputs = [
        {"name": "boxes", "dtype": "float32", "shape": ["count", 4]},
        {"name": "classes", "dtype": "string", "shape": ["count"]},
        {"name": "flags", "dtype": "bool", "shape": ["n"]},
    ]
    path = ingot.create_random_package(tmp_path / "stub", "stub", INPUT_SPEC, outputs)
    one, again = run(path, **INPUTS), run(path, **INPUTS)
    assert one["boxes"].shape == (len(one["classes"]), 4)
    assert one["flags"].shape == (5,)
    assert all(np.array_equal(one[name], again[name]) for name in one)
    other = run(path, **{**INPUTS, "x": INPUTS["x"] + 1})
    assert any(not np.array_equal(one[name], other[name]) for name in one)
