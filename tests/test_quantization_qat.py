"""Quantization-aware fine-tuning: what is learned, read back, and folded into the ONNX graph."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import training_specs
from onnx import numpy_helper
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from ingot.errors import ModelError
from ingot.exporters import export_variants
from ingot.exporters.base import Job, Variant
from ingot.frameworks import open_model
from ingot.frameworks.base import ModelSource
from ingot.optimizers.budget import Budget, StopSearch
from ingot.optimizers.pruning.recovery import Recovered, recover, recovery_options
from ingot.optimizers.quantization.calibration import open_session
from ingot.optimizers.quantization.layers import quantizable_layers
from ingot.optimizers.quantization.plan import Precision
from ingot.optimizers.quantization.prepare import prepare
from ingot.optimizers.quantization.qat import quantization_aware
from ingot.optimizers.quantization.qat_matching import TrainedWeight, folded_weights
from ingot.optimizers.quantization.qdq import quantize
from ingot.optimizers.quantization.weights import dequantize
from ingot.specs import load_spec
from ingot.specs.tensors import TensorSpec
from ingot.training import Problem
from ingot.training import fit as train
from ingot.training.assess import evaluate_on
from ingot.zoo.digits import load_digits

NETWORK = """

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(16)
        self.middle = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
        )
        self.last = nn.Conv2d(24, 24, 3, padding=1)
        self.last_norm = nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 10)
        self.last.note = "the user's own"

    def forward(self, image):
        x = self.stem_norm(self.stem(image)).relu()
        x = nn.functional.max_pool2d(self.middle(x).relu(), 2)
        return self.head(self.last_norm(self.last(x)).relu().mean((2, 3)))


def build_net():
    return Net()
"""
PLAN = {
    "stem": Precision(8),
    "middle.0": Precision(2),
    "middle.3": Precision(2),
    "last": Precision(2),
    "head": Precision(8),
}


def graph_of(network: nn.Module, folder: Path, *shape: int) -> onnx.ModelProto:
    """Export a network that takes one batch of this shape with Ingot's exporter, and prepare it."""
    inputs = (TensorSpec("x", "float32", ("n", *shape[1:])),)
    outputs = (TensorSpec("y", "float32", None),)
    source = ModelSource("torch", "net", inputs, outputs, native=network)
    example = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    job = Job(source, open_model(source), "net", folder)
    (draft,) = export_variants("onnx", job, [Variant(None, inputs, outputs, example)])
    return prepare(draft.path)


def exactly_on_grid(network: nn.Module, trained: dict[str, TrainedWeight]) -> bool:
    """Whether every trained parameter is its integers times their scales, bit for bit."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    return all(
        torch.equal(
            parameters[item.parameter], torch.from_numpy(dequantize(item, item.channel_axis))
        )
        and np.abs(item.values).max() <= {2: 1, 4: 7, 8: 127}[item.bits]
        for item in trained.values()
    )


def accuracy(problem: Problem, network: nn.Module) -> float:
    evaluation, _ = evaluate_on(problem, network.eval(), problem.split("test", "test"))
    return float(evaluation.metrics["accuracy"])


def weight_in(graph: onnx.ModelProto, name: str) -> np.ndarray[Any, Any]:
    layer = next(item for item in quantizable_layers(graph) if item.name == name)
    tensor = next(item for item in graph.graph.initializer if item.name == layer.weight)
    return numpy_helper.to_array(tensor)


class Digits:
    """A trained network with a negative BatchNorm scale, and the same one after recovery."""

    def __init__(self, folder: Path) -> None:
        changes = {
            "model": {"framework": "torch", "entrypoint": "net:build_net"},
            "training": {"precision": "bf16", "channels_last": True},
            "full_trainer": {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9}},
        }
        spec = load_spec(training_specs.write_spec(folder, NETWORK, **changes))
        self.problem = Problem(spec)
        self.reference = self.problem.build_network(0)
        with torch.no_grad():
            self.reference.last_norm.weight[::3] *= -1
        images, labels = map(torch.from_numpy, load_digits("train"))
        batches = list(zip(images.split(64), labels.split(64), strict=True))
        optimizer = {"name": "SGD", "lr": 0.1, "momentum": 0.9}
        train(
            self.reference,
            {"train": batches},
            {"epochs": 8, "optimizer": optimizer, "scheduler": "cosine"},
        )
        self.graph = graph_of(self.reference, folder, 2, 1, 8, 8)
        self.options = replace(recovery_options(spec, 6, True, seed=0), learning_rate_factor=0.5)
        self.network = copy.deepcopy(self.reference)
        with quantization_aware(self.network, PLAN, self.graph) as prepared:
            self.rounded = accuracy(self.problem, self.network)
            self.layers, self.left = prepared.layers, prepared.left
            options = prepared.options(self.options)
            teacher = copy.deepcopy(self.reference)
            done = recover(
                self.problem, self.network, teacher, options, Budget(9), folder / "checkpoints"
            )
            self.losses = done.losses
            images = torch.from_numpy(load_digits("test")[0])
            with torch.no_grad():
                self.before = self.network.eval()(images)
            _, self.trained = prepared.finish()
            with torch.no_grad():
                self.after = self.network.eval()(images)
        self.exported = graph_of(self.network, folder, 2, 1, 8, 8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"))


def test_training_recovers_what_rounding_to_two_bits_loses(digits: Digits) -> None:
    reference = accuracy(digits.problem, digits.reference)
    trained = accuracy(digits.problem, digits.network)
    assert reference > 95
    assert digits.rounded < reference - 15
    assert trained > reference - 2
    assert digits.losses[-1] < digits.losses[0] / 2


def test_the_integers_are_read_back_exactly(digits: Digits) -> None:
    assert digits.layers == tuple(PLAN)
    assert not digits.left
    assert {name: item.bits for name, item in digits.trained.items()} == {
        name: precision.weight for name, precision in PLAN.items()
    }
    assert exactly_on_grid(digits.network, digits.trained)
    assert torch.allclose(digits.before, digits.after, rtol=0, atol=1e-4)


def test_the_network_is_the_users_own_again(digits: Digits) -> None:
    assert digits.network.state_dict().keys() == digits.reference.state_dict().keys()
    for one, other in zip(digits.network.modules(), digits.reference.modules(), strict=True):
        assert type(one) is type(other)
        assert not one._forward_pre_hooks
    assert digits.network.last.note == "the user's own"
    assert all(parameter.requires_grad for parameter in digits.network.parameters())


def test_folding_batch_norm_keeps_the_integers(digits: Digits) -> None:
    folded = folded_weights(digits.exported, digits.trained)
    assert folded.keys() == PLAN.keys()
    turned = 0
    for name, item in folded.items():
        in_graph = weight_in(digits.exported, name)
        assert np.allclose(
            dequantize(item, 0), in_graph, rtol=0, atol=1e-5 * np.abs(in_graph).max()
        )
        assert (item.scale > 0).all()
        turned += int(np.sum(item.values != digits.trained[name].values))
        assert np.array_equal(np.abs(item.values), np.abs(digits.trained[name].values))
    assert turned, "some channels of 'last' have a negative BatchNorm scale"


def test_the_packed_file_computes_what_was_trained(digits: Digits) -> None:
    packed = quantize(
        digits.exported, PLAN, None, weights=folded_weights(digits.exported, digits.trained)
    )
    (found,) = open_session(packed).run(None, {"x": load_digits("test")[0]})
    assert np.allclose(found, digits.after.numpy(), atol=1e-3)
    assert len(packed.SerializeToString()) < len(digits.exported.SerializeToString()) / 3


def test_another_graph_is_refused(digits: Digits) -> None:
    with pytest.raises(ModelError, match=r"layer '.*': no weight of the ONNX graph follows from"):
        folded_weights(digits.graph, digits.trained)


def perturbed(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network weights and statistics that are far from those of an initialization."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(drawn.abs() + 0.3 if name.endswith("running_var") else drawn)
    return network.eval()


def step_once(network: nn.Module, *shape: int) -> None:
    """Make one step of training that changes every weight and every step size."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    network(
        torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    ).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    optimizer.step()
    network.eval()


class Tied(nn.Module):
    """Two layers with one weight, and no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


def test_a_tied_weight_stays_one(tmp_path: Path) -> None:
    network = perturbed(Tied())
    graph = graph_of(network, tmp_path, 2, 8)
    first, second, head = (layer.name for layer in quantizable_layers(graph))
    plan = {first: Precision(4), second: Precision(2), head: Precision(4)}
    with quantization_aware(network, plan, graph) as prepared:
        assert len(prepared.layers) == 3
        assert len(list(network.parameters())) == 3 + 2 + 2, "biases, weights, and their steps"
        assert torch.equal(network.first.weight, network.second.weight)
        step_once(network, 16, 8)
        _, trained = prepared.finish()
    assert network.first.weight is network.second.weight
    assert exactly_on_grid(network, trained)
    assert {item.parameter for item in trained.values()} == {"first.weight", "head.weight"}
    folded = folded_weights(graph_of(network, tmp_path, 2, 8), trained)
    assert {name: item.bits for name, item in folded.items()} == {first: 4, second: 2, head: 4}
    assert np.abs(folded[first].values).max() == 1, "the fewer bits of the two"


def test_attention_is_matched_by_its_weights(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    network = perturbed(nn.Sequential(encoder, nn.Linear(16, 5)))
    graph = graph_of(network, tmp_path, 2, 6, 16)
    plan = {item.name: Precision(4) for item in quantizable_layers(graph)}
    with quantization_aware(network, plan, graph) as prepared:
        assert not prepared.left
        step_once(network, 4, 6, 16)
        _, trained = prepared.finish()
    names = {item.parameter for item in trained.values()}
    assert names == {
        "0.layers.0.self_attn.in_proj_weight",
        "0.layers.0.self_attn.out_proj.weight",
        "0.layers.0.linear1.weight",
        "0.layers.0.linear2.weight",
        "1.weight",
    }
    assert exactly_on_grid(network, trained)
    after = graph_of(network, tmp_path, 2, 6, 16)
    for name, item in folded_weights(after, trained).items():
        axis = next(x.channel_axis for x in quantizable_layers(after) if x.name == name)
        assert np.allclose(dequantize(item, axis), weight_in(after, name), rtol=1e-5)


def test_what_two_layers_could_be_is_left_float_and_said(tmp_path: Path) -> None:
    # As PyTorch makes them, the layers of an encoder are copies of one.
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    graph = graph_of(network, tmp_path, 2, 6, 16)
    plan = {item.name: Precision(4) for item in quantizable_layers(graph)}
    with quantization_aware(network, plan, graph) as prepared:
        assert any("several parameters are its weight" in why for why in prepared.left.values())
        assert "layers.1.linear1" in prepared.layers


class Standardized(nn.Conv2d):
    """A convolution whose weight is computed from its parameter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Scaled(nn.Linear):
    """A class of the user's own that reads its weight elsewhere, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.weight.mean()


def test_any_class_trains_when_the_graph_has_its_weight(tmp_path: Path) -> None:
    network = perturbed(
        nn.Sequential(
            Standardized(2, 4, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 6, 2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.Flatten(),
            Scaled(6 * 5 * 5, 4),
            parametrizations.weight_norm(nn.Linear(4, 3)),
        )
    )
    graph = graph_of(network, tmp_path, 2, 2, 8, 8)
    plan = {layer.name: Precision(4) for layer in quantizable_layers(graph)}
    assert len(plan) == 5
    with quantization_aware(network, plan, graph) as prepared:
        assert set(prepared.left.values()) == {
            "its weight in the graph follows from no parameter of the network"
        }
        assert prepared.layers == ("2", "5", "7")
        step_once(network, 4, 2, 8, 8)
        _, trained = prepared.finish()
    assert type(network[7]) is Scaled
    assert trained["2"].channel_axis == 1
    assert trained["2"].scale.shape == (6,)
    folded = folded_weights(graph_of(network, tmp_path, 2, 2, 8, 8), trained)
    assert folded.keys() == trained.keys()


def test_a_weight_that_is_not_the_networks_stays_float(tmp_path: Path) -> None:
    network = perturbed(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    graph = graph_of(network, tmp_path, 2, 2, 8, 8)
    for tensor in graph.graph.initializer:
        if tensor.name == "2.weight":  # as cross-layer equalisation scales what goes in
            array = numpy_helper.to_array(tensor) * np.arange(1, 5)[None, :, None, None]
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    with quantization_aware(network, {"0": Precision(2), "2": Precision(2)}, graph) as prepared:
        assert prepared.layers == ("0",)
        assert list(prepared.left) == ["2"]


def test_a_plan_for_another_graph_is_an_error(tmp_path: Path) -> None:
    network = perturbed(nn.Sequential(nn.Linear(4, 3)))
    graph = graph_of(network, tmp_path, 2, 4)
    with pytest.raises(ModelError, match="the plan names the layer 'head'"):
        quantization_aware(network, {"head": Precision(2)}, graph)
    assert not parametrize.is_parametrized(network[0])


def test_a_training_that_ends_early_leaves_a_plain_network(digits: Digits, tmp_path: Path) -> None:
    network = copy.deepcopy(digits.reference)
    budget = Budget(9)
    budget.request_stop()

    def run(network: nn.Module, budget: Budget) -> Recovered:
        with quantization_aware(network, PLAN, digits.graph) as prepared:
            options = prepared.options(digits.options)
            return recover(digits.problem, network, None, options, budget, tmp_path / "run")

    with pytest.raises(StopSearch):
        run(network, budget)
    assert type(network.last) is nn.Conv2d
    assert network.state_dict().keys() == digits.reference.state_dict().keys()
    # What was trained is not lost: a network that is prepared anew goes on from it.
    done = run(copy.deepcopy(digits.reference), Budget(9))
    assert done.epochs == digits.options.epochs


def test_patterns_of_names_find_prepared_parameters(digits: Digits) -> None:
    network = copy.deepcopy(digits.reference)
    given = replace(
        digits.options,
        trainable=("head.weight", "last", "stem_norm"),
        weight_decay_skip=("weight", "bias"),
    )
    with quantization_aware(network, PLAN, digits.graph) as prepared:
        found = prepared.options(given)
        names = [name for name, _ in network.named_parameters()]
    trained = {name for name in names if any(part in name for part in found.trainable)}
    assert trained == {
        "head.parametrizations.weight.original",
        "head.parametrizations.weight.0.step",
        "last.parametrizations.weight.original",
        "last.parametrizations.weight.0.step",
        *("last.bias", "last_norm.weight", "last_norm.bias"),
        *("stem_norm.weight", "stem_norm.bias"),
    }
    assert all(any(part in name for name in names) for part in found.weight_decay_skip)


def test_weights_that_are_frozen_have_frozen_steps(digits: Digits) -> None:
    network = copy.deepcopy(digits.reference)
    network.last.weight.requires_grad_(False)
    with quantization_aware(network, PLAN, digits.graph):
        steps = network.last.parametrizations.weight[0].step
        assert not steps.requires_grad
    assert not network.last.weight.requires_grad


def test_a_prepared_network_can_be_copied(digits: Digits) -> None:
    network = copy.deepcopy(digits.reference)
    with quantization_aware(network, PLAN, digits.graph):
        other = copy.deepcopy(network)
        assert torch.equal(other.last.weight, network.last.weight)
    assert parametrize.is_parametrized(other.last)


def test_nan_after_training_is_an_error(digits: Digits) -> None:
    network = copy.deepcopy(digits.reference)
    with quantization_aware(network, PLAN, digits.graph) as prepared:
        with torch.no_grad():
            network.last.parametrizations.weight.original[0] = float("nan")
        with pytest.raises(ModelError, match="layer 'last': its weight holds NaN"):
            prepared.finish()


def test_inputs_are_rounded_to_256_values_where_the_plan_says_so(tmp_path: Path) -> None:
    network = perturbed(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1, bias=False)))
    graph = graph_of(network, tmp_path, 2, 4)
    seen: list[torch.Tensor] = []
    network[2].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    x = torch.randn(4096, 4, generator=torch.Generator().manual_seed(2))
    plan = {"0": Precision(8), "2": Precision(8, 8)}
    with quantization_aware(network, plan, graph) as prepared:
        network(x).sum().backward()
        assert len(seen[0].unique()) <= 256
        assert network[0].parametrizations.weight.original.grad.abs().sum() > 0
        prepared.finish()
    network(x)
    assert len(seen[1].unique()) > 256


def test_a_reduced_range_holds_for_trained_weights(tmp_path: Path) -> None:
    network = perturbed(nn.Sequential(nn.Linear(4, 3)))
    graph = graph_of(network, tmp_path, 2, 4)
    with quantization_aware(network, {"0": Precision(8)}, graph, reduce_range=True) as prepared:
        _, trained = prepared.finish()
    assert np.abs(trained["0"].values).max(1).tolist() == [64, 64, 64]
