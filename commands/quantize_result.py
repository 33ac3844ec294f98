"""How ``quantize`` ends: the best candidate becomes the files that ship."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.atomic import replacing
from .models import tree_sha256, tree_size
from .search_result import SearchEnding, are_there, comparison_values, shipped_files
from .shipping import OPTIMIZED

if TYPE_CHECKING:
    from ..optimizers.budget import Forecast
    from ..optimizers.journal import Record
    from ..optimizers.quantization.plan import Plan
    from ..optimizers.quantization.rules import Choice
    from ..optimizers.quantization.trials import Trials
    from ..optimizers.verdict import ShippedFile
    from ..training.evaluation import Evaluation
    from .quantize_files import QuantizedFiles

INT8_SATURATES = (
    "this processor has no VNNI: 8-bit products may saturate, and other processors compute"
    " something else; --reduce-range avoids that"
)
INT8_UNSEEN = (
    "measured on this processor only: x86 processors without VNNI may saturate where it does not;"
    " measure there (ingot verify --delta), or --reduce-range"
)


class QuantizationEnding(SearchEnding):
    """What the verdict of ``quantize`` is made of.

    Args:
        trials: made the candidates.
        choice: what the rules left to the search.
        files: writes and measures files.
        plan: what was forecast.
        cpu: the processor that everything was measured on.
    """

    command = "quantize"

    def __init__(
        self,
        trials: Trials,
        choice: Choice,
        files: QuantizedFiles,
        plan: Forecast,
        cpu: Mapping[str, Any],
    ) -> None:
        super().__init__(
            trials.journal,
            files.key,
            files.problem.spec,
            trials.settings,
            trials.reference.metric,
            trials.budget,
            trials.services.phases,
            plan,
            trials.budget.max_evaluations,
        )
        self._made = trials
        self._choice = choice
        self._files = files
        self._cpu = cpu

    def by_size(self, trials: Sequence[Record]) -> list[Record]:
        """Return trials by the bytes of their files.

        Of those that are little larger than the smallest, the one with most quantized activations
        comes first: without them a file has fewer nodes, and is slower by far.
        """
        from ..optimizers.quantization.search import LITTLE_LARGER

        def order(trial: Record) -> tuple[float, ...]:
            size = trial["size_bytes"]
            floats = sum(precision.endswith("a32") for precision in trial["plan"].values())
            is_near = size <= LITTLE_LARGER * smallest
            return (not is_near, floats if is_near else 0, size, trial["drop"], int(trial["name"]))

        smallest = min((trial["size_bytes"] for trial in trials), default=0)
        return sorted(trials, key=order)

    def saved(self, trial: Record) -> Mapping[str, Any]:
        """Save the file that was measured."""
        path = self._copy(trial)
        return {
            "measured": self._measured(trial, trial["latency_ms"]),
            "drop": trial["drop"],
            "drop_interval": trial["drop_interval"],
            "files": [self._file(path).to_dict()],
            "plan": trial["plan"],
        }

    def ship(self, trial: Record) -> Record:
        """Deliver the file of a trial, and write it in the other formats."""
        from ..training.evaluation import json_values

        name = trial["name"]
        record = self.journal.find("shipped", name, result=self.key)
        if record is not None:
            self.budget.spend(record["evaluations"])
            return record
        before = self.budget.evaluations
        files = self._write(trial)
        services = self._made.services
        metrics, drop, interval = trial["metrics"], trial["drop"], trial["drop_interval"]
        if not self._has_all_metrics(trial):
            self.budget.spend(1)
            with services.timed("evaluation"):
                # In full, in the order of the split: for all metrics.
                evaluation = self.evaluate(files[0].path, self.settings.eval_split)
            metrics, found = json_values(evaluation.metrics), self.drop(evaluation)
            drop, interval = found.value, found.interval and list(found.interval)
        files[0] = replace(files[0], metrics=metrics)
        with services.timed("other"):
            times = services.compare(files[0].path, None)
        with services.timed("evaluation"):
            confirmed = self.confirm(files[0].path)
        return self.journal.append(
            "shipped",
            name,
            result=self.key,
            measured=self._measured(trial, times.candidate_ms, metrics),
            files=[item.to_dict() for item in files],
            drop=drop,
            drop_interval=interval,
            latency=comparison_values(times),
            confirmed=confirmed,
            plan=trial["plan"],
            evaluations=self.budget.evaluations - before,
            elapsed=self.budget.elapsed,
        )

    def _has_all_metrics(self, trial: Record) -> bool:
        """Whether the trial, whose file is the one that ships, was measured on the whole split."""
        wanted = self.reference()["measured"]["metrics"].keys()
        return trial["status"] in ("accepted", "missed") and wanted <= trial["metrics"].keys()

    def present(self, shipped: Record) -> Record:
        """Write the files of a candidate again where others, or none, are in their place."""
        if are_there(shipped_files(shipped["files"])):
            return shipped
        trial = self.journal.find("trial", shipped["name"])
        assert trial is not None
        files = [item.to_dict() for item in self._write(trial)]
        files[0]["metrics"] = shipped["measured"]["metrics"]
        return {**shipped, "files": files}

    def evaluate(self, path: Path, split: str) -> Evaluation:
        """Measure a file on a split."""
        return self._files.evaluate(path, split)

    def nothing(self) -> str:
        """Return why there is no candidate at all."""
        statuses = {trial["status"] for trial in self.trials()}
        if statuses == {"larger"}:
            return "no candidate was smaller than the reference"
        if statuses == {"slower"}:
            return "every candidate was measured to be slower than the reference"
        return super().nothing()

    def warnings(self) -> Sequence[str]:
        """Return what the user should know."""
        from ..optimizers.cpu import may_saturate

        found = list(super().warnings())
        shipped = [it for it in self.journal.records if it["kind"] == "shipped"]
        integers = any(
            precision.endswith("a8") for it in shipped[-1:] for precision in it["plan"].values()
        )
        if integers and not self.settings.reduce_range:
            found.append(INT8_SATURATES if may_saturate(dict(self._cpu)) else INT8_UNSEEN)
        return found

    def extra(self, best: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return the layers with their bits and errors, and the processor."""
        from ..optimizers.quantization.trials import parse_plan

        plan = {} if best is None else parse_plan(best["plan"])
        return {"layers": tuple(self._layers(plan)), "cpu": self._cpu}

    def _layers(self, plan: Plan) -> list[dict[str, Any]]:
        from ..optimizers.quantization.plan import FLOAT

        errors = self._made.candidates.errors(plan)
        real = self._made.candidates.effective(plan)
        output = self._output_errors(plan)
        found = []
        for layer in self._made.candidates.layers:
            precision = real.get(layer.name, FLOAT)
            reason = self._choice.reasons.get(layer.name)
            wanted = plan.get(layer.name, FLOAT)
            if precision.weight != wanted.weight:
                reason = f"the format has no {wanted.weight} bits for it"
            elif precision != wanted:
                reason = reason or "no integer kernel takes its activations"
            found.append(
                {
                    "index": layer.index,
                    "name": layer.name,
                    "op": layer.op_type,
                    "shape": list(layer.shape),
                    "parameters": layer.parameters,
                    "weight_bits": precision.weight,
                    "activation_bits": precision.activation,
                    "weight_snr_db": errors.get(layer.name),
                    "output_snr_db": output.get(layer.name),
                    "reason": reason,
                }
            )
        return found

    def _output_errors(self, plan: Plan) -> dict[str, float]:
        """Return the signal-to-noise of the output with one layer alone quantized, where known."""
        import math

        found: dict[str, float] = {}
        for record in self.journal.records:
            for name, row in record["values"].items() if record["kind"] == "noise" else ():
                noise = row.get(str(plan[name])) if name in plan else None
                if noise:
                    found[name] = round(-10 * math.log10(noise), 1)
        return found

    def _measured(
        self, trial: Record, latency: float | None, metrics: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        before = self.reference()["measured"]
        return {
            "metrics": metrics or trial["metrics"],
            "size_bytes": trial["size_bytes"],
            "parameters": before["parameters"],
            "macs": before["macs"],
            "latency_ms": latency,
        }

    def _copy(self, trial: Record) -> Path:
        source = self._made.restored(trial)
        path = self._files.path(OPTIMIZED, source.suffix)
        with replacing(path) as part:
            shutil.copyfile(source, part)
        return path

    def _write(self, trial: Record) -> list[ShippedFile]:
        from ..optimizers.quantization.trials import parse_plan

        with self._made.services.timed("export"):
            path = self._copy(trial)
            layers = self._made.candidates.layers
            others = self._files.others(parse_plan(trial["plan"]), layers)
            files = [self._file(path), *map(self._file, others)]
            package = self._files.package(path)
        return files if package is None else [*files, package]

    def _file(self, path: Path) -> ShippedFile:
        from ..optimizers.verdict import ShippedFile

        format_ = path.suffix.removeprefix(".")
        return ShippedFile(path, format_, tree_sha256(path), tree_size(path))
