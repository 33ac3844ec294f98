"""The runner of Keras, on TensorFlow: one device, or several under a strategy of tf.distribute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError, SpecError, UsageError
from ..frameworks.keras import import_keras
from ..frameworks.tensorflow import import_tensorflow
from .components import Components
from .data import Splits
from .distributed import STOP_STEPS, Workers
from .evaluation import Evaluation
from .inputter import Array, Inputter
from .keras_losses import KerasLossFunction
from .keras_modeler import KerasModeler, Round
from .keras_optim import Plateau, make_optimizer, make_schedule, trained_variables
from .keras_state import read_state, write_state
from .loaders import seeded_batches, split_for
from .options import TrainerOptions
from .randomness import random_state, restore_random_state, seed_everything
from .resume import differences, require_same_tensors, require_schedule
from .runner import Runner


class KerasRunner(Runner):
    """Trains a :class:`KerasModeler` with a training step that is compiled once.

    Under a strategy of ``tf.distribute`` each step takes a batch for each of its devices; the
    gradients are averaged over them. Processes of one strategy have equal weights after each step;
    so each evaluates, and finds the same.

    The arguments are those of :class:`Runner`; ``workers`` counts the processes.
    """

    modeler: KerasModeler

    def __init__(
        self,
        modeler: KerasModeler,
        splits: Splits,
        options: TrainerOptions,
        callbacks: Sequence[Any] = (),
        *,
        components: Components,
        workers: Workers | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        tensorflow = import_tensorflow()
        self.strategy = tensorflow.distribute.get_strategy()
        place = workers or Workers()
        self.replicas = int(self.strategy.num_replicas_in_sync)
        self.devices = self.replicas // place.count
        super().__init__(
            modeler,
            splits,
            options,
            callbacks,
            components=components,
            workers=Workers(place.rank, self.replicas),
            recipe=recipe,
        )
        self.splits = split_for(splits, place)
        self.optimizer: Any = None
        self.schedule: Any = None
        self._penalties: list[float] = []
        self._trained: dict[str, Any] = {}
        self._rate = 0.0
        self._scheduled_at = -1
        self._own_rate = False
        self._current_rate = 0.0
        self._assigned_rate: float | None = None
        self._schedule_steps = 0
        self._initial: dict[str, Any] = {}
        self._restored_random: Any = None
        self._reduce: Any = None
        self._steps: dict[Any, Callable[[Any], Any]] = {}

    @property
    def learning_rate(self) -> float:
        return self._current_rate

    @property
    def is_asynchronous(self) -> bool:
        return self.modeler.model.is_on_gpu

    @property
    def steps_per_epoch(self) -> int | None:
        batches = super().steps_per_epoch
        return None if batches is None else batches // self.devices

    def setup(self) -> None:
        options, network = self.options, self.modeler.network
        self._trained = trained_variables(
            network, self.modeler.variables, options.trainable, "training.trainable"
        )
        if not self._trained:
            raise ModelError("the network has no variable to train")
        with self.strategy.scope():
            self.optimizer, self._penalties = make_optimizer(
                options.optimizer,
                network,
                self._trained,
                components=self.components,
                weight_decay=options.weight_decay,
                weight_decay_skip=options.weight_decay_skip,
            )
            self.optimizer.build(list(self._trained.values()))
        self._initial = _plain_config(self.optimizer)
        self._set_up_rate()
        self.note_kinds(self.optimizer, self.schedule)

    def _set_up_rate(self) -> None:
        options, schedules = self.options, import_keras().optimizers.schedules
        given = self.optimizer._learning_rate
        self._own_rate = isinstance(given, schedules.LearningRateSchedule)
        factor = options.learning_rate_factor
        factor *= self.replicas if options.scale_learning_rate else 1
        if not self._own_rate:
            # The number that was written, of which the variable holds the nearest float32.
            rate = float(str(np.float32(self.optimizer.learning_rate.numpy()))) * factor
            self._rate = self._current_rate = rate
            self._initial["learning_rate"] = rate
            self.schedule = make_schedule(
                options.scheduler,
                rate,
                components=self.components,
                epochs=options.epochs,
                steps_per_epoch=self.steps_per_epoch,
                interval=options.interval,
                higher_is_better=options.higher_is_better,
            )
        elif options.scheduler is not None or options.warmup_epochs or factor != 1:
            raise SpecError(
                f"full_trainer.optimizer: its learning rate is a {type(given).__name__}; expected"
                " a number beside a scheduler, warmup_epochs or scale_learning_rate"
            )

    def epoch_batches(self, epoch: int, start: int) -> Iterator[Any]:
        loader, seed = self.splits["train"], self.options.seed
        first = start * self.devices
        if isinstance(loader, Inputter):
            batches: Iterator[Any] = loader.batches(epoch, first)
        else:
            batches = seeded_batches(loader, seed, epoch, self.rank, first)
        seed_everything(seed, epoch, self.rank)
        if self._restored_random is not None:
            restore_random_state(self._restored_random)
            self._restored_random = None
        self._require_same_step()
        return batches if self.replicas == 1 else _rounds(batches, self.devices)

    def _require_same_step(self) -> None:
        """Check that every process goes on from the same place.

        Raises:
            UsageError: another one has other checkpoints in the folder of the run, or none.
        """
        if self.replicas > self.devices:
            mean = self._sum(self.state.step) / self.replicas
            if mean != self.state.step:
                raise UsageError(
                    f"worker {self.rank} goes on after step {self.state.step}, and others do not",
                    hint="all workers need the same folder (-o), on a disk that they share",
                )

    def _sum(self, number: int) -> int:
        """Return the sum of the numbers of all devices."""
        tensorflow, strategy = import_tensorflow(), self.strategy
        if self._reduce is None:

            def reduce(value: Any) -> Any:
                return strategy.reduce("SUM", strategy.run(lambda: value), axis=None)

            self._reduce = tensorflow.function(reduce, autograph=False)
        return int(self._reduce(tensorflow.constant(number, "int32")))

    def should_stop(self) -> bool:
        if self.replicas == self.devices:
            return self.stop_requested
        # All stop after the same step, or one would wait for the others.
        if self.state.step % STOP_STEPS:
            return False
        return self._sum(int(self.stop_requested)) > 0

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        self._take_rate()
        tensorflow = import_tensorflow()
        single = batch if self.replicas == 1 else batch[0]
        try:
            tensors = tensorflow.nest.map_structure(tensorflow.convert_to_tensor, batch)
            parts, self.modeler.outputs = self._compiled(tensors)(tensors)
        except tensorflow.errors.InvalidArgumentError:
            if isinstance(self.modeler.loss, KerasLossFunction):
                self.modeler.loss.explain(single)
            raise
        if self.options.interval == "iteration":
            self._schedule_steps += 1
        found: Mapping[str, Any] = parts
        return found

    def _take_rate(self) -> None:
        if self._own_rate:
            self._current_rate = float(self.optimizer.learning_rate)
            return
        if self.schedule is not None and self._scheduled_at != self._schedule_steps:
            self._rate = float(self.schedule(self._schedule_steps))
            self._scheduled_at = self._schedule_steps
        self._current_rate = self._rate * self.warmup_factor()
        if self._current_rate != self._assigned_rate:
            self.optimizer.learning_rate = self._assigned_rate = self._current_rate

    def _compiled(self, tensors: Any) -> Callable[[Any], Any]:
        """Return the step for batches of a structure: whatever their size, it is traced once."""
        tensorflow = import_tensorflow()
        single = tensors if self.replicas == 1 else tensors[0]
        signature = tensorflow.nest.map_structure(_any_size, single)
        key = (str(signature), self.modeler.keeps_outputs)
        if key not in self._steps:
            step = self._step if self.replicas == 1 else self._step_of_all
            wanted = signature if self.replicas == 1 else [signature] * self.devices
            self._steps[key] = tensorflow.function(
                step, input_signature=[wanted], autograph=False, jit_compile=False
            )
        return self._steps[key]

    def _step(self, batch: Any) -> tuple[dict[str, Any], Any]:
        """Change the weights after one batch of one device; traced by TensorFlow."""
        tensorflow = import_tensorflow()
        variables = list(self._trained.values())
        with tensorflow.GradientTape() as tape:
            parts = dict(self.modeler.compute_loss(batch))
            total = tensorflow.add_n([tensorflow.reshape(value, ()) for value in parts.values()])
            # The optimizer adds up the gradients of all devices.
            scaled = total / self.replicas
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        gradients = [
            gradient
            if gradient is None or not penalty
            else tensorflow.convert_to_tensor(gradient)
            + (penalty / self.replicas) * tensorflow.cast(variable.value, gradient.dtype)
            for gradient, variable, penalty in zip(
                gradients, variables, self._penalties, strict=True
            )
        ]
        self.optimizer.apply(gradients, variables)
        outputs = self.modeler.training_model.outputs if self.modeler.keeps_outputs else None
        return parts, outputs

    def _step_of_all(self, batches: Sequence[Any]) -> tuple[dict[str, Any], Any]:
        """Take one step on all devices, with a batch for each; the losses are averaged."""
        strategy, tensorflow = self.strategy, import_tensorflow()
        batch = batches[0]
        if len(batches) > 1:
            flat = [tensorflow.nest.flatten(item) for item in batches]
            count = len(batches)
            dealt = [
                strategy.experimental_distribute_values_from_function(
                    lambda place, column=column: column[place.replica_id_in_sync_group % count]
                )
                for column in zip(*flat, strict=True)
            ]
            batch = tensorflow.nest.pack_sequence_as(batch, dealt)
        parts, outputs = strategy.run(self._step, args=(batch,))
        averaged = {name: strategy.reduce("MEAN", part, axis=None) for name, part in parts.items()}
        if outputs is not None:
            local = strategy.experimental_local_results
            outputs = tensorflow.nest.map_structure(lambda value: local(value)[0], outputs)
        return averaged, outputs

    def fetch(self, losses: Sequence[Sequence[Any]]) -> list[list[float]]:
        return [[float(value) for value in row] for row in losses]

    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        # One device of each process measures the whole split: exact, whatever their number.
        return self.modeler.evaluate(loader)

    def after_evaluation(self, value: float) -> None:
        if self.options.interval != "eval":
            return
        if isinstance(self.schedule, Plateau):
            self.schedule.listen(value)
        self._schedule_steps += 1

    def end_epoch(self) -> None:
        if self.options.interval == "epoch":
            self._schedule_steps += 1

    def write_checkpoint(self, path: Path) -> None:
        random = random_state()
        listens = isinstance(self.schedule, Plateau)
        tree = {
            "modeler": self.modeler.state(),
            "optimizer": self._optimizer_state(),
            "initial": self._initial,
            "schedule": {
                "steps": self._schedule_steps,
                "metric": self.schedule.state() if listens else None,
            },
            "random": {name: random[name] for name in ("python", "numpy")},
            **self.state_tree(),
        }
        if self.rank == 0:
            write_state(path, tree)

    def _optimizer_state(self) -> list[Array]:
        return [np.array(variable.numpy()) for variable in self.optimizer.variables]

    def read_checkpoint(self, path: Path) -> None:
        tree = read_state(path)
        own, found = (
            {name: tuple(value.shape) for name, value in item.items()}
            for item in (self.modeler.variables, tree["modeler"]["network"])
        )
        require_same_tensors(own, found, path)
        changed = self.changes_in(tree, path)
        options = self.options
        steps = self.total_steps if options.interval == "iteration" else None
        require_schedule(self.schedule, tree, options.epochs, steps, path)
        now, then = self._optimizer_state(), tree["optimizer"]
        if [value.shape for value in now] != [value.shape for value in then]:
            raise ModelError(
                f"{path}: its optimizer does not fit: it has {len(then)} variables, and {len(now)}"
                " are expected, or others",
                hint="--fresh starts over",
            )
        self.modeler.restore(tree["modeler"])
        for variable, value in zip(self.optimizer.variables, then, strict=True):
            variable.assign(value)  # the learning rate is set anew by each step
        self._schedule_steps = tree["schedule"]["steps"]
        if tree["schedule"]["metric"] is not None and isinstance(self.schedule, Plateau):
            self.schedule.restore(tree["schedule"]["metric"])
        if tree["run"]["batch"]:
            self._restored_random = tree["random"]
        self.go_on_from(tree, {**changed, **differences(tree["initial"], self._initial)}, path)


def _rounds(batches: Iterator[Any], count: int) -> Iterator[Round]:
    """Yield as many batches at a time; what is left over in the end is left out."""
    while len(found := Round(islice(batches, count))) == count:
        yield found


def _any_size(tensor: Any) -> Any:
    tensorflow = import_tensorflow()
    shape = [None, *tensor.shape[1:]] if tensor.shape.rank else []
    return tensorflow.TensorSpec(shape, tensor.dtype)


def _plain_config(optimizer: Any) -> dict[str, Any]:
    """Return the options of an optimizer that are numbers or texts."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in optimizer.get_config().items()
        if name != "name" and (value is None or isinstance(value, bool | int | float | str))
    }
