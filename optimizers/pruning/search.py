"""The search: prune by groups, recover, measure, and go on for as long as delta allows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ModelError, TrainingError, UsageError
from ...frameworks.base import first_line
from ...frameworks.pytorch import load_weights
from ...training.assess import evaluate_on
from ...training.options import TrainerOptions
from ...training.problem import Problem
from ...training.randomness import seed_everything
from ...training.torch_state import write_network
from ..budget import Budget
from ..journal import Journal, Record
from ..paired_evaluation import Outcome, evaluate_beside
from ..statistics import is_within
from .allocation import allocate
from .cost import CostModel
from .descent import Descent, Plan, Status
from .graph import ChannelGroup, channel_graph
from .masks import check_against_mask
from .modules import copy_module
from .prune import prune
from .recipe import Recipe
from .reconstruction import reconstructed
from .recovery import first_rate, recover, recover_outside
from .samples import FITTED_SAMPLES, SAMPLES, calibration_batches, first_samples
from .search_parts import Reference, SearchSettings, Services
from .sensitivity import importance, least_important, sensitivities
from .tracing import UnprunableError

if TYPE_CHECKING:
    from torch import nn

ALIGN = 16
"""Channels that vector units like a multiple of: ONNX Runtime's convolutions work on blocks of 16
where the processor has AVX-512, on blocks of 8 elsewhere."""
TRIALS = "trials"


class PruningSearch:
    """Searches the smallest, or fastest, network within delta.

    It is a function of its journal: :meth:`run` makes the same decisions when it is resumed.

    Args:
        problem: data, loss, evaluation.
        reference: what candidates are compared with.
        settings: what is wanted.
        options: how a step is trained.
        journal: where everything is written to.
        budget: how much may be done.
        services: what is needed from above.
    """

    def __init__(
        self,
        problem: Problem,
        reference: Reference,
        settings: SearchSettings,
        options: TrainerOptions,
        journal: Journal,
        budget: Budget,
        services: Services,
    ) -> None:
        self.problem = problem
        self.reference = reference
        self.settings = settings
        self.options = options
        self.journal = journal
        self.budget = budget
        self.services = services
        self.folder = journal.folder / TRIALS
        self.folder.mkdir(exist_ok=True)
        self._teacher = copy_module(reference.network)
        groups = journal.find("groups")
        assert groups is not None, "find_groups comes first"
        self._wrong: Sequence[str] = tuple(groups["excluded"])

    def run(self) -> None:
        """Search until it has converged.

        Raises:
            StopSearch: the budget is spent, or somebody asked to end it.
            CheckError: pruning computed something else than masking.
        """
        settings = self.settings
        trains = bool(self.options.epochs)
        trains_here = trains and self.services.external_loop is None
        rate = first_rate(self.problem.spec, self.options.epochs) if trains_here else None
        descent = Descent(settings.delta, settings.level, settings.deepsearch, rate, trains)
        number = 0
        while (plan := descent.plan()) is not None:
            number += 1
            record = self.journal.find("trial", str(number))
            if record is not None:
                self.budget.spend(int(record["drop"] is not None), record["epochs"])
            elif self._went_on(number):
                # It failed, and the search went on from that.
                record = self._record(str(number), plan, "failed", time.monotonic())
                self.budget.spend(1)
            else:
                record = self._try(str(number), plan)
            descent.learn(str(number), record["status"], record["drop"])
            if settings.dry_run and record["status"] != "failed":
                return

    def _went_on(self, number: int) -> bool:
        """Whether the journal has anything of a later trial."""
        kinds = ("trial", "pruned", "trained")
        return any(
            int(record["name"]) > number
            for record in self.journal.records
            if record["kind"] in kinds
        )

    def trials(self) -> list[Record]:
        """Return all trials that ended, in their order."""
        return [record for record in self.journal.records if record["kind"] == "trial"]

    def load(self, name: str) -> tuple[nn.Module, Recipe]:
        """Return the network of a trial, and the recipe that makes it of the reference's class.

        Raises:
            ModelError: its weights were removed or changed.
        """
        if not name:
            return copy_module(self.reference.network), Recipe()
        pruned = self._pruned(name)
        network = copy_module(self.reference.network)
        recipe = Recipe.from_dict(pruned["recipe"])
        recipe.apply(network)
        path = self._weights(name)
        if not path.is_file():
            raise ModelError(
                f"{path}: the weights of trial {name} are gone",
                hint="--fresh starts over",
            )
        load_weights(network, path, f"trial {name}")
        device = next(self.reference.network.parameters()).device
        return network.to(device).eval(), recipe

    def _pruned(self, name: str) -> Record:
        """Return the record of the pruning that a trial rests on."""
        record = self.journal.find("pruned", name)
        assert record is not None
        return record

    def _start(self, name: str) -> Path:
        return self.folder / f"{name}.start.safetensors"

    def _weights(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _groups(self, network: nn.Module) -> list[ChannelGroup]:
        """Return the groups of a network that may be pruned; none when it has no channel left."""
        exclude = (*self.settings.exclude, *(_exactly(name) for name in self._wrong))
        try:
            return list(channel_graph(network, self.reference.inputs, exclude).groups)
        except UnprunableError:
            return []

    def _try(self, name: str, plan: Plan) -> Record:
        start = time.monotonic()
        self.budget.check(1)
        try:
            return self._finish(name, plan, start, *self._candidate(name, plan))
        except TrainingError as error:
            # What failed is not written down: a resumed search tries it again.
            self.services.report(f"trial {name}: {error.message}")
            self.budget.spend(int(self.journal.find("trained", name) is None))
            return self._record(name, plan, "failed", start, reason=error.message)

    def _candidate(self, name: str, plan: Plan) -> tuple[nn.Module | None, Record]:
        """Return the pruned network of a trial, not trained, and its record."""
        pruned = self.journal.find("pruned", name)
        network: nn.Module | None
        if pruned is not None:
            network, _ = self.load(plan.parent)
            if not plan.is_retraining:
                network = copy_module(self.reference.network)
                Recipe.from_dict(pruned["recipe"]).apply(network)
                load_weights(network, self._start(name), f"trial {name}")
        elif plan.is_retraining:
            network, _ = self.load(plan.parent)
            parent = self._pruned(plan.parent)
            same = {
                key: parent[key] for key in ("recipe", "kept", "parameters", "macs", "latency_ms")
            }
            pruned = self.journal.append("pruned", name, slower=False, **same)
        else:
            with self.services.timed("other"):
                network, pruned = self._prune(name, plan)
        return network, pruned

    def _prune(self, name: str, plan: Plan) -> tuple[nn.Module | None, Record]:
        parent, before = self.load(plan.parent)
        groups = self._groups(parent)
        seed = self._seed(name)
        fitting = calibration_batches(self.problem, seed, SAMPLES + FITTED_SAMPLES, SAMPLES)
        if self.settings.dry_run:
            fitting = fitting[:2]
        batches = first_samples(fitting, SAMPLES)
        fitting = fitting[len(batches) :] or batches
        keep: dict[str, list[int]] = {}
        if groups:
            seed_everything(seed, 0, 0)
            scores = importance(self.problem, parent, groups, batches)
            curves = sensitivities(
                self.problem, parent, groups, scores, batches, check=self.budget.check
            )
            is_fast = self.settings.target == "latency"
            cost = CostModel(parent, groups, self.services.count(parent)[2])
            kept = allocate(
                groups,
                curves,
                cost.macs_left if is_fast else cost.parameters,
                cost.saved_macs if is_fast else cost.saved_parameters,
                plan.ratio,
                align=ALIGN if is_fast else 1,
                check=self.budget.check,
            )
            keep = {
                group.name: least_important(scores[group.name], group.channels - kept[group.name])
                for group in groups
                if kept[group.name] < group.channels
            }
        if not keep:
            return None, {"recipe": before.to_dict(), "kept": {}, "parameters": None, "macs": None}
        network, recipe = prune(parent, keep, groups)
        check_against_mask(parent, network, keep, self.reference.inputs, groups=groups)
        network = reconstructed(
            self.problem, network, parent, keep, groups, batches, fitting, seed, self.budget.check
        )
        parameters, macs, _ = self.services.count(network)
        latency, slower = None, False
        if self.services.latency is not None:
            latency, slower = self.services.latency(network, parent)
        self._save(self._start(name), network)
        pruned = self.journal.append(
            "pruned",
            name,
            recipe=before.then(recipe).to_dict(),
            kept=_kept(before, groups, keep),
            parameters=parameters,
            macs=macs,
            latency_ms=latency,
            slower=slower,
            elapsed=self.budget.elapsed,
        )
        return network, pruned

    def _finish(
        self, name: str, plan: Plan, start: float, network: nn.Module | None, pruned: Record
    ) -> Record:
        if network is None:
            return self._record(name, plan, "failed", start, reason="no channel is left to go")
        if pruned["slower"]:
            reason = "it is not faster than the model that it was made of"
            return self._write(name, plan, "slower", start, pruned, reason=reason)
        trained = self.journal.find("trained", name)
        if trained is None:
            network, trained = self._train(name, network, plan.rate)
        else:
            network, _ = self.load(name)
        self.budget.spend(1, trained["epochs"])
        outcome = self._evaluate(network, plan.limit)
        found: dict[str, Any] = {
            "epochs": trained["epochs"],
            "losses": trained["losses"],
            "drop": outcome.drop,
        }
        if outcome.is_early:
            reason = f"after {outcome.samples} samples, picked at random, it was certain to miss"
            return self._write(name, plan, "rejected early", start, pruned, reason=reason, **found)
        if not np.isfinite(outcome.drop):
            key = self.reference.metric.key
            raise TrainingError(f"the metric {key!r} is {outcome.metrics[key]}; expected a number")
        status: Status = "accepted" if is_within(outcome.drop, self.settings.delta) else "missed"
        return self._write(
            name,
            plan,
            status,
            start,
            pruned,
            metrics=outcome.metrics,
            drop_interval=None if outcome.interval is None else list(outcome.interval),
            **found,
        )

    def _train(self, name: str, network: nn.Module, rate: float) -> tuple[nn.Module, Record]:
        options = replace(self.options, seed=self._seed(name), learning_rate_factor=rate)
        place = self.folder / f"{name}.training"

        def report(epoch: int, loss: float) -> None:
            self.services.report(
                f"trial {name}: epoch {epoch} of {options.epochs}, loss {loss:.4g}"
            )

        losses: tuple[float, ...]
        with self.services.timed("training"):
            if self.services.external_loop is not None:
                network = recover_outside(
                    self.problem, network, self.services.external_loop, options.epochs
                )
                epochs, losses = options.epochs, ()
            elif self.services.trainer is not None:
                start = self._start(name)
                if not start.exists():
                    self._save(start, network)
                recipe = Recipe.from_dict(self._pruned(name)["recipe"])
                done = self.services.trainer(
                    name, recipe, start, self._weights(name), options, place
                )
                epochs, losses = done.epochs, done.losses
                load_weights(network, self._weights(name), f"trial {name}")
            else:
                done = recover(
                    self.problem, network, self._teacher, options, self.budget, place, report
                )
                epochs, losses = done.epochs, done.losses
        self._save(self._weights(name), network)
        shutil.rmtree(place, ignore_errors=True)
        record = self.journal.append(
            "trained",
            name,
            epochs=epochs,
            losses=[value if np.isfinite(value) else None for value in losses],
            elapsed=self.budget.elapsed,
        )
        return network, record

    def _evaluate(self, network: nn.Module, limit: float) -> Outcome:
        problem = self.problem
        loader = problem.split(self.settings.eval_split, "evaluation.eval_split")
        with self.services.timed("evaluation"):
            return evaluate_beside(
                self.reference,
                lambda batches: evaluate_on(problem, network, batches)[0],
                loader,
                limit,
            )

    def _write(
        self, name: str, plan: Plan, status: Status, start: float, pruned: Record, **found: Any
    ) -> Record:
        """Write down how a trial ended."""
        record = self._record(name, plan, status, start, pruned, **found)
        values = {key: value for key, value in record.items() if key not in ("kind", "name")}
        record = self.journal.append("trial", name, **values)
        self._start(name).unlink(missing_ok=True)
        drop = "" if record["drop"] is None else f", drop {record['drop']:.4g}"
        size = "" if record["parameters"] is None else f"{record['parameters']:,} parameters"
        self.services.report(f"trial {name}: {size}{drop}: {status}")
        return record

    def _record(
        self,
        name: str,
        plan: Plan,
        status: Status,
        start: float,
        pruned: Record | None = None,
        **found: Any,
    ) -> Record:
        held = pruned or {}
        return {
            "kind": "trial",
            "name": name,
            "parent": plan.parent,
            "ratio": plan.ratio,
            "rate": plan.rate,
            "status": status,
            "kept": held.get("kept", {}),
            "parameters": held.get("parameters"),
            "macs": held.get("macs"),
            "latency_ms": held.get("latency_ms"),
            "metrics": found.get("metrics"),
            "drop": found.get("drop"),
            "drop_interval": found.get("drop_interval"),
            "epochs": found.get("epochs", 0),
            "losses": found.get("losses", []),
            "reason": found.get("reason"),
            "seconds": round(time.monotonic() - start, 2),
            "elapsed": round(self.budget.elapsed, 2),
        }

    def _save(self, path: Path, network: nn.Module) -> None:
        try:
            write_network(path, network.state_dict())
        except Exception as error:  # safetensors has an error of its own for a full disk
            raise UsageError(
                f"{path}: cannot be written: {first_line(error)}",
                hint="make room, then go on with --resume",
            ) from error

    def _seed(self, name: str) -> int:
        return self.settings.seed * 10_007 + int(name)


def _exactly(name: str) -> str:
    """Return a pattern, as of shells, that fits a name only."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _kept(
    before: Recipe, groups: Sequence[ChannelGroup], keep: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, int]]:
    """Return how many channels of each group are left, of how many at first."""
    found: dict[str, dict[str, int]] = {}
    for group in groups:
        first = before.groups.get(group.name)
        channels = group.channels if first is None else int(first["channels"])
        kept = len(keep.get(group.name, range(group.channels)))
        found[group.name] = {"kept": kept, "channels": channels}
    return found
