"""Neutrino's engine quantizes: by rules, by a table of layers, by the mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from compress_specs import write_spec
from test_compat_neutrino_run import blocks

import ingot
from ingot.compat import neutrino
from ingot.compat.neutrino import Neutrino, TorchFramework
from ingot.errors import UsageError

pytest.importorskip("onnxscript")
pytest.importorskip("scipy")

import torch
from torch import nn

LAYERS = ("first", "second", "head")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUTRINO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nn.Module]:
    """A trained network with BatchNorm behind a convolution."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("code")
    write_spec(folder)
    (folder / "net.py").rename(folder / "quantized_network.py")
    sys.path.insert(0, str(folder))
    from quantized_network import Net

    network = Net().eval()
    network.load_state_dict(load_file(folder / "net.safetensors"))
    yield network
    sys.path.remove(str(folder))
    del sys.modules["quantized_network"]


def search(model: nn.Module, dryrun: bool = False, **config: Any) -> tuple[Any, nn.Module]:
    """Run the engine; return its verdict and the module."""
    data = neutrino.get_data_splits_by_name("digits", batch_size=64)
    engine = Neutrino(TorchFramework(), data, model, {"device": "CPU", "delta": 2, **config})
    made = engine.run(dryrun=dryrun)
    return engine.verdict, made


def levels(weight: torch.Tensor) -> int:
    """Return the most distinct values that an output channel has."""
    return max(len(row.unique()) for row in weight.detach().flatten(1))


def bits(verdict: Any) -> dict[str, int]:
    return {layer["name"]: layer["weight_bits"] for layer in verdict.layers}


def difference(verdict: Any, made: nn.Module) -> float:
    """Return how far a module's answers are from those of the file, in units of their length."""
    path = next(item.path for item in verdict.artifacts if item.format == "onnx")
    x = neutrino.get_data_splits_by_name("digits", batch_size=64)["test"]
    image = next(iter(x))[0]
    with ingot.load(path) as loaded:
        (feed,) = loaded.inputs
        (found,) = loaded.infer({feed.name: image.numpy()}).values()
    with torch.no_grad():
        expected = made(image).numpy()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_the_mode_quantizes_to_8_bits(digits: nn.Module, home: Path) -> None:
    before = {name: value.clone() for name, value in digits.state_dict().items()}
    verdict, made = search(digits, optimization="quantization")
    assert verdict.verdict == "met"
    assert verdict.command == "quantize"
    assert verdict.run_dir.parent == home / "runs"
    assert bits(verdict) == dict.fromkeys(LAYERS, 8)
    assert type(made) is type(digits)
    assert not made.training
    assert all(torch.equal(value, before[name]) for name, value in digits.state_dict().items())
    for name in LAYERS:
        weight, original = made.get_submodule(name).weight, digits.get_submodule(name).weight
        assert 0 < float((weight - original).norm() / original.norm()) < 0.01
        assert levels(weight) <= 255
    assert difference(verdict, made) < 0.05

    again, same = search(digits, optimization="quantization")
    assert again.run_dir == verdict.run_dir
    assert all(
        torch.equal(value, same.state_dict()[name]) for name, value in made.state_dict().items()
    )


def test_layers_that_are_not_named_stay_as_they_are(
    digits: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    verdict, made = search(
        digits,
        custom_compression={"layers": {"second": {"precision": 4}, "head": {"precision": 8}}},
        export={"format": ["dlrt", "jit"]},
        fine_tuner={"loop_params": {"epochs": 0}},
    )
    assert bits(verdict) == {"first": 32, "second": 4, "head": 8}
    assert torch.equal(made.first.weight, digits.first.weight)
    assert levels(made.second.weight) <= 16
    assert levels(made.head.weight) <= 255
    assert difference(verdict, made) < 0.05
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "dlrt is a closed format; onnx with packed integers" in said
    assert "jit is not written: a quantized model is onnx or tflite" in said


def test_two_bits_are_trained(digits: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    verdict, made = search(
        digits,
        optimization="compression",
        custom_compression={"quant_args": {"quantize_conv11": True, "skip_layers": [2]}},
        fine_tuner={"loop_params": {"epochs": 2}},
        delta=5,
    )
    assert bits(verdict) == {"first": 2, "second": 2, "head": 32}
    assert verdict.epochs > 0
    assert max(levels(made.first.weight), levels(made.second.weight)) <= 4
    assert not torch.equal(made.head.weight, digits.head.weight)  # it was trained, too
    assert difference(verdict, made) < 1e-3
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "the model is quantized, not pruned;" in said


@pytest.mark.parametrize("number", [0, 1])
def test_the_configurations_of_the_guide(number: int, shared: Path, digits: nn.Module) -> None:
    (path,) = (shared / "seeds").glob("004_*.txt")
    text = path.read_text(encoding="utf-8")
    found = [block for block in blocks(text) if "'custom_compression'" in block]
    # The document leaves out a brace in each, and goes on with dots.
    block = found[number].replace("}...", "}").rstrip()
    block += "}" * (block.count("{") - block.count("}"))
    block = block.replace("'model.block.0.conv1'", "'first'").replace(
        "'model.block.1.conv2'", "'second'"
    )
    names: dict[str, Any] = {"args": SimpleNamespace()}
    exec(compile(block.replace("[8, 9, 10]", "[1]"), "guide", "exec"), names)
    verdict, made = search(digits, dryrun=True, **names["config"])
    expected = [{"first": 2, "second": 32, "head": 2}, {"first": 2, "second": 2, "head": 32}]
    assert bits(verdict) == expected[number]
    assert levels(made.first.weight) <= 4


@pytest.mark.slow
def test_tflite_beside_onnx(digits: nn.Module) -> None:
    pytest.importorskip("litert_torch")
    verdict, _ = search(
        digits,
        custom_compression={"layers": {"second": {"precision": 2}, "head": {"precision": 8}}},
        export={"format": ["tflite"]},
        fine_tuner={"loop_params": {"epochs": 0}},
    )
    files = {item.format: item.path for item in verdict.artifacts}
    assert files.keys() >= {"onnx", "tflite"}
    x = next(iter(neutrino.get_data_splits_by_name("digits", batch_size=1)["test"]))[0].numpy()
    found = []
    for name in ("onnx", "tflite"):
        with ingot.load(files[name]) as loaded:
            found += loaded.infer({tensor.name: x for tensor in loaded.inputs}).values()
    # TFLite has no 2-bit weights, and gets 4 bits.
    assert 1e-3 < float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1])) < 0.6


def test_an_optimizer_of_ones_own_trains(digits: nn.Module) -> None:
    rates: list[float] = []

    class Factory(neutrino.NativeOptimizerFactory):
        def make(self, native_model: Any) -> Any:
            rates.append(0.02)
            return torch.optim.SGD(native_model.parameters(), lr=0.02, momentum=0.9)

    search(
        digits,
        custom_compression={"quantization_args": {"skip_layers": None}},
        full_trainer={"optimizer": Factory()},
        fine_tuner={"loop_params": {"epochs": 1}},
        delta=1,
    )
    assert rates


class Folded(nn.Module):
    """A convolution without a bias, whose BatchNorm has one, and multiplies a channel by 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean):
                tensor.normal_()
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight[3] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_weights_and_biases_are_those_of_the_file(tmp_path: Path) -> None:
    from ingot.optimizers.quantization.bias_correction import correct_biases
    from ingot.optimizers.quantization.calibration import calibrate, open_session
    from ingot.optimizers.quantization.plan import Precision
    from ingot.optimizers.quantization.prepare import prepare
    from ingot.optimizers.quantization.qdq import quantize
    from ingot.optimizers.quantization.rounded_network import rounded_network

    network = Folded().eval()
    x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 1
    torch.onnx.export(network, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    graph = prepare(tmp_path / "net.onnx")
    plan = {"conv": Precision(4), "head": Precision(8)}
    feeds = [{"x": x.numpy()}]
    ranges = calibrate(graph, feeds, ("minmax",))["minmax"]
    quantized = quantize(correct_biases(graph, plan, ranges), plan, None)
    made, left = rounded_network(network, graph, plan, quantized)
    assert not left
    (expected,) = open_session(quantized).run(None, feeds[0])
    with torch.no_grad():
        np.testing.assert_allclose(made(x), expected, atol=1e-5)
        assert float((made(x) - network(x)).abs().max()) > 1e-3
    assert made.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(made.conv.weight[3], network.conv.weight[3])

    plain, _ = rounded_network(network, graph, plan)
    assert torch.allclose(plain.conv.weight, made.conv.weight)
    assert torch.equal(plain.norm.bias, network.norm.bias)


def test_a_rule_of_no_layer_is_refused(digits: nn.Module) -> None:
    with pytest.raises(UsageError, match="'secnd'") as caught:
        search(digits, custom_compression={"layers": {"secnd": {"precision": 2}}})
    assert "second" in str(caught.value.hint)
