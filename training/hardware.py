"""Where models run, and with how many threads; only frameworks that are used are asked."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec

from ..errors import UsageError
from ..frameworks.base import import_framework
from .device import Device, as_device, available_cores

_OF_TORCH = ("torch", "torchscript", "pt2")


def choose_device(
    wanted: Device | str | None, strict: bool = False, framework: str = "torch"
) -> Device:
    """Return the device: the one that is wanted, or a GPU where there is one.

    Args:
        wanted: ``CPU`` or ``GPU``; None is a GPU where there is one.
        strict: refuse a GPU that is not there, in place of a warning.
        framework: what runs the model, which is asked for GPUs.

    Raises:
        UsageError: there is no GPU, and ``strict``; or it is neither ``CPU`` nor ``GPU``.
        MissingDependencyError: PyTorch is to run the model, and is not installed.
    """
    device = None if wanted is None else as_device(wanted)
    if device is Device.CPU:
        return device
    name, has_gpu = _gpu_of(framework)
    if device is None or has_gpu:
        return Device.GPU if has_gpu else Device.CPU
    if strict:
        raise UsageError(f"device: found GPU, but {name} sees no GPU here (--strict)")
    logging.getLogger("ingot").warning("device GPU: %s sees no GPU here; running on the CPU", name)
    return Device.CPU


def has_torch() -> bool:
    """Whether PyTorch is installed; it is not imported for that."""
    return find_spec("torch") is not None


def _gpu_of(framework: str) -> tuple[str, bool]:
    """Return what was asked for GPUs, and whether it sees one.

    PyTorch is asked for other frameworks, too, where it is installed: it holds their batches.
    """
    if framework != "keras" and (framework in _OF_TORCH or has_torch()):
        torch = import_framework("torch", "torch")
        return "PyTorch", bool(torch.cuda.is_available())
    if framework == "onnx":
        from ..frameworks.onnx import import_onnxruntime

        providers = import_onnxruntime().get_available_providers()
        return "ONNX Runtime", "CUDAExecutionProvider" in providers
    if framework in ("keras", "tensorflow"):
        from ..frameworks.tensorflow import import_tensorflow

        return "TensorFlow", bool(import_tensorflow().config.list_physical_devices("GPU"))
    return framework, False


def set_threads(threads: int | None, framework: str = "torch") -> None:
    """Set how many threads an operator of PyTorch, or for Keras of TensorFlow, may use.

    Args:
        threads: how many; None leaves ``OMP_NUM_THREADS``, and otherwise takes no more than there
            are cores for this process: more are many times slower than too few.
        framework: what runs the model; PyTorch, where it is installed, holds the batches of others
            than Keras.
    """
    if framework == "keras":
        _set_threads_of_tensorflow(threads)
        return
    if framework not in _OF_TORCH and not has_torch():
        return
    torch = import_framework("torch", "torch")
    if threads is None:
        if "OMP_NUM_THREADS" in os.environ:
            return
        threads = min(int(torch.get_num_threads()), available_cores())
    torch.set_num_threads(threads)


def _set_threads_of_tensorflow(threads: int | None) -> None:
    from ..frameworks.tensorflow import import_tensorflow

    config = import_tensorflow().config.threading
    wanted = threads or int(os.environ.get("OMP_NUM_THREADS") or available_cores())
    if config.get_intra_op_parallelism_threads() == wanted:
        return
    try:
        config.set_intra_op_parallelism_threads(wanted)
        config.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        if threads is not None:
            logging.getLogger("ingot").warning(
                "threads: TensorFlow has started already and keeps its number of threads"
            )
