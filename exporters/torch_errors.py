"""Says in one line why PyTorch could not trace a module: which module, which line of whose code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..frameworks.base import first_line

_DATA_DEPENDENT = (
    "GuardOnDataDependentSymNode",
    "Could not guard on data-dependent",
    "Could not extract specialized integer from data-dependent",
    "data-dependent",
    "Dynamic control flow is not supported",
)


def explain(error: BaseException, module: Any, label: str) -> ModelError:
    """Turn what ``torch.export`` raised into a message that names the module and the line."""
    place = where(error, module)
    text = str(error)
    kinds = [type(item).__name__ for item in _chain(error)]
    if any(sign in text or sign in kinds for sign in _DATA_DEPENDENT):
        return ModelError(
            f"{label}: cannot be traced: control flow depends on data{place}",
            hint="compute both branches and choose with torch.where, or use torch.cond;"
            " --format jit keeps control flow",
        )
    return ModelError(f"{label}: torch.export cannot trace it{place}: {first_line(error)}")


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def where(error: BaseException, module: Any) -> str:
    """Return `` in encoder.layer1 (net.py:12: if x.sum() > 0:)``, as far as it is known."""
    import linecache

    names = {id(item): name for name, item in module.named_modules()}
    for item in _chain(error):
        best = None
        step = item.__traceback__
        while step is not None:
            frame = step.tb_frame
            file = frame.f_code.co_filename
            if not is_library(file):
                owner = frame.f_locals.get("self")
                best = (file, step.tb_lineno, names.get(id(owner)), type(owner).__name__)
            step = step.tb_next
        if best is not None:
            file, line, name, kind = best
            code = linecache.getline(file, line).strip()
            owner_name = f" in {name} ({kind})" if name else f" in {kind}" if name == "" else ""
            return f"{owner_name} at {Path(file).name}:{line}: {code}"
    match = re.search(r'File "([^"]+)", line (\d+), in', str(error))
    if match and not is_library(match.group(1)):
        return f" at {Path(match.group(1)).name}:{match.group(2)}"
    return ""


def is_library(file: str) -> bool:
    """Whether a source file belongs to a library, or to Ingot's own adapters and exporters."""
    parts = Path(file).parts
    if "site-packages" in parts or "dist-packages" in parts or file.startswith("<"):
        return True
    return Path(file).is_relative_to(Path(__file__).parent.parent / "exporters") or Path(
        file
    ).is_relative_to(Path(__file__).parent.parent / "frameworks")


def unsupported_operator(error: BaseException, label: str, program: Any = None) -> ModelError:
    """Name the operator that has no counterpart in ONNX, and where it is used.

    Args:
        error: what ``torch.onnx.export`` raised.
        label: the model, for the message.
        program: the traced program, which knows layers and lines; None for TorchScript.
    """
    text = "\n".join(str(item) for item in _chain(error))
    patterns = (
        r"No ONNX function found for <OpOverload\(op='([^']+)'",
        r"No (?:decompositions|ONNX function).*?'([\w.:]+)'",
        r"operator '?(aten::[\w.]+)'? (?:to ONNX|is not)",
    )
    found = next((match for match in (re.search(one, text) for one in patterns) if match), None)
    if found is None:
        return ModelError(f"{label}: torch.onnx.export cannot convert it: {first_line(error)}")
    place = "" if program is None else _place_of_operator(program, found.group(1))
    added = re.search(r"opset version (\d+) is not supported.*?added in version (\d+)", text, re.S)
    if added is not None:
        return ModelError(
            f"{label}: the operator {found.group(1)}{place} is not in opset {added.group(1)};"
            f" the lowest that has it is {added.group(2)}"
        )
    return ModelError(
        f"{label}: the operator {found.group(1)}{place} has no counterpart in any opset of ONNX",
        hint="write it with other operators; --format pt2 and jit keep it as it is",
    )


def _place_of_operator(program: Any, operator: str) -> str:
    """Return `` in encoder (Block) at net.py:12`` of an operator's first use."""
    name = operator.replace("::", ".").split(".")[:2]
    calls = [
        (node, str(node.target).split(".")[:2])
        for node in program.graph.nodes
        if node.op == "call_function"
    ]
    same = [node for node, found in calls if found == name]
    # One that was decomposed has another name: aten.special_bessel_j1 becomes prims.bessel_j1.
    similar = [node for node, found in calls if found[-1].endswith(name[-1])]
    for node in (same or similar)[:1]:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("", "")
        kind = getattr(kind, "__name__", str(kind)).rpartition(".")[2]
        module = f" in {path} ({kind})" if path else f" in {kind}" if kind else ""
        lines = re.findall(r'File "([^"]+)", line (\d+), in', node.meta.get("stack_trace") or "")
        own = [(file, line) for file, line in lines if not is_library(file)]
        at = f" at {Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
        return module + at
    return ""
