"""The ``config.json`` of a package: Neuropod's keys, and Ingot's own under ``ingot``."""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import PackageError, SpecError
from ..specs.tensors import TensorSpec, parse_tensor_specs

FORMAT_VERSION = 1
"""Version of what Ingot adds to Neuropod's format."""

PLATFORMS = ("tensorflow", "torchscript", "python", "onnx", "keras")
"""Neuropod's platforms, and ``onnx`` and ``keras``, which Ingot adds."""

DEVICES = ("CPU", "GPU")

_PROVENANCE = {"framework": ("name", "version"), "spec": ("file", "sha256")}
"""Objects of strings in ``ingot.provenance``; what else it holds is free."""

LONGEST_STEM = 200
"""Bytes of the start of a file's name: file systems take 255, and formats add to it."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class PackageConfig:
    """What a package says about its model.

    Attributes:
        name: the model's name.
        platform: one of :data:`PLATFORMS`.
        inputs: the inputs, in order.
        outputs: the outputs, in order.
        platform_version_semver: npm-style range of framework versions that may run it.
        custom_ops: names of the files below ``0/ops``.
        input_tensor_device: ``GPU`` or ``CPU`` for each input.
        extras: Ingot's own keys (``format_version``, ``test``, ``provenance``, ``license``); empty
            only when Neuropod wrote the package, else there is a ``format_version``.
    """

    name: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform_version_semver: str = "*"
    custom_ops: tuple[str, ...] = ()
    input_tensor_device: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: bytes, label: str) -> PackageConfig:
        """Parse a ``config.json``; keys that older packages lack get their defaults.

        Raises:
            PackageError: it is no JSON, or a key is missing or impossible.
        """
        config = parse_json_object(data, label, "config.json")

        def fail(key: str, expected: str) -> PackageError:
            return metadata_error(label, "config.json", config, key, expected)

        for key in ("name", "platform"):
            if not isinstance(config.get(key), str) or not config[key]:
                raise fail(key, "a string")
        if config["platform"] not in PLATFORMS:
            raise fail("platform", f"one of {', '.join(PLATFORMS)}")
        specs = {}
        for key in ("input_spec", "output_spec"):
            if key not in config:
                raise fail(key, "a list of tensor specs")
            try:
                specs[key] = parse_tensor_specs(config[key], key)
            except SpecError as error:
                raise PackageError(f"{label}: config.json: {error.message}") from error
        semver = config.get("platform_version_semver", "*")
        if not isinstance(semver, str):
            raise fail("platform_version_semver", "a semver range")
        ops = config.get("custom_ops", [])
        if not isinstance(ops, list) or not all(is_basename(name) for name in ops):
            raise fail("custom_ops", "a list of file names")
        devices = config.get("input_tensor_device", {})
        if not isinstance(devices, dict) or not all(item in DEVICES for item in devices.values()):
            raise fail("input_tensor_device", "CPU or GPU by input name")
        extras = _parse_extras(config["ingot"], label) if "ingot" in config else {}
        inputs = specs["input_spec"]
        return cls(
            name=config["name"],
            platform=config["platform"],
            inputs=inputs,
            outputs=specs["output_spec"],
            platform_version_semver=semver,
            custom_ops=tuple(ops),
            input_tensor_device={spec.name: devices.get(spec.name, "GPU") for spec in inputs},
            extras=extras,
        )

    def to_json(self) -> bytes:
        """Return the file as Neuropod writes it: four spaces of indent, sorted keys."""
        config: dict[str, Any] = {
            "name": self.name,
            "platform": self.platform,
            "platform_version_semver": self.platform_version_semver,
            "input_spec": [spec.to_dict() for spec in self.inputs],
            "output_spec": [spec.to_dict() for spec in self.outputs],
            "custom_ops": list(self.custom_ops),
            "input_tensor_device": dict(self.input_tensor_device),
        }
        if self.extras:
            config["ingot"] = dict(self.extras)
        return dump_json(config)


def dump_json(value: Any) -> bytes:
    """Return JSON as every file of a package has it."""
    return json.dumps(value, indent=4, sort_keys=True).encode()


def parse_json_object(data: bytes, label: str, name: str) -> dict[str, Any]:
    """Parse a JSON file of a package that must hold an object.

    Raises:
        PackageError: it does not.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{label}: {name}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise PackageError(f"{label}: {name}: found a {type(value).__name__}; expected an object")
    return value


def metadata_error(
    label: str, file: str, section: Mapping[str, Any], key: str, expected: str
) -> PackageError:
    """Return an error about one key of a JSON file.

    Args:
        label: what to call the package.
        file: the file in the package.
        section: the object that holds the key, or should.
        key: its dotted path; the last part is its name in ``section``.
        expected: what would have been right.
    """
    name = key.rpartition(".")[2]
    found = _SHORT.repr(section[name]) if name in section else "nothing"
    return PackageError(f"{label}: {file}: {key}: found {found}; expected {expected}")


def is_basename(name: object) -> bool:
    """Whether a JSON value is the name of a file, without any folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def is_stem(name: object) -> bool:
    """Whether files can be named after a model: by the spec's rule, printable, not too long.

    The name in a package is its author's, and Neuropod lets it be any text.
    """
    from ..specs import ModelSpec

    rule = next(entry for entry in fields(ModelSpec) if entry.name == "name").metadata["rule"]
    return (
        isinstance(name, str)
        and re.fullmatch(rule.pattern, name) is not None
        and name.isprintable()
        and len(os.fsencode(name)) <= LONGEST_STEM
    )


def stem_of(name: str) -> str:
    """Return a model's name without folders and control characters; ``is_stem`` may refuse it."""
    return re.sub(r"[/\\\x00-\x1f\x7f]", "_", name)


def _parse_extras(extras: object, label: str) -> dict[str, Any]:
    """Check the section ``ingot``; without a ``format_version`` it is of the first.

    Raises:
        PackageError: a key has an impossible value, or the version is newer than this Ingot.
    """

    def fail(section: Mapping[str, Any], key: str, expected: str) -> PackageError:
        return metadata_error(label, "config.json", section, key, expected)

    if not isinstance(extras, dict):
        raise fail({"ingot": extras}, "ingot", "an object")
    version = extras.get("format_version", 1)
    if type(version) is not int or version < 1:
        raise fail(extras, "ingot.format_version", "a positive integer")
    if version > FORMAT_VERSION:
        raise PackageError(
            f"{label}: config.json: ingot.format_version: found {_SHORT.repr(version)};"
            f" this Ingot reads up to {FORMAT_VERSION}",
            hint="install a newer Ingot",
        )
    if not isinstance(extras.get("license", ""), str):
        raise fail(extras, "ingot.license", "a string")
    for key in ("test", "provenance"):
        if not isinstance(extras.get(key, {}), dict):
            raise fail(extras, f"ingot.{key}", "an object")
    test = extras.get("test", {})
    for key in ("rtol", "atol"):
        if key in test and not _is_tolerance(test[key]):
            raise fail(test, f"ingot.test.{key}", "a finite number that is not negative")
    provenance = extras.get("provenance", {})
    if not isinstance(provenance.get("created_by", ""), str):
        raise fail(provenance, "ingot.provenance.created_by", "a string")
    for key, names in _PROVENANCE.items():
        section = provenance.get(key)
        if key in provenance and not isinstance(section, dict):
            raise fail(provenance, f"ingot.provenance.{key}", "an object")
        for name in names if isinstance(section, dict) else ():
            if not isinstance(section.get(name), str):
                raise fail(section, f"ingot.provenance.{key}.{name}", "a string")
    return {"format_version": version, **extras}


def _is_tolerance(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and value >= 0
    except OverflowError:  # an integer beyond every float
        return False
