"""Tensor specs: name, element type and shape of one input or output, as Neuropod defines them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SpecError
from .dtypes import canonical_dtype
from .hints import did_you_mean

Dimension = int | str | None
"""A fixed size, a symbol (the same size wherever it stands), or None (any size)."""

_KEYS = ("name", "dtype", "shape", "optional")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: the tensor's name.
        dtype: a name of ``DTYPES``; None only where a bare model file does not say.
        shape: one entry a dimension; ``()`` is a scalar; None only where a bare file does not say.
        optional: an input that may be left out.
    """

    name: str
    dtype: str | None
    shape: tuple[Dimension, ...] | None
    optional: bool = False

    @classmethod
    def from_dict(cls, entry: object, key: str = "spec") -> TensorSpec:
        """Build a spec from ``{"name", "dtype", "shape"[, "optional"]}``.

        Args:
            entry: the mapping, as found in a spec file, a package's config.json or a Python call.
            key: where it stands, for error messages (``inputs[0]``).

        Raises:
            SpecError: a key (``error.key``) is missing, unknown or has an impossible value.
        """
        if isinstance(entry, TensorSpec):
            return entry
        if not isinstance(entry, Mapping):
            raise SpecError(
                f"found {entry!r}; expected a mapping with name, dtype and shape", key=key
            )
        for name in entry:
            if name not in _KEYS:
                raise SpecError(
                    f"unknown key {name!r}; expected {', '.join(_KEYS)}",
                    key=f"{key}.{name}",
                    hint=did_you_mean(name, _KEYS),
                )
        for name in _KEYS[:3]:
            if name not in entry:
                raise SpecError(f"the key {name!r} is missing", key=key)
        name = entry["name"]
        if not isinstance(name, str) or not name:
            raise SpecError(f"found {name!r}; expected a tensor name", key=f"{key}.name")
        optional = entry.get("optional", False)
        if not isinstance(optional, bool):
            raise SpecError(f"found {optional!r}; expected true or false", key=f"{key}.optional")
        try:
            dtype = canonical_dtype(entry["dtype"])
        except SpecError as error:
            raise SpecError(
                f"tensor {name!r}: {error.reason}", key=f"{key}.dtype", hint=error.hint
            ) from None
        return cls(name, dtype, parse_shape(entry["shape"], name, f"{key}.shape"), optional)

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping that :meth:`from_dict` reads; ``optional`` is there only when true."""
        entry: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": None if self.shape is None else list(self.shape),
        }
        if self.optional:
            entry["optional"] = True
        return entry

    def describe(self) -> str:
        """Return ``float32 (batch, 3, any)``, for messages and tables."""
        return f"{self.dtype or 'any type'} {format_shape(self.shape)}"


def format_shape(shape: Sequence[Dimension] | None) -> str:
    """Return ``(batch, 3, any)`` for a shape, ``any shape`` for None, and ``scalar`` for ``()``."""
    if shape is None:
        return "any shape"
    if len(shape) == 0:
        return "scalar"
    return "(" + ", ".join("any" if dim is None else str(dim) for dim in shape) + ")"


def parse_shape(shape: object, tensor: str, key: str) -> tuple[Dimension, ...]:
    """Check a shape and return it as a tuple.

    Raises:
        SpecError: it is no list, or a dimension is 0, negative, a bool or of another type.
    """
    if not isinstance(shape, list | tuple):
        raise SpecError(
            f"tensor {tensor!r}: found {shape!r}; expected a list of dimensions ([] is a scalar)",
            key=key,
        )
    for index, dim in enumerate(shape):
        fits = dim is None or (isinstance(dim, str) and dim.strip() != "")
        fits = fits or (isinstance(dim, int) and not isinstance(dim, bool) and dim > 0)
        if not fits:
            raise SpecError(
                f"tensor {tensor!r}: found {dim!r}; expected a positive integer, a symbol or null",
                key=f"{key}[{index}]",
            )
    return tuple(shape)


def parse_tensor_specs(entries: object, key: str) -> tuple[TensorSpec, ...]:
    """Check a list of tensor specs (it may be empty) and return it as a tuple.

    Args:
        entries: a list of mappings or :class:`TensorSpec`.
        key: the name of the list, for error messages (``inputs``).

    Raises:
        SpecError: it is no list, an entry is invalid, or two entries have one name.
    """
    if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
        raise SpecError(f"found {entries!r}; expected a list of tensor specs", key=key)
    specs = tuple(
        TensorSpec.from_dict(entry, f"{key}[{index}]") for index, entry in enumerate(entries)
    )
    seen: set[str] = set()
    for index, spec in enumerate(specs):
        if spec.name in seen:
            raise SpecError(f"a second tensor named {spec.name!r}", key=f"{key}[{index}].name")
        seen.add(spec.name)
    return specs
