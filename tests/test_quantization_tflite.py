"""Quantized TensorFlow Lite files: what changes in them, what stays, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import write

import ingot
from ingot.errors import InputError, ModelError, UsageError
from ingot.exporters.tflite_files import read_metadata
from ingot.optimizers.quantization.tflite import TfliteLayer, quantize_tflite, tflite_layers
from ingot.zoo.digits import load_digits

pytest.importorskip("ai_edge_quantizer")
keras = pytest.importorskip("keras")

Array = np.ndarray[Any, Any]

OPERATORS = [
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "CONV_2D",
    "TRANSPOSE_CONV",
    "CONV_2D",
    "FULLY_CONNECTED",
    "FULLY_CONNECTED",
]


def images(split: str) -> Array:
    """Digits, channels last."""
    return load_digits(split)[0].transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained Keras CNN for digits, with every kind of convolution, as a float32 file."""
    folder = tmp_path_factory.mktemp("digits")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(32, 3, padding="same", name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = layers.Conv2D(64, 1, activation="relu", name="pointwise")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2DTranspose(32, 2, strides=2, activation="relu", name="up")(x)
    x = layers.Conv2D(64, 3, strides=2, activation="relu", name="down")(x)
    x = layers.Dense(160, activation="relu", name="hidden")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(10, name="logits")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(images("train"), load_digits("train")[1], batch_size=64, epochs=6, verbose=0)
    model.save(folder / "digits.keras")
    made = ingot.export(folder / "digits.keras", ["tflite"], folder, mode="dynamic")
    return Path(made.to_dict()["artifacts"][0]["path"])


@pytest.fixture(scope="module")
def calibration() -> list[dict[str, Array]]:
    """Batches of the training split."""
    return [{"image": images("train")[i : i + 32]} for i in range(0, 256, 32)]


def logits(path: Path) -> Array:
    with ingot.load(path, threads=1) as loaded:
        return loaded.infer({"image": images("test")})["logits"]


def snr(reference: Array, found: Array) -> float:
    """Signal-to-noise ratio in decibels."""
    return float(10 * np.log10((reference**2).sum() / ((found - reference) ** 2).sum()))


def accuracy(found: Array) -> float:
    return float((found.argmax(1) == load_digits("test")[1]).mean())


def all_layers(path: Path, bits: int) -> dict[str, int]:
    return {layer.name: bits for layer in tflite_layers(path)}


def kinds(path: Path) -> dict[str, int]:
    """Return how often each type of the constant tensors with more than one axis occurs."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: key for key, value in vars(schema.TensorType).items()}
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    found: dict[str, int] = {}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(tensor.shape) > 1:
            found[names[tensor.type]] = found.get(names[tensor.type], 0) + 1
    return found


def operators(path: Path) -> list[str]:
    """Return the operators of a file, in order."""
    from ai_edge_litert.interpreter import Interpreter

    return [detail["op_name"] for detail in Interpreter(str(path))._get_ops_details()]


def test_layers_are_listed_in_graph_order(digits: Path) -> None:
    layers = tflite_layers(digits)
    assert [layer.index for layer in layers] == list(range(7))
    assert [layer.op for layer in layers] == OPERATORS
    names = ["stem", "depthwise", "pointwise", "up", "down", "hidden", "logits"]
    for layer, name in zip(layers, names, strict=True):
        assert name in layer.name
    assert layers[0].shape == (32, 3, 3, 1)
    assert layers[0].parameters == 288
    assert isinstance(layers[0], TfliteLayer)


@pytest.mark.parametrize(("activations", "decibels"), [(8, 32), (32, 40)])
def test_eight_bits(
    activations: Any,
    decibels: float,
    digits: Path,
    calibration: list[dict[str, Array]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "int8.tflite"
    quantize_tflite(digits, out, all_layers(digits, 8), calibration, activations)
    assert digits.stat().st_size > 3.4 * out.stat().st_size
    assert kinds(out) == {"INT8": 7}
    reference, found = logits(digits), logits(out)  # 360 images in one batch: it is free still
    assert found.dtype == np.float32
    assert snr(reference, found) > decibels
    assert abs(accuracy(found) - accuracy(reference)) <= 0.01
    in_integers = operators(out).count("DEQUANTIZE")
    assert in_integers == (1 if activations == 8 else 7)
    with ingot.load(digits) as before, ingot.load(out) as after:
        assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert read_metadata(out)["source_sha256"] == read_metadata(digits)["source_sha256"]


@pytest.mark.parametrize("activations", [8, 32])
def test_four_bits_where_there_are_kernels(
    activations: Any, digits: Path, calibration: list[dict[str, Array]], tmp_path: Path
) -> None:
    bits = {
        layer.name: 4 if layer.op in ("CONV_2D", "FULLY_CONNECTED") else 8
        for layer in tflite_layers(digits)
    }
    out = tmp_path / "int4.tflite"
    quantize_tflite(digits, out, bits, calibration, activations)
    assert digits.stat().st_size > 5.5 * out.stat().st_size
    assert kinds(out) == {"INT4": 5, "INT8": 2}
    reference, found = logits(digits), logits(out)
    assert snr(reference, found) > 12
    assert abs(accuracy(found) - accuracy(reference)) <= 0.03


def test_bits_layer_by_layer(
    digits: Path, calibration: list[dict[str, Array]], tmp_path: Path
) -> None:
    names = [layer.name for layer in tflite_layers(digits)]
    out = tmp_path / "mixed.tflite"
    quantize_tflite(digits, out, {names[2]: 8, names[5]: 4, names[4]: 16}, calibration)
    assert kinds(out) == {"FLOAT32": 4, "INT8": 1, "FLOAT16": 1, "INT4": 1}
    assert operators(out).count("QUANTIZE") == 2
    reference, found = logits(digits), logits(out)
    assert snr(reference, found) > 12


def test_what_follows_a_quantized_layer_stays_in_integers(
    digits: Path, calibration: list[dict[str, Array]], tmp_path: Path
) -> None:
    names = [layer.name for layer in tflite_layers(digits)]
    out = tmp_path / "pool.tflite"
    quantize_tflite(digits, out, {names[2]: 8, names[3]: 8}, calibration)
    found = operators(out)
    first, last = found.index("QUANTIZE"), found.index("DEQUANTIZE")
    assert found.count("QUANTIZE") == found.count("DEQUANTIZE") == 1
    assert {"CONV_2D", "MAX_POOL_2D", "TRANSPOSE_CONV"} <= set(found[first:last])


def test_the_same_arguments_give_the_same_bytes(
    digits: Path, calibration: list[dict[str, Array]], tmp_path: Path
) -> None:
    bits = all_layers(digits, 8)
    before = digits.read_bytes()
    quantize_tflite(digits, tmp_path / "a.tflite", bits, calibration)
    reversed_bits = dict(reversed(bits.items()))
    quantize_tflite(digits, tmp_path / "b.tflite", reversed_bits, calibration[::-1])
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()
    assert digits.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tflite", "b.tflite"]


def test_weights_alone_need_no_calibration(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.tflite"
    quantize_tflite(digits, out, all_layers(digits, 16), activations=32)
    assert kinds(out) == {"FLOAT16": 7}
    assert snr(logits(digits), logits(out)) > 55


@pytest.mark.parametrize(("bits", "activations"), [(8, 8), (8, 32), (4, 32)])
def test_products_with_a_constant_batch_of_matrices(
    bits: int, activations: Any, tmp_path: Path
) -> None:
    import tensorflow as tf

    random = np.random.default_rng(0)
    constant = tf.constant(random.standard_normal((1, 4, 32, 16)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([1, 4, 8, 32], tf.float32, name="x")])
    def product(x: Any) -> dict[str, Any]:
        return {"y": tf.linalg.matmul(x, constant)}

    concrete = product.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    path, out = tmp_path / "float.tflite", tmp_path / "out.tflite"
    path.write_bytes(converter.convert())
    layers = tflite_layers(path)
    assert [layer.op for layer in layers] == ["BATCH_MATMUL"]
    feeds = {"x": random.standard_normal((1, 4, 8, 32)).astype(np.float32)}
    quantize_tflite(path, out, {layers[0].name: bits}, [feeds], activations)
    with ingot.load(path) as before, ingot.load(out) as after:
        assert snr(before.infer(feeds)["y"], after.infer(feeds)["y"]) > (30 if bits == 8 else 14)


def refused(
    error: type[Exception], match: str, path: Path, bits: Mapping[str, int], *args: Any
) -> None:
    out = path.parent / "refused.tflite"
    with pytest.raises(error, match=match):
        quantize_tflite(path, out, bits, *args)
    assert not out.exists()
    assert not list(path.parent.glob(".*.part"))


def test_refusals(digits: Path, calibration: list[dict[str, Array]]) -> None:
    names = [layer.name for layer in tflite_layers(digits)]
    refused(
        UsageError, r"layer '.*stem.*': found 2 bits; .* CONV_2D .* 4, 8", digits, {names[0]: 2}
    )
    refused(UsageError, r"depthwise.*found 4 bits; .* 8, 16, 32 bits", digits, {names[1]: 4})
    refused(UsageError, "found 3 bits", digits, {names[0]: 3})
    refused(UsageError, "no layer 'stemm'", digits, {"stemm": 8})
    refused(UsageError, "found no layer to quantize", digits, {names[0]: 32})
    refused(UsageError, "found 16 bits; expected 8 or 32", digits, {names[0]: 8}, calibration, 16)
    refused(InputError, "no calibration data", digits, {names[0]: 8})
    bad = images("train")[:4].copy()
    bad[1, 2, 3] = np.nan
    refused(InputError, "image: 1 of 256 values", digits, {names[0]: 8}, [{"image": bad}])
    good = images("train")[:4]
    refused(InputError, "found the inputs x;", digits, {names[0]: 8}, [{"x": good}])
    refused(InputError, "float64", digits, {names[0]: 8}, [{"image": good.astype(np.float64)}])
    refused(InputError, r"\(4, 8, 7, 1\)", digits, {names[0]: 8}, [{"image": good[:, :, :7]}])


def test_a_quantized_file_is_refused(
    digits: Path, calibration: list[dict[str, Array]], tmp_path: Path
) -> None:
    bits = all_layers(digits, 8)
    for activations in (8, 32):
        made = tmp_path / f"{activations}.tflite"
        quantize_tflite(digits, made, bits, calibration, activations)
        refused(ModelError, "quantized already: found a scale", made, bits, calibration)
    half = tmp_path / "half.tflite"
    quantize_tflite(digits, half, all_layers(digits, 16), activations=32)
    refused(ModelError, "quantized already: found float16", half, bits, calibration)


@pytest.mark.parametrize("size", [0, 5, 20, 3000])
def test_a_damaged_file_is_refused(size: int, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.tflite"
    path.write_bytes(digits.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"damaged\.tflite"):
        tflite_layers(path)


NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        )
        self.shortcut = nn.Conv2d(32, 32, 3, padding=1)
        self.hidden = nn.Linear(288, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, image):
        x = self.body(image)
        x = (x + self.shortcut(x)).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def build():
    return Net().eval()
"""

SPEC = """
name: net
model: {framework: torch, entrypoint: "net:build"}
inputs: [{name: image, dtype: float32, shape: [batch, 1, 8, 8]}]
outputs: [{name: logits, dtype: float32, shape: [batch, 10]}]
"""


@pytest.mark.slow
def test_a_pytorch_network(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    write(tmp_path / "net.py", NET)
    spec = write(tmp_path / "net.yaml", SPEC)
    made = ingot.export(spec, ["tflite"], tmp_path, resolutions=[(8, 8)], mode="fixed")
    path = Path(made.to_dict()["artifacts"][0]["path"])
    names = [layer.name for layer in tflite_layers(path)]
    assert names == ["body.0", "body.3", "shortcut", "hidden", "head"]
    digits = load_digits("train")[0]
    out = tmp_path / "int8.tflite"
    # A batch of 64, of which the file takes one at a time.
    quantize_tflite(path, out, dict.fromkeys(names, 8), [{"image": digits[:64]}])
    assert path.stat().st_size > 3.4 * out.stat().st_size
    assert operators(out).count("DEQUANTIZE") == 1  # the addition is in integers, too
    with ingot.load(path) as before, ingot.load(out) as after:
        feeds = [{"image": digits[i : i + 1]} for i in range(100, 140)]
        reference = np.concatenate([before.infer(feed)["logits"] for feed in feeds])
        found = np.concatenate([after.infer(feed)["logits"] for feed in feeds])
    assert snr(reference, found) > 30
