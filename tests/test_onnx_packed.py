"""ONNX files with packed weights: they run as plain ONNX Runtime runs them, and fast."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ingot
from ingot.errors import ModelError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from ingot.frameworks import LoadOptions, ModelSource  # noqa: E402
from ingot.frameworks.onnx import load  # noqa: E402
from ingot.frameworks.onnx_packed import full_speed  # noqa: E402
from ingot.frameworks.onnx_scan import scan  # noqa: E402

Array = np.ndarray[Any, Any]

KINDS = {
    "INT2": (-2, 2),
    "UINT2": (0, 4),
    "INT4": (-8, 8),
    "UINT4": (0, 16),
    "INT8": (-128, 128),
}
IMAGE = (2, 8, 6, 6)


def packed(name: str, values: Array, kind: str) -> Any:
    """Return an initializer of a type that NumPy may not have."""
    return helper.make_tensor(name, getattr(TensorProto, kind), values.shape, values.ravel())


def model(
    nodes: Sequence[Any], weights: Sequence[Any], x: Sequence[Any], y: Sequence[Any], **inputs: Any
) -> Any:
    """Return a checked model that takes ``x`` and returns ``y``, both float32."""
    kinds = {weight.data_type for weight in weights}
    opset = 25 if kinds & {TensorProto.INT2, TensorProto.UINT2} else 21
    graph = helper.make_graph(
        nodes,
        "packed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(made)
    return made


def weights_of(
    shape: tuple[int, ...], kind: str, axis: int, *, block: int = 0, zero: bool = False, name="w"
) -> tuple[list[Any], Any]:
    """Return the initializers of a quantized weight, and the DequantizeLinear that makes it."""
    random = np.random.default_rng(len(name) + shape[0])
    low, high = KINDS[kind]
    values = random.integers(low, high, shape)
    sizes = (shape[axis],)
    if block:
        sizes = tuple(-(-size // block) if i == axis else size for i, size in enumerate(shape))
    scale = random.uniform(0.01, 0.05, sizes).astype(np.float32)
    initializers = [packed(f"{name}_q", values, kind), numpy_helper.from_array(scale, f"{name}_s")]
    inputs = [f"{name}_q", f"{name}_s"]
    if zero or low == 0:
        initializers.append(packed(f"{name}_z", random.integers(low, high, sizes), kind))
        inputs.append(f"{name}_z")
    blocks = {"block_size": block} if block else {}
    return initializers, helper.make_node("DequantizeLinear", inputs, [name], axis=axis, **blocks)


def activation(
    name: str, made: str, scale: float = 0.04, zero: int = 120
) -> tuple[list[Any], list[Any]]:
    """Return initializers and nodes that put an activation into uint8 and back: ``made``."""
    parameters = [
        numpy_helper.from_array(np.float32(scale), f"{made}_scale"),
        numpy_helper.from_array(np.uint8(zero), f"{made}_zero"),
    ]
    names = [parameter.name for parameter in parameters]
    return parameters, [
        helper.make_node("QuantizeLinear", [name, *names], [f"{made}_q"]),
        helper.make_node("DequantizeLinear", [f"{made}_q", *names], [made]),
    ]


def quantized_layer(op_type: str, kind: str, *, block: int = 0, zero: bool = False) -> Any:
    """Return a model of one layer between quantized activations."""
    images = op_type.startswith("Conv")
    shape, axis = ((8, 8, 3, 3) if images else (8, 8)), (0 if op_type == "Conv" else 1)
    weights, dequantize = weights_of(shape, kind, 0 if block else axis, block=block, zero=zero)
    parameters, before = activation("x", "x1")
    more, after = activation("h", "y", scale=0.1)
    layer = helper.make_node(op_type, ["x1", "w"], ["h"])
    x = ["n", 8, 6, 6] if images else ["n", 8]
    y = ["n", 8, "height", "width"] if images else ["n", 8]
    return model([*before, dequantize, layer, *after], [*weights, *parameters, *more], x, y)


def feeds_of(made: Any) -> dict[str, Array]:
    sizes = [dim.dim_value or 2 for dim in made.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(5).standard_normal(sizes).astype(np.float32)}


ACCURATE = {"session.qdq_matmulnbits_accuracy_level": "1"}
IN_FLOATS = {"session.disable_quant_qdq": "1"}


def plainly(path: Path, feeds: Mapping[str, Array], options: Mapping[str, str] = ACCURATE) -> Array:
    """Run a file with plain ONNX Runtime."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    for key, value in options.items():
        settings.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return session.run(["y"], dict(feeds))[0]


def ours(path: Path, feeds: Mapping[str, Array]) -> Array:
    with ingot.load(path, threads=1) as loaded:
        return loaded.infer(dict(feeds))["y"]


def operators(path: Path, folder: Path) -> list[str]:
    """Return the operators that a session runs, after ONNX Runtime's optimizations."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    with full_speed(path, settings, onnxruntime, path.name) as opened:
        onnxruntime.InferenceSession(opened, settings, providers=["CPUExecutionProvider"])
    optimized = onnx.load(settings.optimized_model_filepath, load_external_data=False)
    return [node.op_type for node in optimized.graph.node]


def saved(made: Any, folder: Path, **kwargs: Any) -> Path:
    path = folder / "model.onnx"
    onnx.save(made, str(path), **kwargs)
    return path


LAYERS = {
    "Conv": ((8, 8, 3, 3), 0, ["n", 8, 6, 6], ["n", 8, 4, 4]),
    "ConvTranspose": ((8, 4, 3, 3), 1, ["n", 8, 6, 6], ["n", 4, 8, 8]),
    "MatMul": ((64, 32), 1, ["n", 64], ["n", 32]),
    "Gemm": ((64, 32), 1, ["n", 64], ["n", 32]),
}


def float_layer(op_type: str, kind: str, *, block: int = 0, zero: bool = False) -> Any:
    """Return a model of one layer with float activations."""
    shape, axis, x, y = LAYERS[op_type]
    weights, dequantize = weights_of(shape, kind, 0 if block else axis, block=block, zero=zero)
    return model([dequantize, helper.make_node(op_type, ["x", "w"], ["y"])], weights, x, y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op_type", LAYERS)
def test_weights_of_float_layers_are_folded(op_type: str, kind: str, tmp_path: Path) -> None:
    path = saved(float_layer(op_type, kind), tmp_path)
    feeds = feeds_of(onnx.load(str(path)))
    np.testing.assert_allclose(ours(path, feeds), plainly(path, feeds), rtol=1e-5, atol=1e-5)
    found = operators(path, tmp_path)
    assert not {"DequantizeLinear", "MatMulNBits"} & set(found), found


def test_float_weights_keep_matmul_exact(tmp_path: Path) -> None:
    made = float_layer("MatMul", "INT4", block=16, zero=True)
    path = saved(made, tmp_path)
    feeds = feeds_of(made)
    # Computed by hand: dequantized in blocks of 16 rows, as the operator's specification says.
    values, scale, zero = (
        numpy_helper.to_array(tensor).astype(np.float32) for tensor in made.graph.initializer
    )
    weight = (values - np.repeat(zero, 16, 0)) * np.repeat(scale, 16, 0)
    expected = feeds["x"] @ weight

    def error(found: Array) -> float:
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))

    assert error(ours(path, feeds)) < 1e-6
    # What the option that Ingot sets is for.
    assert error(plainly(path, feeds, options={})) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op_type", ["Conv", "MatMul"])
def test_weights_below_8_bits_reach_integer_kernels(
    op_type: str, kind: str, tmp_path: Path
) -> None:
    made = quantized_layer(op_type, kind)
    path = saved(made, tmp_path)
    feeds = feeds_of(made)
    found = operators(path, tmp_path)
    assert {"Conv": "QLinearConv", "MatMul": "QLinearMatMul"}[op_type] in found, found
    # A sum of floats may be rounded to the next step of the output's scale. ONNX Runtime 1.31 does
    # not even open 2-bit weights between quantized activations without this option.
    assert np.abs(ours(path, feeds) - plainly(path, feeds, IN_FLOATS)).max() <= 0.1 + 1e-6
    wide = onnx.ModelProto.FromString(made.SerializeToString())
    for tensor in wide.graph.initializer:
        if tensor.name in ("w_q", "w_z"):
            sign = np.uint8 if kind.startswith("U") else np.int8
            array = numpy_helper.to_array(tensor).astype(sign)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(wide, str(tmp_path / "wide.onnx"))
    np.testing.assert_array_equal(ours(path, feeds), plainly(tmp_path / "wide.onnx", feeds))


@pytest.mark.parametrize("zero", [False, True])
def test_dense_layers_reach_the_integer_kernel(zero: bool, tmp_path: Path) -> None:
    made = quantized_layer("Gemm", "INT4", zero=zero)
    path = saved(made, tmp_path)
    feeds = feeds_of(made)
    assert operators(path, tmp_path) == ["QuantizeLinear", "QGemm", "DequantizeLinear"]
    assert np.abs(ours(path, feeds) - plainly(path, feeds)).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("kind", ["INT4", "INT8"])
def test_blocks_between_quantized_activations_stay_exact(kind: str, tmp_path: Path) -> None:
    made = quantized_layer("MatMul", kind, block=4)
    path = saved(made, tmp_path)
    feeds = feeds_of(made)
    found = operators(path, tmp_path)
    assert "MatMul" in found
    assert found.count("DequantizeLinear") == 2, found  # of the activations
    assert np.abs(ours(path, feeds) - plainly(path, feeds, IN_FLOATS)).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("kind", ["INT2", "INT4", "INT8"])
def test_weights_are_never_quantized_anew(kind: str, tmp_path: Path) -> None:
    """ONNX Runtime would make 8-bit weights of float32 ones in this place."""
    made = quantized_layer("ConvTranspose", kind)
    path = saved(made, tmp_path)
    feeds = feeds_of(made)
    np.testing.assert_array_equal(ours(path, feeds), plainly(path, feeds, IN_FLOATS))


def mixed_model() -> Any:
    """Return a model: a quantized 4-bit layer, one with float output, a transposed one, a dense."""
    first, dequantize_first = weights_of((8, 8, 3, 3), "INT4", 0, name="w1")
    second, dequantize_second = weights_of((8, 8, 1, 1), "INT8", 0, zero=True, name="w_two")
    third, dequantize_third = weights_of((8, 4, 2, 2), "UINT4", 1, name="w_three")
    fourth, dequantize_fourth = weights_of((100, 5), "INT4", 0, block=32, name="w_dense")
    parameters, before = activation("x", "x1")
    more, after = activation("h1", "h2", scale=0.05, zero=0)
    nodes = [
        *before,
        dequantize_first,
        dequantize_second,
        dequantize_third,
        dequantize_fourth,
        helper.make_node("Conv", ["x1", "w1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["h1"]),
        *after,
        helper.make_node("Conv", ["h2", "w_two"], ["h3"]),  # takes integers, returns floats
        helper.make_node("ConvTranspose", ["h3", "w_three"], ["h4"]),
        helper.make_node("Flatten", ["h4"], ["h5"]),
        helper.make_node("MatMul", ["h5", "w_dense"], ["y"]),
    ]
    weights = [*first, *second, *third, *fourth, *parameters, *more]
    return model(nodes, weights, ["n", 8, 6, 6], ["n", 5])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(mixed_model(), tmp_path_factory.mktemp("mixed"))


def test_each_layer_of_a_mixed_file_is_treated_alone(mixed: Path, tmp_path: Path) -> None:
    feeds = feeds_of(onnx.load(str(mixed)))
    np.testing.assert_allclose(ours(mixed, feeds), plainly(mixed, feeds), rtol=0.02, atol=0.02)
    found = operators(mixed, tmp_path)
    assert "QLinearConv" in found
    # One is left: from the integers of the first layer to the floats of the second.
    assert found.count("DequantizeLinear") == 1, found
    assert "MatMulNBits" not in found


def test_layers_and_session_of_a_mixed_file(mixed: Path) -> None:
    source = ModelSource("onnx", mixed.name, path=mixed)
    loaded = load(source, LoadOptions(threads=1))
    assert [value.name for value in loaded.native.get_inputs()] == ["x"]
    kinds = [layer.kind for layer in loaded.layers(feeds_of(onnx.load(str(mixed))))]
    assert [kind for kind in kinds if "Linear" not in kind] == [
        "Conv",
        "Relu",
        "Conv",
        "ConvTranspose",
        "Flatten",
        "MatMul",
    ]


@pytest.mark.parametrize("which", ["mixed", "weights"])
def test_external_data(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = mixed_model() if which == "mixed" else float_layer("Conv", "INT4")
    for tensor in made.graph.initializer:  # external data is raw
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    inside = saved(made, tmp_path)
    (tmp_path / "apart").mkdir()
    path = tmp_path / "apart" / "model.onnx"
    onnx.save(made, str(path), save_as_external_data=True, location="model.data", size_threshold=16)
    assert (tmp_path / "apart" / "model.data").stat().st_size > 0
    monkeypatch.chdir(tmp_path)
    feeds = feeds_of(made)
    np.testing.assert_array_equal(ours(Path("apart/model.onnx"), feeds), ours(inside, feeds))


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    made = mixed_model()
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    path = saved(
        made, tmp_path, save_as_external_data=True, location="model.data", size_threshold=16
    )
    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: .*model\.data"):
        ingot.load(path)


def test_half_precision_weights_are_folded_by_the_runtime(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["w_half"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    initializer = numpy_helper.from_array(weight, "w_half")
    path = saved(model(nodes, [initializer], ["n", 8, 6, 6], ["n", 8, 4, 4]), tmp_path)
    assert "Cast" not in operators(path, tmp_path)


def test_a_table_that_rows_are_gathered_from_is_folded(tmp_path: Path) -> None:
    weights, dequantize = weights_of((32, 8), "INT8", 0)
    parameters, quantize = activation("e", "e1")
    nodes = [
        dequantize,
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["w", "i"], ["e"]),
        *quantize[:1],
        *quantize[1:],
        helper.make_node("Gather", ["w", "i"], ["f"]),
        helper.make_node("Add", ["e1", "f"], ["y"]),
    ]
    made = model(nodes, [*weights, *parameters], ["n"], ["n", 8])
    path = saved(made, tmp_path)
    feeds = {"x": np.array([3, 0, 31], np.float32)}
    np.testing.assert_allclose(ours(path, feeds), plainly(path, feeds), atol=1e-6)


def test_weights_that_a_caller_may_override_stay(tmp_path: Path) -> None:
    made = quantized_layer("Conv", "INT4")
    made.graph.input.append(helper.make_tensor_value_info("w_s", TensorProto.FLOAT, [8]))
    path = saved(made, tmp_path)
    assert scan(path).constants.keys() == {"w_q", "x1_scale", "x1_zero", "y_scale", "y_zero"}
    feeds = feeds_of(made) | {"w_s": np.full(8, 0.5, np.float32)}
    with ingot.load(path, threads=1) as loaded:
        found = loaded.native.run(["y"], feeds)[0]
    np.testing.assert_array_equal(found, plainly(path, feeds))


def test_an_operator_of_another_domain_is_no_dequantization(tmp_path: Path) -> None:
    made = quantized_layer("Conv", "INT4")
    for node in made.graph.node:
        node.domain = "acme"
    path = tmp_path / "acme.onnx"
    path.write_bytes(made.SerializeToString())
    assert {node.op_type for node in scan(path).nodes} == {
        "acme::QuantizeLinear",
        "acme::DequantizeLinear",
        "acme::Conv",
    }


def test_scan_reads_structure_only(mixed: Path, tmp_path: Path) -> None:
    made = onnx.load(str(mixed))
    found = scan(mixed)
    assert [(node.op_type, list(node.inputs), list(node.outputs)) for node in found.nodes] == [
        (node.op_type, list(node.input), list(node.output)) for node in made.graph.node
    ]
    assert found.constants == {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert [node.outputs for node in found.nodes if node.blocked] == [("w_dense",)]
    weight_only = scan(saved(float_layer("Conv", "INT4"), tmp_path))
    assert weight_only.dequantizes
    assert not weight_only.quantizes


@pytest.mark.parametrize("size", [0, 1, 40, 300, -1])
def test_damaged_files_are_left_to_the_runtime(size: int, mixed: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(mixed.read_bytes()[:size])
    assert not scan(path).nodes
    with pytest.raises(ModelError, match=r"damaged\.onnx"):
        ingot.load(path)


def test_sizes_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    made = mixed_model()
    scale = next(tensor for tensor in made.graph.initializer if tensor.name == "w_three_s")
    scale.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), scale.name))
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=r"model\.onnx: its quantized weights"):
        ingot.load(path)


def test_a_graph_with_a_loop_is_left_to_the_runtime(tmp_path: Path) -> None:
    made = quantized_layer("Conv", "INT4")
    made.graph.node[0].input[0] = "y"
    path = tmp_path / "loop.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=r"ONNX Runtime .* cannot open"):
        ingot.load(path)


@pytest.mark.parametrize("kind", ["float", "weights", "int8"])
def test_files_that_are_not_rewritten_need_no_onnx(kind: str, tmp_path: Path) -> None:
    if kind == "int8":
        made = quantized_layer("Conv", "INT8")
    elif kind == "weights":
        made = float_layer("Conv", "INT4")
    else:
        made = float_layer("Conv", "INT8")
        weight = numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "w")
        made.graph.initializer.append(weight)
        del made.graph.node[0]
    path = saved(made, tmp_path)
    code = f"import sys, ingot; ingot.load({str(path)!r}); sys.exit('onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
