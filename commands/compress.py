"""``compress``: the smallest, or fastest, network whose metric drops by at most delta."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..specs import ModelSpec
from .compress_result import PruningEnding
from .compress_setup import (
    CompressOptions,
    Settled,
    epoch_seconds,
    forecast,
    settle,
)
from .compress_worker import worker_trainer
from .search_reference import (
    Baseline,
    FirstBatches,
    measure_reference,
    metric_of,
    random_order,
)
from .search_result import (
    BASELINE,
    are_there,
    read_results,
    save_results,
    shipped_files,
    shipped_results,
)
from .search_run import Progress, SearchRun, Watch, phases_so_far
from .shipping import REFERENCE, Shipping, ShippingOptions
from .train_external import external_loop

if TYPE_CHECKING:
    from ..optimizers.budget import Budget, Forecast, StoppedBy
    from ..optimizers.journal import Journal
    from ..optimizers.pruning.search_parts import Reference, Services
    from ..optimizers.verdict import Verdict
    from ..training.problem import Problem
    from .compress_live import LiveModel


def compress(
    spec: str | Path | ModelSpec,
    options: CompressOptions | None = None,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    watch: Watch | None = None,
    live: LiveModel | None = None,
    **changes: Any,
) -> Verdict:
    """Search the smallest, or fastest, network whose metric drops by at most delta.

    Everything is in the run's folder: the result (``opt_model*``) and the reference
    (``ref_model*``), ``verdict.json``, ``report.html``, and the journal, by which a search that was
    killed goes on without doing anything twice.

    Args:
        spec: a spec of PyTorch code with data, loss and evaluation.
        options: what is wanted.
        overrides: ``key.path=value`` changes of the spec.
        progress: called with a line for each thing that happens.
        watch: called with the budget and the forecast when the search begins; both can be read
            from then on.
        live: objects in place of what the spec would name. Such a search goes on by itself when it
            is started again.
        changes: fields of :class:`CompressOptions`, in place of ``options`` or beside them.

    Returns:
        how it ended: within delta, missed (with the best that was found), or interrupted.

    Raises:
        UsageError: an option is impossible, or the folder holds another run.
        SpecError: the spec is invalid.
        ModelError: the model cannot be loaded, measured or pruned.
        CheckError: pruning, or an exported file, computes something else.
        MissingDependencyError: torch-pruning, or what a format needs, is not installed.
    """
    wanted = replace(options or CompressOptions(), **changes)
    report = progress or (lambda line: None)
    settled = settle(spec, wanted, overrides)
    return _Run(settled, report, watch, live).search()


class _Run(SearchRun):
    """One search, from its settled options to its verdict."""

    command = "compress"

    def __init__(
        self,
        settled: Settled,
        report: Progress,
        watch: Watch | None = None,
        live: LiveModel | None = None,
    ) -> None:
        from ..optimizers.pruning.recovery import recovery_options
        from ..training.hardware import choose_device, set_threads
        from ..training.networks import has_random_weights
        from ..training.problem import Problem

        self.settled = settled
        given = settled.given
        device = choose_device(given.device or _stage_device(settled.spec), given.strict)
        set_threads(None)
        if live is None:
            problem = Problem(settled.spec, device, given.seed)
        else:
            problem = live.problem(settled.spec, device, given.seed)
        super().__init__(
            problem, settled.settings, settled.max_evaluations, given, report, watch, live
        )
        if given.dry_run:
            self.problem.splits = {
                name: FirstBatches(loader) for name, loader in self.problem.splits.items()
            }
        _require_splits(self.problem)
        if live is None and has_random_weights(self.problem):
            logging.getLogger("ingot").warning(
                "%s: the model has no trained weights: model.weights is missing", self.problem.label
            )
        self.network = self.problem.load_network() if live is None else live.copy(device)
        self.options = recovery_options(
            settled.spec,
            settled.epochs,
            hasattr(self.problem.splits["train"], "__len__"),
            device=device,
            seed=given.seed,
        )
        if live is not None and live.optimizer is not None:
            self.options = replace(self.options, optimizer=live.optimizer)

    def identity(self) -> dict[str, Any]:
        """Return what has to be the same when the search is resumed, by kind."""
        from ..optimizers.run_key import hash_data, hash_model, hash_of, hash_spec, tool_versions

        settled, problem = self.settled, self.problem
        data = hash_data(
            problem.splits,
            settled.settings.eval_split,
            problem.seed,
            settled.spec.run_key,
        )
        if self.live is None:
            model = hash_model(self.network, problem.source.code_root)
        else:
            export = problem.spec.export
            told = [self.live.identity(), None if export is None else repr(export)]
            model = hash_of([hash_model(self.network, None), told])
        return {
            "command": "compress",
            "model": model,
            "spec": hash_spec(settled.spec),
            "data": data,
            "options": hash_of([settled.settings, settled.epochs, settled.given.nproc]),
            "versions": tool_versions(),
        }

    def described(self) -> dict[str, Any]:
        """Return the settings that the journal, and the report, tell of."""
        settings = self.settled.settings
        return {
            "level": settings.level,
            "deepsearch": settings.deepsearch,
            "finetune_epochs": self.settled.epochs,
            "exclude": list(settings.exclude),
        }

    def result_key(self, folder: Path) -> str:
        """Return what tells results that are written in other ways from each other."""
        return self._shipping(folder).key

    def find(self, journal: Journal, budget: Budget) -> Verdict:
        """Measure the reference, search, ship the result, and say how it went."""
        from ..optimizers.budget import StopSearch
        from ..optimizers.pruning.search import PruningSearch

        settled = self.settled
        services = self._services()
        services.phases.update(phases_so_far(journal))
        if settled.given.nproc > 1:
            services.trainer = worker_trainer(settled, budget)
        shipping = self._shipping(journal.folder)
        reference, plan = self._reference(journal, shipping, budget, services)
        budget.max_seconds = plan.max_seconds
        if self.watch is not None:
            self.watch(budget, plan)
        if services.latency is None and settled.settings.target == "latency":
            services.latency = _latency(shipping)
        search = PruningSearch(
            self.problem,
            reference,
            settled.settings,
            self.options,
            journal,
            budget,
            services,
        )
        stopped: StoppedBy = "converged"
        try:
            search.run()
        except StopSearch as stop_now:
            stopped = stop_now.by
        shipping.remove_drafts()
        ending = PruningEnding(search, shipping, settled, plan)
        return ending.interrupted() if stopped == "signal" else ending.finish(stopped)

    def _shipping(self, folder: Path) -> Shipping:
        settled, kwargs = self.settled, None
        if settled.spec.export is not None:
            kwargs = settled.spec.export.kwargs
        options = ShippingOptions(
            folder,
            settled.formats,
            folder if kwargs is None or kwargs.root_path is None else kwargs.root_path,
            "fp32" if kwargs is None else kwargs.precision,
            () if kwargs is None else kwargs.resolutions,
            settled.given.batch_size,
            settled.given.threads,
            settled.settings.seed,
        )
        return Shipping(
            self.problem,
            settled.spec,
            self.problem.source,
            options,
            settled.settings.eval_split,
            self.report,
        )

    def _services(self) -> Services:
        from ..optimizers.pruning.search_parts import Services

        loop = None if self.live is None else self.live.external_loop
        if self.settled.spec.external_training_loop is not None:
            loop = external_loop(self.problem)
        return Services(self._count, report=self.report, external_loop=loop)

    def _count(self, network: Any) -> tuple[int, int | None, Mapping[str, int]]:
        """Return parameters and multiply-accumulates of one sample, the latter by layer, too."""
        from ..optimizers.pruning.modules import tensors_in
        from ..training.torch_profile import profile_torch

        args, kwargs = self.inputs
        import torch

        def call() -> object:
            with torch.no_grad():
                return network(*args, **kwargs)

        network.eval()
        found = profile_torch(network, call, 0)
        first = next(tensors_in((args, list(kwargs.values()))), None)
        batch = max(1, first.shape[0] if first is not None and first.ndim else 1)
        layers = {layer.name: layer.matrix_macs // batch for layer in found.layers}
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return parameters, sum(layers.values()), layers

    def _reference(
        self, journal: Journal, shipping: Shipping, budget: Budget, services: Services
    ) -> tuple[Reference, Forecast]:
        """Measure the reference, as a network and as the file that would ship."""
        from ..optimizers.pruning import Recipe
        from ..optimizers.pruning.samples import calibration_batches, example_inputs
        from ..optimizers.pruning.search_parts import Reference
        from ..optimizers.pruning.usable_groups import find_groups

        settings = self.settled.settings
        first = calibration_batches(self.problem, settings.seed, 1)[0]
        self.inputs = example_inputs(self.problem, self.network, first, settings.seed)
        with services.timed("other"):
            find_groups(self.network, self.inputs, settings, journal, self.report)
        self.report("measuring the reference")
        baseline, results = self._baseline(journal, budget, services)
        metric = metric_of(self.problem, baseline, settings.delta)
        order = random_order(self.problem, baseline, settings.eval_split, settings.seed)
        kept = None if baseline.scale is None else results
        reference = Reference(self.network, self.inputs, metric, baseline.value, kept, order)
        budget.spend(2)
        record = journal.find("reference", result=shipping.key)
        if record is None:
            self._ship_reference(journal, shipping, reference, services, budget)
        elif not are_there(shipped_files(record["files"])):
            with services.timed("export"):
                shipping.write(REFERENCE, self.network, Recipe())
        found = journal.find("forecast")
        if found is None:
            epoch = epoch_seconds(self.problem, self.network) if self.settled.epochs else 0.0
            plan = forecast(self.settled, epoch, baseline.seconds)
            journal.append(
                "forecast", epoch_seconds=epoch, elapsed=budget.elapsed, **plan.to_dict()
            )
        else:  # the caps may be others now
            plan = forecast(self.settled, found["epoch_seconds"], baseline.seconds)
        self.report(
            f"at most {plan.max_evaluations} evaluations and {plan.max_epochs} epochs of training,"
            f" about {_duration(plan.seconds)}; it ends after {_duration(plan.max_seconds)}"
        )
        return reference, plan

    def _baseline(
        self, journal: Journal, budget: Budget, services: Services
    ) -> tuple[Baseline, Any]:
        record = journal.find("baseline")
        if record is not None:
            return Baseline(**record["values"]), read_results(journal.folder, BASELINE)
        with services.timed("evaluation"):
            baseline, results = measure_reference(
                self.problem, self.network, self.settings.eval_split
            )
        save_results(journal.folder, BASELINE, results)
        journal.append("baseline", values=asdict(baseline), elapsed=budget.elapsed)
        return baseline, results

    def _ship_reference(
        self,
        journal: Journal,
        shipping: Shipping,
        reference: Reference,
        services: Services,
        budget: Budget,
    ) -> None:
        from ..optimizers.pruning import Recipe
        from ..optimizers.verdict import Measured
        from ..training.evaluation import json_values

        with services.timed("export"):
            shipped = shipping.ship(REFERENCE, self.network, Recipe())
        parameters, macs, _ = self._count(self.network)
        key = reference.metric.key
        measured = Measured(
            json_values(shipped.evaluation.metrics),
            shipped.files[0].size_bytes,
            parameters,
            macs,
            None,
        )
        results = shipped.evaluation.per_sample.get(key)
        save_results(journal.folder, shipped_results(shipping.key), results)
        journal.append(
            "reference",
            result=shipping.key,
            measured=measured.to_dict(),
            eval_key=key,
            higher_is_better=reference.metric.higher_is_better,
            samples=None if results is None else len(results),
            files=[item.to_dict() for item in shipped.files],
            elapsed=budget.elapsed,
        )


def _stage_device(spec: ModelSpec) -> str | None:
    return next((stage.device for stage in spec.optimization if stage.device is not None), None)


def _require_splits(problem: Problem) -> None:
    evaluation = problem.spec.evaluation
    problem.split("train", "data.splits")
    problem.split(evaluation.eval_split, "evaluation.eval_split")
    if evaluation.confirm_split is not None:
        problem.split(evaluation.confirm_split, "evaluation.confirm_split")


def _latency(shipping: Shipping) -> Callable[[Any, Any], tuple[float, bool]]:
    """Return a function that times a network beside the one that it was made of."""

    def measure(network: Any, parent: Any) -> tuple[float, bool]:
        before = shipping.draft("parent", parent)
        found = shipping.compare(before, shipping.draft("candidate", network))
        return found.candidate_ms, found.is_slower

    return measure


def _duration(seconds: float) -> str:
    """Return a time for people: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
