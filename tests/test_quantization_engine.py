"""Quantized ONNX graphs: what is stored, what runs on integers, and how far the outputs move."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from quantization_graphs import (
    Arrays,
    Builder,
    everywhere,
    image_batches,
    optimized_operators,
    residual_net,
    run,
    with_rounded_weights,
)

import ingot
from ingot.errors import ModelError, UsageError
from ingot.optimizers.quantization import (
    FLOAT,
    INT8,
    METHODS,
    Precision,
    QuantizedWeight,
    Ranges,
    calibrate,
    dequantize,
    integer_weights,
    output_snr,
    prepare,
    quantizable_layers,
    quantize,
    quantize_weight,
    weight_bytes,
)


@pytest.fixture(scope="module")
def source() -> Any:
    return residual_net()


@pytest.fixture(scope="module")
def model(source: Any) -> Any:
    return prepare(source)


@pytest.fixture(scope="module")
def batches() -> list[Arrays]:
    return image_batches()


@pytest.fixture(scope="module")
def ranges(model: Any, batches: list[Arrays]) -> dict[str, Ranges]:
    return calibrate(model, batches)


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
