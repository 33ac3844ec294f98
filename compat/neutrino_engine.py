"""Neutrino's engine: a module in, a smaller one out, by ``ingot compress`` or ``quantize``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TrainingInterrupted, UsageError
from ..specs import ModelSpec
from ..training.forward_pass import ForwardPass
from .neutrino_config import read_config
from .neutrino_results import pruned_module, quantized_module

if TYPE_CHECKING:
    from torch import nn

    from ..commands.compress_live import LiveModel
    from ..optimizers.verdict import Verdict

INTEGER_FORMATS = ("onnx", "tflite")
"""Formats of export that hold quantized models; the first is always written, and measured."""
_FORWARD_METHODS = ("extract_model_inputs", "model_call")


class Neutrino:
    """Makes a module smaller, or faster, within a permitted drop of its metric.

    Args:
        framework: a ``TorchFramework``.
        data: iterables of batches by split: ``train``, and the one that is measured on.
        model: the trained module; it stays as it is.
        config: the configuration; ``docs/neutrino.md`` says what each key does here.
        forward_pass: how a batch reaches the module; batches ``(x, y)`` by default.
        eval_func: an ``EvaluationFunction``, its class, or a function ``(model, loader)``.
        loss_function_cls: a ``LossFunction`` class, a ``torch.nn`` loss, an object of these, or a
            function ``(model, batch)``.
        loss_function_kwargs: arguments of the class.

    Attributes:
        verdict: how the last :meth:`run` ended; None before.

    Raises:
        UsageError: an argument, or a key of the configuration, is unknown or impossible.
    """

    def __init__(
        self,
        framework: Any,
        data: Mapping[str, Any],
        model: Any,
        config: Mapping[str, Any] | None = None,
        forward_pass: ForwardPass | None = None,
        eval_func: Any = None,
        loss_function_cls: Any = None,
        loss_function_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        from ..training.torch_forward_pass import TorchForwardPass

        _check_framework(framework)
        self.model = _module(model, "model")
        self.data = _splits(data)
        self.config = read_config(config)
        self.forward_pass = forward_pass or TorchForwardPass((0, "_"))
        missing = [
            name
            for name in _FORWARD_METHODS
            if not callable(getattr(self.forward_pass, name, None))
        ]
        if missing or isinstance(forward_pass, type):
            found = getattr(forward_pass, "__name__", type(forward_pass).__name__)
            raise UsageError(
                f"forward_pass: found {found}; expected an object with"
                f" {' and '.join(_FORWARD_METHODS)}",
                hint="TorchForwardPass((0, '_')) calls model(x) with batches (x, y)",
            )
        if loss_function_kwargs and not isinstance(loss_function_cls, type):
            raise UsageError(
                "loss_function_kwargs: found arguments, and no class in loss_function_cls; expected"
                " both"
            )
        self.eval_func = eval_func
        self.loss_function_cls = loss_function_cls
        self.loss_function_kwargs = loss_function_kwargs
        self.verdict: Verdict | None = None

    def run(self, dryrun: bool = False) -> nn.Module:
        """Search, and return the smallest, or fastest, module that was found, in eval mode.

        Files and reports are in the run's folder, ``verdict.run_dir``. The same call again goes on
        with a search that was interrupted, and returns at once what a finished one had found.

        Args:
            dryrun: go through every phase on two batches of each split; the figures mean nothing.

        Returns:
            the module within delta; of a quantization, a copy whose weights are those of the file,
            as floats. Where none was found, a warning says so, and it is the one that
            came nearest, or a copy of the model.

        Raises:
            TrainingInterrupted: somebody asked to stop (SIGINT, SIGTERM); the best so far is saved.
            IngotError: data, loss, metric or model fail; see :func:`ingot.compress` and
                :func:`ingot.quantize`.
        """
        from ..cli.console_search import print_verdict

        verdict = self._search(dryrun)
        self.verdict = verdict
        print_verdict(verdict.to_dict())
        if verdict.verdict == "interrupted":
            raise TrainingInterrupted(
                f"the search was interrupted; what it found is in {verdict.run_dir}",
                hint="the same call again goes on with it",
            )
        if verdict.verdict == "missed" and not dryrun:
            logging.getLogger("ingot").warning(
                "no model within delta was found: %s", verdict.reason
            )
        module_of = quantized_module if self.config.quantizes else pruned_module
        return module_of(verdict, self.model)

    @staticmethod
    def load_from_pickle(framework: Any, path: str | Path, original_model: Any) -> nn.Module:
        """Return a compressed module; no pickle is ever read.

        Args:
            framework: a ``TorchFramework``.
            path: ``opt_model.json``, or the name ``opt_model.pkl`` beside it.
            original_model: the module before it was compressed; it stays as it is.

        Raises:
            ModelError: there is only a pickle, or the file belongs to another model.
        """
        from ..optimizers.pruning import load_compressed

        _check_framework(framework)
        return load_compressed(path, _module(original_model, "original_model"))

    def _spec(self) -> ModelSpec:
        """Return the spec of the model: what a spec file would say, as far as it can."""
        from ..commands.compress_live import entrypoint_of
        from ..commands.live_tensors import first_batch, read_tensors

        name = type(self.model).__name__
        batch = first_batch(self.data["train"])
        inputs, outputs = read_tensors(self.model, self.forward_pass, batch, name)
        values = dict(self.config.values)
        task = values.pop("task_type", None)
        if task is None and (self.eval_func is None or self.loss_function_cls is None):
            task = "classification"
        return ModelSpec.from_dict(
            {
                "name": name,
                "model": {"framework": "torch", "entrypoint": entrypoint_of(self.model)[0]},
                "inputs": [spec.to_dict() for spec in inputs],
                "outputs": [spec.to_dict() for spec in outputs],
                **({} if task is None else {"task": task}),
                **values,
            }
        )

    def _live(self) -> LiveModel:
        from ..commands.compress_live import LiveModel

        home = os.environ.get("NEUTRINO_HOME")
        return LiveModel(
            self.model,
            self.data,
            self.forward_pass,
            self.loss_function_cls,
            self.loss_function_kwargs,
            self.eval_func,
            self.config.optimizer,
            self.config.external_loop,
            None if not home else Path(home).expanduser().absolute(),
        )

    def _search(self, dryrun: bool) -> Verdict:
        from ..commands.compress import compress
        from ..commands.quantize import quantize

        spec, live = self._spec(), self._live()
        if not self.config.quantizes:
            return compress(spec, live=live, progress=_report, dry_run=dryrun)
        wanted = () if spec.export is None else spec.export.format or ()
        for name in wanted:
            if name not in INTEGER_FORMATS:
                logging.getLogger("ingot").warning(
                    "export.format: %s is not written: a quantized model is %s",
                    name,
                    " or ".join(INTEGER_FORMATS),
                )
        # ONNX has all widths, and its integers become those of the module that is returned.
        formats = ("onnx", *(name for name in INTEGER_FORMATS[1:] if name in wanted))
        return quantize(spec, live=live, progress=_report, dry_run=dryrun, formats=formats)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_framework(framework: Any) -> None:
    name = getattr(framework, "name", None)
    if name != "torch":
        raise UsageError(
            f"framework: found {type(framework).__name__}; expected TorchFramework()",
            hint="models of other frameworks: ingot quantize, ingot export",
        )


def _module(model: Any, key: str) -> Any:
    """Return the module; of one that is wrapped to run on several devices, what is inside.

    Raises:
        UsageError: it is none.
    """
    from ..frameworks.base import import_framework

    torch = import_framework("torch", "torch")
    if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return model.module
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"{key}: found a {type(model).__name__}; expected a trained torch.nn.Module"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"{key}: found a TorchScript module; expected the torch.nn.Module that it was made of"
        )
    return model


def _splits(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise UsageError(
            f"data: found a {type(data).__name__}; expected a dict of loaders by split",
            hint="data={'train': trainloader, 'test': testloader}",
        )
    if "train" not in data:
        found = ", ".join(map(repr, data)) or "nothing"
        raise UsageError(f"data: found {found}; expected the split 'train', too")
    for name, loader in data.items():
        if not hasattr(loader, "__iter__"):
            raise UsageError(
                f"data: {name!r} is a {type(loader).__name__}; expected an iterable of batches"
            )
        if hasattr(loader, "__next__"):
            raise UsageError(
                f"data: {name!r} can be read only once; expected a loader, such as a DataLoader"
            )
    return data
