"""``infer``: run a model on inputs from the command line or files."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from ..runtime.session import LoadedModel

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class InferResult:
    """What a run gave.

    Attributes:
        model: the model's name.
        platform: its platform or framework.
        outputs: arrays by name; empty when they were streamed into a file.
        rows: rows of a streamed run, else None.
        seconds: duration of each timed call.
        path: the file that was written, or None.
    """

    model: str
    platform: str
    outputs: Mapping[str, Array] = field(default_factory=dict)
    rows: int | None = None
    seconds: Sequence[float] = ()
    path: Path | None = None

    def timing(self) -> dict[str, float] | None:
        """Return calls, median, mean, fastest and slowest in milliseconds; None when not timed."""
        import statistics

        if not self.seconds:
            return None
        times = [seconds * 1000 for seconds in self.seconds]
        return {
            "calls": len(times),
            "median_ms": statistics.median(times),
            "mean_ms": statistics.fmean(times),
            "min_ms": min(times),
            "max_ms": max(times),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        from .tensor_io import to_json_values

        found: dict[str, Any] = {
            "model": self.model,
            "platform": self.platform,
            "outputs": {
                name: {
                    "dtype": "string" if array.dtype.kind == "U" else array.dtype.name,
                    "shape": list(array.shape),
                    "values": to_json_values(array),
                }
                for name, array in self.outputs.items()
            },
            "rows": self.rows,
            "timing": self.timing(),
            "path": None if self.path is None else str(self.path.absolute()),
        }
        return found


def infer(
    model: str | Path,
    inputs: Sequence[str] | Mapping[str, Any] = (),
    *,
    inputs_file: str | None = None,
    output: str | None = None,
    outputs: Sequence[str] = (),
    batch_size: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    repeat: int | None = None,
    warmup: int = 0,
    check: bool = True,
    trust_code: bool = False,
    ignore_lock: bool = False,
    force: bool = False,
    isolate: bool = False,
    python: str | Path | None = None,
    workers: int | None = None,
    timeout: float | None = None,
    start_timeout: float | None = None,
    memory_limit: int | str | None = None,
    cpus: str | Sequence[int] | None = None,
    install_lock: bool = False,
) -> InferResult:
    """Load a model, run it once, and write or return its outputs.

    Args:
        model: a package, a bare model file, or a spec.
        inputs: ``NAME=VALUE`` assignments, or arrays by name.
        inputs_file: a ``.npz`` or ``.json`` with arrays by name, or ``-``; assignments come on top.
        output: a ``.npz`` or ``.json`` to write; ``-`` and None write nothing.
        outputs: the outputs wanted; all when empty.
        batch_size: stream ``inputs_file`` (a ``.npz``) in slices of this many rows into ``output``;
            sliced is what shares the symbol of the batch dimension, the rest is passed whole.
        threads: threads of one operator.
        device: ``cpu``, ``gpu`` or ``gpu:N``.
        repeat: time this many calls.
        warmup: calls before the timed ones.
        check: check names, dtypes and shapes.
        trust_code: the package may run code that it carries.
        ignore_lock: run even if locked requirements differ from what is installed.
        force: replace an existing ``output``.
        isolate: run it in worker processes; this and what follows is as for :func:`ingot.load`.
            With ``batch_size`` the workers compute as many slices at once.
        python: the workers' interpreter.
        workers: how many processes.
        timeout: seconds that one call may take.
        start_timeout: seconds in which a worker has to have loaded the model.
        memory_limit: memory that a worker may use, in bytes or as ``"2G"``.
        cpus: the CPUs of the workers, numbers or ``"0,2-5"``.
        install_lock: install the package's locked requirements for its workers.

    Raises:
        InputError: an input cannot be read or does not fit the model.
        ModelError: the model cannot be loaded, or fails.
        UsageError: the options contradict each other, or inputs or outputs cannot be sliced.
        IngotError: ``output`` cannot be written.
    """
    from ..runtime import load
    from .tensor_io import STANDARD_STREAM, check_output

    check_output(output, force)
    _check_options(inputs_file, output, batch_size, repeat, warmup)
    with load(
        model,
        device=device,
        threads=threads,
        check=check,
        trust_code=trust_code,
        ignore_lock=ignore_lock,
        isolate=isolate,
        python=python,
        workers=workers,
        timeout=timeout,
        start_timeout=start_timeout,
        memory_limit=memory_limit,
        cpus=cpus,
        install_lock=install_lock,
    ) as loaded:
        wanted = list(dict.fromkeys(outputs)) or None
        if batch_size is not None and inputs_file is not None and output is not None:
            given = _assigned(loaded, inputs)
            rows = _stream(loaded, inputs_file, given, output, wanted, batch_size)
            path = Path(output).expanduser()
            return InferResult(loaded.name, loaded.platform, rows=rows, path=path)
        arrays = _gather(loaded, inputs, inputs_file)
        for _ in range(warmup):
            loaded.infer(arrays, wanted)
        seconds = []
        results: dict[str, Array] = {}
        for _ in range(repeat or 1):
            start = time.perf_counter()
            results = loaded.infer(arrays, wanted)
            seconds.append(time.perf_counter() - start)
        path_written = None
        if output is not None and output != STANDARD_STREAM:
            from .tensor_io import encode_outputs, write_atomically

            path_written = Path(output).expanduser()
            write_atomically(path_written, [encode_outputs(results, path_written.suffix)])
        return InferResult(
            loaded.name,
            loaded.platform,
            results,
            seconds=seconds if repeat else (),
            path=path_written,
        )


def _check_options(
    inputs_file: str | None,
    output: str | None,
    batch_size: int | None,
    repeat: int | None,
    warmup: int,
) -> None:
    if batch_size is not None:
        if batch_size < 1:
            raise UsageError(f"--batch-size: found {batch_size}; expected at least 1")
        if inputs_file is None or Path(inputs_file).suffix != ".npz":
            raise UsageError("--batch-size needs --inputs FILE.npz, which it reads in slices")
        if output is None or Path(output).suffix != ".npz":
            raise UsageError("--batch-size needs -o FILE.npz, which it writes in slices")
        if repeat or warmup:
            raise UsageError("--batch-size cannot be combined with --repeat or --warmup")
    if warmup and not repeat:
        raise UsageError("--warmup without --repeat: there is nothing to time")


def _gather(
    loaded: LoadedModel, inputs: Sequence[str] | Mapping[str, Any], inputs_file: str | None
) -> dict[str, Any]:
    from .tensor_io import read_inputs

    specs = {spec.name: spec for spec in loaded.inputs}
    arrays: dict[str, Any] = {}
    if inputs_file is not None:
        arrays |= read_inputs(inputs_file, specs)
    return arrays | _assigned(loaded, inputs)


def _assigned(loaded: LoadedModel, inputs: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    from .tensor_io import parse_assignment

    if isinstance(inputs, Mapping):
        return dict(inputs)
    specs = {spec.name: spec for spec in loaded.inputs}
    given: dict[str, Any] = {}
    for text in inputs:
        name, array = parse_assignment(text, specs)
        if name in given:
            raise UsageError(f"-i {name}: given twice")
        given[name] = array
    return given


def _stream(
    loaded: LoadedModel,
    file: str,
    given: Mapping[str, Any],
    output: str,
    wanted: list[str] | None,
    batch_size: int,
) -> int:
    from ..runtime.npz_stream import SlicedInputs, SlicedOutputs, check_joinable

    with SlicedInputs(Path(file).expanduser(), loaded.inputs, given) as reader:
        check_joinable(loaded.outputs, wanted, reader.symbol)
        with SlicedOutputs(Path(output).expanduser(), reader.rows) as writer:
            slices = reader.slices(batch_size)
            for rows, results in _in_order(loaded, slices, wanted):
                writer.append(rows, results)
            writer.commit()
        return reader.rows


def _in_order(
    loaded: LoadedModel, slices: Iterable[tuple[Any, dict[str, Array]]], wanted: list[str] | None
) -> Iterator[tuple[Any, dict[str, Array]]]:
    """Yield the outputs of slices in their order; as many run at once as the model has workers."""
    if loaded.concurrency == 1:
        for rows, arrays in slices:
            yield rows, loaded.infer(arrays, wanted)
        return
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    waiting: deque[tuple[Any, Future[dict[str, Array]]]] = deque()
    with ThreadPoolExecutor(loaded.concurrency) as threads:
        try:
            for rows, arrays in slices:
                waiting.append((rows, threads.submit(loaded.infer, arrays, wanted)))
                if len(waiting) > loaded.concurrency:  # one more is read while they all are busy
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        except BaseException:
            loaded.close()  # nobody waits for the calls in flight
            raise
