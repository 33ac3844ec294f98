"""Pruned networks compute what the masked ones do, and recipes make them again."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_networks import (
    NETWORKS,
    Hidden,
    Inputs,
    Locked,
    Mixed,
    Padded,
    Shuffled,
    Text,
    images,
    prepared,
    zoo,
)
from safetensors.torch import load_file, save_file
from torch import nn

from ingot.errors import CheckError, ModelError, UsageError
from ingot.optimizers.pruning import (
    ChannelGroup,
    Recipe,
    UnprunableError,
    batch_norm_scale,
    channel_graph,
    channel_groups,
    check_against_mask,
    magnitude,
    masked,
    prune,
    taylor,
    verify_groups,
)

NAMES = list(NETWORKS)


def some(groups: Sequence[ChannelGroup], seed: int, share: float = 0.0) -> dict[str, list[int]]:
    """Keep a random part of every group, or a share of it."""
    drawn = random.Random(seed)
    keep = {}
    for group in groups:
        count = round(group.channels * share) if share else drawn.randint(1, group.channels)
        keep[group.name] = sorted(drawn.sample(range(group.channels), max(1, count)))
    return keep


def run(module: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    with torch.no_grad():
        found = module.eval()(*inputs[0], **inputs[1])
    if isinstance(found, dict):
        return list(found.values())
    return list(found) if isinstance(found, tuple) else [found]


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def save(module: nn.Module, path: Path) -> Path:
    """Save the state as safetensors, tied tensors twice."""
    save_file({name: value.contiguous().clone() for name, value in state_of(module).items()}, path)
    return path


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_pruned_equals_masked(name: str, seed: int) -> None:
    build, inputs = NETWORKS[name]
    module = prepared(build)
    before, outputs = state_of(module), run(module, inputs)
    groups = channel_groups(module, inputs)
    keep = some(groups, seed)
    pruned, _ = prune(module, keep, groups)
    # The positions in attention are scaled in single precision.
    assert check_against_mask(module, pruned, keep, inputs, groups=groups) < 1e-8
    assert parameters(pruned) < parameters(module)
    assert pruned.training == module.training
    for one, other in zip(
        run(masked(module, keep, groups), inputs), run(pruned, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # The original has not changed, and what it returns has not lost a channel.
    assert_same(run(module, inputs), outputs)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert [t.shape for t in run(pruned, inputs)] == [t.shape for t in outputs]


@pytest.mark.parametrize("name", NAMES)
def test_recipe_and_weights_make_the_same_module(name: str, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    module = prepared(build)
    groups = channel_groups(module, inputs)
    pruned, recipe = prune(module, some(groups, 3), groups)
    recipe = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    weights = save(pruned, tmp_path / "pruned.safetensors")
    fresh = recipe.apply(build())
    assert type(fresh) is type(module)
    fresh.load_state_dict(load_file(weights), strict=True)
    assert_same(run(fresh, inputs), run(pruned, inputs))
    assert repr(fresh) == repr(pruned)


@pytest.mark.parametrize("name", NAMES)
def test_two_recipes_compose(name: str) -> None:
    build, inputs = NETWORKS[name]
    module = prepared(build)
    groups = channel_groups(module, inputs)
    first, recipe = prune(module, some(groups, 4, 0.75), groups)
    again = channel_groups(first, inputs)
    keep = some(again, 5, 0.7)
    second, other = prune(first, keep, again)
    assert check_against_mask(first, second, keep, inputs, groups=again) < 1e-8
    both = recipe.then(other)
    fresh = both.apply(build())
    fresh.load_state_dict(second.state_dict(), strict=True)
    assert_same(run(fresh, inputs), run(second, inputs))
    # The record counts in channels of the first network.
    by_name = {group.name: group for group in groups}
    for group_name, entry in both.groups.items():
        assert entry["channels"] == by_name[group_name].channels
        assert set(entry["kept"]) <= set(range(entry["channels"]))
    one_step, _ = prune(module, {name: e["kept"] for name, e in both.groups.items()}, groups)
    for expected, found in zip(run(one_step, inputs), run(second, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_groups_describe_what_one_channel_costs(name: str) -> None:
    build, inputs = NETWORKS[name]
    module = build()
    for group in channel_groups(module, inputs):
        kept = list(range(1, group.channels))
        pruned, _ = prune(module, {group.name: kept}, [group])
        lost = parameters(module) - parameters(pruned)
        # In attention, and in 1x1 layers onto themselves, rows and columns cross.
        assert 0.5 * group.parameters_per_channel <= lost <= 1.1 * group.parameters_per_channel
        assert json.loads(json.dumps(group.to_dict()))["channels"] == group.channels


def test_names_are_stable_and_outputs_stay() -> None:
    build, inputs = NETWORKS["resnet20"]
    graph = channel_graph(build(), inputs)
    names = [group.name for group in graph.groups]
    assert names == [group.name for group in channel_graph(build(), inputs).groups]
    assert names[:2] == ["stem", "layers.0.c1"]
    assert graph.skipped == {"fc": "it makes an output of the model"}
    stem = graph.groups[0]
    assert stem.channels == 8
    assert {"stem", "bn", "layers.0.c2", "layers.0.b2"} <= set(stem.layers)
    assert ("layers.3.d.0", "in") in {(member.path, member.side) for member in stem.members}


def test_granularity_of_mixed_layers() -> None:
    build, inputs = NETWORKS["mixed"]
    groups = {group.name: group for group in channel_groups(build(), inputs)}
    sizes = {name: (group.channels, group.granularity) for name, group in groups.items()}
    assert sizes["stem"] == (12, 1)
    assert sizes["left"] == (8, 1)  # with "right": two groups of a convolution take their join
    assert sizes["grouped"] == (6, 4)  # two groups of filters, four of the norm
    assert sizes["up"] == (4, 4)
    assert sizes["last"] == (10, 1)
    assert {"excite", "depthwise", "norm"} <= set(groups["stem"].layers)
    assert {"multiplied", "relu", "group_norm"} <= set(groups["grouped"].layers)
    flat = next(member for member in groups["last"].members if member.path == "hidden")
    assert flat.indices[1] == tuple(range(16, 32))


@pytest.mark.parametrize("name", ["vit_fused", "vit_unfused"])
def test_attention_loses_whole_heads(name: str) -> None:
    build, inputs = NETWORKS[name]
    module = prepared(build)
    groups = channel_groups(module, inputs)
    (group, _) = [group for group in groups if group.kind == "heads"]
    assert group.channels == 3
    pruned, recipe = prune(module, {group.name: [0, 2]}, groups)
    attention: Any = pruned.get_submodule("layers.0.attention")
    assert (attention.head_dim, attention.proj.in_features) == (8, 16)
    assert recipe.groups == {group.name: {"channels": 3, "kept": [0, 2]}}


def test_number_of_heads_follows() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.inner_dim = 4, 16
            self.qkv = nn.Linear(10, 48)
            self.out = nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                part.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
                for part in self.qkv(x).chunk(3, -1)
            )
            y = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v
            return self.out(y.transpose(1, 2).reshape(*x.shape[:2], self.inner_dim))

    inputs = images(2, 5, 10)
    module = prepared(Attention)
    (group,) = channel_groups(module, inputs)
    pruned, recipe = prune(module, {"qkv": [1, 2, 3]}, [group])
    assert recipe.attributes == {"": {"num_heads": 3, "inner_dim": 12}}
    assert check_against_mask(module, pruned, {"qkv": [1, 2, 3]}, inputs) < 1e-12


def test_multihead_attention_is_not_skipped() -> None:
    """T2: with its number of heads alone, torch-pruning leaves the embedding as it is."""
    build, inputs = NETWORKS["text"]
    module = prepared(build)
    groups = channel_groups(module, inputs)
    group = groups[0]
    assert (group.name, group.channels, group.granularity) == ("tokens", 4, 4)
    assert {"positions", "encoder.layers.1.self_attn"} <= set(group.layers)
    pruned, recipe = prune(module, {"tokens": [0, 3]}, groups)
    attention: Any = pruned.get_submodule("encoder.layers.0.self_attn")
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (8, 4, 2)
    assert recipe.layers["encoder.layers.0.norm1"] == {"normalized_shape": [8]}
    assert isinstance(pruned, Text)
    assert pruned.decoder.weight is pruned.tokens.weight
    fresh: Any = recipe.apply(build())
    assert fresh.decoder.weight is fresh.tokens.weight
    assert torch.equal(fresh.positions, pruned.positions)


@pytest.mark.parametrize(("build", "group"), [(Padded, "stem"), (Shuffled, "first")])
def test_wrong_trace_is_caught_and_named(build: type[nn.Module], group: str) -> None:
    """T1: the shapes are right, and something else is computed."""
    inputs = images(2, 3, 8, 8)
    module = prepared(build)
    groups = channel_groups(module, inputs)
    keep = {each.name: [0, 2, 3] for each in groups}
    pruned, _ = prune(module, keep, groups)
    assert run(pruned, inputs)[0].shape == (2, 4)
    with pytest.raises(CheckError, match=f"the group '{group}'") as caught:
        check_against_mask(module, pruned, keep, inputs)
    assert group in str(caught.value.hint)
    good, wrong = verify_groups(module, groups, inputs)
    assert list(wrong) == [group]
    rest = channel_groups(module, inputs, exclude=[group])
    assert rest == good
    keep = {each.name: [1, 4] for each in rest}
    check_against_mask(module, prune(module, keep, rest)[0], keep, inputs)


def test_another_network_is_no_pruned_one() -> None:
    build, inputs = NETWORKS["mlp"]
    module = prepared(build)
    groups = channel_groups(module, inputs)
    keep = some(groups, 1)
    pruned, _ = prune(module, keep, groups)
    with torch.no_grad():
        next(pruned.parameters())[0] += 0.1
    with pytest.raises(CheckError, match=r"the groups together .* differ by"):
        check_against_mask(module, pruned, keep, inputs)


def test_exclusion_patterns() -> None:
    build, inputs = NETWORKS["mobilenet_v2"]
    module = build()
    everything = channel_groups(module, inputs)
    graph = channel_graph(module, inputs, exclude=["features.1?.*", "features.18.0"])
    left = {group.name for group in graph.groups}
    assert left < {group.name for group in everything}
    assert not any(name.startswith("features.12") for name in left)
    assert graph.skipped["features.18.0"] == "it is excluded"
    # A layer inside of a group keeps all of it.
    depthwise = channel_groups(module, inputs, exclude=["features.2.conv.1.0"])
    assert len(depthwise) == len(everything) - 1
    with pytest.raises(UnprunableError, match=r"no channels that can be pruned.*excluded"):
        channel_groups(module, inputs, exclude=["*"])


def test_models_without_prunable_channels() -> None:
    with pytest.raises(UnprunableError, match=r"'' has to stay, as it makes an output|no layer"):
        channel_groups(nn.Linear(3, 4), images(2, 3))
    with pytest.raises(UnprunableError, match="no layer with filters"):
        channel_groups(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3)), images(2, 3))
    lstm = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 3, batch_first=True))
    with pytest.raises(UnprunableError, match=r"'0' has to stay, as 1 \(LSTM\) cannot lose"):
        channel_groups(lstm, images(2, 5, 3))
    added = Residual()
    with pytest.raises(UnprunableError, match=r"added to the model's input|output of the model"):
        channel_groups(added, images(2, 3))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.outer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.relu(x + self.inner(x)))


def test_the_module_that_stops_the_trace_is_named() -> None:
    with pytest.raises(UnprunableError, match=r"'hiding' \(Layer\) returns has no gradient") as e:
        channel_groups(Hidden(), images(2, 6))
    assert e.value.module == "hiding"
    broken = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 3))
    with pytest.raises(UnprunableError, match=r"its module '1' \(Linear\) fails .* shapes") as e:
        channel_groups(broken, images(2, 3))
    assert e.value.module == "1"


def test_parametrized_layers_stay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    nn.utils.parametrizations.weight_norm(module[0])
    graph = channel_graph(module, images(2, 3))
    assert [group.name for group in graph.groups] == ["2"]
    assert "cannot lose channels" in graph.skipped["0"]


def test_deepcopy_has_to_work() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Locked()), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=r"its module '1.0' \(Locked\): cannot pickle"):
        channel_groups(module, images(2, 4))
    with pytest.raises(ModelError, match="cannot be copied"):
        prune(module, {}, [])


def test_gradients_and_modes_stay() -> None:
    build, inputs = NETWORKS["gated"]
    module = build().train()
    groups = channel_groups(module, inputs)
    pruned, _ = prune(module, some(groups, 1), groups)
    assert all(layer.training for layer in (*module.modules(), *pruned.modules()))
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in pruned.named_parameters() if not p.requires_grad} != set()


def test_bad_choices() -> None:
    build, inputs = NETWORKS["mlp"]
    module = build()
    groups = channel_groups(module, inputs)
    for keep, message in (
        ({"layers.1": [0]}, r"no group of channels 'layers.1'; expected one of layers.0, layers.2"),
        ({"layers.0": []}, "found no channel; expected different ones of 0 to 23, and at least"),
        ({"layers.0": [24]}, "found channel 24"),
        ({"layers.0": [1, 1]}, "found a channel twice"),
    ):
        with pytest.raises(UsageError, match=message):
            prune(module, keep, groups)
    pruned, recipe = prune(module, {"layers.0": range(24)}, groups)
    assert recipe == Recipe()
    assert_same(run(pruned, inputs), run(module, inputs))


def test_tied_weights_that_would_differ() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.last = nn.Linear(6, 2)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.second(torch.relu(self.first(x)))))

    groups = channel_groups(Tied(), images(2, 6))
    with pytest.raises(ModelError, match=r"first.weight and second.weight are one parameter"):
        prune(Tied(), {groups[0].name: [0, 1]}, groups)
    assert verify_groups(Tied(), groups, images(2, 6))[0] == []


def test_recipes_of_another_network() -> None:
    build, inputs = NETWORKS["mixed"]
    module = build()
    groups = channel_groups(module, inputs)
    _, recipe = prune(module, some(groups, 1, 0.5), groups)
    with pytest.raises(
        ModelError, match=r"VGG: the channel recipe does not fit .* no layer 'stem'"
    ):
        recipe.apply(zoo("vgg11", width=8)())
    values = recipe.to_dict()
    for change, message in (
        ({"version": 2}, "found version 2; expected 1"),
        ({"wrong": {}}, "the key 'wrong'"),
        ({"layers": [1]}, "layers: expected a mapping"),
    ):
        with pytest.raises(ModelError, match=message):
            Recipe.from_dict(values | change)
    for sizes, message in (
        ({"in_features": 3}, r"layer 'head' \(Linear\): found the sizes \['in_features'\]"),
        (
            {"in_features": 99, "out_features": 4},
            r"weight has \[4, 20\] values; expected \[4, 99\]",
        ),
        ({"in_features": 0, "out_features": 4}, "found the size 0; expected a positive integer"),
    ):
        with pytest.raises(ModelError, match=message):
            Recipe(layers={"head": sizes}).apply(Mixed())


def test_importance() -> None:
    build, inputs = NETWORKS["resnet20"]
    module = prepared(build)
    groups = channel_groups(module, inputs)
    by_name = {group.name: group for group in groups}
    group = by_name["layers.0.c1"]
    layer: Any = module.get_submodule("layers.0")
    filters = layer.c1.weight.flatten(1).square().sum(1)
    used = layer.c2.weight.transpose(0, 1).flatten(1).square().sum(1)
    expected = (filters + used).sqrt()
    scores = magnitude(module, groups)
    assert scores.keys() == by_name.keys()
    torch.testing.assert_close(scores[group.name], expected.detach() / expected.mean().detach())
    scales = batch_norm_scale(module, groups)[group.name]
    torch.testing.assert_close(
        scales * layer.b1.weight.abs().mean().detach(), layer.b1.weight.abs().detach()
    )
    with pytest.raises(UsageError, match="has no gradient"):
        taylor(module, groups)
    module(*inputs[0]).square().mean().backward()
    found = taylor(module, groups)
    assert all(torch.isfinite(values).all() and (values >= 0).all() for values in found.values())
    assert all(abs(values.mean() - 1) < 1e-4 for values in found.values())
    change = (layer.c1.weight * layer.c1.weight.grad).flatten(1).sum(1).square()
    norm = layer.b1.weight * layer.b1.weight.grad + layer.b1.bias * layer.b1.bias.grad
    expected = (change + norm.square()).detach()
    torch.testing.assert_close(found[group.name], expected / expected.mean())


def test_importance_of_every_kind_of_layer() -> None:
    for name in ("mixed", "text", "gated"):
        build, inputs = NETWORKS[name]
        module = prepared(build)
        module.requires_grad_(True)
        groups = channel_groups(module, inputs)
        sum(output.square().mean() for output in run_with_gradient(module, inputs)).backward()
        for scores in (magnitude(module, groups), taylor(module, groups)):
            assert {key: len(values) for key, values in scores.items()} == {
                group.name: group.channels for group in groups
            }


def run_with_gradient(module: nn.Module, inputs: Inputs) -> list[Any]:
    found = module(*inputs[0], **inputs[1])
    if isinstance(found, dict):
        return list(found.values())
    return list(found) if isinstance(found, tuple) else [found]


def test_training_after_pruning() -> None:
    build, inputs = NETWORKS["mixed"]
    module = prepared(build)
    groups = channel_groups(module, inputs)
    pruned, recipe = prune(module, some(groups, 6, 0.5), groups)
    pruned.train()
    optimizer = torch.optim.SGD(pruned.parameters(), 0.01)
    pruned(*inputs[0])["logits"].square().sum().backward()
    optimizer.step()
    fresh = recipe.apply(Mixed())
    fresh.load_state_dict(copy.deepcopy(pruned.state_dict()), strict=True)
    assert_same(run(fresh, inputs), run(pruned, inputs))


def test_recurrent_layers_stay() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.gru = nn.Linear(5, 8), nn.GRU(8, 8, batch_first=True)
            self.hidden, self.head = nn.Linear(8, 10), nn.Linear(10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.hidden(self.gru(self.embed(x))[0][:, -1])))

    graph = channel_graph(Recurrent(), images(2, 7, 5))
    assert [group.name for group in graph.groups] == ["hidden"]
    assert {"embed", "head"} <= graph.skipped.keys()
