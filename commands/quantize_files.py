"""The files of a quantization: the float reference, what ships, and the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.atomic import replacing
from ..specs import ModelSpec
from .export import export
from .models import NamedModel
from .opened_files import of_batch, opened
from .shipping import GOLDEN, OPTIMIZED, REFERENCE

if TYPE_CHECKING:
    import numpy as np

    from ..exporters.variants import Mode
    from ..frameworks import ModelSource
    from ..optimizers.quantization.layers import QuantLayer
    from ..optimizers.quantization.plan import Plan
    from ..optimizers.verdict import ShippedFile
    from ..training.evaluation import Evaluation
    from ..training.problem import Problem

    Feeds = Mapping[str, np.ndarray[Any, Any]]

_GOLDEN_SAMPLES = 2


def mode_of(format_: str, source: ModelSource) -> Mode:
    """Return which file of a format is quantized: of free sizes, where there are any."""
    from ..exporters import FORMATS
    from ..frameworks import LoadOptions, open_model

    if source.framework in FORMATS[format_].static_sources:
        return "both"
    inputs = source.inputs
    if inputs is None and source.framework == "onnx":
        model = open_model(source, LoadOptions(threads=1))
        inputs = model.inputs
        model.close()
    sizes = [size for tensor in inputs or () for size in tensor.shape or ()]
    return "both" if sizes and all(isinstance(size, int) for size in sizes) else "dynamic"


class QuantizedFiles:
    """Writes and measures the files of one quantization.

    Args:
        problem: data and evaluation.
        model: the model that was given, as ``export`` takes it.
        folder: of the run.
        formats: to write, the first of which is measured.
        timing: samples and threads of a timed call.
        trust_code: a package may run the code that it carries.
        report: called with a line for each phase.
        stem: of the float files that candidates are made of.
    """

    def __init__(
        self,
        problem: Problem,
        model: NamedModel | ModelSpec,
        folder: Path,
        formats: tuple[str, ...],
        timing: tuple[int, int],
        trust_code: bool,
        report: Callable[[str], None],
        stem: str = REFERENCE,
    ) -> None:
        self.problem = problem
        self.model = model
        self.folder = folder
        self.formats = formats
        self.timing = timing
        self.trust_code = trust_code
        self.report = report
        self.stem = stem
        self.feeds: Sequence[Feeds] = ()
        section = problem.spec.export
        root = None if section is None else section.kwargs.root_path
        self._exports = root or folder

    @property
    def key(self) -> str:
        """What tells results that are written in other ways from each other."""
        from ..optimizers.run_key import hash_of

        told = [self.formats, self.problem.spec.bn_fusion, self.timing]
        return hash_of([*told, str(self._exports.absolute())])[:12]

    def path(self, stem: str, suffix: str) -> Path:
        """Return where a file of the result goes."""
        return self._exports / f"{stem}{suffix}"

    def write_float(self) -> list[ShippedFile]:
        """Export the model that was given, as float32, in every format; each file is checked."""
        from ..optimizers.verdict import ShippedFile

        found = []
        for name in self.formats:
            made = export(
                self.model,
                name,
                self._exports,
                precision="fp32",
                mode=mode_of(name, self.problem.source),
                bn_fusion=self.problem.spec.bn_fusion,
                name=self.stem,
                force=True,
                trust_code=self.trust_code,
                evaluate=False,
                progress=self.report,
            )
            item = made.artifacts[0]
            found.append(ShippedFile(item.path, item.format, item.sha256, item.size_bytes))
        return found

    def evaluate(self, path: Path, split: str) -> Evaluation:
        """Measure a file on a split."""
        self.report(f"evaluating {path.name}")
        loader = self.problem.split(split, "evaluation.eval_split")
        with opened(self.problem, path) as evaluate:
            return evaluate(loader)

    def others(self, plan: Plan, layers: Sequence[QuantLayer]) -> list[Path]:
        """Write the result in the formats that are not measured.

        Args:
            plan: precisions in the format that is.
            layers: of that format.
        """
        found = []
        for format_ in self.formats[1:]:
            from ..optimizers.quantization.tflite_candidates import TfliteCandidates

            reference = next(self._exports.glob(f"{self.stem}*.{format_}"))
            assert format_ == "tflite"
            candidates = TfliteCandidates(reference, self.feeds)
            path = self.path(OPTIMIZED, f".{format_}")
            candidates.write_like(plan, path, layers)
            found.append(path)
        return found

    def package(self, path: Path) -> ShippedFile | None:
        """Package an ONNX file with golden data; None for another format."""
        from ..optimizers.verdict import ShippedFile
        from ..runtime.npz import dump_npz
        from ..specs.model import ModelSection
        from ..specs.sections import TestSection
        from .package import package

        if path.suffix != ".onnx":
            return None
        source = self.problem.source
        given = self.problem.spec.test
        golden = None if given is None else given.inputs
        if golden is None:
            golden = self.folder / GOLDEN
            first = of_batch(self.feeds, _GOLDEN_SAMPLES, path)
            with replacing(golden) as part:
                part.write_bytes(dump_npz(first))
        test = TestSection(inputs=golden)
        if given is not None:
            test = replace(given, inputs=golden, expected=None)
        spec = ModelSpec(
            model=ModelSection(framework="onnx", file=path),
            name=self.problem.spec.name,
            inputs=source.inputs,
            outputs=source.outputs,
            test=test,
            license=self.problem.spec.license,
        )
        target = self.folder / f"{OPTIMIZED}.ingot"
        made = package(spec, target, force=True, progress=self.report)
        return ShippedFile(made.path, "package", made.sha256, made.size_bytes)
