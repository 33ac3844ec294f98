"""Runs a model and records what each of its layers returns."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .base import LayerOutput

LARGEST_ONNX = (1 << 31) - (1 << 20)
"""Bytes of weights from which on they go into a file of their own: protobuf ends at 2 GiB."""

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Under which ``torch.onnx`` notes the modules that a node comes from."""


def torch_layers(module: Any, call: Callable[[], object]) -> list[LayerOutput]:
    """Record the outputs of all submodules during a call, in the order in which they return.

    Of a module that returns several tensors the first is taken. Of one that is called several times
    the last call has its name, those before it ``name#1``, ``name#2``, ...

    Args:
        module: an ``nn.Module``.
        call: runs it.
    """
    import torch

    found: list[LayerOutput] = []

    def recorder(name: str) -> Callable[[Any, Any, Any], None]:
        def record(layer: Any, inputs: Any, returned: Any) -> None:
            value = returned
            while isinstance(value, list | tuple) and value:
                value = value[0]
            if not isinstance(value, torch.Tensor):
                return
            # A copy: an operator that works in place may follow.
            array = value.detach().float().cpu().numpy().copy()
            found.append(LayerOutput(name, type(layer).__name__, array))

        return record

    handles = [
        layer.register_forward_hook(recorder(name))
        for name, layer in module.named_modules()
        if name
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(layer.name for layer in found)
    seen: Counter[str] = Counter()
    named = []
    for layer in found:
        seen[layer.name] += 1
        earlier = seen[layer.name] < calls[layer.name]
        shown = f"{layer.name}#{seen[layer.name]}" if earlier else layer.name
        named.append(replace(layer, name=shown))
    return named


def keras_layers(model: Any, keras: Any, feeds: Any) -> list[LayerOutput]:
    """Return the outputs of the layers of a functional or sequential Keras model."""
    layers = []
    for layer in model.layers:
        try:
            output = layer.output
        except (AttributeError, ValueError):  # used more than once, or never built
            continue
        if not isinstance(output, list | tuple | dict) and type(layer).__name__ != "InputLayer":
            layers.append((layer, output))
    values = keras.Model(model.inputs, [output for _, output in layers])(feeds, training=False)
    if len(layers) == 1 and not isinstance(values, list | tuple):
        values = [values]
    return [
        LayerOutput(layer.name, type(layer).__name__, np.asarray(keras.ops.convert_to_numpy(value)))
        for (layer, _), value in zip(layers, values, strict=True)
    ]


def onnx_layers(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> list[LayerOutput]:
    """Return the outputs of the nodes of an ONNX file, run without graph optimizations.

    A node's scopes are the modules whose last node it is, as ``torch.onnx`` notes them, or the
    parts of its name, which tf2onnx makes of the layers' names. A model of 2 GiB and more gives
    none.
    """
    import onnx

    from .onnx import import_onnxruntime

    runtime = import_onnxruntime()
    companions = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    if companions > LARGEST_ONNX:
        return []
    model = onnx.load(str(path))
    taken = {output.name for output in model.graph.output}
    nodes = [node for node in model.graph.node if node.op_type not in ("Constant", "Identity")]
    for node in nodes:
        for name in node.output[:1]:
            if name not in taken:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
                taken.add(name)
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    session = runtime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    tensors = [value.name for value in session.get_outputs() if value.type.startswith("tensor(")]
    values = dict(zip(tensors, session.run(tensors, dict(arrays)), strict=True))
    scopes = _last_scopes(nodes)
    return [
        LayerOutput(
            _layer_name(node, found),
            node.op_type,
            values[node.output[0]],
            (*found, node.name, node.output[0]),
        )
        for node, found in zip(nodes, scopes, strict=True)
        if node.output[0] in values and values[node.output[0]].dtype.kind == "f"
    ]


def _layer_name(node: Any, scopes: tuple[str, ...]) -> str:
    """The innermost module whose last node it is, where ``torch.onnx`` says so; else its own."""
    if scopes and any(entry.key == NAME_SCOPES for entry in node.metadata_props):
        return max(scopes, key=lambda scope: scope.count("."))
    return str(node.name or node.output[0])


def _last_scopes(nodes: Iterable[Any]) -> list[tuple[str, ...]]:
    """Return, for each node, the layers whose last node it is."""
    last: dict[str, int] = {}
    count = 0
    for index, node in enumerate(nodes):
        count += 1
        for scope in _scopes(node):
            last[scope] = index
    found: list[list[str]] = [[] for _ in range(count)]
    for scope, index in last.items():
        found[index].append(scope)
    return [tuple(scopes) for scopes in found]


def _scopes(node: Any) -> list[str]:
    for entry in node.metadata_props:
        if entry.key == NAME_SCOPES:
            return [str(scope) for scope in ast.literal_eval(entry.value)[:-1] if scope]
    parts = node.output[0].split(":")[0].split("/")[:-1]
    # An output of the graph has the spec's name: the node keeps that of its layer.
    parts += [part for part in node.name.split("/")[:-1] if part not in parts]
    return [*parts, node.output[0]]
