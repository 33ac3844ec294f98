"""``.pt2`` archives of ``torch.export``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from . import torch_programs
from .base import Draft, Job, Variant, converting


def export(job: Job, variants: Sequence[Variant]) -> list[Draft]:
    """Write one archive a variant.

    Raises:
        ModelError: PyTorch cannot trace the model, or it fixes a size that should be free.
    """
    import torch

    drafts = []
    for variant in variants:
        program = torch_programs.exported_program(job, variant, job.precision)
        path = job.path(variant, ".pt2")
        with converting(job.source.label, "torch.export.save"), _without_traces(program):
            torch.export.save(program, path)
        runner = job.runner("pt2", path, variant.inputs, variant.outputs)
        drafts.append(Draft(path, variant, runner))
    return drafts


@contextmanager
def _without_traces(program: Any) -> Iterator[None]:
    """Take out stack traces and provenance: they hold paths, and addresses of this process.

    They are put back, as the ONNX exporter names the line of an operator with them.
    """
    taken = [
        (node.meta, key, node.meta.pop(key))
        for module in program.graph_module.modules()
        if hasattr(module, "graph")
        for node in module.graph.nodes
        for key in ("stack_trace", "from_node")
        if key in node.meta
    ]
    try:
        yield
    finally:
        for meta, key, value in taken:
            meta[key] = value
