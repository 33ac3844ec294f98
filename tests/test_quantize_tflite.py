"""``quantize`` to TensorFlow Lite, and of Keras and TensorFlow models to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from models import write
from test_quantization_tflite import NET, kinds, operators

import ingot
from ingot.errors import InputError, ModelError, UsageError
from ingot.optimizers.quantization.layers import QuantLayer, quantizable_layers
from ingot.optimizers.quantization.plan import FLOAT, INT8, Precision
from ingot.optimizers.quantization.prepare import prepare
from ingot.optimizers.quantization.rules import FORMAT_BITS, LayerRules, choose, possible_bits
from ingot.optimizers.quantization.tflite import quantize_tflite
from ingot.optimizers.quantization.tflite_candidates import TfliteCandidates
from ingot.zoo.digits import load_digits

pytest.importorskip("ai_edge_quantizer")
keras = pytest.importorskip("keras")

Array = np.ndarray[Any, Any]

DATA = """
import torch
from ingot.zoo.digits import load_digits


def batches(split, last):
    images, labels = load_digits(split)
    axes = (0, 2, 3, 1) if last else (0, 1, 2, 3)
    images = torch.from_numpy(images.transpose(axes).copy())
    return list(zip(images.split(64), torch.from_numpy(labels).split(64)))


def channels_last():
    return {split: batches(split, True) for split in ("train", "test")}


def channels_first():
    return {split: batches(split, False) for split in ("train", "test")}
"""
NAMES = ["stem", "depthwise", "pointwise", "inner/body", "hidden", "logits"]


def images(split: str) -> Array:
    """Digits, channels last."""
    return load_digits(split)[0].transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained Keras CNN for digits."""
    folder = tmp_path_factory.mktemp("keras")
    write(folder / "data.py", DATA)
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(32, 3, padding="same", name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = layers.Conv2D(64, 1, activation="relu", name="pointwise")(x)
    x = layers.MaxPooling2D()(x)
    block = keras.Sequential([layers.Conv2D(64, 3, activation="relu", name="body")], name="inner")
    x = layers.Dense(160, activation="relu", name="hidden")(layers.Flatten()(block(x)))
    model = keras.Model(inputs, layers.Dense(10, name="logits")(x))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images("train"), load_digits("train")[1], batch_size=64, epochs=5, verbose=0)
    model.save(folder / "digits.keras")
    model.export(str(folder / "saved"), verbose=False)
    return folder


def spec_of(folder: Path, name: str, **changes: Any) -> Path:
    """Write a spec of the network, as a ``.keras`` file unless it says something else."""
    spec = {
        "model": {"framework": "keras", "file": "digits.keras"},
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 8, 8, 1]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "task": "classification",
        "data": {"splits": "data:channels_last"},
        "optimization": {"mode": "quantization", "delta": 1.0},
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.fixture(scope="module")
def files(network: Path) -> dict[str, Path]:
    """The network as float32 files, by format."""
    made = ingot.export(
        spec_of(network, "float"), ["onnx", "tflite"], network / "float", mode="dynamic"
    )
    return {item["format"]: Path(item["path"]) for item in made.to_dict()["artifacts"]}


@pytest.fixture(scope="module")
def candidates(files: dict[str, Path]) -> TfliteCandidates:
    feeds = [{"image": images("train")[i : i + 32]} for i in range(0, 128, 32)]
    return TfliteCandidates(files["tflite"], feeds)


def accuracy(path: Path) -> float:
    """Return the accuracy of a Keras network's file in its runtime, in percent."""
    with ingot.load(path, threads=1) as loaded:
        found = loaded.infer({"image": images("test")})["logits"]
    return 100 * float((found.argmax(1) == load_digits("test")[1]).mean())


def golden(path: Path, other: Path) -> float:
    """Return the relative difference of what two files answer."""
    feed = {"image": images("test")[:32]}
    with ingot.load(path, threads=1) as one, ingot.load(other, threads=1) as two:
        found, expected = one.infer(feed)["logits"], two.infer(feed)["logits"]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_layers_have_the_names_of_the_source(candidates: TfliteCandidates) -> None:
    layers = candidates.layers
    assert [layer.name for layer in layers] == NAMES
    assert [layer.index for layer in layers] == list(range(6))
    assert [layer.group for layer in layers] == [1, 32, 1, 1, 1, 1]
    assert [layer.is_pointwise for layer in layers] == [False, False, True, False, False, False]
    assert [layer.is_grouped for layer in layers] == [False, True, False, False, False, False]
    assert [layer.shape[layer.channel_axis] for layer in layers] == [32, 32, 64, 64, 160, 10]
    assert [layer.parameters for layer in layers] == [288, 288, 2048, 36864, 40960, 1600]


def test_what_is_said_to_be_possible_is(
    files: dict[str, Path], candidates: TfliteCandidates, tmp_path: Path
) -> None:
    out = tmp_path / "out.tflite"
    for layer in candidates.layers[:2] + candidates.layers[-1:]:
        for bits in FORMAT_BITS["onnx"]:
            arguments: Any = (files["tflite"], out, {layer.node: bits}, (), 32)
            if bits in possible_bits(layer, "tflite") and bits < 32:
                quantize_tflite(*arguments)
            else:
                with pytest.raises(UsageError):
                    quantize_tflite(*arguments)


def test_noise_falls_with_the_bits(candidates: TfliteCandidates) -> None:
    wanted = [Precision(2), Precision(4), INT8, Precision(8), Precision(16), FLOAT]
    found = candidates.noise({"depthwise": wanted, "hidden": wanted})
    assert found.keys() == {"depthwise", "hidden"}
    assert list(found["depthwise"]) == [INT8, Precision(8), Precision(16), FLOAT]
    row = found["hidden"]
    assert row[Precision(4)] > 20 * row[Precision(8)] > 20 * row[Precision(16)]
    assert row[INT8] > row[Precision(8)]
    assert row[FLOAT] <= 1e-10


def test_candidates_and_their_errors(
    files: dict[str, Path], candidates: TfliteCandidates, tmp_path: Path
) -> None:
    plan = dict.fromkeys(NAMES, Precision(8)) | {
        "hidden": Precision(4),
        "depthwise": Precision(4),  # LiteRT has none: 8 bits
        "logits": Precision(16),
        "stem": FLOAT,
    }
    candidates.write(plan, tmp_path / "mixed.tflite")
    assert kinds(tmp_path / "mixed.tflite") == {"FLOAT32": 1, "INT8": 3, "INT4": 1, "FLOAT16": 1}
    real = candidates.effective(plan)
    assert real == plan | {"depthwise": Precision(8)}
    assert candidates.effective({"hidden": INT8, "stem": INT8}) == {"hidden": INT8, "stem": INT8}
    errors = candidates.errors(plan)
    assert errors.keys() == {"depthwise", "pointwise", "inner/body", "hidden"}
    assert 10 < errors["hidden"] < 25
    assert min(errors[name] for name in errors if name != "hidden") > 35
    candidates.write(dict.fromkeys(NAMES, FLOAT), tmp_path / "float.tflite")
    assert (tmp_path / "float.tflite").read_bytes() == files["tflite"].read_bytes()


def test_some_layers_compute_in_integers(candidates: TfliteCandidates, tmp_path: Path) -> None:
    plan = {"stem": Precision(4), "pointwise": INT8, "inner/body": INT8, "hidden": Precision(8)}
    assert candidates.effective(plan) == plan
    out = tmp_path / "some.tflite"
    candidates.write(plan, out)
    assert kinds(out) == {"INT4": 1, "INT8": 3, "FLOAT32": 2}
    found = operators(out)
    first = found.index("QUANTIZE")
    assert found.count("QUANTIZE") == 1
    # Around them, weights alone are dequantized.
    assert "DEQUANTIZE" in found[:first]
    assert found[first + 1 :].count("CONV_2D") == 2
    assert golden(out, tmp_path / "some.tflite") == 0


def test_precisions_of_an_onnx_plan(
    files: dict[str, Path], candidates: TfliteCandidates, tmp_path: Path
) -> None:
    layers = quantizable_layers(prepare(files["onnx"]))
    precisions = [Precision(bits) for bits in (16, 8, 4, 4, 8, 16)]
    plan = {layer.name: item for layer, item in zip(layers, precisions, strict=True)}
    like, own = tmp_path / "like.tflite", tmp_path / "own.tflite"
    candidates.write_like(plan, like, layers)
    candidates.write(dict(zip(NAMES, precisions, strict=True)), own)
    assert like.read_bytes() == own.read_bytes()
    candidates.write_like({"hidden": INT8}, like)
    assert kinds(like)["INT8"] == 1
    with pytest.raises(ModelError, match=r"found 'logits' with 1600 parameters in the place of no"):
        candidates.write_like(plan, like, layers[:-1])
    other = QuantLayer(0, "x", "Conv", "x", "x", (32, 1, 5, 5), 0, 1, (5, 5))
    with pytest.raises(ModelError, match="'stem' with 288 parameters in the place of 'x' with 800"):
        candidates.write_like({"x": INT8}, like, (other, *layers[1:]))
    with pytest.raises(ModelError, match="no layer is called 'x'"):
        candidates.write_like({"x": INT8}, like)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (LayerRules(layers={"stem": 2}), "'stem': found 2 bits, which tflite has no type for; exp"),
        (
            LayerRules(layers={"depthwise": 4}),
            r"'depthwise' \(DEPTHWISE_CONV_2D\): found 4 bits, .* of 8, 16",
        ),
        (LayerRules(layers={"hidden": 3}), "'hidden': found 3 bits, .* one of 4, 8, 16, 32"),
        (LayerRules("2"), "'stem': found 2 bits"),
        (LayerRules("2", binding=True, conv11=False), "'stem': found 2 bits"),
    ],
)
def test_bits_that_tflite_has_not(
    rules: LayerRules, message: str, candidates: TfliteCandidates
) -> None:
    with pytest.raises(UsageError, match=message):
        choose(candidates.layers, rules, format_="tflite")


def test_inputs_that_hold_nan(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="NaN"):
        TfliteCandidates(files["tflite"], [{"image": np.full((1, 8, 8, 1), np.nan, np.float32)}])


def test_a_keras_network_to_int8(network: Path, tmp_path: Path) -> None:
    spec = spec_of(network, "int8")
    verdict = ingot.quantize(spec, output=tmp_path / "run", formats=("tflite",))
    assert verdict.verdict == "met"
    made, before = verdict.artifacts[0], verdict.reference_artifacts[0]
    assert made.format == "tflite"
    assert before.size_bytes > 3.2 * made.size_bytes
    assert verdict.optimized is not None
    assert accuracy(made.path) == pytest.approx(verdict.optimized.metrics["accuracy"])
    assert golden(made.path, before.path) < 0.05
    assert {layer["name"]: layer["weight_bits"] for layer in verdict.layers} == dict.fromkeys(
        NAMES, 8
    )
    assert all(layer["weight_snr_db"] > 30 for layer in verdict.layers)


def test_mixed_bits_and_a_layer_of_ones_own(network: Path, tmp_path: Path) -> None:
    verdict = ingot.quantize(
        spec_of(network, "mixed"),
        output=tmp_path / "run",
        formats=("tflite",),
        bits="mixed",
        layers=(("stem", 16),),
    )
    assert verdict.verdict == "met"
    bits = {layer["name"]: layer["weight_bits"] for layer in verdict.layers}
    assert bits["stem"] == 16
    assert bits["hidden"] == bits["inner/body"] == 4
    assert verdict.reference_artifacts[0].size_bytes > 5 * verdict.artifacts[0].size_bytes
    assert accuracy(verdict.artifacts[0].path) > 90


def test_two_bits_are_refused_before_the_search(network: Path, tmp_path: Path) -> None:
    spec = spec_of(network, "refused")
    for changes in ({"bits": "2"}, {"layers": (("hidden", 2),)}):
        arguments: dict[str, Any] = {"output": tmp_path / "run", "formats": ("tflite",), **changes}
        with pytest.raises(UsageError, match=r"2 bits, which tflite has no type for.* 4, 8"):
            ingot.quantize(spec, fresh=True, **arguments)
    assert not list((tmp_path / "run").glob("opt_model*"))


@pytest.mark.parametrize("framework", ["keras", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_keras_and_tensorflow_to_onnx(framework: str, network: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {}
    if framework == "tensorflow":
        with ingot.load(network / "saved") as loaded:
            inputs = [tensor.to_dict() for tensor in loaded.inputs]
            outputs = [tensor.to_dict() for tensor in loaded.outputs]
        model = {"framework": "tensorflow", "saved_model": "saved"}
        changes = {"model": model, "inputs": inputs, "outputs": outputs}
    spec = spec_of(network, framework, **changes)
    verdict = ingot.quantize(spec, output=tmp_path / "run", formats=("onnx",))
    assert verdict.verdict == "met"
    made, before = verdict.artifacts[0], verdict.reference_artifacts[0]
    assert made.format == "onnx"
    assert before.size_bytes > 3 * made.size_bytes
    assert len(verdict.layers) == 6


@pytest.mark.slow
def test_a_pytorch_network_to_tflite(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from ingot.training import fit

    write(tmp_path / "data.py", DATA)
    write(tmp_path / "net.py", NET)
    scope: dict[str, Any] = {"__name__": "net"}
    exec(NET, scope)
    net = scope["build"]()
    pictures, labels = map(torch.from_numpy, load_digits("train"))
    batches = list(zip(pictures.split(64), labels.split(64), strict=True))
    fit(net, {"train": batches}, {"epochs": 3, "optimizer": {"name": "SGD", "lr": 0.05}})
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    spec = spec_of(
        tmp_path,
        "net",
        model={"framework": "torch", "entrypoint": "net:build", "weights": "net.safetensors"},
        inputs=[{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
        data={"splits": "data:channels_first"},
    )
    verdict = ingot.quantize(spec, output=tmp_path / "run", formats=("tflite",))
    assert verdict.verdict == "met"
    made, before = verdict.artifacts[0], verdict.reference_artifacts[0]
    assert before.size_bytes > 3 * made.size_bytes
    names = ["body.0", "body.3", "shortcut", "hidden", "head"]
    assert [layer["name"] for layer in verdict.layers] == names
    image = load_digits("test")[0][:1]
    with ingot.load(made.path) as one, ingot.load(before.path) as two:
        found, expected = one.infer({"image": image}), two.infer({"image": image})
    assert np.linalg.norm(found["logits"] - expected["logits"]) < 0.1 * np.linalg.norm(
        expected["logits"]
    )
