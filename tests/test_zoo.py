"""The reference networks: their size against published figures, and what they return."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ingot
from ingot.zoo import get_model_by_name, list_datasets, list_models

PIXELS = {"digits": 8, "mnist": 28, "cifar10": 32, "cifar100": 32, "vww": 224, "imagenet": 224}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def images(dataset: str, batch: int = 2) -> torch.Tensor:
    channels = 1 if dataset in ("digits", "mnist") else 3
    return torch.rand(batch, channels, PIXELS[dataset], PIXELS[dataset])


def run(model: nn.Module, x: torch.Tensor) -> Any:
    with torch.no_grad():
        return model.eval()(x)


def operations(model: nn.Module, x: torch.Tensor) -> tuple[int, dict[type, int]]:
    """Count multiplications of convolutions and linear layers, and elements of the other layers.

    The elements are those of each layer's output, but of a pool's input, and those of a
    convolution's output when it has a bias.
    """
    macs = 0
    elements: dict[type, int] = {}

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs
        kind = type(layer)
        if isinstance(layer, nn.Conv2d):
            macs += output.numel() * layer.weight[0].numel()
            if layer.bias is None:
                return
        elif isinstance(layer, nn.Linear):
            macs += output.numel() * layer.in_features
        pool = isinstance(layer, nn.MaxPool2d)
        elements[kind] = elements.get(kind, 0) + (inputs[0] if pool else output).numel()

    hooks = [
        layer.register_forward_hook(count) for layer in model.modules() if not [*layer.children()]
    ]
    run(model, x)
    for hook in hooks:
        hook.remove()
    return macs, elements


# The published counts of operations are those of a tool that counts BatchNorm twice, a bias, and
# ReLU and pools where they are modules, as they are in the VGG that was published but in no other.
BN = {nn.BatchNorm2d: 2}
BN_BIAS_RELU_POOL = {nn.BatchNorm2d: 2, nn.Conv2d: 1, nn.ReLU: 1, nn.MaxPool2d: 1}


@pytest.mark.parametrize(
    ("name", "dataset", "millions", "mebibytes", "giga", "counted", "macs"),
    [
        ("resnet18", "cifar100", 11.2201, 42.8014, 0.5567, BN, 555_468_800),
        ("vgg19", "cifar100", 20.0867, 76.6246, 0.3995, BN_BIAS_RELU_POOL, 398_182_400),
        ("mobilenet_v1", "cifar100", 3.3095, 12.6246, 0.0473, BN, 46_446_592),
        ("lenet5", "mnist", 0.0444, 0.1695, None, {}, 281_640),
    ],
)
def test_published_size_and_operations(
    name: str,
    dataset: str,
    millions: float,
    mebibytes: float,
    giga: float | None,
    counted: dict[type, int],
    macs: int,
) -> None:
    model = get_model_by_name(name, dataset)
    assert round(parameters(model) / 1e6, 4) == millions
    assert round(parameters(model) * 4 / 2**20, 4) == mebibytes
    found, elements = operations(model, images(dataset, batch=1))
    assert found == macs
    if giga is not None:
        extra = sum(times * elements[kind] for kind, times in counted.items())
        assert round((found + extra) / 1e9, 4) == giga


@pytest.mark.parametrize(
    ("name", "dataset", "options", "count"),
    [
        ("lenet5", "mnist", {}, 44_426),
        ("mlp", "mnist", {}, 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10),
        # Table 6 of the paper: 0.27, 0.46 and 0.85 million.
        ("resnet20", "cifar10", {"shortcut": "A"}, 269_722),
        ("resnet32", "cifar10", {"shortcut": "A"}, 464_154),
        ("resnet56", "cifar10", {"shortcut": "A"}, 853_018),
        ("resnet20", "cifar10", {}, 272_474),
        ("resnet18", "imagenet", {}, 11_689_512),
        ("mobilenet_v2", "imagenet", {}, 3_504_872),
        # Table 6 of the paper: 4.2 million.
        ("mobilenet_v1", "imagenet", {}, 4_231_976),
    ],
)
def test_number_of_parameters(name: str, dataset: str, options: dict[str, Any], count: int) -> None:
    assert parameters(get_model_by_name(name, dataset, **options)) == count


SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [16]},
    "mobilenet_v1": {"width": 0.25},
    "mobilenet_v2": {"width": 0.25},
    "resnet18": {"width": 8},
    "vgg11": {"width": 8},
    "vgg16": {"width": 8},
    "vgg19": {"width": 8},
    "vit": {"dim": 24, "depth": 1},
    "unet": {"width": 4},
    "ssdlite": {"width": 0.25},
}
NOT_CLASSIFIERS = {"unet", "ssdlite"}


@pytest.mark.parametrize("name", sorted(set(list_models()) - NOT_CLASSIFIERS))
@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_classifiers_return_logits(name: str, dataset: str) -> None:
    smallest = 32 if name.startswith("vgg") else 16 if name == "lenet5" else 0
    if PIXELS[dataset] < smallest:
        with pytest.raises(ingot.UsageError, match=f"expected {smallest} or more"):
            get_model_by_name(name, dataset)
        return
    model = get_model_by_name(name, dataset, **SMALL.get(name, {}))
    assert run(model, images(dataset)).shape == (2, 10)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "resnet18", "vgg11", "vit"])
def test_large_images(name: str) -> None:
    model = get_model_by_name(name, "vww", **SMALL[name])
    assert run(model, images("vww", 1)).shape == (1, 2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize("name", list_models())
def test_networks_can_be_scripted(name: str) -> None:
    model = get_model_by_name(name, "cifar10", **SMALL.get(name, {})).eval()
    x = images("cifar10")
    torch.testing.assert_close(run(torch.jit.script(model), x), run(model, x))


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_unet_keeps_the_size(dataset: str) -> None:
    x = images(dataset)
    model = get_model_by_name("unet", dataset, num_classes=x.shape[1], width=4)
    assert run(model, x).shape == x.shape
    wide = torch.rand(1, x.shape[1], 16, 48)
    assert run(model, wide).shape == wide.shape


def test_unet_refuses_a_size_that_cannot_be_halved() -> None:
    with pytest.raises(ingot.UsageError, match="halved 2 times; expected 1 to 2"):
        get_model_by_name("unet", "mnist", depth=3)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 130), (32, 32)])
def test_ssd_returns_one_prediction_for_each_anchor(height: int, width: int) -> None:
    from ingot.zoo.networks.ssd import anchors, decode

    model = get_model_by_name("ssdlite", "vww", num_classes=5, width=0.25)
    logits, offsets = run(model, torch.rand(2, 3, height, width))
    boxes = anchors(height, width)
    assert boxes.shape[1] == 4
    assert logits.shape == (2, len(boxes), 5)
    assert offsets.shape == (2, len(boxes), 4)
    assert bool((boxes > 0).all())
    assert bool((boxes[:, :2] < 1).all())
    decoded = decode(torch.zeros_like(offsets), boxes)
    torch.testing.assert_close(decoded[0, :, 2:] - decoded[0, :, :2], boxes[:, 2:])
    torch.testing.assert_close(decoded[1].unflatten(1, (2, 2)).mean(1), boxes[:, :2])


def test_anchors_of_one_cell_follow_each_other() -> None:
    from ingot.zoo.networks.ssd import ANCHORS_PER_CELL, anchors

    boxes = anchors(32, 48)
    assert len(boxes) == ANCHORS_PER_CELL * (2 * 3 + 1 * 2 + 1 + 1)
    centers = boxes[: ANCHORS_PER_CELL * 4 : ANCHORS_PER_CELL, :2]
    torch.testing.assert_close(
        centers, torch.tensor([[1 / 6, 0.25], [0.5, 0.25], [5 / 6, 0.25], [1 / 6, 0.75]])
    )
    torch.testing.assert_close(boxes[0, 2:], torch.tensor([0.2, 0.2]))
    torch.testing.assert_close(boxes[1, 2] / boxes[1, 3], torch.tensor(2.0))


def test_fused_and_separate_attention_agree() -> None:
    options = {"dim": 24, "heads": 4, "depth": 2}
    fused = get_model_by_name("vit", "digits", **options)
    separate = get_model_by_name("vit", "digits", fused_qkv=False, **options)
    assert fused.head_dim == 6
    state = {}
    for name, tensor in fused.state_dict().items():
        if ".qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace(".qkv.", f".{letter}.")] = part
        else:
            state[name] = tensor
    separate.load_state_dict(state)
    x = images("digits")
    torch.testing.assert_close(run(fused, x), run(separate, x))


def test_a_trained_resnet20_loads_strictly(shared: Path) -> None:
    folder = shared / "models"
    weights = folder / "resnet20_cifar10.safetensors"
    model = get_model_by_name("resnet20", "cifar10", pretrained=weights)
    spec = importlib.util.spec_from_file_location("reference_resnet20", folder / "resnet20.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reference = module.build()
    reference.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(run(model, x), run(reference, x))


def test_pretrained_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lenet.safetensors"
    state = get_model_by_name("lenet5", "mnist").state_dict()
    save_file(state, path)
    loaded = get_model_by_name("lenet5", "mnist", pretrained=str(path), progress=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(ingot.ModelError, match=r"lenet\.safetensors do not fit"):
        get_model_by_name("lenet5", "cifar10", pretrained=path)
    save_file({**state, "more": torch.zeros(1)}, path)
    with pytest.raises(ingot.ModelError, match="unknown tensor 'more'"):
        get_model_by_name("lenet5", "mnist", pretrained=path)


def test_nothing_is_downloaded() -> None:
    with pytest.raises(ingot.UsageError, match="downloads no weights; expected a file"):
        get_model_by_name("resnet18", "cifar100", pretrained=True)


@pytest.mark.parametrize(
    ("model", "dataset", "options", "message", "hint"),
    [
        ("resnet19", "cifar10", {}, "unknown model: found 'resnet19'", "'vgg19'|'resnet18'"),
        ("resnet20", "cifar_10", {}, "unknown data set: found 'cifar_10'", "'cifar10'"),
        ("resnet20", "cifar10", {"wide": 8}, "no option 'wide'; it has width", "'width'"),
        ("lenet5", "mnist", {"width": 8}, "no option 'width'; it has none", None),
        ("resnet20", "cifar10", {"num_classes": 0}, "expected an integer from 1", None),
        ("resnet20", "cifar10", {"shortcut": "C"}, "expected 'A' or 'B'", None),
        ("vit", "mnist", {"patch": 5}, "patch: found 5; expected a divisor of 28", None),
        ("vit", "mnist", {"heads": 5}, "heads: found 5; expected a divisor of 192", None),
    ],
)
def test_what_cannot_be_built(
    model: str, dataset: str, options: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(ingot.UsageError, match=message) as caught:
        get_model_by_name(model, dataset, **options)
    found = caught.value.hint
    assert found is None if hint is None else any(part in str(found) for part in hint.split("|"))


def test_every_data_set_has_a_model() -> None:
    for dataset in list_datasets():
        assert parameters(get_model_by_name("resnet20", dataset, num_classes=3)) > 0


def test_importing_the_zoo_imports_no_framework() -> None:
    code = "import sys, ingot.zoo; ingot.zoo.list_models(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
