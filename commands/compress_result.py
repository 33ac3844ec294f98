"""How ``compress`` ends: a pruned network becomes files, which are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .search_result import SearchEnding, are_there, comparison_values, shipped_files
from .shipping import OPTIMIZED, OWN_FORMAT, REFERENCE, Shipping, onnx_of

if TYPE_CHECKING:
    from ..optimizers.budget import Forecast
    from ..optimizers.journal import Record
    from ..optimizers.pruning.search import PruningSearch
    from ..optimizers.verdict import ShippedFile
    from ..training.evaluation import Evaluation
    from .compress_setup import Settled


class PruningEnding(SearchEnding):
    """What the verdict of ``compress`` is made of.

    Args:
        search: which ended.
        shipping: writes and measures files.
        settled: the settled options.
        plan: what was forecast.
    """

    command = "compress"

    def __init__(
        self, search: PruningSearch, shipping: Shipping, settled: Settled, plan: Forecast
    ) -> None:
        super().__init__(
            search.journal,
            shipping.key,
            settled.spec,
            settled.settings,
            search.reference.metric,
            search.budget,
            search.services.phases,
            plan,
            settled.max_evaluations,
        )
        self.search = search
        self.shipping = shipping

    def by_size(self, trials: Sequence[Record]) -> list[Record]:
        """Return trials by their parameters."""
        return sorted(trials, key=lambda it: (it["parameters"], it["drop"], int(it["name"])))

    def saved(self, trial: Record) -> Mapping[str, Any]:
        """Save a trial in Ingot's own format only."""
        from ..optimizers.verdict import ShippedFile
        from .models import tree_sha256, tree_size

        network, recipe = self.search.load(trial["name"])
        path = self.shipping.save(OPTIMIZED, network, recipe)
        size = tree_size(path) + tree_size(path.with_suffix(".safetensors"))
        return {
            "measured": {
                "metrics": trial["metrics"],
                "size_bytes": size,
                "parameters": trial["parameters"],
                "macs": trial["macs"],
                "latency_ms": None,
            },
            "drop": trial["drop"],
            "drop_interval": trial["drop_interval"],
            "files": [ShippedFile(path, OWN_FORMAT, tree_sha256(path), size).to_dict()],
        }

    def ship(self, trial: Record) -> Record:
        """Export and measure a trial; what the journal says was measured is not measured again."""
        from ..optimizers.verdict import Measured
        from ..training.evaluation import json_values

        name = trial["name"]
        services = self.search.services
        self.budget.spend(1)
        record = self.journal.find("shipped", name, result=self.key)
        if record is not None:
            return record
        network, recipe = self.search.load(name)
        with services.timed("export"):
            shipped = self.shipping.ship(OPTIMIZED, network, recipe)
        latency = self._latency(shipped.files, network)
        drop = self.drop(shipped.evaluation)
        measured = Measured(
            json_values(shipped.evaluation.metrics),
            shipped.files[0].size_bytes,
            trial["parameters"],
            trial["macs"],
            latency["candidate_ms"],
        )
        with services.timed("evaluation"):
            confirmed = self.confirm(shipped.files[0].path)
        return self.journal.append(
            "shipped",
            name,
            result=self.key,
            measured=measured.to_dict(),
            files=[item.to_dict() for item in shipped.files],
            drop=drop.value,
            drop_interval=None if drop.interval is None else list(drop.interval),
            latency=latency,
            confirmed=confirmed,
            elapsed=self.budget.elapsed,
        )

    def present(self, shipped: Record) -> Record:
        """Write the files of a candidate again where others, or none, are in their place."""
        if are_there(shipped_files(shipped["files"])):
            return shipped
        network, recipe = self.search.load(shipped["name"])
        with self.search.services.timed("export"):
            files = self.shipping.write(OPTIMIZED, network, recipe)
        found = [item.to_dict() for item in files]
        found[0]["metrics"] = shipped["measured"]["metrics"]
        return {**shipped, "files": found}

    def evaluate(self, path: Path, split: str) -> Evaluation:
        """Measure a file on a split."""
        return self.shipping.evaluate(path, split)

    def warnings(self) -> Sequence[str]:
        """Return what the user should know."""
        groups = self.journal.find("groups") or {}
        excluded = groups.get("excluded", {})
        stayed = [f"{name} stayed as it is: {reason}" for name, reason in excluded.items()]
        return [*stayed, *super().warnings()]

    def _latency(self, files: Sequence[ShippedFile], network: Any) -> dict[str, Any]:
        """Time the file that ships beside the reference; where neither is ONNX, drafts of both."""
        reference = self.reference()
        before = next(
            (Path(item["path"]) for item in reference["files"] if item["format"] == "onnx"), None
        )
        after = onnx_of(files)
        with self.search.services.timed("other"):
            if before is None or after is None:
                before = self.shipping.draft(REFERENCE, self.search.reference.network)
                after = self.shipping.draft(OPTIMIZED, network)
            found = self.shipping.compare(before, after)
            self.shipping.remove_drafts()
        return comparison_values(found)
