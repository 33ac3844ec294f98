"""Which single channels depend on each other: classes of an equivalence, found by propagation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .layers import WEIGHT_KINDS, channels_of, kind_of
from .tracing import Trace

if TYPE_CHECKING:
    from torch import nn

Place = tuple[str, str]
"""Path of a layer, and ``out`` or ``in``."""

MAKES_OUTPUT = "it makes an output of the model"


class Channels:
    """The channels of a traced model, and which of them can only be pruned together.

    A channel starts at the outputs of a layer and is carried along the dependencies of
    torch-pruning, through its index mappings, to everything that shrinks with it. Channels that
    meet at one index of one layer become one class.

    Attributes:
        trace: what was traced.
        kind: of each layer that was reached, by place.
        dims: dimension of the channels of bare tensors, by path.
        blocked: why a class cannot be pruned.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.kind: dict[Place, str] = {}
        self.dims: dict[str, int] = {}
        self.blocked: dict[int, str] = {}
        self._parent: list[int] = []
        self._reached: dict[tuple[Any, str], dict[int, int]] = {}
        self._at: dict[Place, dict[int, int]] = defaultdict(dict)
        self._reasons: list[tuple[int, str]] = []
        shapes = (parameter.shape for parameter in trace.module.parameters())
        self._most = max((size for shape in shapes for size in shape), default=0)
        nodes = list(trace.graph.module2node.values())
        for node in nodes:
            self._start(node)
        for node in nodes:
            self._tie_blocks(node)
        for node, width in trace.chunks.items():
            for known in (self._reached.get((node, side), {}) for side in ("out", "in")):
                for index, channel in known.items():
                    if index % width in known:
                        self.tie(channel, known[index % width])
        self._block_outputs(nodes)
        self.settle()

    def find(self, channel: int) -> int:
        """Return the class of a channel."""
        root = channel
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[channel] != root:
            self._parent[channel], channel = root, self._parent[channel]
        return root

    def tie(self, first: int, second: int) -> None:
        """Make two classes one."""
        self._parent[self.find(first)] = self.find(second)

    def settle(self) -> None:
        """Work out which classes are blocked; call it after the last :meth:`tie`."""
        self.blocked = {}
        for channel, reason in self._reasons:
            self.blocked.setdefault(self.find(channel), reason)

    def at(self, path: str, side: str) -> dict[int, int]:
        """Return the class of each index of a layer that is known."""
        return {index: self.find(c) for index, c in self._at.get((path, side), {}).items()}

    def by_members(self) -> Iterator[list[int]]:
        """Yield the classes that touch the same layers."""
        touched: dict[int, set[Place]] = defaultdict(set)
        for place, found in self._at.items():
            for channel in found.values():
                touched[self.find(channel)].add(place)
        groups: dict[tuple[frozenset[Place], bool], list[int]] = defaultdict(list)
        for found_class, places in touched.items():
            groups[frozenset(places), found_class in self.blocked].append(found_class)
        yield from groups.values()

    def places(self, classes: list[int]) -> dict[Place, dict[int, list[int]]]:
        """Return the indices of some classes in each layer that they touch."""
        wanted = set(classes)
        result: dict[Place, dict[int, list[int]]] = {}
        for place, found in self._at.items():
            here: dict[int, list[int]] = defaultdict(list)
            for index, channel in found.items():
                if self.find(channel) in wanted:
                    here[self.find(channel)].append(index)
            if here:
                result[place] = here
        return result

    def filters(self, classes: list[int]) -> list[str]:
        """Return the layers with weights whose outputs some classes are."""
        return [
            path
            for path, side in self.places(classes)
            if side == "out" and self.kind[path, side] in (*WEIGHT_KINDS, "unknown")
        ]

    def left_out(self) -> Iterator[tuple[str, str]]:
        """Yield the layers with weights that nothing could be traced of, and why."""
        trace = self.trace
        for path, layer in trace.module.named_modules():
            own = next(iter(layer._parameters.values()), None) is not None
            parent = trace.module.get_submodule(path.rpartition(".")[0]) if path else None
            if parent is not None and kind_of(parent) == "attention":
                continue
            if path in trace.order:
                node = trace.graph.module2node.get(layer)
                if node is not None and self._kind(node) == "unknown":
                    yield path, f"{path} ({type(layer).__name__}) cannot lose channels"
            elif own and kind_of(layer) in WEIGHT_KINDS:
                yield path, f"{path} does not run"

    def _start(self, node: Any) -> None:
        """Give every output of a layer that was not reached yet a channel, and carry it along."""
        place_kind = self._kind(node)
        if place_kind is None or place_kind in ("tensor", "rms_norm", "unknown"):
            return  # these follow others
        handler = self._pruner(node).prune_out_channels
        count = channels_of(node.module, place_kind, "out")
        known = self._reached.get((node, self._side(node, handler)), {})
        fresh = []
        for index in range(count):
            if index not in known:
                fresh.append((index, len(self._parent)))
                self._parent.append(len(self._parent))
        if fresh:
            self._carry(node, handler, fresh)

    def _carry(self, node: Any, handler: Any, found: list[tuple[int, int]]) -> None:
        from torch_pruning import _helpers

        todo = [(node, handler, found)]
        while todo:
            node, handler, found = todo.pop()
            new = self._arrive(node, handler, found)
            if not new:
                continue
            for dependency in node.dependencies:
                if not dependency.is_triggered_by(handler):
                    continue
                mapped = [_helpers._HybridIndex(index, channel) for index, channel in new]
                try:
                    for mapping in filter(None, dependency.index_mapping):
                        mapped = mapping(mapped)
                except (IndexError, TypeError):  # it mapped other operations than it found
                    mapped = [_helpers._HybridIndex(0, None)]
                pairs = [(item.idx, item.root_idx) for item in mapped]
                if any(channel is None for _, channel in pairs):
                    where = dependency.target.name.split(" (")[0]
                    self._reasons += [(c, f"its way to {where} cannot be traced") for _, c in new]
                    pairs = []
                if pairs:
                    todo.append((dependency.target, dependency.handler, pairs))

    def _arrive(
        self, node: Any, handler: Any, found: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Note the channels that reach a node; return those that were not there before."""
        side = self._side(node, handler)
        known = self._reached.setdefault((node, side), {})
        new = []
        for index, channel in found:
            if not 0 <= index < self._most:  # a wrong mapping in a circle would add up for ever
                self._reasons.append((channel, "it cannot be traced to its end"))
            elif index in known:
                self.tie(known[index], channel)
            else:
                known[index] = channel
                new.append((index, channel))
        if node.grad_fn in self.trace.inputs:
            self._reasons += [(channel, "it is added to the model's input") for _, channel in new]
        kind = self._kind(node)
        if kind is None:
            return new
        path = self._path(node)
        self.kind[path, side] = kind
        if kind == "tensor":
            self.dims[path] = node.pruning_dim % node.module.ndim
        count = self._count(node, kind, side)
        for index, channel in new:
            if kind == "unknown":
                name = type(node.module).__name__
                self._reasons.append((channel, f"{path} ({name}) cannot lose channels"))
            if count is not None and not 0 <= index < count:
                reason = f"{path} has {count} channels, and {index + 1} arrive there"
                self._reasons.append((channel, reason))
            else:
                self._at[path, side][index] = channel
        return new

    def _tie_blocks(self, node: Any) -> None:
        """Tie what has to stay equally wide: groups of convolutions and norms, heads."""
        kind, layer = self._kind(node), node.module
        if kind is None or kind in ("tensor", "unknown"):
            return
        path = self._path(node)
        if kind == "depthwise" and layer.in_channels != layer.out_channels:
            inputs, outputs = self._at[path, "in"], self._at[path, "out"]
            each = layer.out_channels // layer.in_channels
            for index, channel in outputs.items():
                if index // each in inputs:
                    self.tie(channel, inputs[index // each])
                else:
                    self._reasons.append((channel, f"{path} has one filter an input"))
            return
        blocks = {
            "conv": getattr(layer, "groups", 1),
            "group_norm": getattr(layer, "num_groups", 1),
            "attention": getattr(layer, "num_heads", 1),
        }.get(kind, 1)
        if blocks == 1:
            return
        for side in ("out", "in"):
            known = self._at.get((path, side), {})
            if not known:
                continue
            width = channels_of(layer, kind, side) // blocks
            for index, channel in known.items():
                if index % width in known:
                    self.tie(channel, known[index % width])
            if len(known) < width * blocks:
                reason = f"only some of the channels of {path} can be traced"
                self._reasons += [(channel, reason) for channel in known.values()]

    def _block_outputs(self, nodes: list[Any]) -> None:
        """Block what becomes an output of the model: back to the layers that make its channels."""
        todo = [node for node in nodes if node.grad_fn in self.trace.outputs]
        todo += [node for node in nodes if type(node.module).__name__ == "_OutputOp"]
        seen: set[Any] = set()
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            pruner = self._pruner(node)
            side = self._side(node, pruner.prune_out_channels)
            self._reasons += [
                (channel, MAKES_OUTPUT) for channel in self._reached.get((node, side), {}).values()
            ]
            if pruner.prune_out_channels == pruner.prune_in_channels:
                todo += node.inputs

    def _pruner(self, node: Any) -> Any:
        return self.trace.graph.get_pruner_of_module(node.module)

    def _side(self, node: Any, handler: Any) -> str:
        return "out" if handler == self._pruner(node).prune_out_channels else "in"

    def _kind(self, node: Any) -> str | None:
        """Return the kind of a node; ``tensor``, ``unknown``, or None for a mere operation."""
        from torch import nn

        module = node.module
        if isinstance(module, nn.Parameter):
            owner = self.trace.names[id(module)].rpartition(".")[0]
            if isinstance(self.trace.module.get_submodule(owner), nn.RNNBase):
                return "unknown"
            return "tensor" if self._rms_norm(module) is None else "rms_norm"
        if not isinstance(module, nn.Module) or id(module) not in self.trace.names:
            return None
        ops = self._ops()
        if ops.module2type(module) == ops.OPTYPE.ELEMENTWISE:
            return None
        is_conv = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
        if is_conv and module.groups == module.out_channels != module.in_channels:
            return "unknown"  # torch-pruning takes it for depthwise
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return None
        return kind_of(module) or "unknown"

    def _ops(self) -> Any:
        import torch_pruning

        return torch_pruning.ops

    def _path(self, node: Any) -> str:
        owner = self._rms_norm(node.module)
        return self.trace.names[id(node.module)] if owner is None else owner

    def _rms_norm(self, parameter: Any) -> str | None:
        """Return the layer that a bare parameter belongs to, if it is an RMSNorm."""
        from torch import nn

        path = self.trace.names.get(id(parameter))
        if path is None or not isinstance(parameter, nn.Parameter) or not hasattr(nn, "RMSNorm"):
            return None
        owner = path.rpartition(".")[0]
        layer = self.trace.module.get_submodule(owner)
        return owner if isinstance(layer, nn.RMSNorm) and kind_of(layer) else None

    def _count(self, node: Any, kind: str, side: str) -> int | None:
        if kind == "tensor":
            return int(node.module.shape[node.pruning_dim])
        if kind == "unknown":
            return None
        layer: nn.Module = self.trace.module.get_submodule(self._path(node))
        return channels_of(layer, kind, side)
