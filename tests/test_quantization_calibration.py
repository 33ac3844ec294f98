"""Ranges of activations, what makes quantization cost less, and what it costs layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from quantization_graphs import (
    Arrays,
    Builder,
    everywhere,
    image_batches,
    residual_net,
    run,
    with_rounded_weights,
)

from ingot.errors import InputError, UsageError
from ingot.optimizers.quantization import (
    FLOAT,
    INT8,
    METHODS,
    Precision,
    Ranges,
    calibrate,
    correct_biases,
    equalize,
    output_snr,
    prepare,
    quantizable_layers,
    quantize,
    sensitivities,
)


@pytest.fixture(scope="module")
def model() -> Any:
    return prepare(residual_net())


@pytest.fixture(scope="module")
def batches() -> list[Arrays]:
    return image_batches()


@pytest.fixture(scope="module")
def ranges(model: Any, batches: list[Arrays]) -> dict[str, Ranges]:
    return calibrate(model, batches)


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
