"""A study of hyper-parameters in a folder: which trial is next, and how each of them ended.

Optuna draws, prunes and stores (SQLite); this adds what several processes that may be killed need:
a trial belongs to the process that holds the lock of its folder, so that one whose process is gone
is taken up again at once; and two trials never have the same parameters.

The next trial is a function of the seed, its number and the trials before it: a study that one
process was killed in ends as if it had not been.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

from ..errors import ModelError
from ..frameworks.base import import_framework
from ..specs.tune import ParameterSection
from .journal import LOCK, holder_of

DATABASE, TRIALS = "study.db", "trials"
NAME = "ingot"
"""Of the one study in a database."""

State = Literal["running", "interrupted", "complete", "pruned", "timeout", "failed"]
FINISHED = ("complete", "pruned", "timeout", "failed")

_STARTUP_TRIALS = 5
_WARMUP_EPOCHS = 1
"""A trial is compared with the median when so many have ended, and from the epoch after this."""

_TRIES = 20
_LOCK_TRIES = 5
_MOST_ENUMERATED = 10_000


@dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial.

    Attributes:
        number: from 0.
        state: ``interrupted`` when its process is gone before it ended.
        params: by key of the spec.
        value: its best value of the metric; None when it has none.
        values: the metric by epoch.
        facts: what else was noted: ``reason``, ``seconds``, ``epochs``, ``metrics`` ...
    """

    number: int
    state: State
    params: Mapping[str, Any]
    value: float | None
    values: Mapping[int, float]
    facts: Mapping[str, Any]


class Study:
    """The study in a folder, which several processes may have open.

    Args:
        folder: it exists; its database is made when there is none.
        space: what each parameter is drawn from.
        seed: of everything that is drawn.
        higher_is_better: direction of the metric.
        sampler: ``tpe`` or ``random``.
        pruner: ``median`` or ``none``.

    Raises:
        MissingDependencyError: Optuna is not installed.
        ModelError: the database is damaged.
    """

    def __init__(
        self,
        folder: Path,
        space: Mapping[str, ParameterSection],
        *,
        seed: int,
        higher_is_better: bool = True,
        sampler: str = "tpe",
        pruner: str = "median",
    ) -> None:
        self._optuna = optuna = import_framework("optuna", "tune")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = folder
        self.seed = seed
        self.higher_is_better = higher_is_better
        self.sampler = sampler
        self._space = {name: space[name] for name in sorted(space)}
        self._distributions = {
            name: _distribution(optuna, parameter) for name, parameter in self._space.items()
        }
        median = optuna.pruners.MedianPruner(
            n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=_WARMUP_EPOCHS + 1
        )
        url = f"sqlite:///{(folder / DATABASE).absolute()}"
        with self.locked(), self._readable():
            # Many processes may wait for each other's writes.
            self._storage = optuna.storages.RDBStorage(
                url, engine_kwargs={"connect_args": {"timeout": 60}}
            )
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=NAME,
                load_if_exists=True,
                direction="maximize" if higher_is_better else "minimize",
                pruner=median if pruner == "median" else optuna.pruners.NopPruner(),
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process choose a trial, or write the study's documents, meanwhile."""
        with (self.folder / LOCK).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _readable(self) -> Iterator[None]:
        sqlalchemy = import_framework("sqlalchemy.exc", "tune")
        try:
            yield
        except (
            sqlalchemy.DatabaseError,
            self._optuna.exceptions.StorageInternalError,
            RuntimeError,  # the schema of another version of Optuna
        ) as error:
            reason = " ".join(str(getattr(error, "orig", error)).split())
            raise ModelError(
                f"{self.folder / DATABASE}: cannot be read: {reason}",
                hint="--fresh removes the study and starts over",
            ) from error

    def close(self) -> None:
        """Let go of the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    @property
    def combinations(self) -> int | None:
        """How many different trials there are; None when a parameter is continuous."""
        counts = [_count(parameter) for parameter in self._space.values()]
        return None if None in counts else prod(count for count in counts if count is not None)

    def records(self) -> list[TrialRecord]:
        """Return all trials that were begun, by number."""
        with self._readable():
            trials = self._study.get_trials(deepcopy=False)
        waiting = self._optuna.trial.TrialState.WAITING
        return [self._record(trial) for trial in trials if trial.state != waiting]

    def _record(self, trial: Any) -> TrialRecord:
        states = self._optuna.trial.TrialState
        facts = dict(trial.user_attrs)
        state = facts.pop("state", None)
        if trial.state == states.RUNNING:
            is_held = holder_of(self.trial_folder(trial.number)) is not None
            state = "running" if is_held else "interrupted"
        elif state is None:
            state = {states.COMPLETE: "complete", states.PRUNED: "pruned"}.get(
                trial.state, "failed"
            )
        value = facts.pop("value", trial.value if trial.state == states.COMPLETE else None)
        return TrialRecord(
            trial.number,
            state,
            {name: self._plain(name, value) for name, value in sorted(trial.params.items())},
            value,
            dict(sorted(trial.intermediate_values.items())),
            facts,
        )

    def _plain(self, name: str, value: Any) -> Any:
        return json.loads(value) if self._space[name].kind == "choice" else value

    def trial_folder(self, number: int) -> Path:
        """Return where a trial trains."""
        return self.folder / TRIALS / f"{number:04d}"

    def next_trial(self, most: int) -> Trial | None:
        """Return a trial that nobody works on: one that was interrupted, or else a new one.

        Args:
            most: trials of the study.

        Returns:
            the trial, which this process has until it ends it; None when all are begun, or every
            combination was tried.
        """
        with self.locked(), self._readable():
            trials = self._study.get_trials(deepcopy=False)
            states = self._optuna.trial.TrialState
            for frozen in trials:
                if frozen.state != states.RUNNING:
                    continue
                held = _hold(self.trial_folder(frozen.number))
                if held is None:
                    continue
                # It may have been ended, and let go of, since the trials were read.
                if self._study.get_trials(deepcopy=False)[frozen.number].state == states.RUNNING:
                    return Trial(self, self._attached(frozen.number), held, is_new=False)
                held.close()
            trials = self._study.get_trials(deepcopy=False)
            waiting = [trial for trial in trials if trial.state == states.WAITING]
            if len(trials) - len(waiting) >= most:
                return None
            if not waiting:  # else the process was killed between the next two lines
                drawn = self._draw(trials)
                if drawn is None:
                    return None
                self._study.enqueue_trial(drawn)
            trial = self._study.ask(self._distributions)
            held = _hold(self.trial_folder(trial.number))
            if held is None:
                raise ModelError(
                    f"{self.trial_folder(trial.number)}: is held by another process, which works on"
                    " no trial of this study"
                )
            return Trial(self, trial, held, is_new=True)

    def _attached(self, number: int) -> Any:
        """Return a trial that another process began, as Optuna's own that can be told."""
        study = self._storage.get_study_id_from_name(NAME)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        trial = self._optuna.trial.Trial(self._study, trial_id)
        for name, parameter in self._space.items():  # those that it did not come to, too
            low_high = parameter.values
            if parameter.kind == "choice":
                trial.suggest_categorical(name, self._distributions[name].choices)
            elif parameter.kind.endswith("integer"):
                trial.suggest_int(name, *low_high, log=parameter.kind.startswith("log"))
            else:
                trial.suggest_float(name, *low_high, log=parameter.kind.startswith("log"))
        return trial

    def _draw(self, trials: list[Any]) -> dict[str, Any] | None:
        """Return parameters that no trial has; None when there are none left.

        They are drawn in a copy of the study in memory, so that what is drawn twice leaves no
        trace.
        """
        optuna = self._optuna
        tried = {_identity(trial.params) for trial in trials}
        combinations = self.combinations
        if combinations is not None and len(tried) >= combinations:
            return None
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{len(trials)}".encode()).digest()[:4])
        copy = optuna.create_study(
            direction=self._study.direction, sampler=self._sampler(seed), storage=None
        )
        copy.add_trials(trials)
        drawn: dict[str, Any] = {}
        for _ in range(_TRIES):
            drawn = dict(copy.ask(self._distributions).params)
            if _identity(drawn) not in tried:
                return drawn
        if combinations is None or combinations > _MOST_ENUMERATED:
            return drawn  # a space as large as this is not exhausted
        names = list(self._space)
        values = [_every(self._distributions[name], self._space[name]) for name in names]
        left = [
            found
            for chosen in product(*values)
            if _identity(found := dict(zip(names, chosen, strict=True))) not in tried
        ]
        return random.Random(seed).choice(left)

    def _sampler(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        if self.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        # Trials that others work on count as bad ones, or two would search in one place.
        return samplers.TPESampler(seed=seed, constant_liar=True)


class Trial:
    """A trial that this process works on.

    Attributes:
        number: from 0.
        params: by key of the spec.
        folder: where it trains.
        is_new: no other process has begun it.
    """

    def __init__(self, study: Study, trial: Any, held: IO[bytes], *, is_new: bool) -> None:
        self._study, self._trial, self._held = study, trial, held
        self.number: int = trial.number
        self.folder = study.trial_folder(self.number)
        self.is_new = is_new
        self.params = {
            name: study._plain(name, value) for name, value in sorted(trial.params.items())
        }
        frozen = study._study.get_trials(deepcopy=False)[self.number]
        self._reported = set(frozen.intermediate_values)

    def report(self, value: float, epoch: int) -> bool:
        """Note the metric after an epoch; return whether the trial is worse than the others."""
        if epoch not in self._reported:  # an epoch that was trained again, after a kill
            self._reported.add(epoch)
            self._trial.report(value, epoch)
        return bool(self._trial.should_prune())

    def end(self, state: State, value: float | None, **facts: Any) -> None:
        """Note how it ended, and let go of it.

        Args:
            state: one of :data:`FINISHED`.
            value: its best value of the metric.
            facts: JSON values.
        """
        states = self._study._optuna.trial.TrialState
        for name, fact in {"state": state, "value": value, **facts}.items():
            self._trial.set_user_attr(name, fact)
        optuna_state = {
            "complete": states.COMPLETE,
            "pruned": states.PRUNED,
            "timeout": states.PRUNED,
            "failed": states.FAIL,
        }[state]
        told = value if optuna_state == states.COMPLETE else None
        self._study._study.tell(self._trial, told, state=optuna_state)
        self.release()

    def release(self) -> None:
        """Let go of it; when it was not ended, whoever comes next goes on with it."""
        self._held.close()


def _hold(folder: Path) -> IO[bytes] | None:
    """Lock the folder of a trial; None when another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("a+b")
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # perhaps somebody only asks whether it is held
            time.sleep(0.02)
            continue
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        return file
    file.close()
    return None


def _distribution(optuna: Any, parameter: ParameterSection) -> Any:
    found = optuna.distributions
    if parameter.kind == "choice":  # as JSON: lists and mappings are choices, too
        return found.CategoricalDistribution([json.dumps(value) for value in parameter.values])
    is_log = parameter.kind.startswith("log")
    if parameter.kind.endswith("integer"):
        return found.IntDistribution(*parameter.values, log=is_log)
    return found.FloatDistribution(*parameter.values, log=is_log)


def _count(parameter: ParameterSection) -> int | None:
    if parameter.kind == "choice":
        return len(parameter.values)
    low, high = parameter.values
    return int(high - low + 1) if parameter.kind.endswith("integer") else None


def _every(distribution: Any, parameter: ParameterSection) -> list[Any]:
    if parameter.kind == "choice":
        return list(distribution.choices)
    low, high = parameter.values
    return list(range(low, high + 1))


def _identity(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), sort_keys=True)
