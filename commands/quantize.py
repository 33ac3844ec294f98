"""``quantize``: integers in place of floats, layer by layer, for at most delta of a metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SpecError, UsageError
from ..specs import ModelSpec
from .models import NamedModel, tree_sha256, tree_size
from .opened_files import callable_file, feeds_of, of_batch, opened
from .quantize_files import QuantizedFiles
from .quantize_layers import layers_in
from .quantize_problem import CALIBRATION, quantize_problem
from .quantize_result import QuantizationEnding
from .quantize_setup import (
    QuantizeOptions,
    check_options,
    check_splits,
    formats_of,
    most_evaluations,
    settings_of,
)
from .quantize_training import Recovery, can_train
from .search_folder import FLOAT
from .search_reference import Baseline, FirstBatches, measure_reference, metric_of, random_order
from .search_result import are_there, read_results, save_results, shipped_files, shipped_results
from .search_run import Progress, SearchRun, Watch, phases_so_far
from .search_setup import named_spec
from .shipping import REFERENCE

if TYPE_CHECKING:
    from ..optimizers.budget import Budget, Forecast, StoppedBy
    from ..optimizers.journal import Journal, Record
    from ..optimizers.latency import Comparison
    from ..optimizers.quantization.layers import QuantLayer
    from ..optimizers.quantization.rules import Choice
    from ..optimizers.quantization.trials import (
        Candidates,
        QuantizationReference,
        QuantizationSettings,
        Services,
    )
    from ..optimizers.verdict import Verdict
    from ..training.problem import Problem
    from .compress_live import LiveModel


def quantize(
    model: str | Path | ModelSpec,
    options: QuantizeOptions | None = None,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    watch: Watch | None = None,
    live: LiveModel | None = None,
    against: Path | None = None,
    **changes: Any,
) -> Verdict:
    """Quantize a model to as few bits as delta allows.

    Everything is in the run's folder: the result (``opt_model*``) and the float reference
    (``ref_model*``), ``verdict.json``, ``report.html``, and the journal, by which a search that was
    killed goes on without doing anything twice.

    Args:
        model: a spec, a package, or a model file; without data of its own, with ``data``.
        options: what is wanted.
        overrides: ``key.path=value`` changes of the spec.
        progress: called with a line for each thing that happens.
        watch: called with the budget and the forecast when the search begins.
        live: objects in place of what the spec would name. Such a search goes on by itself when it
            is started again.
        against: the ONNX file that the result is compared with; None is the model itself. It is
            what the model was compressed from, say.
        changes: fields of :class:`QuantizeOptions`, in place of ``options`` or beside them.

    Returns:
        how it ended: within delta, missed (with the best that was found), or interrupted.

    Raises:
        UsageError: an option is impossible, a layer does not exist, or the folder holds another
            run.
        SpecError: the spec is invalid.
        InputError: there is no calibration data, or it holds NaN.
        ModelError: the model cannot be loaded, exported or quantized, or is quantized already.
        CheckError: an exported file computes something else than its source.
        MissingDependencyError: what a format needs is not installed.
    """
    wanted = replace(options or QuantizeOptions(), **changes)
    report = progress or (lambda line: None)
    check_options(wanted)
    with _problem(model, wanted, overrides, live) as (problem, given):
        return _Run(problem, given, wanted, report, watch, live, against).search()


@contextmanager
def _problem(
    model: str | Path | ModelSpec,
    options: QuantizeOptions,
    overrides: Sequence[str],
    live: LiveModel | None,
) -> Iterator[tuple[Problem, NamedModel | ModelSpec]]:
    if live is None:
        with quantize_problem(
            model,
            overrides,
            options.data,
            options.calibration or CALIBRATION,
            options.device,
            options.strict,
            options.seed,
            options.trust_code,
        ) as found:
            yield found
        return
    from ..optimizers.run_key import hash_model
    from ..training.hardware import choose_device, set_threads

    assert isinstance(model, ModelSpec)
    device = choose_device(options.device, options.strict)
    set_threads(None)
    problem = live.problem(model, device, options.seed)
    yield problem, NamedModel(model.name, problem.source, {}, None, hash_model(live.network, None))


class _Run(SearchRun):
    """One search, from its options to its verdict."""

    command = "quantize"

    def __init__(
        self,
        problem: Problem,
        model: NamedModel | ModelSpec,
        options: QuantizeOptions,
        report: Progress,
        watch: Watch | None,
        live: LiveModel | None = None,
        against: Path | None = None,
    ) -> None:
        from ..exporters import check_format

        problem.spec = named_spec(problem.spec, options.eval_key, options.eval_split, problem.label)
        self.options = options
        self.model = model
        self.against = against
        self.formats = formats_of(problem.spec, options)
        for name in self.formats:
            check_format(name, problem.source.framework, "fp32", problem.label)
        settings = settings_of(problem.spec, options)
        if options.dry_run:
            problem.splits = {name: FirstBatches(loader) for name, loader in problem.splits.items()}
        evaluation = problem.spec.evaluation
        problem.split(evaluation.eval_split, "evaluation.eval_split")
        if evaluation.confirm_split is not None:
            problem.split(evaluation.confirm_split, "evaluation.confirm_split")
        check_splits(problem.spec, problem.label)
        if "train" not in problem.splits:
            raise SpecError(
                f"{problem.label}: there is no calibration data: the data has no split 'train',"
                f" only {', '.join(sorted(problem.splits))}",
                hint="a split 'train' (no labels are read), or --data FILE.npz",
            )
        self.quantization: QuantizationSettings = settings
        self._found_feeds: Sequence[Any] = ()
        super().__init__(problem, settings, 0, options, report, watch, live)

    def reads(self) -> Sequence[Path]:
        """Return files that the search reads, and which are in no spec."""
        given = (self.options.data, self.against)
        return tuple(path.expanduser() for path in given if path is not None)

    def identity(self) -> dict[str, Any]:
        """Return what has to be the same when the search is resumed, by kind."""
        from ..frameworks.onnx import external_data_files
        from ..optimizers.run_key import (
            code_files,
            hash_batches,
            hash_data,
            hash_model,
            hash_of,
            hash_spec,
            tool_versions,
        )

        problem, options = self.problem, self.options
        source = problem.source
        files = [path for path in (source.path, source.weights) if path is not None]
        if source.framework == "onnx" and source.path is not None:
            files += [source.path.parent / name for name in external_data_files(source.path)]
        told = [tree_sha256(path) for path in (*files, *code_files(source.code_root))]
        data = hash_data(
            problem.splits, self.settings.eval_split, problem.seed, problem.spec.run_key
        )
        if self.live is not None:
            told += [hash_model(self.live.network, None), hash_of(self.live.identity())]
        timing = (options.batch_size, options.threads) if self.quantization.is_fast else None
        if data is not None and problem.spec.run_key is None:
            data = hash_of([data, hash_batches(self._calibration)])
        against = None if self.against is None else tree_sha256(self.against)
        return {
            "command": self.command,
            "model": hash_of([told, source.entrypoint_kwargs, source.recipe]),
            "spec": hash_spec(problem.spec),
            "data": data,
            "options": hash_of([asdict(self.quantization), options.device, against, timing]),
            "versions": tool_versions(),
        }

    def described(self) -> dict[str, Any]:
        """Return the settings that the journal, and the report, tell of."""
        settings = self.quantization
        rules = asdict(settings.rules)
        return {
            **rules,
            "format": settings.format,
            "calibration": settings.calibration,
            "finetune_epochs": settings.epochs,
            "reduce_range": settings.reduce_range,
        }

    def result_key(self, folder: Path) -> str:
        """Return what tells results that are written in other ways from each other."""
        return self._files(folder).key

    def _files(self, folder: Path) -> QuantizedFiles:
        options = self.options
        return QuantizedFiles(
            self.problem,
            self.model,
            folder,
            self.formats,
            (options.batch_size, options.threads),
            options.trust_code,
            self.report,
            REFERENCE if self.against is None else FLOAT,
        )

    def find(self, journal: Journal, budget: Budget) -> Verdict:
        """Measure the reference, search, ship the result, and say how it went."""
        from ..optimizers.budget import StopSearch
        from ..optimizers.cpu import cpu_features
        from ..optimizers.quantization.search import QuantizationSearch
        from ..optimizers.quantization.trials import Services, Trials

        settings = self.quantization
        files = self._files(journal.folder)
        services = Services(
            lambda path: opened(self.problem, path),
            self._compare,
            None,
            self.problem.split(settings.eval_split, "evaluation.eval_split"),
            self.report,
            phases_so_far(journal),
        )
        reference, baseline = self._reference(journal, files, services, budget)
        self._reference_path = reference.path
        record = journal.find("reference", result=files.key)
        assert record is not None
        path = Path(record["float_files"][0]["path"])
        with services.timed("other"):
            files.feeds = self._feeds(path)
            self._timed_feeds = of_batch(files.feeds, self.options.batch_size, path)
            candidates = self._candidates(journal, path, files)
        choice = self._chosen(candidates.layers)
        budget.spend(1)
        trials = Trials(candidates, reference, settings, journal, budget, services)
        is_low = settings.bits != "8" or any(item.weight < 8 for item in choice.fixed.values())
        trains = can_train(self.problem, settings, is_low) and not settings.dry_run
        plan = self._plan(journal, baseline, len(candidates.layers), trains, budget)
        if trains:
            services.train = self._recovery(candidates, trials, files, budget).train
        if self.watch is not None:
            self.watch(budget, plan)
        stopped: StoppedBy = "converged"
        try:
            QuantizationSearch(trials, choice, budget.check).run()
        except StopSearch as stop_now:
            stopped = stop_now.by
        ending = QuantizationEnding(trials, choice, files, plan, cpu_features())
        return ending.interrupted() if stopped == "signal" else ending.finish(stopped)

    def _reference(
        self, journal: Journal, files: QuantizedFiles, services: Services, budget: Budget
    ) -> tuple[QuantizationReference, Baseline]:
        """Export and measure the reference: the float file in its runtime."""
        from ..optimizers.quantization.trials import QuantizationReference

        record = journal.find("reference", result=files.key)
        if record is None:
            record = self._measure(journal, files, services, budget)
        elif not are_there(shipped_files(record["float_files"])):
            with services.timed("export"):
                files.write_float()
        baseline = Baseline(**record["baseline"])
        results = read_results(journal.folder, shipped_results(files.key))
        split, seed = self.settings.eval_split, self.settings.seed
        first = record["files"][0]
        reference = QuantizationReference(
            Path(first["path"]),
            first["size_bytes"],
            metric_of(self.problem, baseline, self.settings.delta),
            baseline.value,
            None if baseline.scale is None else results,
            random_order(self.problem, baseline, split, seed),
        )
        return reference, baseline

    def _measure(
        self, journal: Journal, files: QuantizedFiles, services: Services, budget: Budget
    ) -> Record:
        from ..optimizers.verdict import ShippedFile

        with services.timed("export"):
            written = files.write_float()
        # What the user asks of a layer that is not there is refused before anything is measured.
        self._chosen(layers_in(written[0].path, self.quantization.format))
        given = written
        if self.against is not None:
            size, sha256 = tree_size(self.against), tree_sha256(self.against)
            given = [ShippedFile(self.against, "onnx", sha256, size)]
        first = given[0]
        self.report(f"measuring the reference, {first.path.name}")
        with services.timed("evaluation"), callable_file(first.path) as model:
            baseline, results = measure_reference(self.problem, model, self.settings.eval_split)
        save_results(journal.folder, shipped_results(files.key), results)
        with services.timed("other"):
            parameters, macs = self._size(first.path, first.format)
        return journal.append(
            "reference",
            result=files.key,
            measured={
                "metrics": baseline.metrics,
                "size_bytes": first.size_bytes,
                "parameters": parameters,
                "macs": macs,
                "latency_ms": None,
            },
            baseline=asdict(baseline),
            eval_key=baseline.key,
            higher_is_better=self.spec.evaluation.higher_is_better,
            samples=None if results is None else len(results),
            files=[item.to_dict() for item in given],
            float_files=[item.to_dict() for item in written],
            elapsed=budget.elapsed,
        )

    def _chosen(self, layers: Sequence[QuantLayer]) -> Choice:
        """Return what the rules make of layers.

        Raises:
            UsageError: they name a layer that is not there, or leave none to quantize.
        """
        from ..optimizers.quantization.rules import choose

        settings = self.quantization
        choice = choose(layers, settings.rules, settings.is_fast, settings.format)
        fixed = choice.fixed.values()
        if fixed and not choice.free and all(precision.is_float for precision in fixed):
            raise UsageError(
                f"{self.problem.label}: the rules leave all layers float; expected one to quantize",
                hint="--list-layers says why each one stays",
            )
        return choice

    def _size(self, path: Path, framework: str) -> tuple[int | None, int | None]:
        """Return parameters and multiply-accumulates of the reference, as ``profile`` counts."""
        from ..frameworks import ModelSource
        from ..training.profile import profile_source

        feed = of_batch(self._feeds(path), 1, path)
        source = ModelSource(framework, path.name, None, None, path)
        found = profile_source(source, feed, feed, runs=1, warm_up=0).complexity
        return found.parameters, found.matrix_macs

    @cached_property
    def _calibration(self) -> list[Any]:
        """The batches that activations are calibrated on."""
        from ..optimizers.pruning.samples import calibration_batches

        settings = self.quantization
        return calibration_batches(self.problem, settings.seed, settings.calibration)

    def _feeds(self, path: Path) -> Sequence[Any]:
        """Return what activations are calibrated on, as inputs of the reference."""
        if self._found_feeds:
            return self._found_feeds
        samples = self.quantization.calibration
        feeds = feeds_of(self.problem, path, self._calibration, samples)
        self._found_feeds = feeds
        return feeds

    def _candidates(self, journal: Journal, path: Path, files: QuantizedFiles) -> Candidates:
        settings = self.quantization
        if settings.format == "tflite":
            from ..optimizers.quantization.tflite_candidates import TfliteCandidates

            return TfliteCandidates(path, files.feeds)
        from ..optimizers.quantization.onnx_candidates import OnnxCandidates

        return OnnxCandidates(path, files.feeds, journal, settings.reduce_range, self.report)

    def _recovery(
        self, candidates: Any, trials: Any, files: QuantizedFiles, budget: Budget
    ) -> Recovery:
        from .shipping import Shipping, ShippingOptions

        shipping = Shipping(
            self.problem,
            self.problem.spec,
            self.problem.source,
            ShippingOptions(trials.journal.folder, ("onnx",), trials.journal.folder),
            self.settings.eval_split,
            self.report,
        )
        return Recovery(
            self.problem,
            self.quantization,
            candidates,
            shipping,
            trials.folder,
            budget,
            self.report,
            self._network(),
            None if self.live is None else self.live.optimizer,
        )

    def _plan(
        self, journal: Journal, baseline: Baseline, layers: int, trains: bool, budget: Budget
    ) -> Forecast:
        from ..optimizers.budget import Forecast
        from ..reports.numbers import duration
        from .compress_setup import epoch_seconds
        from .quantize_setup import trainings

        settings, options = self.quantization, self.options
        most = options.max_evaluations or most_evaluations(layers, settings, trains)
        record = journal.find("forecast")
        if record is None:
            epoch = epoch_seconds(self.problem, self._network()) if trains else 0.0
        else:  # the caps may be others now
            epoch = record["epoch_seconds"]
        epochs = trainings(settings) * settings.epochs if trains else 0
        seconds = most * baseline.seconds + epochs * epoch
        given = options.max_seconds
        plan = Forecast(most, epochs, seconds, max(600.0, 3 * seconds) if given is None else given)
        if record is None:
            elapsed = budget.elapsed
            journal.append("forecast", epoch_seconds=epoch, elapsed=elapsed, **plan.to_dict())
        self.max_evaluations = budget.max_evaluations = most
        budget.reserved = 1
        budget.max_seconds = plan.max_seconds
        training = f" and {epochs} epochs of training" if epochs else ""
        self.report(
            f"at most {most} evaluations{training}, about {duration(seconds)}; it ends after"
            f" {duration(plan.max_seconds)}"
        )
        return plan

    def _network(self) -> Any:
        if self.live is not None:
            return self.live.copy(self.problem.device)
        return self.problem.load_network()

    def _compare(self, path: Path, before: Path | None) -> Comparison:
        from ..optimizers.latency import compare_latency

        threads = self.options.threads
        return compare_latency(before or self._reference_path, path, self._timed_feeds, threads)
