"""The runner of PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelError, UsageError
from .components import Components
from .data import Splits
from .distributed import Workers, alone, any_worker, of_all, of_first, split_for
from .evaluation import Evaluation
from .inputter import Inputter
from .options import TrainerOptions
from .runner import Runner, RunState
from .torch_modeler import TorchModeler
from .torch_optim import make_optimizer, make_scheduler, trained_parameters
from .torch_state import (
    random_state,
    read_state,
    restore_random_state,
    seed_everything,
    write_state,
)

_TO_THE_END = ("CosineAnnealingLR", "OneCycleLR")
"""Schedulers that count on the number of epochs that they were made for."""

_STOP_STEPS = 10
"""Steps from one time that workers ask each other whether to stop to the next."""


class TorchRunner(Runner):
    """Trains a :class:`TorchModeler`.

    Args:
        modeler: network, loss and metrics.
        splits: iterables of batches by name.
        options: how it is trained.
        callbacks: called around the steps.
        components: the parts of the spec, for an optimizer of the user's own.
        workers: the place of this process among those that train together.
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
    ) -> None:
        place = workers or Workers()
        splits = split_for(splits, place, options.seed)
        super().__init__(modeler, splits, options, callbacks, place.rank, place.count)
        self.place = place
        self.components = components
        self.optimizer: Any = None
        self.scheduler: Any = None
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
        if options.scale_learning_rate:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.workers
        self.scheduler = make_scheduler(
            options.scheduler,
            self.optimizer,
            components=self.components,
            epochs=options.epochs,
            steps_per_epoch=self.steps_per_epoch,
            interval=options.interval,
            higher_is_better=options.higher_is_better,
        )

    def epoch_batches(self, epoch: int, start: int) -> Iterator[Any]:
        seed_everything(self.options.seed, epoch, self.rank)
        loader = self.splits["train"]
        if isinstance(loader, Inputter):
            batches = loader.batches(epoch, start)
        else:
            _seed_loader(loader, self.options.seed, epoch)
            batches = iter(loader)
            skipped = sum(1 for _ in islice(batches, start))
            if skipped < start:
                raise InputError(
                    f"the split 'train' gave {skipped} batches; the checkpoint was written after"
                    f" {start}"
                )
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
        factor = self._warmup()
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

    def _warmup(self) -> float:
        """Return the factor of the learning rate in this step: it rises linearly to 1."""
        steps = self.steps_per_epoch
        if not self.options.warmup_epochs:
            return 1.0
        if steps is None:  # the data does not say how long an epoch is: whole epochs
            return min(1.0, (self.state.epoch + 1) / (self.options.warmup_epochs + 1))
        return min(1.0, (self.state.step + 1) / max(1.0, self.options.warmup_epochs * steps))

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
        if self.state.step % _STOP_STEPS:
            return False
        return any_worker(self.stop_requested, self.workers)

    def after_evaluation(self, value: float) -> None:
        if self.scheduler is not None and self.options.interval == "eval":
            self.scheduler.step(value)

    def end_epoch(self) -> None:
        if self.scheduler is not None and self.options.interval == "epoch":
            self.scheduler.step()

    def write_checkpoint(self, path: Path) -> None:
        random = of_all(random_state(), self.workers)
        if self.rank:
            return
        state = {**self.state.to_dict(), "seconds": self.elapsed}
        scheduler = None if self.scheduler is None else _plain_state(self.scheduler)
        tree = {
            "modeler": self.modeler.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": scheduler,
            "random": random,
            "run": state,
            "epochs": self.options.epochs,
            "eval_key": self.eval_key,
            "callbacks": {type(item).__name__: item.state() for item in self.callbacks},
            "recipe": self.options.recipe(self.workers),
        }
        write_state(path, tree)

    def read_checkpoint(self, path: Path) -> None:
        tree = read_state(path)
        _require_same_network(self.modeler.network, tree["modeler"]["network"], path)
        self._warn_of_changes(tree["recipe"], path)
        kind = type(self.scheduler).__name__
        if kind in _TO_THE_END and self.options.epochs > tree["epochs"]:
            raise UsageError(
                f"{path}: its schedule ({kind}) ends after {tree['epochs']} epochs; found"
                f" {self.options.epochs} to train",
                hint="--fresh starts over",
            )
        self.modeler.restore(tree["modeler"])
        try:
            self.optimizer.load_state_dict(tree["optimizer"])
        except ValueError as error:
            raise ModelError(
                f"{path}: its optimizer does not fit: {error}",
                hint="--fresh starts over",
            ) from error
        if self.scheduler is not None and tree["scheduler"] is not None:
            self.scheduler.load_state_dict(tree["scheduler"])
        if tree["run"]["batch"] and len(tree["random"]) == self.workers:
            self._restored_random = tree["random"][self.rank]
        self.state = RunState(**tree["run"])
        self.eval_key = tree["eval_key"]
        for callback in self.callbacks:
            found = tree["callbacks"].get(type(callback).__name__)
            if found:
                callback.restore(found)

    def _warn_of_changes(self, recipe: Mapping[str, Any], path: Path) -> None:
        import logging

        own = self.options.recipe(self.workers)
        changed = [name for name in own if name in recipe and recipe[name] != own[name]]
        if changed:
            logging.getLogger("ingot").warning(
                "%s was written with another %s: what follows is not what one run would give",
                path.name,
                ", ".join(changed),
            )


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


def _seed_loader(loader: Any, seed: int, epoch: int) -> None:
    """Let the order of a ``DataLoader`` with a generator or sampler of its own be the epoch's."""
    from .inputter import random_generator

    drawn = int(random_generator(seed, epoch, 1).integers(0, 2**62))
    owners: list[Any] = [loader, getattr(loader, "sampler", None)]
    for owner in owners:
        generator: Any = getattr(owner, "generator", None)
        if hasattr(generator, "manual_seed"):
            generator.manual_seed(drawn)
        if hasattr(owner, "set_epoch"):
            owner.set_epoch(epoch)


def _plain_state(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's state without functions, which its constructor makes again."""
    import inspect

    state = scheduler.state_dict()
    return {name: value for name, value in state.items() if not inspect.isroutine(value)}


def _require_same_network(network: Any, state: Mapping[str, Any], path: Path) -> None:
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in [*own, *(name for name in found if name not in own)]:
        if own.get(name) != found.get(name):
            raise ModelError(
                f"{path}: a checkpoint of another network: the tensor {name!r} is"
                f" {found.get(name, 'missing')} in it, and {own.get(name, 'missing')} in the"
                " network",
                hint="--fresh starts over",
            )
