"""Training and evaluation: inputs, networks, losses, metrics and the loop."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "Augmenter": "inputter",
    "Callback": "callbacks",
    "Device": "device",
    "Display": "displays",
    "Evaluation": "evaluation",
    "EvaluationFunction": "evaluation",
    "ExternalTrainingLoop": "factories",
    "ForwardPass": "forward_pass",
    "ImageInputter": "images",
    "Inputter": "inputter",
    "KerasEvaluationFunction": "keras_metrics",
    "KerasForwardPass": "keras_forward_pass",
    "KerasLossFunction": "keras_losses",
    "LossFunction": "losses",
    "Modeler": "modeler",
    "NativeOptimizerFactory": "factories",
    "NativeSchedulerFactory": "factories",
    "Prediction": "prediction",
    "Predictor": "prediction",
    "Problem": "problem",
    "Runner": "runner",
    "TorchEvaluationFunction": "torch_metrics",
    "TorchForwardPass": "torch_forward_pass",
    "TorchLossFunction": "torch_losses",
    "TrainerOptions": "options",
    "TrainingError": ".errors",
    "TrainingInterrupted": ".errors",
    "evaluate_spec": "assess",
    "fit": "given",
    "measure": "given",
    "train_network": "train",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
