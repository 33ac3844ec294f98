"""Folding of BatchNorm: where it happens, where it must not, and that nothing else changes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from ingot.exporters.bn_fusion import fold_batch_norm  # noqa: E402


class Sequence(nn.Module):
    """Calls its parts one after the other, through ReLU at the end."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return torch.relu(x)


def prepared(module: nn.Module) -> nn.Module:
    """Seeded float64 weights; BatchNorm with statistics and affine weights far from neutral."""
    generator = torch.Generator().manual_seed(3)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                is_scale = name.endswith("running_var") or (tensor.dim() == 1 and "weight" in name)
                tensor.copy_(drawn.abs() + 0.3 if is_scale else drawn)
    return module


def fold(module: nn.Module, *shape: int) -> tuple[nn.Module, tuple[str, ...], float]:
    """Fold; return the new module, what was folded, and by how much its output differs."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        before = module(x)
    folded, names = fold_batch_norm(module, lambda item: [item(x)], "net.yaml")
    with torch.no_grad():
        difference = float((folded(x) - before).abs().max() / before.abs().max())
        assert torch.equal(module(x), before), "the source computes what it did"
    assert state.keys() == module.state_dict().keys(), "the source keeps its modules"
    assert all(torch.equal(state[name], found) for name, found in module.state_dict().items())
    return folded, names, difference


def norms(module: nn.Module) -> int:
    return sum(isinstance(item, nn.modules.batchnorm._BatchNorm) for item in module.modules())


FOLDED = {
    "conv1d": (lambda: [nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)], (2, 4, 9)),
    "conv2d": (lambda: [nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)], (2, 4, 9, 9)),
    "conv3d": (lambda: [nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)], (2, 2, 4, 4, 4)),
    "grouped": (lambda: [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], (2, 4, 9, 9)),
    "depthwise": (lambda: [nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)], (2, 4, 9, 9)),
    "reflecting": (
        lambda: [nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)],
        (2, 4, 9, 9),
    ),
    "transposed 1d": (lambda: [nn.ConvTranspose1d(4, 6, 2, 2), nn.BatchNorm1d(6)], (2, 4, 5)),
    "transposed": (lambda: [nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6)], (2, 4, 5, 5)),
    "transposed, grouped": (
        lambda: [nn.ConvTranspose2d(4, 6, 3, 2, groups=2, output_padding=1), nn.BatchNorm2d(6)],
        (2, 4, 5, 5),
    ),
    "transposed, depthwise": (
        lambda: [nn.ConvTranspose2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)],
        (2, 4, 5, 5),
    ),
    "transposed 3d": (lambda: [nn.ConvTranspose3d(2, 3, 2), nn.BatchNorm3d(3)], (2, 2, 3, 3, 3)),
    "linear": (lambda: [nn.Linear(4, 6), nn.BatchNorm1d(6)], (5, 4)),
    "without bias": (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)], (2, 4, 9, 9)),
    "linear without bias": (lambda: [nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)], (5, 4)),
    "without affine": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)], (2, 4, 9, 9)),
    "neither": (
        lambda: [nn.ConvTranspose2d(4, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False)],
        (2, 4, 5, 5),
    ),
    "large epsilon": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.5)], (2, 4, 9, 9)),
    "through Identity": (
        lambda: [nn.Conv2d(4, 6, 3), nn.Identity(), nn.Identity(), nn.BatchNorm2d(6)],
        (2, 4, 9, 9),
    ),
}


@pytest.mark.parametrize(("make", "shape"), FOLDED.values(), ids=FOLDED.keys())
def test_it_is_folded(make: Callable[[], list[nn.Module]], shape: tuple[int, ...]) -> None:
    module = prepared(Sequence(*make()))
    folded, names, difference = fold(module, *shape)
    assert names == (f"parts.{len(module.parts) - 1}",)
    assert norms(folded) == 0
    assert difference < 1e-13
    assert norms(module) == 1


def test_pairs_are_found_along_the_data_flow() -> None:
    """Not by position: the modules are declared apart from each other, in another order."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleDict({"b": nn.BatchNorm2d(5), "a": nn.BatchNorm2d(4)})
            self.second = nn.Conv2d(4, 5, 3, padding=1)
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.shortcut = nn.Conv2d(3, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.norms["a"](self.first(x)))
            return self.norms["b"](self.second(y)) + self.shortcut(x)

    folded, names, difference = fold(prepared(Net()), 2, 3, 6, 6)
    assert names == ("norms.a", "norms.b")
    assert norms(folded) == 0
    assert difference < 1e-13


class UsedTwice(nn.Module):
    """The output of the convolution goes around the BatchNorm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class CalledTwice(nn.Module):
    """One convolution before two BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm in self.norms:
            x = norm(self.conv(x))
        return x


class SharedWeight(nn.Module):
    """Two convolutions of one weight, of which only one has a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.other.weight = self.conv.weight
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.other(x)


class SharedNorm(nn.Module):
    """One BatchNorm after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)])
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convs[0](x)) * self.norm(self.convs[1](x))


class Between(nn.Module):
    """An activation stands between both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.relu(self.conv(x)))


class WeightRead(nn.Module):
    """The weight takes part in the result a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.conv.weight.abs().mean()


class Scaled(nn.Conv2d):
    """A subclass may compute anything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class InTraining(nn.Module):
    """A BatchNorm that takes the statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Functional(nn.Module):
    """BatchNorm of which no module knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(self.conv(x), self.mean, self.running_var)


NOT_FOLDED: dict[str, Callable[[], nn.Module]] = {
    "the output is used twice": UsedTwice,
    "the convolution is called twice": CalledTwice,
    "the weight is shared": SharedWeight,
    "the BatchNorm is shared": SharedNorm,
    "something is between": Between,
    "the weight is read": WeightRead,
    "a subclass": lambda: Sequence(Scaled(3, 3, 3), nn.BatchNorm2d(3)),
    "statistics of the batch": InTraining,
    "functional": Functional,
}


@pytest.mark.parametrize("make", NOT_FOLDED.values(), ids=NOT_FOLDED.keys())
def test_it_is_left(make: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ingot"):
        module = prepared(make())
        folded, names, difference = fold(module, 2, 3, 6, 6)
    assert (names, difference) == ((), 0.0)
    assert folded is module
    assert not caplog.records, "nothing was tried and taken back"


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_modules_with_hooks_are_left(part: int, kind: str) -> None:
    module = prepared(Sequence(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))

    def hook(layer: Any, inputs: Any, *returned: Any) -> Any:
        return returned[0] * 2 if returned else (inputs[0] + 1,)

    getattr(module.parts[part], kind)(hook)
    folded, names, difference = fold(module, 2, 3, 6, 6)
    assert (names, difference) == ((), 0.0)
    assert norms(folded) == 1


def test_a_norm_in_training_mode_is_left() -> None:
    module = prepared(Sequence(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))
    module.parts[1].train()
    module.parts[1].momentum = 0.0  # or each call would move the statistics
    state = copy.deepcopy(module.state_dict())
    x = torch.ones(2, 3, 6, 6, dtype=torch.float64)
    folded, names = fold_batch_norm(module, lambda item: [item(x)], "net.yaml")
    assert names == ()
    assert norms(folded) == 1
    assert torch.equal(state["parts.1.running_mean"], module.parts[1].running_mean)


def test_linear_over_sequences_is_left() -> None:
    """(batch, length, channels): BatchNorm normalizes the length, Linear makes the channels."""
    module = prepared(Sequence(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    folded, names, difference = fold(module, 2, 4, 5)
    assert (names, difference) == ((), 0.0)
    assert norms(folded) == 1


def test_what_breaks_a_model_is_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    class Reads(Sequence):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * float(self.parts[1].eps)

    module = prepared(Reads(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))
    with caplog.at_level(logging.WARNING, "ingot"):
        folded, names, difference = fold(module, 2, 3, 6, 6)
    assert (names, difference) == ((), 0.0)
    assert folded is module
    assert "net.yaml: BatchNorm is left as it is" in caplog.text
    assert "eps" in caplog.text


def test_only_what_changes_is_copied() -> None:
    """A large model is not held twice in memory."""
    module = prepared(Sequence(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)))
    folded, names, _ = fold(module, 2, 3, 8, 8)
    assert names == ("parts.1",)
    assert folded.parts[2].weight is module.parts[2].weight
    assert folded.parts[0].weight is not module.parts[0].weight


def test_a_model_without_batch_norm_is_itself() -> None:
    module = prepared(Sequence(nn.Conv2d(3, 3, 3)))
    folded, names, _ = fold(module, 2, 3, 8, 8)
    assert folded is module
    assert names == ()
