"""The runner: the loop over epochs and batches, and what is called around it."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, TrainingError, TrainingInterrupted
from .components import Components
from .data import Splits
from .distributed import Workers
from .evaluation import Evaluation
from .loaders import facts_of, length_of
from .modeler import Modeler
from .options import TrainerOptions
from .reading import SplitReader, reading
from .resume import Changes, changes_since, described
from .run_state import RunState

if TYPE_CHECKING:
    from .callbacks import Callback

_RECORD_SECONDS = 0.5
_MOST_PENDING = 50
"""Losses of as many steps wait on an accelerator before they are fetched and checked."""


class Runner(ABC):
    """Drives the training split and a modeler over the devices, and calls callbacks.

    Args:
        modeler: network, loss and metrics.
        splits: iterables of batches by name; ``train`` is trained on.
        options: how it is trained.
        callbacks: called before and after the run, each step, each evaluation and each epoch.
        components: the parts of the spec, for an optimizer of the user's own.
        workers: the place of this process among those that train together.
        recipe: what else decides the weights, in JSON values: a checkpoint holds it, and a run
            that goes on compares.
    """

    def __init__(
        self,
        modeler: Modeler,
        splits: Splits,
        options: TrainerOptions,
        callbacks: Sequence[Callback] = (),
        *,
        components: Components,
        workers: Workers | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.place = workers or Workers()
        self.rank, self.workers = self.place.rank, self.place.count
        self.modeler = modeler
        self.splits = splits
        self.options = options
        self.callbacks = list(callbacks)
        self.components = components
        facts = {**facts_of(splits["train"]), **(recipe or {})}
        self.recipe = {**options.recipe(), "workers": self.workers, **facts}
        self.state = RunState()
        self.eval_key: str | None = None
        self.losses: dict[str, float] = {}
        self.samples = 0
        self.stop_requested = False
        self.last_checkpoint: Path | None = None
        self._pending: list[tuple[int, Mapping[str, Any]]] = []
        self._recorded = 0.0
        self._started = 0.0

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches of an epoch; None when the data does not say."""
        return length_of(self.splits["train"])

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None when the data does not say."""
        steps = self.steps_per_epoch
        return None if steps is None else steps * self.options.epochs

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken, over all its parts."""
        return self.state.seconds + (time.perf_counter() - self._started)

    def run(self) -> RunState:
        """Train until the last epoch is complete, or something asks to stop.

        Raises:
            TrainingError: the loss, or a weight, is NaN or infinite.
            TrainingInterrupted: :attr:`stop_requested` was set from outside.
        """
        self.setup()
        for callback in self.callbacks:
            callback.before_run(self)
        self._started = time.perf_counter()
        while self.state.epoch < self.options.epochs and self.state.stop_reason is None:
            self._run_epoch()
        for callback in self.callbacks:
            callback.after_run(self)
        self.state.seconds = self.elapsed
        self._started = time.perf_counter()
        return self.state

    def _run_epoch(self) -> None:
        state = self.state
        batch = None
        for batch in reading("train", self.epoch_batches(state.epoch, state.batch)):
            for callback in self.callbacks:
                callback.before_step(self)
            losses = self.train_step(batch)
            state.step += 1
            state.batch += 1
            self.samples += batch_size_of(batch) * self.workers
            self._pending.append((state.step, losses))
            if not self.is_asynchronous or len(self._pending) >= _MOST_PENDING:
                self.flush()
            for callback in self.callbacks:
                callback.after_step(self)
            self._record(batch)
            if self.should_stop():
                self._interrupt()
        self.flush()
        if batch is None and state.batch == 0:
            raise InputError(
                f"the split 'train' gave no batch in epoch {state.epoch + 1}; expected an iterable"
                " that can be iterated again each epoch"
            )
        self.require_finite()
        state.epoch += 1
        state.batch = 0
        is_last = state.epoch == self.options.epochs
        if self.options.eval_split in self.splits and (
            is_last or state.epoch % self.options.eval_freq == 0
        ):
            self._evaluate()
        self.end_epoch()
        for callback in self.callbacks:
            callback.after_epoch(self)

    def _evaluate(self) -> None:
        state = self.state
        split = self.options.eval_split
        found = self.evaluate(SplitReader(self.splits[split], split))
        if self.eval_key is None:
            default = getattr(self.modeler.evaluation, "default_key", None)
            self.eval_key = found.key(self.options.eval_key, default)
        value = found.value(self.eval_key)
        state.history.append(
            {
                "epoch": state.epoch,
                "step": state.step,
                "loss": state.loss_sum / state.loss_count if state.loss_count else None,
                "learning_rate": self.learning_rate,
                "metrics": found.metrics,
            }
        )
        state.loss_sum, state.loss_count = 0.0, 0
        if self.is_better(value, state.best):
            state.best, state.best_epoch = value, state.epoch
        self.after_evaluation(value)
        for callback in self.callbacks:
            callback.after_evaluate(self, found.metrics)

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value of the metric that counts beats another one; NaN beats nothing."""
        if than is None:
            return not math.isnan(value)
        return value > than if self.options.higher_is_better else value < than

    def flush(self) -> None:
        """Fetch the losses of the last steps and check them.

        Raises:
            TrainingError: one is NaN or infinite.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        for (step, parts), values in zip(
            pending, self.fetch([list(parts.values()) for _, parts in pending]), strict=True
        ):
            total = sum(values)
            if not math.isfinite(total):
                raise self._not_finite(step, f"the loss is {total}")
            self.losses = dict(zip(parts, values, strict=True), loss=total)
            self.state.loss_sum += total
            self.state.loss_count += 1

    def require_finite(self) -> None:
        """Check the weights, and their average: a gradient may spoil them though the loss is good.

        Raises:
            TrainingError: one is NaN or infinite.
        """
        name = self.modeler.not_finite()
        if name is not None:
            raise self._not_finite(self.state.step, f"{name} is not finite")

    def _not_finite(self, step: int, found: str) -> TrainingError:
        kept = "no checkpoint was written yet"
        if self.last_checkpoint is not None:
            kept = f"the last good checkpoint is {self.last_checkpoint}"
        epoch = self.state.epoch + (1 if self.state.batch else 0)
        return TrainingError(
            f"step {step} (epoch {epoch}): {found}; expected a finite number",
            hint=f"{kept}; lower the learning rate, or look at the data",
        )

    def callback_states(self) -> dict[str, Any]:
        """Return what the callbacks keep in a checkpoint, by the name of their class.

        The second of a class is ``NAME 2``, and so on.
        """
        return {name: item.state() for name, item in self._named_callbacks().items()}

    def restore_callbacks(self, states: Mapping[str, Any]) -> None:
        """Put back what :meth:`callback_states` returned; a callback that is new stays new."""
        for name, callback in self._named_callbacks().items():
            found = states.get(name)
            if found:
                callback.restore(found)

    def _named_callbacks(self) -> dict[str, Callback]:
        found: dict[str, Callback] = {}
        counts: Counter[str] = Counter()
        for callback in self.callbacks:
            name = type(callback).__name__
            counts[name] += 1
            found[name if counts[name] == 1 else f"{name} {counts[name]}"] = callback
        return found

    def warmup_factor(self) -> float:
        """Return the factor of the learning rate in this step: it rises linearly to 1."""
        steps = self.steps_per_epoch
        if not self.options.warmup_epochs:
            return 1.0
        if steps is None:  # the data does not say how long an epoch is: whole epochs
            return min(1.0, (self.state.epoch + 1) / (self.options.warmup_epochs + 1))
        return min(1.0, (self.state.step + 1) / max(1.0, self.options.warmup_epochs * steps))

    def state_tree(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the states of the framework."""
        return {
            "run": {**self.state.to_dict(), "seconds": self.elapsed},
            "epochs": self.options.epochs,
            "steps": self.total_steps,
            "eval_key": self.eval_key,
            "callbacks": self.callback_states(),
            "recipe": self.recipe,
        }

    def note_kinds(self, optimizer: Any, schedule: Any) -> None:
        """Let the recipe of the run say of which classes its optimizer and its schedule are."""
        kinds = [None if item is None else type(item).__name__ for item in (optimizer, schedule)]
        self.recipe["optimizer"] = kinds[0]
        # A schedule of the user's own is known by its class alone.
        self.recipe["scheduler"] = self.recipe["scheduler"] and {
            "class": kinds[1],
            "arguments": self.recipe["scheduler"],
        }

    def changes_in(self, tree: Mapping[str, Any], path: Path) -> Changes:
        """Return what this run does otherwise than the one that wrote a checkpoint.

        Args:
            tree: its :meth:`state_tree`.
            path: the checkpoint.

        Raises:
            UsageError: it cannot be gone on with.
        """
        state, recipe = RunState(**tree["run"]), self.recipe
        if recipe["eval_key"] == tree["eval_key"]:  # it is the evaluation's own
            recipe = {**recipe, "eval_key": tree["recipe"]["eval_key"]}
        return changes_since(
            path,
            tree["recipe"],
            recipe,
            epoch=state.epoch + 1,
            is_within_epoch=bool(state.batch),
            is_measured=bool(state.history),
        )

    def go_on_from(self, tree: Mapping[str, Any], changed: Changes, path: Path) -> None:
        """Stand where a checkpoint was written.

        Args:
            tree: its :meth:`state_tree`.
            changed: what this run does otherwise, for a warning.
            path: the checkpoint.
        """
        state = RunState(**tree["run"])
        if self.options.epochs > tree["epochs"] or "early_stopping_patience" in changed:
            state.stop_reason = None  # it stopped early, and is to go on all the same
        self.state, self.eval_key = state, tree["eval_key"]
        self.restore_callbacks(tree["callbacks"])
        if changed:
            logging.getLogger("ingot").warning(
                "%s was written with another %s: what follows is not what one run would give",
                path.name,
                described(changed),
            )

    def _record(self, batch: Any) -> None:
        every = self.options.log_frequency
        now = time.perf_counter()
        if every is None:
            if now - self._recorded < _RECORD_SECONDS:
                return
        elif self.state.step % every:
            return
        self._recorded = now
        self.flush()
        record: dict[str, float] = {"learning_rate": self.learning_rate}
        for callback in self.callbacks:
            record |= callback.record(self, batch)
        for callback in self.callbacks:
            callback.on_record(self, record)

    def _interrupt(self) -> None:
        self.flush()
        for callback in self.callbacks:
            callback.on_interrupt(self)
        place = self.last_checkpoint
        raise TrainingInterrupted(
            f"interrupted after step {self.state.step} (epoch {self.state.epoch + 1})",
            hint="nothing was written" if place is None else f"--resume goes on from {place}",
        )

    def should_stop(self) -> bool:
        """Whether the run is to end after the present step."""
        return self.stop_requested

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The learning rate of the last step."""

    @property
    @abstractmethod
    def is_asynchronous(self) -> bool:
        """Whether reading a loss would make an accelerator wait."""

    @abstractmethod
    def setup(self) -> None:
        """Make the optimizer and the scheduler."""

    @abstractmethod
    def epoch_batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Seed the random generators, and yield the batches of an epoch from ``start`` on."""

    @abstractmethod
    def train_step(self, batch: Any) -> Mapping[str, Any]:
        """Change the weights after one batch, and return the parts of its loss."""

    @abstractmethod
    def fetch(self, losses: Sequence[Sequence[Any]]) -> list[list[float]]:
        """Return losses as numbers."""

    @abstractmethod
    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        """Measure the network on a split."""

    @abstractmethod
    def after_evaluation(self, value: float) -> None:
        """Step a scheduler that listens to the metric."""

    @abstractmethod
    def end_epoch(self) -> None:
        """Step a scheduler that counts epochs."""

    def of_first(self, value: Any) -> Any:
        """Return the first worker's value on every worker; one process has no others."""
        return value

    @abstractmethod
    def write_checkpoint(self, path: Path) -> None:
        """Write everything that the rest of the run depends on, or nothing."""

    @abstractmethod
    def read_checkpoint(self, path: Path) -> None:
        """Put the run back to where a checkpoint was written.

        Raises:
            ModelError: it is damaged, or of another network.
            UsageError: it cannot be gone on with under these options.
        """


def batch_size_of(batch: Any) -> int:
    """Return how many samples a batch has: the first dimension of its first tensor."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for element in batch:
            found = batch_size_of(element)
            if found:
                return found
        return len(batch) if batch and isinstance(batch[0], Mapping) else 0
    shape: Any = getattr(batch, "shape", ())
    return int(shape[0]) if len(shape) else 0
