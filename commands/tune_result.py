"""What a search of hyper-parameters found, and the documents that say so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..optimizers.study import FINISHED, TrialRecord
from ..runtime.atomic import replacing

if TYPE_CHECKING:
    from ..specs import ModelSpec
    from ..training.progress import TrainProgress

BEST_SPEC, REPORT, RESULT = "best.yaml", "report.html", "tune.json"


@dataclass(frozen=True)
class TuneEvent:
    """Something that happened in a search.

    Attributes:
        kind: ``note``, ``begun``, ``training`` or ``ended``.
        trial: which one; None for a note.
        trials: how many there are to be.
        text: of a note.
        record: how the trial ended.
        training: how far the trial is.
        best: the best trial so far.
        seconds_left: of the search, estimated from the trials that ended.
    """

    kind: str
    trial: int | None
    trials: int
    text: str = ""
    params: Mapping[str, Any] | None = None
    record: TrialRecord | None = None
    training: TrainProgress | None = None
    best: TrialRecord | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class TuneResult:
    """What a search of hyper-parameters found.

    Attributes:
        name: the model's name.
        run_dir: holds the study, the trials and the documents.
        trials: all that were begun, by number.
        wanted: how many there are to be.
        eval_key: the metric that counts; None when no trial came so far.
        higher_is_better: its direction.
        stopped_by: ``trials``, ``exhausted`` (every combination was tried), ``max_time`` or
            ``signal``.
        seed: of the search, and of every training run in it.
        elapsed_seconds: of this process.
    """

    name: str
    run_dir: Path
    trials: tuple[TrialRecord, ...]
    wanted: int
    eval_key: str | None
    higher_is_better: bool
    stopped_by: str
    seed: int
    elapsed_seconds: float

    @property
    def best(self) -> TrialRecord | None:
        """The best complete trial; of several the first."""
        return best_of(self.trials, self.higher_is_better)

    @property
    def best_spec(self) -> Path | None:
        """The spec with the parameters of the best trial."""
        return None if self.best is None else self.run_dir / BEST_SPEC

    @property
    def weights(self) -> Path | None:
        """The weights of the best trial at its best evaluation."""
        if self.best is None:
            return None
        found = weights_in(trial_folder(self.run_dir, self.best.number))
        return found if found.is_file() else None

    def count(self, *states: str) -> int:
        """Return how many trials are in one of these states."""
        return sum(trial.state in states for trial in self.trials)

    @property
    def finished(self) -> int:
        """How many trials have ended."""
        return self.count(*FINISHED)

    def ranked(self) -> list[TrialRecord]:
        """Return the trials, the best first; those without a value last."""
        sign = -1 if self.higher_is_better else 1

        def place(trial: TrialRecord) -> tuple[bool, bool, float, int]:
            value = 0.0 if trial.value is None else sign * trial.value
            return trial.state != "complete", trial.value is None, value, trial.number

        return sorted(self.trials, key=place)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; paths are absolute, and what is no finite number is None."""
        from ..training.evaluation import json_values

        best = self.best
        found: dict[str, Any] = json_values(
            {
                "name": self.name,
                "run_dir": str(self.run_dir.absolute()),
                "eval_key": self.eval_key,
                "higher_is_better": self.higher_is_better,
                "stopped_by": self.stopped_by,
                "wanted": self.wanted,
                "finished": self.finished,
                "seed": self.seed,
                "elapsed_seconds": self.elapsed_seconds,
                "best": None if best is None else self._entry(best),
                "best_spec": _absolute(self.best_spec),
                "weights": _absolute(self.weights),
                "report": _absolute(self.run_dir / REPORT),
                "trials": [self._entry(trial) for trial in self.trials],
            }
        )
        return found

    def _entry(self, trial: TrialRecord) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "state": trial.state,
            "value": trial.value,
            "params": dict(trial.params),
            "values": {str(epoch): value for epoch, value in trial.values.items()},
            "folder": _absolute(trial_folder(self.run_dir, trial.number)),
            **{name: trial.facts.get(name) for name in _FACTS},
        }

    def write(self, spec: ModelSpec, fixed: Mapping[str, Any]) -> None:
        """Write ``tune.json``, ``report.html`` and, when a trial is complete, ``best.yaml``.

        Args:
            spec: what the trials were made of.
            fixed: keys and values that every trial had.
        """
        from ..reports.tune import tune_report

        document = {"schema_version": 1, **self.to_dict()}
        with replacing(self.run_dir / RESULT) as file:
            file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
        with replacing(self.run_dir / REPORT) as file:
            file.write_text(tune_report(document, fixed), encoding="utf-8")
        if self.best is not None:
            with replacing(self.run_dir / BEST_SPEC) as file:
                file.write_text(best_spec_text(self, spec), encoding="utf-8")


_FACTS = ("reason", "metrics", "epochs", "best_epoch", "seconds")


def best_of(trials: tuple[TrialRecord, ...], higher_is_better: bool) -> TrialRecord | None:
    """Return the best complete trial; of several the first."""
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    if not complete:
        return None
    sign = -1 if higher_is_better else 1
    return min(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def trial_folder(run_dir: Path, number: int) -> Path:
    """Return where a trial trained."""
    from ..optimizers.study import TRIALS

    return run_dir / TRIALS / f"{number:04d}"


def weights_in(folder: Path) -> Path:
    """Return the weights of a trial at its best evaluation; of a loop of the user's, its last."""
    from .train_result import BEST, WEIGHTS

    return folder / (BEST if (folder / BEST).is_file() else WEIGHTS)


def best_spec_text(result: TuneResult, spec: ModelSpec) -> str:
    """Return the spec of the best trial as YAML; its paths are absolute, and it names its root.

    Args:
        result: of the search.
        spec: of the best trial.
    """
    from ..specs.model import FRAMEWORK_KEYS
    from ..specs.template import flow

    best, values = result.best, spec.to_dict()
    assert best is not None
    values.pop("tune", None)
    takes = "weights" in FRAMEWORK_KEYS[spec.model.framework].all
    if takes and spec.model.entrypoint is not None and result.weights is not None:
        values["model"] = {**values["model"], "weights": str(result.weights.absolute())}
        values["model"].pop("weights_sha256", None)
    metric = "" if best.value is None else f" {best.value:.6g}"
    lines = [
        f"# The best of {result.finished} trials: {result.eval_key}{metric}, trial {best.number}.",
        f"# To train it again: ingot train {BEST_SPEC} --seed {result.seed} -o DIR",
        *(f"#   {name} = {flow(value)}" for name, value in best.params.items()),
        f"root: {flow(str(spec.root.absolute()))}",
    ]
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            lines.append(f"{name}:")
            lines += [f"  {flow(key)}: {flow(item)}" for key, item in value.items()]
        elif name in ("inputs", "outputs"):
            lines.append(f"{name}:")
            lines += [f"  - {flow(item)}" for item in value]
        else:
            lines.append(f"{flow(name)}: {flow(value)}")
    return "\n".join(lines) + "\n"


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
