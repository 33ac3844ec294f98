"""Neutrino's engine and interfaces under their own names.

``from deeplite.torch_profiler.torch_data_loader import TorchForwardPass`` becomes
``from ingot.compat.neutrino import TorchForwardPass``, and so on. ``docs/neutrino.md`` says
what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..specs.hints import did_you_mean
from ..training.device import Device, as_device
from ..training.evaluation import EvaluationFunction
from ..training.factories import (
    ExternalTrainingLoop,
    NativeOptimizerFactory,
    NativeSchedulerFactory,
)
from ..training.forward_pass import ForwardPass
from ..training.losses import LossFunction
from ..training.torch_forward_pass import TorchForwardPass
from ..training.torch_losses import TorchLossFunction
from ..training.torch_metrics import TorchEvaluationFunction
from ..zoo import get_model_by_name as _zoo_model
from .neutrino_engine import Neutrino

if TYPE_CHECKING:
    import torch

__all__ = [
    "Device",
    "EvaluationFunction",
    "ExternalTrainingLoop",
    "ForwardPass",
    "LossFunction",
    "NativeOptimizerFactory",
    "NativeSchedulerFactory",
    "Neutrino",
    "TorchEvaluationFunction",
    "TorchForwardPass",
    "TorchFramework",
    "TorchLossFunction",
    "get_data_splits_by_name",
    "get_model_by_name",
]

_DATASETS = ("cifar10", "cifar100", "digits")


class TorchFramework:
    """Says that models are modules of PyTorch."""

    name = "torch"


def get_data_splits_by_name(
    dataset_name: str,
    data_root: str | Path = "",
    batch_size: int = 128,
    model_name: str | None = None,
    num_workers: int | None = None,
    num_torch_workers: int | None = None,
    device: str | Device = Device.CPU,
    **kwargs: Any,
) -> Mapping[str, Any]:
    """Return the splits ``train`` and ``test`` of a data set.

    Args:
        dataset_name: ``digits`` (embedded), or ``cifar10`` or ``cifar100`` from local files.
        data_root: the folder of CIFAR in its binary form; nothing is downloaded.
        batch_size: samples a batch.
        model_name: has no effect.
        num_workers: has no effect, as for ``num_torch_workers``: arrays in memory need none.
        num_torch_workers: see ``num_workers``.
        device: has no effect; batches are moved when they are used.
        kwargs: further arguments of the built-in inputter, such as ``mean`` and ``std``.

    Raises:
        UsageError: the data set is not built in.
        InputError: its files are not there.
    """
    import torch

    from ..training.augment import CifarAugmenter
    from ..training.cifar import cifar10_splits, cifar100_splits
    from ..training.data import DataContext, digits_splits

    as_device(device)
    if dataset_name not in _DATASETS:
        raise UsageError(
            f"unknown data set: found {dataset_name!r}; expected one of {', '.join(_DATASETS)}",
            hint=did_you_mean(dataset_name, _DATASETS)
            or "splits of your own are a dict of loaders by name",
        )
    root = Path(data_root).expanduser().absolute()
    augmenter = None if dataset_name == "digits" else CifarAugmenter()
    context = DataContext(root, augmenter=augmenter, convert=torch.from_numpy, label=dataset_name)
    if dataset_name == "digits":
        return digits_splits(context, batch_size=batch_size, **kwargs)
    make = cifar10_splits if dataset_name == "cifar10" else cifar100_splits
    return make(context, folder=str(root), batch_size=batch_size, **kwargs)


def get_model_by_name(
    model_name: str,
    dataset_name: str,
    pretrained: bool | str | Path = False,
    progress: bool = False,
    device: str | Device = Device.CPU,
    **kwargs: Any,
) -> torch.nn.Module:
    """Build a network of the zoo, on a device; see ``ingot.zoo.get_model_by_name``.

    ``pretrained`` is a local file; True is refused, as nothing is downloaded.
    """
    from ..training.torch_forward_pass import torch_device_of

    model = _zoo_model(model_name, dataset_name, pretrained=pretrained, progress=progress, **kwargs)
    return model.to(torch_device_of(device))
