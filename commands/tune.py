"""``tune``: search the hyper-parameters of a spec by training trials of it."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import IngotError, SpecError, TrainingError, TrainingInterrupted, UsageError
from ..specs import ModelSpec, TuneSection, load_spec
from .signals import on_signals
from .tune_folder import identity_of, prepare_study, remove_study, study_folder
from .tune_result import TuneEvent, TuneResult, trial_folder

Report = Callable[[TuneEvent], None]

_WRITE_SECONDS = 5.0
"""From one time that the documents of a study that goes on are written to the next."""


@dataclass(frozen=True)
class _Options:
    """What a search was asked for; see :func:`tune`."""

    trials: int
    max_seconds: float | None
    timeout: float | None
    device: str | None
    seed: int
    threads: int | None
    strict: bool
    keep_weights: bool


def tune(
    spec: str | Path | ModelSpec,
    output: str | Path | None = None,
    *,
    trials: int | None = None,
    space: str | Path | TuneSection | None = None,
    max_seconds: float | None = None,
    timeout: float | None = None,
    fresh: bool = False,
    keep_weights: bool = False,
    device: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    overrides: Sequence[str] = (),
    strict: bool = False,
    report: Report | None = None,
) -> TuneResult:
    """Search the hyper-parameters of a spec: train trials of it, and keep the best.

    A study that is in the folder already is gone on with: trials that ended are not repeated, and
    those whose process was killed go on from their newest checkpoints. Other processes may work on
    the same study at the same time.

    Args:
        spec: a spec file, or a spec.
        output: the folder of the study; one in ``INGOT_HOME`` by default.
        trials: how many the study is to have; ``tune.trials`` by default.
        space: in place of the section ``tune``: a file that holds one, or the section.
        max_seconds: this process begins nothing new after it, and interrupts its trial.
        timeout: seconds that one trial may take.
        fresh: remove the study in the folder, and start over.
        keep_weights: of all trials, in place of the best alone.
        device: ``CPU`` or ``GPU``; a GPU where there is one by default.
        seed: of the search, and of each training run.
        threads: threads of one operator.
        overrides: ``key.path=value`` changes of the spec, which all trials have.
        strict: refuse a GPU that is not there, in place of a warning.
        report: called with a :class:`~.tune_result.TuneEvent` for each thing that happens.

    Raises:
        SpecError: the spec, or what is searched, is invalid.
        UsageError: the folder holds another study.
        TrainingError: every trial failed.
        TrainingInterrupted: SIGINT or SIGTERM; the same call goes on.
        MissingDependencyError: Optuna is not installed.
    """
    from ..frameworks.base import import_framework

    import_framework("optuna", "tune")
    if "RANK" in os.environ:
        raise UsageError(
            "found a launcher of workers (RANK); a search runs by itself",
            hint="start the same command several times: the processes share the study",
        )
    base, section = _searched(spec, space, overrides)
    trial_spec = _TrialSpecs(spec, base, section, overrides)
    trial_spec.check()
    identity = identity_of(trial_spec({}), section, seed)
    folder = study_folder(trial_spec({}), None if output is None else Path(output), seed)
    options = _Options(
        section.trials if trials is None else trials,
        max_seconds,
        timeout,
        device,
        seed,
        threads,
        strict,
        keep_weights,
    )
    if options.trials < 1:
        raise UsageError(f"trials: found {options.trials}; expected at least 1")
    is_new = prepare_study(folder, identity, fresh=fresh, name=base.name)
    search = _Search(folder, trial_spec, section, options, report or (lambda event: None))
    try:
        return search.run()
    except IngotError:
        if is_new and search.is_worthless:
            search.discard()
        raise
    finally:
        search.close()


def _searched(
    spec: str | Path | ModelSpec, space: str | Path | TuneSection | None, overrides: Sequence[str]
) -> tuple[ModelSpec, TuneSection]:
    """Return the spec without its section ``tune``, and what is searched."""
    from ..specs.tune import load_space

    base = _loaded(spec, overrides)
    section = base.tune
    if space is not None:
        section = space if isinstance(space, TuneSection) else load_space(space)
    if section is None or not section.parameters:
        missing = "the key 'tune' is missing" if section is None else "found no parameters to draw"
        where = space if isinstance(space, str | Path) else base.path
        raise SpecError(
            f"{missing}; expected tune.parameters, or --space FILE",
            file=where,
            hint="tune: {parameters: {full_trainer.optimizer.lr: {log_uniform: [1.0e-4, 0.1]}}}",
        )
    return base, section


def _loaded(spec: str | Path | ModelSpec, overrides: Sequence[str]) -> ModelSpec:
    if not isinstance(spec, ModelSpec):
        return load_spec(spec, overrides, check_files=False)
    found = ModelSpec.from_dict(spec.to_dict(), spec.root, overrides=overrides, check_files=False)
    object.__setattr__(found, "path", spec.path)
    return found


class _TrialSpecs:
    """Makes the spec of a trial: the spec that was given, what is fixed, and what was drawn."""

    def __init__(
        self,
        spec: str | Path | ModelSpec,
        base: ModelSpec,
        section: TuneSection,
        overrides: Sequence[str],
    ) -> None:
        self.given, self.base, self.section = spec, base, section
        self.overrides = [*overrides, *_as_overrides(section.fixed)]

    def __call__(self, params: Mapping[str, Any]) -> ModelSpec:
        """Return the spec with these parameters.

        Raises:
            SpecError: they do not make a spec.
        """
        found = _loaded(self.given, [*self.overrides, *_as_overrides(params)])
        return replace(found, tune=None)

    def check(self) -> None:
        """Try each value by itself, so that what is misspelled is found before anything is trained.

        Raises:
            SpecError: the spec has no such key, or it may not have such a value.
        """
        self({})
        for name, parameter in sorted(self.section.parameters.items()):
            for value in parameter.values:
                try:
                    self({name: value})
                except SpecError as error:
                    said = f"with {name}={value!r}: {error.reason}"
                    key = f"tune.parameters[{name!r}]"
                    raise SpecError(said, file=self.base.path, key=key, hint=error.hint) from error


def _as_overrides(values: Mapping[str, Any]) -> list[str]:
    import json

    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


class _Search:
    """What one process does for a study."""

    def __init__(
        self,
        folder: Path,
        trial_spec: _TrialSpecs,
        section: TuneSection,
        options: _Options,
        report: Report,
    ) -> None:
        from ..optimizers.study import Study

        self.folder, self.trial_spec, self.section = folder, trial_spec, section
        self.options, self.report = options, report
        self.higher_is_better = trial_spec({}).evaluation.higher_is_better
        self.started = time.monotonic()
        self.deadline = None
        if options.max_seconds is not None:
            self.deadline = self.started + options.max_seconds
        self.stop_requested = False
        self._written = -_WRITE_SECONDS
        self.study = Study(
            folder,
            section.parameters,
            seed=options.seed,
            higher_is_better=self.higher_is_better,
            sampler=section.sampler,
            pruner=section.pruner,
        )

    def close(self) -> None:
        self.study.close()

    @property
    def is_worthless(self) -> bool:
        """Whether no trial has ended, and nobody else works on one."""
        return all(trial.state == "interrupted" for trial in self.study.records())

    def discard(self) -> None:
        """Remove a study that ended with an error before a trial did."""
        from ..optimizers.journal import LOCK

        self.study.close()
        remove_study(self.folder)
        (self.folder / LOCK).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def run(self) -> TuneResult:
        """Train trials until there are enough, or something ends it."""
        most = self.options.trials
        self._tell_begin()
        stopped_by = "trials"
        with on_signals(self._stop):
            while not self.stop_requested:
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    stopped_by = "max_time"
                    break
                trial = self.study.next_trial(most)
                if trial is None:
                    begun = len(self.study.records())
                    stopped_by = "trials" if begun >= most else "exhausted"
                    break
                if not self._run_trial(trial):
                    stopped_by = "signal" if self.stop_requested else "max_time"
                    break
                # Short trials must not wait for what shows them.
                if time.monotonic() - self._written > _WRITE_SECONDS:
                    self._conclude("trials")
        if self.stop_requested:
            stopped_by = "signal"
        result = self._conclude(stopped_by)
        if stopped_by == "signal":
            raise TrainingInterrupted(
                f"interrupted; {result.finished} of {most} trials have ended",
                hint=f"the same command goes on with {shlex.quote(str(self.folder))}",
            )
        # Those that still run, in other processes, may yet end well.
        is_over = result.finished >= most or stopped_by == "exhausted"
        if result.best is None and is_over and not result.count("running"):
            last = [trial for trial in result.trials if trial.facts.get("reason")][-1:]
            said = f"; the last: {last[0].facts['reason']}" if last else ""
            raise TrainingError(
                f"{self.folder}: none of {result.finished} trials ended with a metric{said}",
                hint="a narrower space may help; --fresh starts over",
            )
        return result

    def _tell_begin(self) -> None:
        records = self.study.records()
        if records:
            done = sum(trial.state not in ("running", "interrupted") for trial in records)
            others = sum(trial.state == "running" for trial in records)
            joined = f"; {others} more run in other processes" if others else ""
            self._note(f"going on with {self.folder}: {done} trials have ended{joined}")
        if self.options.timeout is not None and self._loop is not None:
            self._note("external_training_loop: it can be neither pruned nor stopped by --timeout")

    @property
    def _loop(self) -> str | None:
        return self.trial_spec.base.external_training_loop

    def _stop(self) -> bool:
        if self.stop_requested:
            return False
        self.stop_requested = True
        self._note("stopping after the present step (once more ends at once)")
        return True

    def _note(self, text: str) -> None:
        self.report(TuneEvent("note", None, self.options.trials, text))

    def _run_trial(self, trial: Any) -> bool:
        """Train a trial; return False when it was interrupted."""
        from ..training.tuning import PRUNED, TrialTimeout

        most, begun = self.options.trials, time.monotonic()
        self.report(TuneEvent("begun", trial.number, most, params=trial.params))

        def seconds() -> float:
            return time.monotonic() - begun

        try:
            result = self._train(trial)
        except TrainingInterrupted:
            trial.release()
            return False
        except TrialTimeout as error:
            value = self._best_value(trial.number)
            trial.end("timeout", value, reason=error.message, seconds=seconds())
        except TrainingError as error:
            trial.end("failed", None, reason=error.message, seconds=seconds())
        except IngotError as error:
            # The first trial shows whether the spec works at all.
            if all(record.value is None for record in self.study.records()):
                trial.release()
                raise
            trial.end("failed", None, reason=error.message, seconds=seconds())
        else:
            best = result.best or {}
            facts = {
                "eval_key": result.eval_key,
                "metrics": dict(result.metrics),
                "epochs": result.epochs,
                "best_epoch": best.get("epoch"),
                "seconds": result.elapsed_seconds,
                "seed": result.seed,
            }
            if best.get("value") is None:
                reason = f"{result.eval_key} is no finite number"
                trial.end("failed", None, **{**facts, "metrics": None}, reason=reason)
            elif result.stop_reason == PRUNED:
                trial.end("pruned", best["value"], **facts, reason=PRUNED)
            else:
                trial.end("complete", best["value"], **facts, reason=result.stop_reason)
        self._tell_end(trial.number)
        return True

    def _train(self, trial: Any) -> Any:
        from ..training.tuning import TrialCallback
        from .train import train

        options = self.options
        callback = TrialCallback(trial.report, options.timeout, self.deadline)

        def progress(event: Any) -> None:
            self.report(TuneEvent("training", trial.number, options.trials, training=event))

        resumes = self._loop is None
        return train(
            self.trial_spec(trial.params),
            trial.folder,
            resume=resumes,
            fresh=not resumes,
            device=options.device,
            seed=options.seed,
            threads=options.threads,
            strict=options.strict,
            progress=progress,
            callbacks=[callback],
        )

    def _best_value(self, number: int) -> float | None:
        values = self.study.records()[number].values.values()
        found = [value for value in values if value == value]
        if not found:
            return None
        return max(found) if self.higher_is_better else min(found)

    def _tell_end(self, number: int) -> None:
        result = self._result("trials")
        took = [trial.facts["seconds"] for trial in result.trials if trial.facts.get("seconds")]
        running = result.count("running") + 1
        left = max(0, self.options.trials - result.finished)
        seconds = sum(took) / len(took) * left / running if took else None
        self.report(
            TuneEvent(
                "ended",
                number,
                self.options.trials,
                record=result.trials[number],
                best=result.best,
                seconds_left=seconds if left else None,
            )
        )

    def _result(self, stopped_by: str) -> TuneResult:
        records = tuple(self.study.records())
        keys = [trial.facts["eval_key"] for trial in records if trial.facts.get("eval_key")]
        return TuneResult(
            self.trial_spec.base.name,
            self.folder,
            records,
            self.options.trials,
            keys[0] if keys else None,
            self.higher_is_better,
            stopped_by,
            self.options.seed,
            time.monotonic() - self.started,
        )

    def _conclude(self, stopped_by: str) -> TuneResult:
        """Write the documents, and remove what trials that ended need no more."""
        with self.study.locked():
            result = self._result(stopped_by)
            self._tidy(result)
            params = {} if result.best is None else result.best.params
            result.write(self.trial_spec(params), self.section.fixed)
        self._written = time.monotonic()
        return result

    def _tidy(self, result: TuneResult) -> None:
        from ..training.checkpoints import checkpoints_in
        from .train_result import BEST, WEIGHTS

        for trial in result.trials:
            folder = trial_folder(self.folder, trial.number)
            if trial.state in ("running", "interrupted"):
                continue
            for path in checkpoints_in(folder):
                path.unlink(missing_ok=True)
            is_best = result.best is not None and trial.number == result.best.number
            if not (is_best or self.options.keep_weights):
                for name in (BEST, WEIGHTS):
                    (folder / name).unlink(missing_ok=True)
