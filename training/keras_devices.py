"""The devices that Keras trains on: one, or several under a strategy of tf.distribute."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import UsageError
from ..frameworks.base import first_line
from ..frameworks.tensorflow import import_tensorflow
from .device import Device
from .distributed import Workers


def workers_of_tensorflow() -> Workers:
    """Return the place of this process among those of ``TF_CONFIG``; without it there is one.

    Raises:
        UsageError: it is not what TensorFlow expects.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return Workers()
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        chiefs, others = len(cluster.get("chief", ())), len(cluster.get("worker", ()))
        rank = int(task.get("index", 0)) + (chiefs if task.get("type") == "worker" else 0)
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"TF_CONFIG: found {text[:60]!r}; expected JSON with cluster and task"
        ) from error
    return Workers(rank, chiefs + others) if chiefs + others > 1 else Workers()


@contextmanager
def on_devices(device: Device, count: int, workers: Workers | None = None) -> Iterator[None]:
    """Make and train networks on so many devices of this machine within the context.

    More than one are a ``tf.distribute.MirroredStrategy``: GPUs, or logical devices of the CPU.
    Processes that ``TF_CONFIG`` names are a ``MultiWorkerMirroredStrategy``, with one device of the
    CPU or all GPUs of each.

    Args:
        device: their kind.
        count: how many.
        workers: the place of this process among several.

    Raises:
        UsageError: there are not as many GPUs, or TensorFlow has started with fewer devices.
    """
    tensorflow = import_tensorflow()
    gpus = tensorflow.config.list_physical_devices("GPU")
    if device is Device.GPU and count > len(gpus):
        raise UsageError(f"--nproc: found {count}; this machine has {len(gpus)} GPUs")
    if device is Device.CPU and gpus:
        _before_start(tensorflow.config.set_visible_devices, [], "GPU")
    if workers is not None and workers.count > 1:
        if count > 1:
            raise UsageError(f"--nproc: found {count} beside TF_CONFIG; expected one of them")
        try:
            strategy = tensorflow.distribute.MultiWorkerMirroredStrategy()
        except RuntimeError as error:
            raise UsageError(f"TF_CONFIG: {first_line(error)}") from error
        with strategy.scope():
            yield
        return
    if count == 1:
        yield
        return
    if device is Device.CPU:
        _split_cpu(tensorflow, count)
    names = [f"{device}:{number}" for number in range(count)]
    with tensorflow.distribute.MirroredStrategy(names).scope():
        yield


def _split_cpu(tensorflow: Any, count: int) -> None:
    part = tensorflow.config.LogicalDeviceConfiguration()
    (cpu, *_) = tensorflow.config.list_physical_devices("CPU")
    if len(tensorflow.config.get_logical_device_configuration(cpu) or ()) >= count:
        return
    _before_start(tensorflow.config.set_logical_device_configuration, cpu, [part] * count)


def _before_start(function: Any, *arguments: Any) -> None:
    try:
        function(*arguments)
    except RuntimeError as error:
        raise UsageError(
            "TensorFlow has started already, with the devices that it had then",
            hint="train in a process of its own: ingot train",
        ) from error
