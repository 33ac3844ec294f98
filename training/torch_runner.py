"""The runner of PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .components import Components
from .data import Splits
from .distributed import STOP_STEPS, Workers, alone, any_worker, of_all, of_first
from .evaluation import Evaluation
from .inputter import Inputter
from .loaders import seeded_batches, split_for
from .options import TrainerOptions
from .randomness import random_state, restore_random_state, seed_everything
from .resume import require_schedule
from .runner import Runner
from .torch_modeler import TorchModeler
from .torch_optim import make_optimizer, make_scheduler, trained_parameters
from .torch_resume import (
    hyperparameters,
    require_same_network,
    restore_optimizer,
    restore_scheduler,
    scheduler_state,
)
from .torch_state import read_state, write_state


class TorchRunner(Runner):
    """Trains a :class:`TorchModeler`.

    The arguments are those of :class:`Runner`.
    """

    modeler: TorchModeler

    def __init__(
        self,
        modeler: TorchModeler,
        splits: Splits,
        options: TrainerOptions,
        callbacks: Sequence[Any] = (),
        *,
        components: Components,
        workers: Workers | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            modeler,
            splits,
            options,
            callbacks,
            components=components,
            workers=workers,
            recipe=recipe,
        )
        self.splits = split_for(splits, self.place)
        self.optimizer: Any = None
        self.scheduler: Any = None
        self._initial: list[dict[str, Any]] = []
        self._restored_random: Any = None
        self._rates: list[float] = []

    @property
    def learning_rate(self) -> float:
        return float(self._rates[0] if self._rates else self.optimizer.param_groups[0]["lr"])

    @property
    def is_asynchronous(self) -> bool:
        return self.modeler.torch_device.type != "cpu"

    def setup(self) -> None:
        options = self.options
        parameters = trained_parameters(
            self.modeler.network, options.trainable, "training.trainable"
        )
        if not parameters:
            raise ModelError("the network has no parameter to train")
        if self.workers > 1:
            self.modeler.share(self.place.local_rank)
        self.optimizer = make_optimizer(
            options.optimizer,
            self.modeler.network,
            parameters,
            components=self.components,
            weight_decay=options.weight_decay,
            weight_decay_skip=options.weight_decay_skip,
        )
        factor = options.learning_rate_factor
        if options.scale_learning_rate:
            factor *= self.workers
        if factor != 1.0:
            for group in self.optimizer.param_groups:
                group["lr"] *= factor
        self.scheduler = make_scheduler(
            options.scheduler,
            self.optimizer,
            components=self.components,
            epochs=options.epochs,
            steps_per_epoch=self.steps_per_epoch,
            interval=options.interval,
            higher_is_better=options.higher_is_better,
        )
        self._initial = hyperparameters(self.optimizer)
        self.note_kinds(self.optimizer, self.scheduler)

    def epoch_batches(self, epoch: int, start: int) -> Iterator[Any]:
        loader, seed = self.splits["train"], self.options.seed
        if isinstance(loader, Inputter):
            batches: Iterator[Any] = loader.batches(epoch, start)
        else:
            batches = seeded_batches(loader, seed, epoch, self.rank, start)
        # Dropout and the like differ from worker to worker; the order of the data does not.
        seed_everything(seed, epoch, self.rank)
        if self._restored_random is not None:
            restore_random_state(self._restored_random)
            self._restored_random = None
        self.modeler.network.train()
        freeze_statistics(self.modeler.network)
        return batches

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        optimizer = self.optimizer
        optimizer.zero_grad(set_to_none=True)
        parts = self.modeler.compute_loss(batch)
        values = list(parts.values())
        total = values[0] if len(values) == 1 else sum(values[1:], values[0])
        total.backward()
        factor = self.warmup_factor()
        if factor == 1.0:
            self._rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.step()
        else:
            scheduled = [group["lr"] for group in optimizer.param_groups]
            self._rates = [factor * rate for rate in scheduled]
            _set_rates(optimizer, self._rates)
            optimizer.step()
            _set_rates(optimizer, scheduled)
        if self.scheduler is not None and self.options.interval == "iteration":
            self.scheduler.step()
        return {name: value.detach() for name, value in parts.items()}

    def fetch(self, losses: Sequence[Sequence[Any]]) -> list[list[float]]:
        import torch

        if not self.is_asynchronous:
            return [[float(value) for value in row] for row in losses]
        flat = torch.stack([value.reshape(()).float() for row in losses for value in row]).tolist()
        values = iter(flat)
        return [[next(values) for _ in row] for row in losses]

    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        # One worker measures the whole split: exact, whatever the function and their number.
        found = None
        if self.rank == 0:
            with alone(self.workers):
                found = self.modeler.evaluate(loader)
        measured: Evaluation = of_first(found, self.workers)
        return measured

    def should_stop(self) -> bool:
        if self.workers == 1:
            return self.stop_requested
        # All stop after the same step, or one would wait for the others.
        if self.state.step % STOP_STEPS:
            return False
        return any_worker(self.stop_requested, self.workers)

    def after_evaluation(self, value: float) -> None:
        if self.scheduler is not None and self.options.interval == "eval":
            self.scheduler.step(value)

    def end_epoch(self) -> None:
        if self.scheduler is not None and self.options.interval == "epoch":
            self.scheduler.step()

    def of_first(self, value: Any) -> Any:
        return of_first(value, self.workers)

    def write_checkpoint(self, path: Path) -> None:
        random = of_all(random_state(), self.workers)
        if self.rank:
            return
        tree = {
            "modeler": self.modeler.state(),
            "optimizer": self.optimizer.state_dict(),
            "initial": self._initial,
            "scheduler": scheduler_state(self.scheduler),
            "random": random,
            **self.state_tree(),
        }
        write_state(path, tree)

    def read_checkpoint(self, path: Path) -> None:
        # The other workers get it from the first one, whose machine has the file.
        tree = self.of_first(read_state(path) if self.rank == 0 else None)
        require_same_network(self.modeler.network, tree["modeler"]["network"], path)
        changed = self.changes_in(tree, path)
        options = self.options
        steps = self.total_steps if options.interval == "iteration" else None
        require_schedule(self.scheduler, tree, options.epochs, steps, path)
        self.modeler.restore(tree["modeler"])
        taken = restore_optimizer(self.optimizer, tree["optimizer"], tree["initial"], path)
        restore_scheduler(self.scheduler, tree["scheduler"], takes_rates=bool(taken))
        if tree["run"]["batch"]:
            self._restored_random = tree["random"][self.rank]
        self.go_on_from(tree, {**changed, **taken}, path)


def freeze_statistics(network: Any) -> None:
    """Keep the statistics of BatchNorm layers whose parameters are not trained."""
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in network.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


def _set_rates(optimizer: Any, rates: Sequence[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
