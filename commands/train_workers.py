"""Start several workers that train together here, and say what went wrong when one fails."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import IngotError, WorkerError
from ..runtime.atomic import replacing

ERRORS = "INGOT_WORKER_ERRORS"
"""Environment variable: the folder that workers write to why they failed."""


def trains_in_processes(spec: str | Path, overrides: Sequence[str] = ()) -> bool:
    """Whether several devices need a process each, as PyTorch does; Keras has a strategy for them.

    Raises:
        SpecError: the spec is invalid.
    """
    from ..specs import load_spec

    return load_spec(spec, overrides, check_files=False).model.framework != "keras"


def run_workers(arguments: Sequence[str], nproc: int, module: str = "cli") -> None:
    """Run a module with arguments in as many processes, under torch's elastic launcher.

    Args:
        arguments: the command line; of the module ``cli`` from the name of the command on.
        nproc: how many.
        module: from the package on.

    Raises:
        WorkerError: one failed; the others were ended.
        MissingDependencyError: PyTorch is not installed.
    """
    import logging

    from ..frameworks.base import import_framework

    api = import_framework("torch.distributed.launcher.api", "torch")
    elastic = import_framework("torch.distributed.elastic.multiprocessing", "torch")
    errors = import_framework("torch.distributed.elastic.multiprocessing.errors", "torch")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # More threads than cores make PyTorch many times slower; one a worker is never wrong.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="ingot-workers-") as folder:
        os.environ[ERRORS] = folder
        config = api.LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            monitor_interval=0.2,
            start_method="spawn",
        )
        command = ["-m", f"{__package__.partition('.')[0]}.{module}", *arguments]
        try:
            api.elastic_launch(config, sys.executable)(*command)
        except errors.ChildFailedError as error:
            raise _cause(Path(folder), error.failures) from error
        except elastic.SignalException as error:
            raise _cause(Path(folder), {}) from error
        finally:
            del os.environ[ERRORS]


def _cause(folder: Path, failures: Mapping[int, Any]) -> WorkerError:
    """Return why the run failed: a worker that was killed, or the first that said why."""
    told = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    # What the system says of a broken connection is only how the others noticed.
    told.sort(key=lambda entry: (not entry["is_own"], entry["time"]))
    for rank, failure in sorted(failures.items()):
        is_killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        if is_killed and not (told and told[0]["is_own"]):
            name = signal.Signals(-failure.exitcode).name
            return WorkerError(f"worker {rank} was ended by {name}; the others were stopped")
    if told:
        first = told[0]
        return WorkerError(first["message"], hint=first["hint"], exit_code=first["exit_code"])
    for rank, failure in sorted(failures.items()):
        return WorkerError(f"worker {rank} ended with the exit code {failure.exitcode}")
    return WorkerError("the workers were stopped by a signal", exit_code=130)


def tell_launcher(error: BaseException) -> int | None:
    """Write down why this worker fails, if a launcher waits for it; return its exit code."""
    folder = os.environ.get(ERRORS)
    if folder is None or "RANK" not in os.environ:
        return None
    rank = os.environ["RANK"]
    is_own = isinstance(error, IngotError)
    message = error.message if isinstance(error, IngotError) else f"{type(error).__name__}: {error}"
    message = " ".join(message.split())
    lost = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL")
    document: dict[str, Any] = {
        "message": message if rank == "0" else f"worker {rank}: {message}",
        "hint": error.hint if isinstance(error, IngotError) else None,
        "exit_code": error.exit_code if isinstance(error, IngotError) else 1,
        "is_own": is_own and not any(text in message for text in lost),
        "time": time.time(),
    }
    path = Path(folder) / f"{rank}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document))
    return int(document["exit_code"])
