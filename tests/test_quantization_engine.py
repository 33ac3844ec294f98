"""Quantized ONNX graphs: what is stored, what runs on integers, and how far the outputs move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ingot
from ingot.errors import InputError, ModelError, UsageError
from ingot.frameworks.onnx import import_onnxruntime
from ingot.optimizers.quantization import (
    FLOAT,
    INT8,
    METHODS,
    Precision,
    QuantizedWeight,
    Ranges,
    calibrate,
    correct_biases,
    dequantize,
    equalize,
    integer_weights,
    output_snr,
    prepare,
    quantizable_layers,
    quantize,
    quantize_weight,
    sensitivities,
    weight_bytes,
)

Arrays = Mapping[str, np.ndarray]


class Builder:
    """Writes a graph node by node; weights are drawn from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"n_{output}", **attributes))
        return output

    def constant(self, name: str, values: Any) -> str:
        values = np.asarray(values)
        values = values.astype(np.float32) if values.dtype == np.float64 else values
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def normal(self, name: str, *shape: int, scale: float | None = None) -> str:
        spread = scale or np.sqrt(2 / np.prod(shape[1:]))
        return self.constant(name, self.random.normal(0, spread, shape))

    def conv(self, x: str, name: str, out: int, into: int, size: int = 3, group: int = 1) -> str:
        weight = self.normal(f"{name}.weight", out, into // group, size, size)
        bias = self.normal(f"{name}.bias", out, scale=0.1)
        pads = [size // 2] * 4
        return self.node("Conv", [x, weight, bias], f"{name}_y", pads=pads, group=group)

    def model(self, inputs: Mapping[str, list[Any]], outputs: Mapping[str, list[Any]]) -> Any:
        kinds = dict.fromkeys(inputs, TensorProto.FLOAT)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, kinds[n], shape) for n, shape in inputs.items()],
            [helper.make_tensor_value_info(n, 1, shape) for n, shape in outputs.items()],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def residual_net() -> Any:
    """BatchNorm, a residual block, a depthwise and a pointwise convolution, pooling, a Gemm."""
    b = Builder()
    x = b.conv("image", "stem", 8, 3)
    for part, low, high in (("g", 0.5, 2), ("b", -1, 1), ("m", -1, 1), ("v", 0.5, 2)):
        b.constant(f"bn.{part}", b.random.uniform(low, high, 8))
    x = b.node("BatchNormalization", [x, "bn.g", "bn.b", "bn.m", "bn.v"], "bn_y")
    x = b.node("Relu", [x], "stem_relu")
    y = b.node("Relu", [b.conv(x, "block.c1", 8, 8)], "block_relu")
    x = b.node("Relu", [b.node("Add", [b.conv(y, "block.c2", 8, 8), x], "sum")], "sum_relu")
    x = b.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    b.constant("zero", np.float32(0))
    b.constant("six", np.float32(6))
    x = b.node("Clip", [b.conv(x, "deep", 8, 8, group=8), "zero", "six"], "deep_clip")
    x = b.node("Relu", [b.conv(x, "point", 12, 8, size=1)], "point_relu")
    x = b.node("Flatten", [x], "flat")
    b.normal("fc.weight", 5, 12 * 16)
    b.normal("fc.bias", 5)
    b.node("Gemm", [x, "fc.weight", "fc.bias"], "logits", transB=1)
    return b.model({"image": ["batch", 3, 8, 8]}, {"logits": ["batch", 5]})


@pytest.fixture(scope="module")
def source() -> Any:
    return residual_net()


@pytest.fixture(scope="module")
def model(source: Any) -> Any:
    return prepare(source)


@pytest.fixture(scope="module")
def batches() -> list[Arrays]:
    random = np.random.default_rng(1)
    return [{"image": random.normal(0, 1, (16, 3, 8, 8)).astype(np.float32)} for _ in range(3)]


@pytest.fixture(scope="module")
def ranges(model: Any, batches: list[Arrays]) -> dict[str, Ranges]:
    return calibrate(model, batches)


def session(model: Any, optimized: Path | None = None) -> Any:
    runtime = import_onnxruntime()
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
    return runtime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def run(model: Any, feeds: Arrays) -> list[np.ndarray]:
    return list(session(model).run(None, dict(feeds)))


def optimized_operators(model: Any, folder: Path) -> Counter[str]:
    """Count the operators that ONNX Runtime really runs."""
    session(model, folder / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def everywhere(model: Any, precision: Precision) -> dict[str, Precision]:
    return {layer.name: precision for layer in quantizable_layers(model)}


def with_rounded_weights(model: Any, plan: Mapping[str, Precision]) -> Any:
    """Return the float model with the weights that its quantized one stands for."""
    integers = integer_weights(model, plan)
    arrays = {
        layer.weight: dequantize(integers[layer.name], layer.channel_axis)
        for layer in quantizable_layers(model)
        if layer.name in integers
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return copy


# --- preparing -------------------------------------------------------------------------------


def test_preparing_folds_batch_norm_and_keeps_names_and_function(
    source: Any, model: Any, batches: list[Arrays]
) -> None:
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert {"stem.weight", "block.c1.weight", "fc.weight"} <= {
        tensor.name for tensor in model.graph.initializer
    }
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    expected, got = run(source, batches[0])[0], run(model, batches[0])[0]
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    assert source.graph.node[1].op_type == "BatchNormalization"


def test_preparing_folds_channelwise_constants_and_biases() -> None:
    b = Builder(3)
    x = b.conv("image", "first", 6, 4)
    x = b.node("Mul", [x, b.constant("m1", b.random.normal(1, 0.5, (1, 6, 1, 1)))], "a")
    x = b.node("Add", [b.constant("a1", b.random.normal(0, 1, (6, 1, 1))), x], "b")
    b.normal("up.weight", 6, 2, 3, 3)
    x = b.node("ConvTranspose", [x, "up.weight"], "up_y", group=3, strides=[2, 2])
    x = b.node("Add", [x, b.constant("a2", b.random.normal(0, 1, (6, 1, 1)))], "c")
    x = b.node("Mul", [x, b.constant("m2", b.random.normal(1, 0.5, (6, 1, 1)))], "d")
    # Along the width: it is not of a channel.
    x = b.node("Mul", [x, b.constant("m3", b.random.normal(1, 0.5, (13,)))], "e")
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flat")
    x = b.node("MatMul", [x, b.normal("dense", 6, 3)], "product")
    b.node("Add", [b.normal("dense_bias", 3), x], "y")
    source = b.model({"image": ["n", 4, 6, 6]}, {"y": ["n", 3]})
    feeds = {"image": b.random.normal(0, 1, (2, 4, 6, 6)).astype(np.float32)}
    model = prepare(source)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Mul"] == 1
    assert kinds["Add"] == kinds["MatMul"] == 0
    assert kinds["Gemm"] == 1
    expected, got = run(source, feeds)[0], run(model, feeds)[0]
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_quantized_model_is_refused(
    model: Any, ranges: dict[str, Ranges], tmp_path: Path
) -> None:
    for plan in (everywhere(model, INT8), everywhere(model, Precision(4))):
        quantized = quantize(model, plan, ranges["minmax"])
        with pytest.raises(ModelError, match=r"quantized already.*expected a float model"):
            prepare(quantized)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match="not a readable ONNX file"):
        prepare(tmp_path / "text.onnx")


def test_layers_are_listed_in_the_order_of_the_graph(model: Any) -> None:
    layers = quantizable_layers(model)
    assert [layer.name for layer in layers] == [
        "stem",
        "block.c1",
        "block.c2",
        "deep",
        "point",
        "fc",
    ]
    assert [layer.index for layer in layers] == list(range(6))
    by_name = {layer.name: layer for layer in layers}
    assert by_name["deep"].is_grouped
    assert by_name["deep"].group == 8
    assert by_name["point"].is_pointwise
    assert not by_name["stem"].is_pointwise
    assert by_name["fc"].op_type == "Gemm"
    assert by_name["fc"].channel_axis == 0
    assert by_name["fc"].parameters == 5 * 192
    assert by_name["block.c2"].kernel == (3, 3)


def test_layers_that_share_a_weight_have_names_of_their_own() -> None:
    b = Builder(4)
    b.normal("w.weight", 4, 4)
    x = b.node("Relu", [b.node("Gemm", ["x", "w.weight"], "one")], "relu")
    b.node("Gemm", [x, "w.weight"], "y")
    model = prepare(b.model({"x": ["n", 4]}, {"y": ["n", 4]}))
    layers = quantizable_layers(model)
    assert [layer.name for layer in layers] == ["w", "n_y"]
    both = quantize(model, everywhere(model, Precision(8)), None)
    integers = [t for t in both.graph.initializer if t.data_type == TensorProto.INT8]
    assert len(integers) == 1
    one = quantize(model, {"w": Precision(8)}, None)
    assert "w.weight" in {tensor.name for tensor in one.graph.initializer}


# --- weights ---------------------------------------------------------------------------------


def test_precisions_that_do_not_exist_are_refused() -> None:
    for weight, activation in ((3, 32), (8, 16), (16, 8), (32, 8)):
        with pytest.raises(UsageError, match="expected"):
            Precision(weight, activation)
    assert str(INT8) == "w8a8"


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_rounded_to_the_nearest_integers(bits: int, axis: int) -> None:
    weight = np.random.default_rng(bits).normal(0, 1, (6, 5, 3, 3)).astype(np.float32)
    weight[:, 2] = 0
    weight[1] *= 1000
    found = quantize_weight(weight, bits, axis)
    assert found.values.dtype == np.int8
    assert found.values.min() >= -(1 << (bits - 1))
    assert found.values.max() < 1 << (bits - 1)
    assert found.scale.shape == (weight.shape[axis],)
    assert (found.scale > 0).all()
    moved = np.moveaxis(dequantize(found, axis) - weight, axis, 0).reshape(weight.shape[axis], -1)
    largest = np.abs(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).max(axis=1)
    if bits == 8:
        assert (np.abs(moved).max(axis=1) <= largest / 127 / 2 * 1.001).all()
    else:
        # No worse than the scale that lets nothing be clipped, with the same number of levels.
        limit = (1 << (bits - 1)) - 1
        scale = np.where(largest > 0, largest / limit, 1)
        rows = np.moveaxis(weight, axis, 0).reshape(len(scale), -1)
        plain = np.rint(rows / scale[:, None]) * scale[:, None] - rows
        assert ((moved**2).sum(axis=1) <= (plain**2).sum(axis=1) * 1.0001).all()


def test_a_reduced_range_has_seven_bits() -> None:
    weight = np.random.default_rng(0).normal(0, 1, (4, 9)).astype(np.float32)
    assert np.abs(quantize_weight(weight, 8, 0, reduce_range=True).values).max() == 64
    weight[1, 1] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        quantize_weight(weight, 4, 0)


@pytest.mark.parametrize(
    ("bits", "kind"),
    [
        (2, TensorProto.INT2),
        (4, TensorProto.INT4),
        (8, TensorProto.INT8),
        (16, TensorProto.FLOAT16),
    ],
)
def test_weights_are_stored_packed_and_compute_what_they_stand_for(
    model: Any, batches: list[Arrays], bits: int, kind: int
) -> None:
    plan = everywhere(model, Precision(bits))
    quantized = quantize(model, plan, None)
    onnx.checker.check_model(quantized, full_check=True)
    layers = quantizable_layers(model)
    stored = {t.name: t for t in quantized.graph.initializer if t.data_type == kind}
    packed = sum(len(tensor.raw_data) for tensor in stored.values())
    assert packed == sum(-(-layer.parameters * bits // 8) for layer in layers)
    assert not {layer.weight for layer in layers} & {t.name for t in quantized.graph.initializer}
    scales = 4 * sum(layer.shape[layer.channel_axis] for layer in layers) if bits < 16 else 0
    assert packed + scales == sum(weight_bytes(layer, plan[layer.name]) for layer in layers)
    if bits == 16:
        expected = run(model, batches[0])
        assert output_snr(expected, run(quantized, batches[0])) > 50
        return
    expected = run(with_rounded_weights(model, plan), batches[0])
    # A product with packed weights may be computed in another order.
    assert output_snr(expected, run(quantized, batches[0])) > 35


def test_mixed_precisions_live_in_one_file(
    model: Any, batches: list[Arrays], ranges: dict[str, Ranges], tmp_path: Path
) -> None:
    plan = {
        "stem": INT8,
        "block.c1": Precision(4, 8),
        "block.c2": Precision(2, 8),
        "deep": FLOAT,
        "point": Precision(4),
        "fc": Precision(16),
    }
    quantized = quantize(model, plan, ranges["minmax"])
    onnx.checker.check_model(quantized, full_check=True)
    kinds = Counter(t.data_type for t in quantized.graph.initializer if len(t.dims) > 1)
    assert kinds[TensorProto.INT2] == kinds[TensorProto.FLOAT16] == kinds[TensorProto.INT8] == 1
    assert kinds[TensorProto.INT4] == 2
    assert "deep.weight" in {tensor.name for tensor in quantized.graph.initializer}
    expected = run(with_rounded_weights(model, plan), batches[0])
    assert output_snr(expected, run(quantized, batches[0])) > 20
    assert optimized_operators(quantized, tmp_path)["QLinearConv"] == 3


def test_a_weight_beyond_float16_is_refused(model: Any) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == "fc.weight":
            array = numpy_helper.to_array(tensor) * 1e6
            tensor.CopyFrom(numpy_helper.from_array(array, "fc.weight"))
    with pytest.raises(ModelError, match=r"fc: fc.weight: .* beyond the largest float16"):
        quantize(copy, {"fc": Precision(16)}, None)


# --- activations -----------------------------------------------------------------------------


def test_convolutions_run_on_integers(
    model: Any, batches: list[Arrays], ranges: dict[str, Ranges], tmp_path: Path
) -> None:
    expected = run(model, batches[0])
    for method in METHODS:
        quantized = quantize(model, everywhere(model, INT8), ranges[method])
        onnx.checker.check_model(quantized, full_check=True)
        assert output_snr(expected, run(quantized, batches[0])) > 25
    kinds = optimized_operators(quantized, tmp_path)
    assert kinds["QLinearConv"] == 5
    assert kinds["QLinearAdd"] == kinds["QGemm"] == 1
    assert not {"Conv", "Gemm", "Relu", "Clip", "Add", "MaxPool"} & set(kinds)
    assert kinds["QuantizeLinear"] == 1


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_with_integer_activations_are_the_same_integers(
    model: Any, batches: list[Arrays], ranges: dict[str, Ranges], tmp_path: Path, bits: int
) -> None:
    plan = everywhere(model, Precision(bits, 8))
    quantized = quantize(model, plan, ranges["minmax"])
    onnx.checker.check_model(quantized, full_check=True)
    assert optimized_operators(quantized, tmp_path)["QLinearConv"] == 5
    widened = {
        name: QuantizedWeight(item.values, item.scale, 8)
        for name, item in integer_weights(model, plan).items()
    }
    wide = quantize(model, everywhere(model, INT8), ranges["minmax"], weights=widened)
    assert np.array_equal(run(quantized, batches[0])[0], run(wide, batches[0])[0])
    stored = {t.data_type for t in quantized.graph.initializer if len(t.dims) > 1}
    assert stored == {TensorProto.INT2 if bits == 2 else TensorProto.INT4}


@pytest.mark.parametrize("precision", [FLOAT, Precision(4), Precision(2), Precision(16)])
@pytest.mark.parametrize("name", ["block.c1", "deep"])
def test_a_layer_between_integers_keeps_its_precision(
    model: Any,
    batches: list[Arrays],
    ranges: dict[str, Ranges],
    tmp_path: Path,
    name: str,
    precision: Precision,
) -> None:
    plan = everywhere(model, INT8) | {name: precision}
    quantized = quantize(model, plan, ranges["minmax"])
    kinds = optimized_operators(quantized, tmp_path)
    assert kinds["QLinearConv"] == 4
    assert kinds["Conv"] + kinds["FusedConv"] == 1
    expected = run(with_rounded_weights(model, {name: precision}), batches[0])
    assert output_snr(expected, run(quantized, batches[0])) > 22


def test_what_floats_take_stays_float() -> None:
    b = Builder(5)
    x = b.node("Tanh", [b.conv("image", "first", 4, 3)], "hidden")
    y = b.conv(x, "second", 4, 4)
    b.node("Tanh", [b.node("Add", [x, y], "residual")], "y")
    model = prepare(
        b.model({"image": ["n", 3, 6, 6]}, {"y": ["n", 4, 6, 6], "hidden": ["n", 4, 6, 6]})
    )
    feeds = {"image": b.random.normal(0, 1, (4, 3, 6, 6)).astype(np.float32)}
    ranges = calibrate(model, [feeds], ("minmax",))["minmax"]
    quantized = quantize(model, {"second": INT8}, ranges)
    onnx.checker.check_model(quantized, full_check=True)
    (expected, hidden), (got, kept) = run(model, feeds), run(quantized, feeds)
    assert np.array_equal(hidden, kept)
    assert 30 < output_snr([expected], [got]) < 80


def test_a_bias_that_is_large_for_its_weights_does_not_overflow() -> None:
    b = Builder(6)
    weight = b.random.normal(0, 1, (4, 3, 3, 3))
    weight[2] *= 1e-9
    b.constant("c.weight", weight)
    b.constant("c.bias", np.array([0.1, -0.2, 50.0, 0.0]))
    b.node("Conv", ["x", "c.weight", "c.bias"], "y")
    model = prepare(b.model({"x": ["n", 3, 5, 5]}, {"y": ["n", 4, 3, 3]}))
    feeds = {"x": b.random.normal(0, 1, (4, 3, 5, 5)).astype(np.float32)}
    ranges = calibrate(model, [feeds], ("minmax",))["minmax"]
    got = run(quantize(model, {"c": INT8}, ranges), feeds)[0]
    assert np.allclose(got[:, 2], 50, atol=0.3)


def test_trained_integers_and_steps_are_written_as_they_are(
    model: Any, ranges: dict[str, Ranges]
) -> None:
    layer = next(layer for layer in quantizable_layers(model) if layer.name == "block.c2")
    random = np.random.default_rng(9)
    values = random.integers(-7, 8, layer.shape).astype(np.int8)
    trained = QuantizedWeight(values, random.uniform(0.01, 0.1, 8).astype(np.float32), 4)
    quantized = quantize(
        model,
        {"block.c2": Precision(4, 8)},
        ranges["minmax"],
        weights={"block.c2": trained},
        activation_scales={"block.c2": 0.0123},
    )
    tensors = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    stored = next(t for t in quantized.graph.initializer if t.data_type == TensorProto.INT4)
    assert np.array_equal(tensors[stored.name].astype(np.int8), values)
    assert any(np.array_equal(array, trained.scale) for array in tensors.values())
    assert any(array.shape == () and array == np.float32(0.0123) for array in tensors.values())
    with pytest.raises(UsageError, match=r"trained weights of 4 bits.*expected 8 bits"):
        quantize(model, {"block.c2": INT8}, ranges["minmax"], weights={"block.c2": trained})


def test_plans_that_do_not_fit_are_refused(model: Any) -> None:
    with pytest.raises(UsageError, match=r"'block\.c9'") as caught:
        quantize(model, {"block.c9": Precision(8)}, None)
    assert "block.c" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="not calibrated"):
        quantize(model, {"stem": INT8}, None)


def test_the_same_plan_gives_the_same_bytes(model: Any, batches: list[Arrays]) -> None:
    made = [
        quantize(
            model, everywhere(model, Precision(4, 8)), calibrate(model, batches)["entropy"]
        ).SerializeToString(deterministic=True)
        for _ in range(2)
    ]
    assert made[0] == made[1]


# --- calibration -----------------------------------------------------------------------------


def test_ranges_do_not_depend_on_how_the_data_is_cut(
    model: Any, batches: list[Arrays], ranges: dict[str, Ranges]
) -> None:
    images = np.concatenate([batch["image"] for batch in batches])
    one = calibrate(model, [{"image": images}])
    for method in METHODS:
        for name, limits in ranges[method].limits.items():
            assert np.allclose(limits, one[method].limits[name], rtol=0.05, atol=0.05)
    low, high = ranges["minmax"].limits["image"]
    assert (low, high) == (images.min(), images.max())
    assert np.allclose(ranges["minmax"].means["stem"], images.mean((0, 2, 3)), atol=1e-6)
    assert ranges["minmax"].means["fc"].shape == (192,)


def test_outliers_widen_only_the_extremes(model: Any, batches: list[Arrays]) -> None:
    images = np.random.default_rng(2).normal(0, 1, (256, 3, 8, 8)).astype(np.float32)
    images[200, 0, 0, 0] = 50
    found = calibrate(model, [*batches, {"image": images}])
    assert found["minmax"].limits["image"][1] == 50
    for method in ("entropy", "percentile"):
        low, high = found[method].limits["image"]
        assert high < 15
        assert low < -2


def test_data_that_cannot_calibrate_is_refused(model: Any, batches: list[Arrays]) -> None:
    with pytest.raises(InputError, match="0 batches"):
        calibrate(model, [])
    bad = batches[1]["image"].copy()
    bad[0, 1, 2, 3] = np.nan
    with pytest.raises(InputError, match="batch 1: image: 1 of 3072 values are NaN"):
        calibrate(model, [batches[0], {"image": bad}])
    with pytest.raises(InputError, match="batch 0: has no array 'image'; found picture"):
        calibrate(model, [{"picture": batches[0]["image"]}])
    with pytest.raises(InputError, match="batch 0: the model cannot take it"):
        calibrate(model, [{"image": np.zeros((2, 4, 8, 8), np.float32)}])
    with pytest.raises(UsageError, match="calibration method 'kl'"):
        calibrate(model, batches, ("kl",))


# --- equalization and bias correction --------------------------------------------------------


def uneven_chain() -> Any:
    """A pointwise, a depthwise and a pointwise convolution with channels of very uneven range."""
    b = Builder(8)
    spread = np.exp(b.random.normal(0, 2, 12))
    wide = b.random.normal(0, 1, (12, 4, 1, 1)) * spread[:, None, None, None]
    b.constant("wide.weight", wide)
    b.constant("wide.bias", b.random.normal(0, 0.1, 12) * spread)
    x = b.node("Relu", [b.node("Conv", ["x", "wide.weight", "wide.bias"], "wide_y")], "r1")
    again = np.exp(b.random.normal(0, 2, 12))
    deep = b.random.normal(0, 0.3, (12, 1, 3, 3)) * (again / spread)[:, None, None, None]
    b.constant("deep.weight", deep)
    x = b.node("Conv", [x, "deep.weight"], "deep_y", group=12, pads=[1] * 4)
    x = b.node("Relu", [x], "r2")
    narrow = b.random.normal(0, 0.3, (5, 12, 1, 1)) / again[None, :, None, None]
    b.node("Conv", [x, b.constant("narrow.weight", narrow)], "y")
    return b.model({"x": ["n", 4, 6, 6]}, {"y": ["n", 5, 6, 6]})


def test_equalizing_evens_out_channels_and_keeps_the_function() -> None:
    model = prepare(uneven_chain())
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (32, 4, 6, 6)).astype(np.float32)}
    even = equalize(model)
    expected, got = run(model, feeds)[0], run(even, feeds)[0]
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    plan = everywhere(model, INT8)
    before, after = (
        output_snr([expected], run(quantize(m, plan, calibrate(m, [feeds])["minmax"]), feeds))
        for m in (model, even)
    )
    assert after > before + 5


def test_equalizing_leaves_alone_what_others_take(model: Any, batches: list[Arrays]) -> None:
    even = equalize(model)
    expected, got = run(model, batches[0])[0], run(even, batches[0])[0]
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    arrays = [
        {t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, even)
    ]
    # What leaves the stem goes into the sum, too; behind the Clip nothing may be scaled.
    for name in ("stem.weight", "deep.weight", "fc.weight"):
        assert np.array_equal(arrays[0][name], arrays[1][name])
    assert not np.array_equal(arrays[0]["block.c1.weight"], arrays[1]["block.c1.weight"])


def test_corrected_biases_keep_the_mean_of_the_output(
    model: Any, batches: list[Arrays], ranges: dict[str, Ranges]
) -> None:
    found = ranges["minmax"]
    for precision in (Precision(4), Precision(4, 8)):
        plan = everywhere(model, precision)
        expected = run(model, batches[0])
        plain = run(quantize(model, plan, found), batches[0])
        corrected = run(quantize(correct_biases(model, plan, found), plan, found), batches[0])
        assert output_snr(expected, corrected) > output_snr(expected, plain) + 1
    plan = {"fc": Precision(2)}
    images = {"image": np.concatenate([batch["image"] for batch in batches])}
    expected = run(model, images)[0]
    shifts = [
        np.abs((run(with_rounded_weights(m, plan), images)[0] - expected).mean(axis=0)).max()
        for m in (model, correct_biases(model, plan, found))
    ]
    assert shifts[1] < 1e-4 < shifts[0]


def test_biases_are_added_where_there_is_none() -> None:
    b = Builder(11)
    b.normal("up.weight", 4, 3, 2, 2)
    x = b.node("ConvTranspose", ["x", "up.weight"], "up_y", strides=[2, 2], group=2)
    b.node("Conv", [b.node("Relu", [x], "r"), b.normal("c.weight", 3, 2, 1, 1)], "y", group=3)
    model = prepare(b.model({"x": ["n", 4, 4, 4]}, {"y": ["n", 3, 8, 8]}))
    feeds = {"x": b.random.uniform(0, 1, (16, 4, 4, 4)).astype(np.float32)}
    found = calibrate(model, [feeds], ("minmax",))["minmax"]
    for name in ("up", "c"):
        plan = {name: Precision(2)}
        corrected = correct_biases(model, plan, found)
        expected = run(model, feeds)[0]
        before, after = (
            output_snr([expected], run(quantize(m, plan, None), feeds)) for m in (model, corrected)
        )
        assert after > before


# --- sensitivity -----------------------------------------------------------------------------


def test_sensitivities_are_those_of_the_file_with_one_layer_quantized(
    model: Any, batches: list[Arrays], ranges: dict[str, Ranges]
) -> None:
    layers = quantizable_layers(model)
    wanted = [FLOAT, INT8, Precision(4, 8), Precision(8), Precision(4), Precision(2)]
    found = sensitivities(model, layers, ranges["minmax"], batches[:1], wanted)
    assert found == sensitivities(model, layers, ranges["minmax"], batches[:1], wanted)
    expected = run(model, batches[0])
    for layer in layers:
        row = found[layer.name]
        assert list(row) == wanted
        assert row[FLOAT] == np.inf
        assert row[Precision(8)] > row[Precision(4)] > row[Precision(2)]
        assert row[INT8] <= row[Precision(8)] + 1
        quantized = quantize(model, {layer.name: INT8}, ranges["minmax"])
        measured = output_snr(expected, run(quantized, batches[0]))
        assert measured == pytest.approx(row[INT8], abs=1.5)
    noise = sum(10 ** (-found[layer.name][INT8] / 10) for layer in layers)
    whole = quantize(model, everywhere(model, INT8), ranges["minmax"])
    measured = output_snr(expected, run(whole, batches[0]))
    assert measured == pytest.approx(-10 * np.log10(noise), abs=4)


def test_the_ratio_of_signal_to_noise_is_in_decibels() -> None:
    signal = np.array([3.0, 4.0], np.float32)
    assert output_snr([signal], [signal]) == np.inf
    assert output_snr([signal], [signal + np.float32(0.5) / np.sqrt(2)]) == pytest.approx(20)
    assert output_snr([signal, np.array([1, 2])], [signal * 2, np.array([7, 7])]) == 0
    assert output_snr([signal], [signal * np.nan]) == -np.inf


# --- networks --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "integers", "floats", "decibels"),
    [
        ("mobilenet_v2", {"QLinearConv": 52, "QLinearAdd": 12, "QGemm": 1}, {"Conv"}, 8),
        ("unet", {"QLinearConv": 11, "QLinearConcat": 2}, {"Conv"}, 20),
        ("transformer_encoder", {"MatMulIntegerToFloat": 7, "QGemm": 2}, {"Gemm"}, 30),
        ("keras_cnn", {"QLinearConv": 4, "QGemm": 1}, {"Conv", "Gemm", "Add"}, 25),
    ],
)
def test_networks_run_on_integers(
    tmp_path: Path, name: str, integers: dict[str, int], floats: set[str], decibels: float
) -> None:
    spec = networks.NETWORKS[name](tmp_path / "spec")
    (artifact,) = ingot.export(spec, "onnx", tmp_path / "out", mode="dynamic").artifacts
    model = prepare(artifact.path)
    feeds = dict(np.load(tmp_path / "spec" / "golden.npz"))
    ranges = calibrate(model, [feeds])
    quantized = quantize(model, everywhere(model, INT8), ranges["minmax"])
    onnx.checker.check_model(quantized, full_check=True)
    kinds = optimized_operators(quantized, tmp_path)
    assert {kind: kinds[kind] for kind in integers} == integers
    assert not floats & set(kinds)
    assert output_snr(run(model, feeds), run(quantized, feeds)) > decibels
