"""Turns networks of a search into the files that ship, and measures them there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..errors import IngotError, SpecError
from ..optimizers.latency import Comparison, compare_latency
from ..optimizers.verdict import ShippedFile
from ..specs import ModelSpec
from .export import export
from .models import NamedModel, tree_sha256, tree_size

if TYPE_CHECKING:
    from torch import nn

    from ..exporters.variants import Shapes
    from ..frameworks import ModelSource
    from ..optimizers.pruning import Recipe
    from ..training.evaluation import Evaluation
    from ..training.problem import Problem

REFERENCE, OPTIMIZED = "ref_model", "opt_model"
OWN_FORMAT = "safetensors"
GOLDEN = "golden.npz"
"""Random inputs for the test of a package, where the spec names none."""


@dataclass(frozen=True)
class ShippingOptions:
    """How results are written.

    Attributes:
        folder: of the run; own format and package go there.
        formats: to export to, the first of which is measured.
        exports: the folder of exported files.
        precision: of the optimized model's weights; the reference is always fp32.
        resolutions: of fixed-shape files.
        batch_size: of latency measurements.
        threads: likewise.
        seed: of random inputs.
    """

    folder: Path
    formats: tuple[str, ...]
    exports: Path
    precision: str = "fp32"
    resolutions: tuple[tuple[int, int], ...] = ()
    batch_size: int = 1
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Shipped:
    """The files of one network.

    Attributes:
        files: the one that is measured first.
        evaluation: of the first file on the evaluation split.
    """

    files: tuple[ShippedFile, ...]
    evaluation: Evaluation


class Shipping:
    """Writes and measures results.

    Args:
        problem: data and evaluation.
        spec: of the model that was given.
        source: where that comes from.
        options: where and how.
        split: that is measured on.
        progress: called with a line for each phase.
    """

    def __init__(
        self,
        problem: Problem,
        spec: ModelSpec,
        source: ModelSource,
        options: ShippingOptions,
        split: str,
        progress: Callable[[str], None],
    ) -> None:
        self.problem = problem
        self.spec = spec
        self.source = source
        self.options = options
        self.split = split
        self.progress = progress

    def save(self, stem: str, network: nn.Module, recipe: Recipe) -> Path:
        """Write a network in Ingot's own format; return its spec."""
        from ..optimizers.pruning import save_compressed

        path, _ = save_compressed(
            self.options.folder / stem,
            network,
            recipe,
            self.spec,
            source=self.source if self.source.native is not None else None,
            force=True,
        )
        return path

    @property
    def key(self) -> str:
        """What tells results that are written in other ways from each other."""
        from ..optimizers.run_key import hash_of

        options = self.options
        made = (options.formats, options.precision, options.resolutions, self.spec.bn_fusion)
        timed = (options.batch_size, options.threads)
        return hash_of([*made, *timed, str(options.exports.absolute())])[:12]

    def ship(self, stem: str, network: nn.Module, recipe: Recipe) -> Shipped:
        """Write a network in every format, check each file, and measure the first one.

        Raises:
            CheckError: a file does not compute what the network does.
            IngotError: it cannot be exported or measured.
        """
        first, *others = self.write(stem, network, recipe)
        evaluation = self.evaluate(first.path)
        return Shipped((replace(first, metrics=evaluation.metrics), *others), evaluation)

    def write(self, stem: str, network: nn.Module, recipe: Recipe) -> list[ShippedFile]:
        """Write a network in every format, and check each file; see :meth:`ship`."""
        own = self.save(stem, network, recipe)
        options = self.options
        formats = [name for name in options.formats if name != OWN_FORMAT]
        precision: Any = "fp32" if stem == REFERENCE else options.precision
        made = export(
            own if self.source.native is None else self._live(own, recipe),
            formats or ["onnx"],
            options.exports if formats else options.folder,
            precision=precision,
            resolutions=options.resolutions,
            bn_fusion=self.spec.bn_fusion,
            name=stem,
            seed=options.seed,
            force=True,
            evaluate=False,
            progress=self.progress,
        )
        files = [
            ShippedFile(item.path, item.format, item.sha256, item.size_bytes)
            for item in made.artifacts
        ]
        weights = own.with_suffix(".safetensors")
        size = tree_size(own) + tree_size(weights)
        files.append(ShippedFile(own, OWN_FORMAT, tree_sha256(own), size))
        if stem == OPTIMIZED:
            package = self.package(stem)
            files += [] if package is None else [package]
        return files

    def _live(self, own: Path, recipe: Recipe) -> NamedModel:
        """Return a network that was saved, as a model of the live module that it was made of."""
        weights = own.with_suffix(".safetensors")
        source = replace(self.source, label=own.name, weights=weights, recipe=recipe.to_dict())
        return NamedModel(own.stem, source, {}, None, tree_sha256(weights))

    def package(self, stem: str) -> ShippedFile | None:
        """Package a network that was saved; None where no other process can build it."""
        from .package import package

        is_live = self.source.native is not None
        if is_live:
            from .compress_live import why_not_rebuilt

            reason = why_not_rebuilt(self.source, self._outputs)
            if reason is not None:
                self.progress(f"no package is made: {reason}")
                return None
        try:
            made = package(
                self._with_golden(stem),
                self.options.folder / f"{stem}.ingot",
                force=True,
                progress=self.progress,
            )
        except IngotError as error:
            if not is_live:
                raise
            # Nobody said where the code of a live module lies: it was guessed.
            self.progress(f"no package is made: {error.message}")
            return None
        return ShippedFile(made.path, "package", made.sha256, made.size_bytes)

    def _with_golden(self, stem: str) -> ModelSpec:
        """Return the spec of a network that was saved, with golden inputs for its package."""
        from ..runtime.atomic import replacing
        from ..runtime.npz import dump_npz
        from ..specs import load_spec
        from ..specs.sections import TestSection

        saved = load_spec(self.options.folder / f"{stem}.json")
        given = self.spec.test
        if given is not None and given.inputs is not None:
            return replace(saved, test=replace(given, expected=None))
        path = self.options.folder / GOLDEN
        with replacing(path) as part:
            part.write_bytes(dump_npz(self._shapes().random(2, None, 0)))
        return replace(saved, test=TestSection(inputs=path))

    def evaluate(self, path: Path, split: str | None = None) -> Evaluation:
        """Measure a file on a split."""
        from .opened_files import opened

        loader = self.problem.split(split or self.split, "evaluation.eval_split")
        self.progress(f"evaluating {path.name}")
        kind = None
        if self.source.native is not None and isinstance(self._run(self.source.native), Mapping):
            from .compress_live import NamedAnswers

            kind = NamedAnswers
        with opened(self.problem, path, kind) as evaluate:
            return evaluate(loader)

    def compare(self, reference: Path, candidate: Path) -> Comparison:
        """Time two ONNX files in turns."""
        return compare_latency(reference, candidate, self._feeds(), self.options.threads)

    def draft(self, stem: str, network: nn.Module) -> Path:
        """Write an ONNX file to time, not checked, in the run's folder of drafts."""
        from ..exporters import Job, export_variants
        from ..exporters.variants import plan_variants
        from ..optimizers.pruning.modules import copy_module

        folder = self.options.folder / "drafts"
        folder.mkdir(exist_ok=True)
        shapes = self._shapes()
        variants = plan_variants(shapes, (), "both", self.source.label, False)[:1]
        held: Any = SimpleNamespace(native=copy_module(network).cpu())
        job = Job(replace(self.source, weights=None), held, stem, folder)
        return export_variants("onnx", job, variants)[0].path

    def remove_drafts(self) -> None:
        """Remove what was only written to be timed."""
        shutil.rmtree(self.options.folder / "drafts", ignore_errors=True)

    def _outputs(self, network: Any) -> list[Any]:
        """Return the tensors that a module returns for random inputs."""
        from ..optimizers.pruning.modules import tensors_in

        return list(tensors_in(self._run(network)))

    def _run(self, network: Any) -> Any:
        """Return what a copy of a module returns for random inputs."""
        import torch

        from ..exporters.torch_programs import arguments, tensors
        from ..optimizers.pruning.modules import copy_module

        feeds = self._shapes().random(2, None, 0)
        module = copy_module(network).cpu().eval()
        args, kwargs = arguments(module, tensors(feeds, self.source.label))
        with torch.no_grad():
            return module(*args, **kwargs)

    def _feeds(self) -> Mapping[str, Any]:
        return self._shapes().random(self.options.batch_size, None, 0)

    def _shapes(self) -> Shapes:
        from ..exporters.variants import shapes_of

        inputs, outputs = self.source.inputs, self.source.outputs
        if inputs is None or outputs is None:
            label = self.source.label
            raise SpecError(f"{label}: PyTorch code needs inputs and outputs in its spec")
        return shapes_of(inputs, outputs, "torch", {}, self.options.seed)


def onnx_of(files: Sequence[ShippedFile]) -> Path | None:
    """Return the first ONNX file, which latency is measured on."""
    return next((item.path for item in files if item.format == "onnx"), None)
