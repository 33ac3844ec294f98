"""torch.export archives (``.pt2``), which Ingot runs but does not package.

An archive is JSON and raw weights, but ``torch.export.load`` would run code that a crafted one
brings; :mod:`.pt2_check` says how, and refuses such a file before PyTorch opens it. Guards, which
are source text in the file, are left out; names, types and sizes of inputs are checked against the
specs, as for every model.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, SpecError
from ..specs.dtypes import canonical_dtype
from ..specs.tensors import Dimension, TensorSpec
from .base import LoadOptions, Model, ModelSource, first_line
from .calling import name_outputs
from .pt2_check import check_archive
from .torch_tensors import TensorConverter, import_torch, load_custom_ops, torch_device

if TYPE_CHECKING:
    import numpy as np

    from .base import Arrays


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Open a torch.export archive.

    Raises:
        ModelError: it is something else, damaged, or would run code that it brings.
        MissingDependencyError: PyTorch is not installed.
    """
    if source.path is None:
        raise ModelError(f"{source.label}: a torch.export archive needs a file")
    torch = import_torch(options)
    load_custom_ops(source.custom_ops, source.label)
    check_archive(source.path, source.label, torch, bool(source.custom_ops))
    device = torch_device(options.device)
    try:
        # Opened here: PyTorch warns of a path that does not end in .pt2.
        with _quiet(), source.path.open("rb") as file:
            program = torch.export.load(file)
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
            module = _module(program)
    except Exception as error:
        raise ModelError(
            f"{source.label}: PyTorch {torch.__version__} cannot load it: {first_line(error)}"
        ) from error
    return Pt2Model(source, program, module, device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what PyTorch logs of a file that it cannot read from standard error: we say it."""
    loggers = [logging.getLogger("torch.export"), logging.getLogger("torch._export")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _module(program: Any) -> Any:
    if "check_guards" in inspect.signature(program.module).parameters:
        return program.module(check_guards=False)
    return program.module()


class Pt2Model(Model):
    """An exported program, called with its inputs nested as they were when it was exported."""

    def __init__(self, source: ModelSource, program: Any, module: Any, device: Any) -> None:
        torch = import_torch()
        self.native = module
        self.version = torch.__version__
        self._label = source.label
        self._pytree = torch.utils._pytree
        self._converter = TensorConverter(device, source.label, module)
        self._in_spec = program.call_spec.in_spec
        self._leaves = _leaves(program, self._in_spec)
        found, outputs = self._read(program, source)
        self.inputs = found if source.inputs is None else source.inputs
        self.outputs = outputs if source.outputs is None else source.outputs
        self._output_names = [spec.name for spec in self.outputs]
        taken = [name for name, _ in self._leaves if name is not None]
        declared = [spec.name for spec in self.inputs]
        if len(declared) != len(taken):
            raise ModelError(
                f"{source.label}: the program takes {len(taken)} tensors ({', '.join(taken)});"
                f" the spec has {len(declared)} inputs ({', '.join(declared)})"
            )
        # By name where the program knows the names of the spec, else in order.
        by_name = set(declared) == set(taken)
        order = taken if by_name else declared
        self._feeds = dict(zip(taken, order, strict=True))

    def _read(
        self, program: Any, source: ModelSource
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Read the inputs and outputs off the program, where the source does not declare them."""
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        signature = program.graph_signature
        symbols = _Symbols()
        given = zip(self._leaves, signature.user_inputs, strict=True)
        inputs = tuple(
            _spec(name, values[node], symbols, source.label)
            for (name, _), node in given
            if name is not None
        )
        results = [
            values.get(node) if isinstance(node, str) else node for node in signature.user_outputs
        ]
        returned = self._pytree.tree_unflatten(results, program.call_spec.out_spec)
        if source.outputs is not None:
            return inputs, ()
        named = name_outputs(returned, [], source.label)
        outputs = tuple(
            _spec(name, value, symbols, source.label)
            for name, value in named.items()
            if hasattr(value, "shape")
        )
        return inputs, outputs if len(outputs) == len(named) else ()

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        converter = self._converter
        try:
            returned = converter.call(arrays, self._feeds.values(), self._invoke)
        except Exception as error:
            raise ModelError(f"{self._label}: the model failed: {first_line(error)}") from error
        named = name_outputs(returned, self._output_names, self._label)
        return converter.to_arrays(named, outputs, arrays)

    def _invoke(self, tensors: Mapping[str, Any]) -> Any:
        flat = [
            constant if name is None else tensors[self._feeds[name]]
            for name, constant in self._leaves
        ]
        args, kwargs = self._pytree.tree_unflatten(flat, self._in_spec)
        return self.native(*args, **kwargs)


def _leaves(program: Any, in_spec: Any) -> list[tuple[str | None, Any]]:
    """Return name and None of each tensor that the program takes; None and value of a constant.

    A tensor is called like its key where it lies in a dict, else like the parameter.
    """
    pytree = import_torch().utils._pytree
    nodes = program.graph_signature.user_inputs
    kinds = {node.name for node in program.graph.nodes if hasattr(node.meta.get("val"), "shape")}
    paths = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(nodes), in_spec))[0]
    names = [getattr(path[-1], "key", None) for path, _ in paths]
    unique = all(isinstance(name, str) or name is None for name in names)
    leaves: list[tuple[str | None, Any]] = []
    for node, name in zip(nodes, names, strict=True):
        if not isinstance(node, str) or node not in kinds:
            leaves.append((None, None if isinstance(node, str) else node))
        elif name is None or not unique or names.count(name) > 1:
            leaves.append((node, None))
        else:
            leaves.append((name, None))
    return leaves


class _Symbols:
    """Names for the free sizes of a program, which calls them ``s77``."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def dimension(self, size: Any, axis: int) -> Dimension:
        if isinstance(size, int):
            return size
        text = str(size)
        if not text.isidentifier():  # an expression, 2*s77: a spec has no words for it
            return None
        if text not in self._names:
            first = axis == 0 and "batch_size" not in self._names.values()
            self._names[text] = "batch_size" if first else f"size_{len(self._names)}"
        return self._names[text]


def _spec(name: str, value: Any, symbols: _Symbols, label: str) -> TensorSpec:
    try:
        dtype = canonical_dtype(str(value.dtype).removeprefix("torch."))
    except SpecError as error:
        raise ModelError(f"{label}: {name!r}: {error.reason}") from error
    return TensorSpec(
        name, dtype, tuple(symbols.dimension(size, axis) for axis, size in enumerate(value.shape))
    )
