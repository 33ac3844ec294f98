"""Reads the configuration of Neutrino: what it says becomes a spec, what it holds stays objects."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..frameworks.base import first_line
from ..specs.hints import did_you_mean
from ..training.device import as_device
from ..training.given import options_from_config

KEYS = (
    "optimization",
    "delta",
    "level",
    "deepsearch",
    "device",
    "use_horovod",
    "task_type",
    "eval_key",
    "eval_split",
    "bn_fusion",
    "full_trainer",
    "fine_tuner",
    "external_training_loop",
    "custom_compression",
    "export",
)
MODES = ("compression", "latency", "quantization")
_CUSTOM_KEYS = ("quantization_args", "quant_args", "layers")
_EXPORT_KEYS = ("format", "kwargs")
_LOOP_KEYS = ("epochs", "optimizer")


@dataclass
class NeutrinoConfig:
    """A configuration that was read.

    Attributes:
        values: keys of a spec, as JSON values.
        optimizer: of the training between steps; None leaves what ``values`` say.
        external_loop: the user's own training loop.
        quantizes: the model is to be quantized, not pruned.
    """

    values: dict[str, Any] = field(default_factory=dict)
    optimizer: Any = None
    external_loop: Any = None
    quantizes: bool = False


def read_config(config: Mapping[str, Any] | None) -> NeutrinoConfig:
    """Read a configuration; what it leaves out gets the defaults of ``docs/neutrino.md``.

    Raises:
        UsageError: a key is unknown, or asks for what does not exist here; it says which and why.
    """
    if config is not None and not isinstance(config, Mapping):
        raise UsageError(f"config: found a {type(config).__name__}; expected a dict")
    given = {str(key): value for key, value in (config or {}).items() if value is not None}
    _known(given, KEYS, "config")
    found = NeutrinoConfig(given)
    found.quantizes = _quantizes(given)
    _check_workers(bool(given.get("use_horovod", False)))
    if "device" in given:
        given["device"] = as_device(given["device"]).value
    given.pop("use_horovod", None)
    trainer = _section(given, "full_trainer")
    if trainer is not None:
        given["full_trainer"] = _read_trainer(trainer, found)
    tuner = _section(given, "fine_tuner")
    if tuner is not None:
        given["fine_tuner"] = _read_tuner(tuner, found)
    loop = given.pop("external_training_loop", None)
    if loop is not None:
        found.external_loop = _read_loop(loop)
        if found.quantizes:
            logging.getLogger("ingot").warning(
                "external_training_loop: without effect, as weights that are rounded are trained by"
                " Ingot's own loop"
            )
    export = _section(given, "export")
    if export is not None:
        given["export"] = _read_export(export, found.quantizes)
    return found


def _known(section: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in section:
        if key not in keys:
            raise UsageError(
                f"{where}: unknown key {key!r}; expected {', '.join(keys)}",
                hint=did_you_mean(key, keys),
            )


def _section(given: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    section = given.get(name)
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise UsageError(f"config: {name}: found a {type(section).__name__}; expected a dict")
    return dict(section)


def _quantizes(given: dict[str, Any]) -> bool:
    """Return whether the model is to be quantized: the mode says so, or ``custom_compression``.

    As in Neutrino, that section alone turns quantization on, whatever the mode is.

    Raises:
        UsageError: the mode, or a key of the section, is unknown.
    """
    mode = given.get("optimization", MODES[0])
    if mode not in MODES:
        raise UsageError(
            f"config: optimization: found {mode!r}; expected one of {', '.join(MODES)}",
            hint=did_you_mean(mode, MODES),
        )
    custom = _section(given, "custom_compression") or {}
    _known(custom, _CUSTOM_KEYS, "config: custom_compression")
    has_args = any(custom.get(name) is not None for name in _CUSTOM_KEYS[:2])
    if not has_args and not custom.get("layers"):
        given.pop("custom_compression", None)
        return bool(mode == "quantization")
    if given.get("optimization", "quantization") != "quantization":
        also = ", and refused where that is slower" if mode == "latency" else ""
        logging.getLogger("ingot").warning(
            "custom_compression: the model is quantized, not pruned%s; leave it out to prune only."
            " 'ingot optimize' does both within one delta",
            also,
        )
    return True


def _check_workers(use_horovod: bool) -> None:
    """Say what becomes of ``use_horovod``: a search runs in one process.

    Raises:
        UsageError: it was started in several.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}; expected one process: a search runs in one",
            hint="start the script with python, not with torchrun or horovodrun",
        )
    if use_horovod:
        logging.getLogger("ingot").warning(
            "use_horovod: Horovod is not used here, and a search runs in one process; 'ingot train"
            " --workers' trains in several"
        )


def _read_trainer(trainer: dict[str, Any], found: NeutrinoConfig) -> dict[str, Any]:
    """Check ``full_trainer``, and take the objects out of it.

    Raises:
        UsageError: it has an unknown key, or something that makes no optimizer or scheduler.
    """
    options = options_from_config(trainer)
    _check_factory(options.optimizer, "full_trainer.optimizer", "NativeOptimizerFactory")
    _check_factory(options.scheduler, "full_trainer.scheduler", "NativeSchedulerFactory")
    if not _is_plain(trainer.get("optimizer")):
        found.optimizer = trainer.pop("optimizer")
    if not _is_plain(trainer.get("scheduler")):
        trainer.pop("scheduler")  # a search has its own: see recovery_options
    return trainer


def _read_tuner(tuner: dict[str, Any], found: NeutrinoConfig) -> dict[str, Any]:
    _known(tuner, ("loop_params",), "config: fine_tuner")
    loop = _section(tuner, "loop_params") or {}
    _known(loop, _LOOP_KEYS, "config: fine_tuner.loop_params")
    optimizer = loop.get("optimizer")
    _check_factory(optimizer, "fine_tuner.loop_params.optimizer", "NativeOptimizerFactory")
    if optimizer is not None:
        found.optimizer = None if _is_plain(optimizer) else loop.pop("optimizer")
    return {"loop_params": loop}


def _check_factory(value: Any, key: str, kind: str) -> None:
    if value is None or isinstance(value, str | Mapping) or hasattr(value, "make"):
        return
    if callable(value) and not isinstance(value, type):
        return
    raise UsageError(
        f"config: {key}: found a {type(value).__name__}; expected {{'name': ..., arguments}} or a"
        f" {kind}",
        hint=f"an object, not its class: {value.__name__}()" if isinstance(value, type) else None,
    )


def _is_plain(value: Any) -> bool:
    """Whether a value can stand in a spec."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(child) for key, child in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(child) for child in value)
    return value is None or isinstance(value, bool | int | float | str)


def _read_loop(loop: Any) -> Any:
    """Return the user's own training loop: an object, or what ``module:Class`` names.

    Raises:
        UsageError: it is none.
    """
    if isinstance(loop, str):
        loop = _imported(loop)
    if isinstance(loop, type):
        try:
            loop = loop()
        except Exception as error:
            raise UsageError(
                f"config: external_training_loop: {loop.__name__}() raised"
                f" {type(error).__name__}: {first_line(error)}",
                hint="give an object in place of its class",
            ) from error
    if not callable(getattr(loop, "train", None)):
        raise UsageError(
            f"config: external_training_loop: found a {type(loop).__name__} without train; expected"
            " an object with train(model, epochs, validation, finetuning)"
        )
    return loop


def _imported(name: str) -> Any:
    from importlib import import_module

    module, _, attribute = name.partition(":")
    try:
        value: Any = import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
    except Exception as error:
        raise UsageError(
            f"config: external_training_loop: {name!r} cannot be imported: {first_line(error)}",
            hint="expected 'module:Class', of a module that this script could import",
        ) from error
    return value


def _read_export(export: dict[str, Any], quantizes: bool) -> dict[str, Any]:
    """Return the section with ONNX in place of the closed format, which nothing else can write."""
    _known(export, _EXPORT_KEYS, "config: export")
    given = export.get("format") or []
    formats = [given] if isinstance(given, str) else list(given)
    if "dlrt" in formats:
        logging.getLogger("ingot").warning(
            "export.format: dlrt is a closed format; onnx%s is written in its place",
            " with packed integers" if quantizes else "",
        )
        formats = ["onnx" if name == "dlrt" else name for name in formats]
    export["format"] = list(dict.fromkeys(formats))
    return {name: value for name, value in export.items() if value is not None}
