"""TorchScript files: scripted from PyTorch code (traced where that fails), or a frozen copy."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..frameworks.base import first_line
from ..runtime.atomic import replacing
from . import torch_programs
from .base import Draft, Job, Variant, converting


def export(job: Job, variants: Sequence[Variant]) -> list[Draft]:
    """Write ``STEM_jit.pt``; TorchScript keeps all sizes free.

    Raises:
        ModelError: the model can be neither scripted nor traced.
    """
    import torch

    variant = variants[0]
    module = torch_programs.prepare(job, variant, job.precision)
    notes: tuple[str, ...] = ()
    with converting(job.source.label, "torch.jit"):
        if isinstance(module, torch.jit.ScriptModule):
            script = module if not hasattr(module, "training") else torch.jit.freeze(module.eval())
        else:
            try:
                script = torch.jit.script(module)
            except Exception as error:
                script = _trace(job, module, variant, error)
                notes = (f"traced, as it cannot be scripted: {_reason(error)}",)
        precision = "" if job.precision == "fp32" else job.precision
        path = job.folder / f"{job.stem}{precision}_jit.pt"
        torch.jit.save(script, str(path))
        _drop_debug_records(path)
    runner = job.runner("torchscript", path, variant.inputs, variant.outputs)
    return [Draft(path, variant, runner, notes=notes)]


def _drop_debug_records(path: Path) -> None:
    """Write a file anew without the records that hold sources and paths of this machine.

    The code in the file is still quoted when it fails.
    """
    with (
        replacing(path) as kept,
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(kept, "w") as target,
    ):
        for name in archive.namelist():
            if not name.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(name), archive.read(name))


def _trace(job: Job, module: Any, variant: Variant, scripting: Exception) -> Any:
    import torch

    values = torch_programs.example_tensors(job, variant, job.precision)
    args, kwargs = torch_programs.arguments(module, values)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            torch.no_grad(),
            torch_programs.plain_attention(),
        ):
            warnings.simplefilter("always")
            script = torch.jit.trace(
                module,
                args or None,
                example_kwarg_inputs=kwargs or None,
                strict=False,
                check_trace=False,
            )
    except Exception as error:
        raise ModelError(
            f"{job.source.label}: can be neither scripted ({_reason(scripting)})"
            f" nor traced ({first_line(error)})"
        ) from error
    for warning in caught:
        # What PyTorch's own modules ask of their inputs does not depend on the data.
        if "to a Python boolean" in str(warning.message) and not _is_torch(warning.filename):
            raise ModelError(
                f"{job.source.label}: cannot be traced: control flow depends on data at"
                f" {warning.filename.rpartition('/')[2]}:{warning.lineno}; and it cannot be"
                f" scripted: {_reason(scripting)}"
            )
    return script


def _is_torch(file: str) -> bool:
    import torch

    return Path(file).is_relative_to(Path(torch.__file__).parent)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(":") if lines else type(error).__name__
