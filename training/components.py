"""Turns what a spec names (built in, or ``module:attribute`` of the user's) into an object."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

from ..errors import IngotError, SpecError
from ..frameworks.entrypoints import CodeFolder, user_code_error
from ..specs.declare import Component
from ..specs.hints import did_you_mean

BUILT_IN: dict[str, dict[str, str]] = {
    "data": {
        "characters": "text_generation:character_splits",
        "cifar10": "cifar:cifar10_splits",
        "cifar100": "cifar:cifar100_splits",
        "coco": "coco_boxes:coco_splits",
        "csv": "image_csv:csv_splits",
        "digits": "data:digits_splits",
        "images": "style_data:image_splits",
        "npz": "data:npz_splits",
        "segmentation_csv": "segmentation_csv:segmentation_splits",
        "synthetic": "data:synthetic_splits",
        "text": "text_classification:text_splits",
    },
    "files": {
        "cifar10": "images:image_files",
        "cifar100": "images:image_files",
        "coco": "images:image_files",
        "csv": "images:image_files",
        "digits": "images:image_files",
        "images": "images:image_files",
        "segmentation_csv": "images:image_files",
    },
    "augmenter": {
        "cifar": "augment:CifarAugmenter",
        "cifar_augmenter": "augment:CifarAugmenter",
        "mirror": "augment:MirrorAugmenter",
    },
    "forward_pass": {"default": "torch_forward_pass:TorchForwardPass"},
    "modeler": {"default": "torch_modeler:TorchModeler"},
    "loss": {
        "bce": "torch_losses:BinaryCrossEntropy",
        "cross_entropy": "torch_losses:CrossEntropy",
        "mse": "torch_losses:MeanSquaredError",
        "perceptual": "torch_style:PerceptualLoss",
        "segmentation_cross_entropy": "torch_losses:SegmentationCrossEntropy",
        "sequence_cross_entropy": "torch_text:SequenceCrossEntropy",
        "ssd_multibox": "torch_ssd:SsdMultibox",
    },
    "evaluation": {
        "accuracy": "torch_metrics:ClassificationEvaluation",
        "classification": "torch_metrics:ClassificationEvaluation",
        "next_token": "torch_text:NextTokenEvaluation",
        "object_detection": "torch_ssd:DetectionEvaluation",
        "perceptual": "torch_style:PerceptualEvaluation",
        "segmentation": "torch_metrics:SegmentationEvaluation",
    },
    "keras_loss": {
        "bce": "keras_losses:BinaryCrossEntropy",
        "cross_entropy": "keras_losses:CrossEntropy",
        "mse": "keras_losses:MeanSquaredError",
        "segmentation_cross_entropy": "keras_losses:SegmentationCrossEntropy",
    },
    "keras_evaluation": {
        "accuracy": "keras_metrics:ClassificationEvaluation",
        "classification": "keras_metrics:ClassificationEvaluation",
        "segmentation": "keras_metrics:SegmentationEvaluation",
    },
    "callback": {
        "accuracy": "callbacks:AccuracyCallback",
        "early_stopping": "callbacks:EarlyStopping",
        "ema": "callbacks:Ema",
        "infer_basic": "displays:InferBasic",
        "infer_display_image_classification": "displays:ImageClassificationDisplay",
        "infer_display_image_segmentation": "displays:ImageSegmentationDisplay",
        "infer_display_object_detection": "displays:ObjectDetectionDisplay",
        "infer_display_style_transfer": "style_predictions:StyleDisplay",
        "infer_display_text_classification": "text_predictions:TextClassificationDisplay",
        "infer_display_text_generation": "text_predictions:TextGenerationDisplay",
        "loss": "callbacks:LossCallback",
        "speed": "callbacks:SpeedCallback",
        "summary": "summary:SummaryCallback",
        "train_accuracy": "callbacks:AccuracyCallback",
        "train_loss": "callbacks:LossCallback",
        "train_speed": "callbacks:SpeedCallback",
        "train_summary": "summary:SummaryCallback",
    },
    "predictor": {
        "accuracy": "image_predictions:ClassificationPredictor",
        "classification": "image_predictions:ClassificationPredictor",
        "next_token": "text_predictions:TextGenerationPredictor",
        "object_detection": "image_predictions:DetectionPredictor",
        "perceptual": "style_predictions:StylePredictor",
        "segmentation": "image_predictions:SegmentationPredictor",
        "style_transfer": "style_predictions:StylePredictor",
        "text_classification": "text_predictions:TextClassificationPredictor",
        "text_generation": "text_predictions:TextGenerationPredictor",
    },
}
"""What is built in, by kind and name: module of this folder and attribute."""

_FUNCTIONS_THEMSELVES = {"loss", "evaluation", "keras_loss", "keras_evaluation"}
"""Kinds of which a plain function is the thing itself, not what makes it."""


class Components:
    """The parts that one spec names.

    Args:
        code: the modules beside the spec.
        label: what messages call the spec.
    """

    def __init__(self, code: CodeFolder, label: str) -> None:
        self.code = code
        self.label = label

    def find(self, kind: str, name: str, key: str) -> Any:
        """Return what a name stands for.

        Args:
            kind: a key of :data:`BUILT_IN`.
            name: a built-in name, or ``module:attribute``.
            key: where the spec names it, for messages.

        Raises:
            SpecError: there is no such thing.
        """
        if ":" in name:
            return self.code.attribute(name, key)
        known = BUILT_IN[kind]
        if name not in known:
            raise SpecError(
                f"{self.label}: {key}: found {name!r}; expected module:attribute, or one of"
                f" {', '.join(sorted(known))}",
                hint=did_you_mean(name, known),
            )
        module, _, attribute = known[name].partition(":")
        return getattr(import_module(f".{module}", __package__), attribute)

    def make(self, kind: str, component: Component | str, key: str, **context: Any) -> Any:
        """Return the object that a component describes.

        A class is instantiated, with its own arguments and those of ``context`` that it takes; a
        function makes the object, or is it (a loss, an evaluation); anything else is the object.

        Raises:
            SpecError: it does not exist, or does not take its arguments.
            ModelError: the user's code fails.
        """
        if isinstance(component, str):
            component = Component(component)
        found = self.find(kind, component.name, key)
        kwargs = component.kwargs
        is_class = inspect.isclass(found)
        if not is_class and kind in _FUNCTIONS_THEMSELVES and callable(found):
            return partial(found, **kwargs) if kwargs else found
        if not (is_class or inspect.isroutine(found)):
            if kwargs:
                raise SpecError(
                    f"{self.label}: {key}: {component.name!r} is a {type(found).__name__}, which"
                    f" takes no arguments; found {', '.join(kwargs)}"
                )
            return found
        return self.call(found, kwargs, key, component.name, **context)

    def call(
        self, function: Any, kwargs: Mapping[str, Any], key: str, name: str, **context: Any
    ) -> Any:
        """Call a class or function with its arguments, and those of ``context`` that it takes.

        Raises:
            SpecError: it does not take the arguments.
            ModelError: it fails.
        """
        everything = {**accepted(function, context), **kwargs}
        try:
            inspect.signature(function).bind(**everything)
        except TypeError as error:
            known = list(parameters_of(function))
            unknown = next((given for given in kwargs if given not in known), "")
            raise SpecError(
                f"{self.label}: {key}: {name!r} cannot be made: {error}; it takes"
                f" {', '.join(known) or 'nothing'}",
                hint=did_you_mean(unknown, known) if unknown else None,
            ) from error
        except ValueError:  # a class of an extension module, which has no signature
            pass
        try:
            return function(**everything)
        except IngotError:
            raise
        except Exception as error:
            raise user_code_error(self.label, f"{key} {name!r}", error, self.code.folder) from error


def parameters_of(function: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a callable by name; none when it does not say."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def accepted(function: Any, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a callable takes of ``context``, by the names of its parameters."""
    known = parameters_of(function)
    return {name: value for name, value in context.items() if name in known}
