"""Refitting a pruned network to what it computed before."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pruning_networks import NETWORKS, Inputs, prepared
from torch import nn
from torch.nn import functional

from ingot.optimizers.pruning import ChannelGroup, channel_groups, prune
from ingot.optimizers.pruning.least_squares import fit_ridge, patches
from ingot.optimizers.pruning.modules import map_tensors, tensors_in
from ingot.optimizers.pruning.reconstruction import reconstruct
from ingot.zoo.digits import load_digits


class Small(nn.Module):
    """Two blocks with a shortcut and BatchNorm, and a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.first = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.second = nn.Conv2d(2 * width, width, 3, padding="same")
        self.hidden = nn.Linear(width * 16, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Any) -> Any:
        x = functional.relu(self.stem(image))
        x = x + self.second(functional.relu(self.norm(self.first(x))))
        x = functional.max_pool2d(x, 2).flatten(1)
        return self.head(functional.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    network = Small()
    images, labels = map(torch.from_numpy, load_digits("train"))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return network.eval()


def some(groups: Sequence[ChannelGroup], share: float, seed: int = 0) -> dict[str, list[int]]:
    """Keep a random part of the channels of each group."""
    drawn = random.Random(seed)
    counts = {group.name: max(1, round(group.channels * share)) for group in groups}
    return {
        group.name: sorted(drawn.sample(range(group.channels), counts[group.name]))
        for group in groups
    }


def distance(one: nn.Module, other: nn.Module, images: torch.Tensor) -> float:
    """Return the relative squared difference of what two networks return."""
    with torch.no_grad():
        wanted = other(images)
        found = (one(images) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    return float(found)


def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


def test_a_trained_network_gets_its_outputs_back(trained: nn.Module) -> None:
    images = torch.from_numpy(load_digits("train")[0])[:512]
    seen, labels = map(torch.from_numpy, load_digits("test"))
    before = copy.deepcopy(trained.state_dict())
    groups = channel_groups(trained, ((images[:2],), {}))
    for seed in range(3):
        keep = some(groups, 0.5, seed)
        pruned, recipe = prune(trained, keep, groups)
        plain = distance(pruned, trained, seen), accuracy(pruned, seen, labels)
        refitted = copy.deepcopy(pruned)
        found = reconstruct(refitted, trained, keep, groups, ((images,), {}), seed=seed)
        assert distance(refitted, trained, seen) < 0.4 * plain[0]
        assert accuracy(refitted, seen, labels) > plain[1] + 0.1
        assert {"second", "hidden", "head"} <= set(found.layers)
        assert found.norms == ("norm",)
        assert all(after < first for first, after in found.layers.values())
        # Not twice something else, and of a shape that the recipe makes.
        again = copy.deepcopy(pruned)
        reconstruct(again, trained, keep, groups, ((images,), {}), seed=seed)
        fresh = recipe.apply(Small())
        fresh.load_state_dict(refitted.state_dict())
        for key, value in again.state_dict().items():
            assert torch.equal(value, refitted.state_dict()[key])
    for key, value in trained.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(layer._forward_hooks for layer in trained.modules())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_kind_of_network_survives(name: str) -> None:
    build, inputs = NETWORKS[name]
    module = prepared(build)
    groups = channel_groups(module, inputs)
    keep = some(groups, 0.6)
    pruned, _ = prune(module, keep, groups)
    shapes = {key: value.shape for key, value in pruned.state_dict().items()}
    reconstruct(pruned, module, keep, groups, inputs)
    assert {key: value.shape for key, value in pruned.state_dict().items()} == shapes
    assert all(value.isfinite().all() for value in pruned.state_dict().values())
    with torch.no_grad():
        before = [tensor.shape for tensor in tensors_in(module(*inputs[0], **inputs[1]))]
        after = [tensor.shape for tensor in tensors_in(pruned(*inputs[0], **inputs[1]))]
    assert before == after


class Shared(nn.Module):
    """A layer that is called twice, one that is frozen, and one that gets its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.twice = nn.Linear(12, 12)
        self.frozen = nn.Linear(12, 12)
        self.named = nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Any) -> Any:
        x = torch.tanh(self.twice(torch.tanh(self.twice(self.first(x)))))
        return self.head(torch.tanh(self.named(input=torch.tanh(self.frozen(x)))))


def test_what_cannot_be_refitted_stays() -> None:
    torch.manual_seed(0)
    module = Shared().eval()
    inputs: Inputs = ((torch.randn(200, 6),), {})
    groups = channel_groups(module, inputs)
    keep = some(groups, 0.6)
    pruned, _ = prune(module, keep, groups)
    before = copy.deepcopy(pruned)
    found = reconstruct(pruned, module, keep, groups, inputs)
    assert set(found.layers) == {"head"}
    for name in ("twice", "frozen", "named"):
        assert torch.equal(pruned.get_submodule(name).weight, before.get_submodule(name).weight)
    # Fewer samples than can be told apart: nothing is fitted to one, with none held out.
    one = map_tensors(inputs[0], lambda tensor: tensor[:1]), {}
    assert reconstruct(before, module, keep, groups, one).layers == {}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(0, 3), bias=False),
        nn.Conv2d(3, 5, 3, dilation=2, padding="same"),
        nn.Conv2d(3, 5, 4, stride=3, padding=2, padding_mode="reflect"),
        nn.Linear(9, 5),
    ],
)
def test_patches_times_weights_are_outputs(layer: Any) -> None:
    x = torch.randn(4, 3, 11, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = layer(x)
        wanted = outputs if isinstance(layer, nn.Linear) else outputs.movedim(1, -1)
        wanted = wanted.reshape(-1, 5)
        rows = torch.randperm(len(wanted))
        found = patches(layer, x, rows) @ layer.weight.flatten(1).T
        if layer.bias is not None:
            found = found + layer.bias
    torch.testing.assert_close(found, wanted[rows])


def test_least_squares_find_what_made_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 20, generator=generator)
    weight, bias = torch.randn(4, 20, generator=generator), torch.randn(4, generator=generator)
    wanted = x @ weight.T + bias
    fit = fit_ridge(x, wanted, torch.zeros(4, 20), torch.zeros(4), 3000)
    assert fit is not None
    torch.testing.assert_close(fit.weight, weight, atol=0.05, rtol=0)
    torch.testing.assert_close(fit.bias, bias, atol=0.05, rtol=0)
    assert fit.errors[1] < 1e-3 < fit.errors[0]
    # What is right already stays, and noise is not fitted.
    assert fit_ridge(x, wanted, weight, bias, 3000) is None
    noise = torch.randn(40, 4, generator=generator)
    assert fit_ridge(x[:40], noise, torch.zeros(4, 20), noise.mean(0), 30) is None
