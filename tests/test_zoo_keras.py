"""The networks of the zoo in Keras compute what those of PyTorch do."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from ingot.errors import UsageError
from ingot.zoo import get_model_by_name, list_models

torch = pytest.importorskip("torch")
pytest.importorskip("keras")
pytest.importorskip("tensorflow")

KINDS = {
    "BatchNorm2d": "norm",
    "BatchNormalization": "norm",
    "Conv2D": "convolution",
    "Conv2d": "convolution",
    "Dense": "dense",
    "DepthwiseConv2D": "convolution",
    "Linear": "dense",
}


def by_kind(layers):
    """Return layers with weights, in order, by what they do."""
    found = defaultdict(list)
    for layer in layers:
        if type(layer).__name__ in KINDS:
            found[KINDS[type(layer).__name__]].append(layer)
    return found


def copy_weights(source, target):
    """Give a layer of Keras the weights of one of PyTorch."""
    values = [value.numpy() for value in source.state_dict().values() if value.ndim]
    if type(target).__name__ == "DepthwiseConv2D":
        values = [values[0].transpose(2, 3, 0, 1)]
    elif values[0].ndim == 4:
        values = [values[0].transpose(2, 3, 1, 0)]
    elif values[0].ndim == 2:
        values[0] = values[0].T
    target.set_weights(values)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {"width": 4}),
        ("resnet20", {"width": 4, "shortcut": "A"}),
        ("mobilenet_v2", {"width": 0.25}),
        ("mobilenet_v2", {"width": 0.25, "small_images": False}),
    ],
)
def test_same_weights_give_the_same_logits(name, options):
    torch.manual_seed(0)
    theirs = get_model_by_name(name, "cifar10", **options).eval()
    ours = get_model_by_name(name, "cifar10", framework="keras", **options)
    for module in theirs.modules():  # statistics that are not those of a new layer
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    sources, targets = by_kind(theirs.modules()), by_kind(ours.layers)
    for kind, layers in targets.items():
        for source, target in zip(sources[kind], layers, strict=True):
            copy_weights(source, target)

    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images)).numpy()
    found = np.asarray(ours(images.transpose(0, 2, 3, 1), training=False))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


def test_what_there_is_not_of_keras_is_told():
    assert list_models("keras") == ["mobilenet_v2", "resnet20", "resnet32", "resnet56"]
    with pytest.raises(UsageError, match=r"vgg11: there is none of Keras; expected one of mobile"):
        get_model_by_name("vgg11", "cifar10", framework="keras")
    with pytest.raises(UsageError, match=r"unknown framework: found 'jax'"):
        get_model_by_name("vgg11", "cifar10", framework="jax")
    with pytest.raises(UsageError, match=r"shortcut: found 'C'; expected 'A' or 'B'"):
        get_model_by_name("resnet20", "cifar10", framework="keras", shortcut="C")
