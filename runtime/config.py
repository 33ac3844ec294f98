"""The ``config.json`` of a package: Neuropod's keys, and Ingot's own under ``ingot``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import PackageError, SpecError
from ..specs.tensors import TensorSpec, parse_tensor_specs

FORMAT_VERSION = 1
"""Version of what Ingot adds to Neuropod's format."""

PLATFORMS = ("tensorflow", "torchscript", "python", "onnx", "keras")
"""Neuropod's platforms, and ``onnx`` and ``keras``, which Ingot adds."""

DEVICES = ("CPU", "GPU")


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
        extras: Ingot's own keys (``format_version``, ``test``, ``provenance``, ``license``).
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
            found = repr(config[key]) if key in config else "nothing"
            return PackageError(f"{label}: config.json: {key}: found {found}; expected {expected}")

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
        if not isinstance(ops, list) or not all(_is_basename(name) for name in ops):
            raise fail("custom_ops", "a list of file names")
        devices = config.get("input_tensor_device", {})
        if not isinstance(devices, dict) or not set(devices.values()) <= set(DEVICES):
            raise fail("input_tensor_device", "CPU or GPU by input name")
        extras = config.get("ingot", {})
        if not isinstance(extras, dict):
            raise fail("ingot", "an object")
        version = extras.get("format_version", FORMAT_VERSION)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise PackageError(
                f"{label}: config.json: ingot.format_version: found {version!r};"
                f" this Ingot reads up to {FORMAT_VERSION}",
                hint="install a newer Ingot",
            )
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


def _is_basename(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
