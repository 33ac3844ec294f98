"""Small reference networks, and the data set that is embedded for the demo, tests and examples.

The networks are written from their papers, in PyTorch, some in Keras too; a framework is imported
only when one is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..specs.hints import did_you_mean

__all__ = ["get_model_by_name", "list_datasets", "list_models"]


@dataclass(frozen=True)
class _DataSet:
    classes: int
    channels: int
    image_size: int


_DATASETS = {
    "digits": _DataSet(10, 1, 8),
    "mnist": _DataSet(10, 1, 28),
    "fashion_mnist": _DataSet(10, 1, 28),
    "cifar10": _DataSet(10, 3, 32),
    "cifar100": _DataSet(100, 3, 32),
    "vww": _DataSet(2, 3, 224),
    "imagenet": _DataSet(1000, 3, 224),
}

# The module of zoo/networks that has the function of this name.
_MODELS = {
    "lenet5": "lenet",
    "mlp": "mlp",
    "mobilenet_v1": "mobilenet",
    "mobilenet_v2": "mobilenet",
    "resnet18": "resnet",
    "resnet20": "resnet_cifar",
    "resnet32": "resnet_cifar",
    "resnet56": "resnet_cifar",
    "ssdlite": "ssd",
    "unet": "unet",
    "vgg11": "vgg",
    "vgg16": "vgg",
    "vgg19": "vgg",
    "vit": "vit",
}
_KERAS_MODELS = {
    "mobilenet_v2": "keras_mobilenet",
    "resnet20": "keras_resnet_cifar",
    "resnet32": "keras_resnet_cifar",
    "resnet56": "keras_resnet_cifar",
}
_FRAMEWORKS = {"keras": _KERAS_MODELS, "torch": _MODELS}


def list_models(framework: str = "torch") -> list[str]:
    """Return the names that :func:`get_model_by_name` knows, sorted.

    Args:
        framework: ``torch``, or ``keras``.

    Raises:
        UsageError: the zoo has none of the framework.
    """
    return sorted(_known("framework", framework, _FRAMEWORKS))


def list_datasets() -> list[str]:
    """Return the data sets that :func:`get_model_by_name` knows, sorted."""
    return sorted(_DATASETS)


def get_model_by_name(
    model_name: str,
    dataset_name: str,
    *,
    pretrained: bool | str | Path = False,
    progress: bool = False,
    num_classes: int | None = None,
    framework: str = "torch",
    **kwargs: Any,
) -> Any:
    """Build a network for the images and classes of a data set.

    Args:
        model_name: one of :func:`list_models`.
        dataset_name: one of :func:`list_datasets`; it gives classes, channels and image size.
        pretrained: a file of weights, which has to fit exactly. False draws them from PyTorch's
            global random generator.
        progress: has no effect, as nothing is downloaded; other zoos have it.
        num_classes: in place of the data set's number of classes.
        framework: ``torch``, or ``keras``.
        kwargs: options of the network, which its function in ``zoo/networks`` describes.

    Returns:
        the ``torch.nn.Module``, on the CPU and in training mode. It takes float32 images
        ``(batch, channels, height, width)``. Classifiers return logits ``(batch, classes)``. A
        ``keras.Model`` takes images ``(batch, height, width, channels)``.

    Raises:
        UsageError: a name, an option or its value is unknown, the network is not for images of
            this size, or ``pretrained`` is True: there is nothing to download.
        ModelError: the weights cannot be read, or do not fit.
        MissingDependencyError: the framework is not installed.
    """
    models = _known("framework", framework, _FRAMEWORKS)
    if framework == "keras" and model_name in _MODELS and model_name not in models:
        raise UsageError(
            f"{model_name}: there is none of Keras; expected one of {', '.join(sorted(models))}"
        )
    module_name = _known("model", model_name, models)
    dataset: _DataSet = _known("data set", dataset_name, _DATASETS)
    if pretrained is True:
        raise UsageError(
            f"{model_name}: pretrained is True, but Ingot downloads no weights; expected a file",
            hint="pretrained='weights.safetensors'",
        )
    if num_classes is None:
        num_classes = dataset.classes
    elif type(num_classes) is not int or num_classes < 1:
        raise UsageError(f"num_classes: found {num_classes!r}; expected an integer from 1")

    if framework == "torch":
        from ..frameworks.base import import_framework

        import_framework("torch", "torch")
    build = getattr(import_module(f".networks.{module_name}", __name__), model_name)
    options = [
        name
        for name, parameter in signature(build).parameters.items()
        if parameter.kind is Parameter.KEYWORD_ONLY
    ]
    for name in kwargs:
        if name not in options:
            raise UsageError(
                f"{model_name} has no option {name!r}; it has {', '.join(options) or 'none'}",
                hint=did_you_mean(name, options),
            )
    model = build(num_classes, dataset.channels, dataset.image_size, **kwargs)
    if pretrained is not False:
        _load_weights(model, Path(pretrained), model_name, framework)
    return model


def _load_weights(model: Any, path: Path, name: str, framework: str) -> None:
    if framework == "keras":
        from ..frameworks import keras, keras_weights

        keras_weights.load_weights(model, path, name, keras.import_keras())
        return
    from ..frameworks.pytorch import load_weights

    load_weights(model, path, name)


def _known(kind: str, name: str, known: dict[str, Any]) -> Any:
    """Return what belongs to a name, or raise a UsageError that says the nearest one."""
    if name in known:
        return known[name]
    everything = f"expected one of {', '.join(sorted(known))}"
    raise UsageError(
        f"unknown {kind}: found {name!r}; {everything}", hint=did_you_mean(name, known)
    )
