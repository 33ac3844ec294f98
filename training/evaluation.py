"""Evaluation: one calling convention for every kind of model, and a checked result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError, ModelError, SpecError
from ..specs.hints import did_you_mean
from .components import accepted
from .device import Device

PER_SAMPLE = "per_sample"
"""Key of the returned dict under which results of single samples stand."""


class MetricsError(ModelError):
    """An evaluation function returns something that is no dict of numbers (exit code 5)."""


class EvaluationFunction:
    """Measures a model on a split; a plain function ``(model, loader)`` does as well.

    Derive from it and write :meth:`apply`.
    """

    default_key: str | None = None

    def apply(self, model: Any, data_loader: Iterable[Any], **kwargs: Any) -> Mapping[str, Any]:
        """Return metrics by name.

        Args:
            model: what is called with the arguments of the forward pass, in eval mode.
            data_loader: the batches of a split.
            kwargs: ``device`` and ``transform``, where they are taken.
        """
        raise NotImplementedError

    def __call__(self, model: Any, data_loader: Iterable[Any], **kwargs: Any) -> Mapping[str, Any]:
        return self.apply(model, data_loader, **kwargs)


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation measured.

    Attributes:
        metrics: number by name.
        per_sample: one value a sample, in the order of the data; empty when the function does not
            give them.
    """

    metrics: dict[str, float]
    per_sample: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    def value(self, key: str) -> float:
        """Return the metric that counts.

        Raises:
            ModelError: it was not measured.
        """
        if key not in self.metrics:
            raise ModelError(
                f"evaluation.eval_key: found {key!r}, which the evaluation does not return; it"
                f" returns {', '.join(sorted(self.metrics)) or 'nothing'}",
                hint=did_you_mean(key, self.metrics),
            )
        return self.metrics[key]

    def key(self, wanted: str | None, default: str | None) -> str:
        """Return the name of the metric that counts.

        Args:
            wanted: ``evaluation.eval_key``, if it was given.
            default: what the evaluation function says.

        Raises:
            SpecError: there is no such metric.
            ModelError: none was named, and there are several.
        """
        if wanted is not None and wanted not in self.metrics:
            raise SpecError(
                f"found {wanted!r}, which the evaluation does not return; it returns"
                f" {', '.join(sorted(self.metrics)) or 'nothing'}",
                key="evaluation.eval_key",
                hint=did_you_mean(wanted, self.metrics),
            )
        if wanted is None:
            wanted = default
        if wanted is None:
            names = list(self.metrics)
            wanted = names[0] if len(names) == 1 else "accuracy"
        self.value(wanted)
        return wanted


def run_evaluation(
    function: Any, model: Any, loader: Iterable[Any], device: str | Device = Device.CPU
) -> Evaluation:
    """Call an evaluation function, and check what it returns.

    Raises:
        MetricsError: it returns no dict, or something in it is no number.
    """
    target = function.apply if isinstance(function, EvaluationFunction) else function
    returned = target(model, loader, **accepted(target, {"device": device}))
    name = _name(function)
    if not isinstance(returned, Mapping):
        raise MetricsError(
            f"the evaluation {name} returned a {type(returned).__name__}; expected a dict of"
            " metrics by name"
        )
    metrics: dict[str, float] = {}
    for key, value in returned.items():
        if key == PER_SAMPLE:
            continue
        try:
            metrics[str(key)] = float(value)
        except (TypeError, ValueError) as error:
            raise MetricsError(
                f"the evaluation {name} returned a {type(value).__name__} for {key!r}; expected a"
                " number"
            ) from error
    return Evaluation(metrics, _per_sample(returned.get(PER_SAMPLE), metrics, name))


def _per_sample(
    value: Any, metrics: Mapping[str, float], name: str
) -> dict[str, np.ndarray[Any, Any]]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        value = {next(iter(metrics), PER_SAMPLE): value}
    arrays = {}
    for key, item in value.items():
        array = np.asarray(item.detach().cpu() if hasattr(item, "detach") else item)
        if array.ndim != 1 or array.dtype.kind not in "biuf":
            raise MetricsError(
                f"the evaluation {name} returned {PER_SAMPLE} {key!r} of shape {array.shape};"
                " expected one number a sample"
            )
        arrays[str(key)] = array
    return arrays


def _name(function: Any) -> str:
    return repr(getattr(function, "__name__", type(function).__name__))


class CallableModel:
    """A loaded model that is called like a module: positional arguments, tensors answer in kind.

    PyTorch tensors give PyTorch tensors, on the device they came from; arrays give arrays. One
    output comes bare, several as a tuple in the order of the model. ``eval``, ``train``, ``to``,
    ``cpu``, ``cuda`` and ``requires_grad_`` do nothing and return it.

    A model whose inputs have a fixed batch size is run in parts of that size; the last part is
    filled up by repeating its last sample, whose further results are dropped.

    Args:
        loaded: has ``inputs``, ``outputs`` and ``infer``, as ``ingot.load`` returns it.
        label: what messages call it.
    """

    training = False

    def __init__(self, loaded: Any, label: str) -> None:
        self.loaded = loaded
        self.label = label
        self._names = [spec.name for spec in loaded.inputs]
        self._dtypes = {spec.name: spec.dtype for spec in loaded.inputs}
        sizes = {spec.shape[0] for spec in loaded.inputs if spec.shape}
        size = next(iter(sizes)) if len(sizes) == 1 else None
        self._batch = size if isinstance(size, int) else None

    @property
    def has_fixed_batch(self) -> bool:
        """Whether it takes batches of one size only."""
        return self._batch is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(self._names):
            raise InputError(
                f"{self.label}: called with {len(args)} arguments; the model takes"
                f" {', '.join(self._names)}"
            )
        given = dict(zip(self._names, args, strict=False)) | kwargs
        like = next((value for value in given.values() if hasattr(value, "detach")), None)
        arrays = {name: self._array(name, value) for name, value in given.items()}
        outputs = self._infer(arrays)
        values = [_answer(value, like) for value in outputs.values()]
        return values[0] if len(values) == 1 else tuple(values)

    def eval(self) -> CallableModel:
        """Do nothing: a loaded model does not train."""
        return self

    def train(self, mode: bool = True) -> CallableModel:
        """Do nothing."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> CallableModel:
        """Do nothing: a loaded model stays where it was loaded."""
        return self

    def cpu(self) -> CallableModel:
        """Do nothing."""
        return self

    def cuda(self, device: Any = None) -> CallableModel:
        """Do nothing."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> CallableModel:
        """Do nothing."""
        return self

    def _array(self, name: str, value: Any) -> np.ndarray[Any, Any]:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":
                value = value.float()
            value = value.numpy()
        array = np.asarray(value)
        wanted = self._dtypes.get(name)
        if wanted is not None and wanted != array.dtype.name and array.dtype.kind in "fiu":
            from ..specs.dtypes import numpy_dtype

            dtype = np.dtype(numpy_dtype(wanted))
            # A loader has float32 where an artifact in half precision takes float16.
            if (dtype.kind == "f") == (array.dtype.kind == "f"):
                array = array.astype(dtype)
        return np.ascontiguousarray(array)

    def _infer(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        counts = {array.shape[0] for array in arrays.values() if array.ndim}
        size = self._batch
        if size is None or len(counts) != 1 or counts == {size}:
            found: dict[str, Any] = self.loaded.infer(arrays)
            return found
        count = counts.pop()
        parts: list[dict[str, Any]] = []
        for start in range(0, count, size):
            part = {
                name: _filled(array[start : start + size], size) for name, array in arrays.items()
            }
            parts.append(self.loaded.infer(part))
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def _filled(array: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    missing = size - len(array)
    return array if not missing else np.concatenate([array, array[-1:].repeat(missing, 0)])


def _answer(array: Any, like: Any) -> Any:
    if like is None or array.dtype.kind not in "biufc":
        return array
    import torch

    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array).to(like.device)


def json_values(value: Any) -> Any:
    """Return JSON values with null for NaN and infinities, which JSON has no numbers for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: json_values(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(child) for child in value]
    return value


def unique_names(names: Sequence[str]) -> list[str]:
    """Return names of which a later one that stands twice gets a number."""
    found: list[str] = []
    for name in names:
        count = 2
        unique = name
        while unique in found:
            unique, count = f"{name} ({count})", count + 1
        found.append(unique)
    return found
