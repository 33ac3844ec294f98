"""``optimize``: pruning and quantization under one delta, the split between them searched."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import IngotError, ModelError, OutputExistsError
from ..runtime.atomic import replacing
from ..specs import ModelSpec, load_spec
from .compress import compress
from .compress_setup import CompressOptions
from .models import tree_sha256, tree_size
from .quantize import quantize
from .quantize_setup import (
    Bits,
    QuantizeOptions,
    check_splits,
    rules_of,
)
from .search_folder import REPORT, VERDICT, require_way, run_folder
from .search_run import Progress, Watch
from .search_setup import check_delta, check_ways, named_spec
from .shipping import OPTIMIZED, OWN_FORMAT
from .signals import on_signals

if TYPE_CHECKING:
    from ..optimizers.journal import Journal, Record
    from ..optimizers.verdict import ShippedFile, Verdict

MOST_QUANTIZED = 3
"""Pruned candidates that are quantized, the smallest first, and after them the reference."""
_SHARE = 0.7
"""Part of a cap of time that pruning gets."""
_PRUNED_STEM = "pruned-"
PRUNED, QUANTIZED = "compress", "quantize"
"""Folders of the searches in that of the run."""


@dataclass(frozen=True)
class OptimizeOptions:
    """What the caller asked for; None takes what the spec says, else a default."""

    output: Path | None = None
    target: Any = None
    delta: float | None = None
    eval_key: str | None = None
    eval_split: str | None = None
    level: int | None = None
    deepsearch: bool | None = None
    bits: Bits | None = None
    exclude: tuple[str, ...] = ()
    calibration: int | None = None
    reduce_range: bool = False
    device: str | None = None
    batch_size: int = 1
    threads: int = 1
    max_evaluations: int | None = None
    max_seconds: float | None = None
    finetune_epochs: int | None = None
    resume: bool = False
    fresh: bool = False
    dry_run: bool = False
    seed: int = 0
    strict: bool = False


def optimize(
    spec: str | Path,
    options: OptimizeOptions | None = None,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    watch: Watch | None = None,
    **changes: Any,
) -> Verdict:
    """Prune a network and quantize what is left, within one delta for both.

    How much of delta pruning takes is found out: several pruned networks within delta, the smallest
    first, are quantized, and each result is compared with the network that was given. The smallest
    file within delta (or the fastest) is the result. The searches have folders of their own in the
    run's, by which they go on when they are resumed.

    Args:
        spec: a spec of PyTorch code with data, loss and evaluation.
        options: what is wanted.
        overrides: ``key.path=value`` changes of the spec.
        progress: called with a line for each thing that happens.
        watch: called with the budget and the forecast when a search begins.
        changes: fields of :class:`OptimizeOptions`, in place of ``options`` or beside them.

    Returns:
        how it ended: within delta, missed (with the best that was found), or interrupted.

    Raises:
        as :func:`ingot.compress` and :func:`ingot.quantize` do.
    """
    wanted = replace(options or OptimizeOptions(), **changes)
    check_ways(wanted.resume, wanted.fresh)
    report = progress or (lambda line: None)
    return _Optimization(Path(spec), wanted, overrides, report, watch).run()


class _Optimization:
    def __init__(
        self,
        spec: Path,
        options: OptimizeOptions,
        overrides: Sequence[str],
        report: Progress,
        watch: Watch | None,
    ) -> None:
        from ..optimizers.run_key import hash_of, hash_spec

        self.path = spec
        self.options = options
        self.overrides = tuple(overrides)
        self.report = report
        self.watch = watch
        self.spec = load_spec(spec, overrides)
        told = {item.name: getattr(options, item.name) for item in fields(options)}
        for name in ("output", "resume", "fresh", "max_evaluations", "max_seconds"):
            told.pop(name)
        key = hash_of([hash_spec(self.spec), told])
        self.folder = run_folder("optimize", self.spec.name, options.output, key)
        self.started = time.monotonic()
        self.stop_requested = False
        if options.delta is not None:  # before anything long
            check_delta(options.delta)
        named = named_spec(self.spec, options.eval_key, options.eval_split, str(spec))
        check_splits(named, str(spec))

    def run(self) -> Verdict:
        from ..optimizers.journal import JOURNAL, LOCK, Journal, holder_of

        self._refuse()
        is_ours = (self.folder / JOURNAL).exists()
        if self.options.fresh and is_ours and holder_of(self.folder) is None:
            self._remove_run()
        was_there = self.folder.is_dir()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with Journal(self.folder) as journal:  # which another process cannot open meanwhile
                if journal.find("run") is None:
                    self._begin(journal)
                with on_signals(self._stop):
                    verdict = self._search()
                journal.append("verdict", result="", document=verdict.to_dict())
        except IngotError:
            # A search that was refused before it measured anything has left nothing, nor do we.
            if not is_ours and not (self.folder / PRUNED / JOURNAL).exists():
                if holder_of(self.folder) is None:
                    for name in (JOURNAL, LOCK):
                        (self.folder / name).unlink(missing_ok=True)
                if not was_there and not any(self.folder.iterdir()):
                    self.folder.rmdir()
            raise
        return verdict

    def _stop(self) -> bool:
        was_asked, self.stop_requested = self.stop_requested, True
        return not was_asked

    def _remove_run(self) -> None:
        """Remove what an earlier run of this folder wrote, but for its search, which does so."""
        from ..optimizers.journal import JOURNAL

        for path in sorted(self.folder.glob(f"{QUANTIZED}-*")):
            if (path / JOURNAL).exists():
                shutil.rmtree(path)
        names = (f"{OPTIMIZED}*", f"{PRUNED}/{_PRUNED_STEM}*", JOURNAL, VERDICT, REPORT)
        for path in sorted(path for name in names for path in self.folder.glob(name)):
            path.unlink()

    def _begin(self, journal: Journal) -> None:
        from ..optimizers.run_key import tool_versions

        stage, options = self.spec.optimization[0], self.options
        journal.append(
            "run",
            format=1,
            command="optimize",
            model=self.spec.name,
            target="latency" if self._is_fast() else "size",
            delta=stage.delta if options.delta is None else options.delta,
            settings={"bits": options.bits or "8", "level": options.level or stage.level},
            seed=options.seed,
            versions=tool_versions(),
            started=time.time(),
        )

    def _search(self) -> Verdict:
        pruned = self._compress()
        if pruned.verdict == "interrupted":
            return self._deliver(pruned, [pruned], None)
        best = pruned
        verdicts = [pruned]
        for name, spec, parameters in self._candidates(pruned):
            if self.stop_requested:
                ended = replace(best, verdict="interrupted", stopped_by="signal")
                return self._deliver(ended, verdicts, best)
            if not self._may_win(parameters, best):
                break
            left = self._seconds_left()
            if left is not None and left <= 0:
                best = replace(best, stopped_by="max_time")
                break
            self.report(f"quantizing {'the reference' if not name else f'candidate {name}'}")
            try:
                found = self._quantize(name or "reference", spec, pruned)
            except IngotError as error:
                if best.verdict != "met":
                    raise
                # What is within delta is not lost by what comes after it.
                line = f"it was not quantized: {error.message}"
                best = replace(best, warnings=(*best.warnings, line))
                logging.getLogger("ingot").warning("%s", line)
                break
            verdicts.append(found)
            if found.verdict == "interrupted":
                return self._deliver(found, verdicts, best)
            if self._rank(found) < self._rank(best):
                best = found
        return self._deliver(best, verdicts, best)

    def _refuse(self) -> None:
        """Refuse to write over what is not ours, or to go on without being asked to.

        Raises:
            UsageError: the folder holds an earlier run, and neither way on was asked for.
            OutputExistsError: files lie there that no run of this folder wrote.
        """
        from ..optimizers.journal import JOURNAL

        if not self.folder.is_dir():
            return
        is_ours = (self.folder / JOURNAL).exists()
        if is_ours:
            require_way(self.folder, self.options.resume, self.options.fresh)
        for path in () if is_ours else sorted(self.folder.iterdir()):
            if path.name.startswith(OPTIMIZED) or path.name in (VERDICT, REPORT):
                raise OutputExistsError(
                    f"{path}: is there already, and no search in {self.folder} wrote it",
                    hint="remove it, or give another folder",
                )

    def _compress(self) -> Verdict:
        folder = self.folder / PRUNED
        options = self._shared(CompressOptions, folder)
        target = "latency" if self._is_fast() else "size"
        most = self.options.max_seconds
        # What is left is for quantization, which takes far less.
        share = None if most is None else _SHARE * most
        options = replace(options, target=target, formats=("onnx",), max_seconds=share)
        return compress(
            self.path,
            options,
            overrides=self.overrides,
            progress=self.report,
            watch=self.watch,
        )

    def _quantize(self, name: str, spec: ModelSpec, pruned: Verdict) -> Verdict:
        folder = self.folder / f"{QUANTIZED}-{name}"
        options = self._shared(QuantizeOptions, folder)
        reference = next(item for item in pruned.reference_artifacts if item.format == "onnx")
        changes: dict[str, Any] = {
            "target": "latency" if self._is_fast() else "size",
            "delta": pruned.delta,
            "formats": ("onnx",),
            "max_seconds": self._seconds_left(),
        }
        return quantize(
            spec,
            replace(options, **changes),
            progress=self.report,
            watch=self.watch,
            against=reference.path,
        )

    def _shared(self, kind: Callable[..., Any], folder: Path) -> Any:
        """Return the options of one search that are those of the whole."""
        from ..optimizers.journal import JOURNAL

        names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
        values = {
            item.name: getattr(self.options, item.name)
            for item in fields(self.options)
            if item.name in names
        }
        has_journal = (folder / JOURNAL).exists()
        values |= {"output": folder, "resume": self.options.resume and has_journal}
        return kind(**values)

    def _is_fast(self) -> bool:
        if self.options.target is not None:
            return bool(self.options.target == "latency")
        return any(stage.mode == "latency" for stage in self.spec.optimization)

    def _seconds_left(self) -> float | None:
        most = self.options.max_seconds
        return None if most is None else most - (time.monotonic() - self.started)

    def _candidates(self, pruned: Verdict) -> list[tuple[str, ModelSpec, int]]:
        """Return what is quantized: name of the trial, spec, parameters; the reference comes last.

        Pruned networks that are within delta, the smallest first.
        """
        from ..optimizers.journal import read_journal

        records = read_journal(self.folder / PRUNED)
        key = "latency_ms" if self._is_fast() else "parameters"
        accepted = [
            record
            for record in records
            if record["kind"] == "trial" and record["status"] == "accepted"
        ]
        accepted.sort(key=lambda record: (record[key], record["drop"], int(record["name"])))
        found = [
            (trial["name"], self._saved(trial, records), trial["parameters"])
            for trial in accepted[:MOST_QUANTIZED]
        ]
        return [*found, ("", self.spec, pruned.reference.parameters or 0)]

    def _saved(self, trial: Record, records: Sequence[Record]) -> ModelSpec:
        """Write the network of a trial in Ingot's own format; return the spec of it, with data."""
        from ..frameworks.pytorch import load_weights
        from ..optimizers.pruning import Recipe, save_compressed
        from ..optimizers.pruning.search import TRIALS
        from ..training.problem import Problem

        name = trial["name"]
        problem = Problem(self.spec, seed=self.options.seed)
        network = problem.load_network()
        record = next(it for it in records if it["kind"] == "pruned" and it["name"] == name)
        recipe = Recipe.from_dict(record["recipe"])
        recipe.apply(network)
        weights = self.folder / PRUNED / TRIALS / f"{name}.safetensors"
        if not weights.is_file():
            raise ModelError(
                f"{weights}: the weights of trial {name} are gone", hint="--fresh starts over"
            )
        load_weights(network, weights, f"trial {name}")
        stem = self.folder / PRUNED / f"{_PRUNED_STEM}{name}"
        path, _ = save_compressed(stem, network.eval(), recipe, self.spec, force=True)
        return replace(self.spec, model=load_spec(path).model)

    def _may_win(self, parameters: int, best: Verdict) -> bool:
        """Whether a larger network can still become a smaller file."""
        if best.verdict != "met" or best.optimized is None or best.command == "compress":
            return True
        if self._is_fast():
            return False
        rules = rules_of(self.spec, QuantizeOptions(bits=self.options.bits))
        least = {"8": 8, "4": 4}.get(rules.bits, 2)
        weights = sum(it["parameters"] * it["weight_bits"] for it in best.layers or ()) / 8
        weights = weights or 4 * (best.optimized.parameters or 0)
        # Names and structure take what they take, whatever the network weighs.
        return parameters * least / 8 < weights

    def _rank(self, verdict: Verdict) -> tuple[bool, float]:
        optimized = verdict.optimized
        if verdict.verdict != "met" or optimized is None:
            return True, math.inf if verdict.drop is None else verdict.drop
        if not self._is_fast():
            return False, float(optimized.size_bytes)
        # Milliseconds of two moments do not compare; ratios to one reference do.
        return False, 1 / (verdict.ratio("latency_ms") or math.nan)

    def _deliver(
        self, ended: Verdict, verdicts: Sequence[Verdict], best: Verdict | None
    ) -> Verdict:
        """Put the files of the result, and the documents, into the run's folder."""
        pruned = verdicts[0]
        shown = ended if best is None else best
        phases: dict[str, float] = {}
        for verdict in verdicts:
            for name, seconds in verdict.phases.items():
                phases[name] = phases.get(name, 0.0) + seconds
        plan = replace(
            pruned.forecast,
            max_evaluations=sum(item.forecast.max_evaluations for item in verdicts),
            max_epochs=sum(item.forecast.max_epochs for item in verdicts),
            seconds=sum(item.forecast.seconds for item in verdicts),
            max_seconds=sum(item.forecast.max_seconds for item in verdicts),
        )
        reason = shown.reason
        if ended.verdict == "interrupted":
            reason = f"interrupted; --resume goes on from {self.folder}"
        macs = self._macs(shown, pruned)
        found = replace(
            shown,
            command="optimize",
            model=self.spec.name,
            verdict=ended.verdict,
            reason=reason,
            stopped_by=ended.stopped_by,
            reference=replace(pruned.reference, latency_ms=shown.reference.latency_ms),
            optimized=macs,
            evaluations=sum(item.evaluations for item in verdicts),
            epochs=sum(item.epochs for item in verdicts),
            forecast=plan,
            elapsed_seconds=sum(item.elapsed_seconds for item in verdicts),
            phases=phases,
            artifacts=tuple(self._copied(item) for item in shown.artifacts),
            reference_artifacts=pruned.reference_artifacts,
            run_dir=self.folder,
            warnings=tuple(
                dict.fromkeys(line for item in (*verdicts, shown) for line in item.warnings)
            ),
        )
        self._write_documents(found, shown)
        return found

    def _macs(self, shown: Verdict, pruned: Verdict) -> Any:
        """Return what was measured of the result, with the size of the network that it holds."""
        if shown.optimized is None or shown.command == "compress":
            return shown.optimized
        from ..optimizers.journal import read_journal

        name = shown.run_dir.name.removeprefix(f"{QUANTIZED}-")
        for record in read_journal(self.folder / PRUNED):
            if record["kind"] == "trial" and record["name"] == name:
                return replace(
                    shown.optimized, parameters=record["parameters"], macs=record["macs"]
                )
        return replace(
            shown.optimized, parameters=pruned.reference.parameters, macs=pruned.reference.macs
        )

    def _copied(self, item: ShippedFile) -> ShippedFile:
        path = self.folder / item.path.name
        if item.format == OWN_FORMAT or item.path.is_dir():  # names its files beside itself
            return item
        with replacing(path) as part:
            shutil.copyfile(item.path, part)
        return replace(item, path=path, sha256=tree_sha256(path), size_bytes=tree_size(path))

    def _write_documents(self, verdict: Verdict, shown: Verdict) -> None:
        from ..optimizers.journal import read_journal
        from ..reports.html import search_report

        document: Mapping[str, Any] = verdict.to_dict()
        with replacing(self.folder / VERDICT) as part:
            part.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
        records = read_journal(shown.run_dir)
        with replacing(self.folder / REPORT) as part:
            part.write_text(search_report(records, document), encoding="utf-8")
