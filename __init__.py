"""Ingot turns a trained model from any common framework into a verified, portable artifact.

The names below are imported when they are first used, so that ``import ingot`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "CheckError": ".errors",
    "IngotError": ".errors",
    "IsolationError": ".errors",
    "InputError": ".errors",
    "MissingDependencyError": ".errors",
    "ModelError": ".errors",
    "PackageError": ".errors",
    "SpecError": ".errors",
    "UntrustedCodeError": ".errors",
    "UsageError": ".errors",
    "TensorSpec": ".specs",
    "load_spec": ".specs",
    "load": ".runtime",
    "load_compressed": ".optimizers.pruning",
    "Augmenter": ".training",
    "Callback": ".training",
    "Device": ".training",
    "EvaluationFunction": ".training",
    "ExternalTrainingLoop": ".training",
    "ForwardPass": ".training",
    "Inputter": ".training",
    "LossFunction": ".training",
    "Modeler": ".training",
    "NativeOptimizerFactory": ".training",
    "NativeSchedulerFactory": ".training",
    "Runner": ".training",
    "TorchEvaluationFunction": ".training",
    "TorchForwardPass": ".training",
    "TorchLossFunction": ".training",
    "create_keras_package": ".packagers",
    "create_ludwig_package": ".packagers",
    "create_onnx_package": ".packagers",
    "create_python_package": ".packagers",
    "create_pytorch_package": ".packagers",
    "create_random_package": ".packagers",
    "create_tensorflow_package": ".packagers",
    "create_torchscript_package": ".packagers",
    "compress": ".commands.compress",
    "evaluate": ".commands.evaluate",
    "diff": ".commands.diff",
    "export": ".commands.export",
    "infer": ".commands.infer",
    "infer_files": ".commands.infer_files",
    "init": ".commands.init",
    "inspect": ".commands.inspect",
    "clean_runs": ".commands.runs_clean",
    "list_runs": ".commands.runs",
    "optimize": ".commands.optimize",
    "package": ".commands.package",
    "profile": ".commands.profile",
    "quantize": ".commands.quantize",
    "show_run": ".commands.runs",
    "train": ".commands.train",
    "tune": ".commands.tune",
    "verify": ".commands.verify",
}

__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from .errors import (  # noqa: F401
        CheckError,
        IngotError,
        InputError,
        IsolationError,
        MissingDependencyError,
        ModelError,
        PackageError,
        SpecError,
        UntrustedCodeError,
        UsageError,
    )


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
