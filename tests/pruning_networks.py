"""Networks whose channels depend on each other in every way that pruning has to know."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ingot.zoo import get_model_by_name

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Network = tuple[Callable[[], nn.Module], Inputs]
SEED = 11


def prepared(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module in eval mode, in which no parameter or statistic is 0 or 1."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        module = build()
        for parameter in module.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.1)
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.running_var is not None:
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 1.5)
    return module.eval()


def images(*shape: int) -> tuple[tuple[torch.Tensor], dict[str, Any]]:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(SEED)),), {}


class Mixed(nn.Module):
    """Squeeze-excite, concatenation, depthwise (also with a multiplier), grouped and transposed
    convolutions (grouped ones, too), GroupNorm, PReLU, a shortcut, and a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.squeeze = nn.Linear(12, 6)
        self.excite = nn.Linear(6, 12)
        self.left = nn.Conv2d(12, 8, 1)
        self.right = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.joined = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=2)
        self.group_norm = nn.GroupNorm(4, 24)
        self.multiplied = nn.Conv2d(24, 48, 3, padding=1, groups=24)
        self.relu = nn.PReLU(48)
        self.down = nn.Conv2d(48, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 16, 2, stride=2)
        self.up_grouped = nn.ConvTranspose2d(16, 8, 3, padding=1, groups=4)
        self.instance = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.last = nn.Conv2d(8, 10, 3, stride=2, padding=1)
        self.hidden = nn.Linear(10 * 16, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = functional.relu(self.norm(self.stem(image)))
        scale = torch.sigmoid(self.excite(functional.relu(self.squeeze(x.mean((2, 3))))))
        x = x + functional.relu6(self.depthwise(x)) * scale[:, :, None, None]
        x = functional.silu(self.joined(torch.cat([self.left(x), self.right(x)], 1)))
        x = functional.gelu(self.group_norm(self.grouped(x)))
        x = self.relu(self.multiplied(x))
        x = self.up(functional.hardswish(self.down(x)))
        x = functional.relu(self.instance(self.up_grouped(x)))
        x = functional.relu(self.last(x)).flatten(1)
        return {"logits": self.head(functional.leaky_relu(self.hidden(x)))}


class Text(nn.Module):
    """An encoder of tokens, with a table of positions that is in no state, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(30, 16)
        angle = torch.arange(10)[:, None] * torch.exp(torch.arange(16) * (-math.log(100.0) / 16))
        self.register_buffer("positions", torch.sin(angle), persistent=False)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=False)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = nn.Linear(16, 30, bias=False)
        self.decoder.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        x = self.tokens(tokens) * scale + self.positions[: tokens.shape[1]]
        return self.decoder(self.encoder(x))


class Gated(nn.Module):
    """RMSNorm, a gated perceptron out of one chunked layer, chunks that part, frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.norm = nn.RMSNorm(12)
        self.gate = nn.Linear(12, 32)
        self.back = nn.Linear(16, 12)
        self.split = nn.Linear(12, 14)
        self.few = nn.Linear(7, 3)
        self.many = nn.Linear(7, 3)
        self.embed.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embed(x)
        value, gate = self.gate(self.norm(x)).chunk(2, -1)
        x = x + self.back(value * functional.silu(gate))
        first, second = self.split(x).chunk(2, dim=-1)
        return self.many(functional.relu(second)), self.few(torch.tanh(first))


class Padded(nn.Module):
    """A shortcut that drops pixels and pads channels on both sides (T1): torch-pruning takes the
    padding for an elementwise operation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.outer = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(image))
        y = self.outer(functional.relu(self.inner(x)))
        x = y + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(functional.relu(x).mean((2, 3)))


class Shuffled(nn.Module):
    """Channels in another order, which no dependency says."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.first(image)).flip(1)
        return self.head(functional.relu(self.second(x)).mean((2, 3)))


class Hidden(nn.Module):
    """A layer inside hides from autograd."""

    class Layer(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return super().forward(input)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.hiding = Hidden.Layer(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.hiding(self.first(x)))


class Locked(nn.Linear):
    """A layer that deepcopy cannot copy."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.lock = threading.Lock()


def zoo(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: get_model_by_name(name, "cifar10", **options)


_VIT = {"dim": 24, "depth": 2, "heads": 3, "hidden": 32, "patch": 8}

NETWORKS: dict[str, Network] = {
    "resnet20": (zoo("resnet20", width=8), images(2, 3, 16, 16)),
    "resnet20_a": (zoo("resnet20", width=8, shortcut="A"), images(2, 3, 16, 16)),
    "vgg11": (zoo("vgg11", width=8), images(2, 3, 32, 32)),
    "mobilenet_v2": (zoo("mobilenet_v2", width=0.25), images(2, 3, 16, 16)),
    "unet": (zoo("unet", width=8, depth=2), images(2, 3, 16, 16)),
    "ssdlite": (zoo("ssdlite", width=0.25), images(2, 3, 32, 32)),
    "vit_fused": (zoo("vit", **_VIT), images(2, 3, 32, 32)),
    "vit_unfused": (zoo("vit", fused_qkv=False, **_VIT), images(2, 3, 32, 32)),
    "mlp": (zoo("mlp", hidden=(24, 16)), images(2, 3, 32, 32)),
    "mixed": (Mixed, images(2, 3, 8, 8)),
    "text": (Text, ((torch.arange(12).reshape(2, 6),), {"scale": 0.7})),
    "gated": (Gated, images(2, 3, 5)),
}
