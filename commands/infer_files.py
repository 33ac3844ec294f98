"""``infer --files``: run files or texts through the inputter of a spec and through a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputExistsError, UsageError
from ..runtime.atomic import replacing
from ..specs import ModelSpec, load_spec
from ..specs.declare import Component
from .tensor_io import check_output, encode_outputs, write_atomically

if TYPE_CHECKING:
    from ..training.displays import Display
    from ..training.prediction import Prediction, Predictor
    from ..training.problem import Problem


_LONGEST_NAME = 256
"""A sample with as many characters or more is a text, and no file."""


@dataclass(frozen=True)
class FilesResult:
    """The predictions of samples.

    Attributes:
        model: what was run, as it was named.
        predictions: one a sample, in their order.
        pictures: of each prediction the files that show it; empty without ``display``.
        path: the file that all were written to, or None.
    """

    model: str
    predictions: Sequence[Prediction]
    pictures: Sequence[Sequence[Path]] = ()
    path: Path | None = None
    _predictor: Predictor | None = field(default=None, repr=False)

    @property
    def outputs(self) -> dict[str, Any]:
        """The predictions as arrays by name: ``classes`` and ``probabilities``, ``masks``, ...

        Raises:
            UsageError: they are no arrays, or masks of several sizes.
        """
        assert self._predictor is not None
        return self._predictor.arrays(self.predictions)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        entries = [prediction.to_dict() for prediction in self.predictions]
        if self.pictures:
            for entry, paths in zip(entries, self.pictures, strict=True):
                entry["shown"] = [str(path.absolute()) for path in paths]
        return {
            "model": self.model,
            "predictions": entries,
            "path": None if self.path is None else str(self.path.absolute()),
        }


def infer_files(
    model: str | Path | ModelSpec,
    files: Sequence[str | Path] = (),
    *,
    spec: str | Path | ModelSpec | None = None,
    display: str | Path | None = None,
    output: str | Path | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    trust_code: bool = False,
    ignore_lock: bool = False,
    force: bool = False,
    overrides: Sequence[str] = (),
    isolation: Mapping[str, Any] | None = None,
) -> FilesResult:
    """Run files or texts through the inputter of a spec, and through its network.

    Args:
        model: a spec with weights; or, with ``spec``, a package or a model file.
        files: images, folders of them, or CSVs of their paths; for text what its predictor takes.
            ``training.test_samples`` by default.
        spec: says how samples are prepared and predictions are read, where the model is no spec.
        display: a folder for pictures or texts that show the predictions.
        output: a ``.json`` or ``.npz`` of all predictions.
        batch_size: samples a batch, in place of ``training.batch_size``.
        threads: threads of one operator.
        device: ``cpu``, ``gpu`` or ``gpu:N``; a GPU where there is one by default.
        trust_code: a package may run code that it carries.
        ignore_lock: run even if locked requirements differ from what is installed.
        force: replace existing files.
        overrides: ``key.path=value`` changes of the spec.
        isolation: the options of :func:`ingot.load` about worker processes, for a package or a
            model file.

    Raises:
        UsageError: there are no samples, or no spec; a file is there and ``force`` is not given.
        SpecError: the spec is invalid, or does not say what is predicted.
        InputError: a sample cannot be read, or the model returns something unexpected.
        ModelError: the model cannot be loaded, or fails.
    """
    from ..training.assess import user_code
    from ..training.prediction import predictor_of
    from ..training.torch_metrics import evaluating

    check_output(None if output is None else str(output), force)
    target = None if output is None else Path(output).expanduser()
    problem, is_own = _problem(model, spec, overrides, batch_size, device, threads)
    label = model.name if isinstance(model, ModelSpec) else str(model)
    options = {
        **(isolation or {}),
        "device": device or "cpu",
        "threads": threads,
        "trust_code": trust_code,
        "ignore_lock": ignore_lock,
    }
    with _opened(model, problem, is_own, options) as network:
        predictor = predictor_of(problem, network)
        samples = predictor.samples(_given(problem, files))
        if not samples:
            raise UsageError(
                f"{problem.label}: found no samples; expected --files, or training.test_samples"
            )
        shown = None if display is None else Shown(problem, predictor, display, samples, force)
        predictions: list[Prediction] = []
        with user_code(problem, "the prediction"), evaluating(network):
            for prediction in predictor.predict(samples):
                predictions.append(prediction)
                if shown is not None:
                    shown.write(prediction)
    result = FilesResult(
        label, predictions, () if shown is None else shown.files, target, predictor
    )
    if target is not None:
        _write(result, target)
    return result


class Shown:
    """The files that show predictions, made by the display callback of a spec.

    Args:
        problem: its callbacks may name a display; that of the predictor is taken otherwise.
        predictor: whose predictions they are.
        folder: where the files go; made when it is not there.
        samples: all samples.
        force: replace existing files.

    Attributes:
        files: those of each prediction that was written.

    Raises:
        OutputExistsError: a file is there, and not ``force``.
        SpecError: the callback of the spec is no display.
    """

    def __init__(
        self,
        problem: Problem,
        predictor: Predictor,
        folder: str | Path,
        samples: Sequence[str],
        force: bool,
    ) -> None:
        self._display = _display_of(problem, predictor)
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"--display {self.folder}: found a file; expected a folder")
        self._names = display_names(self._display, samples)
        self.files: list[list[Path]] = []
        for name in (name for names in self._names for name in names):
            if (self.folder / name).exists() and not force:
                raise OutputExistsError(
                    f"{self.folder / name}: exists already", hint="--force replaces it"
                )

    def write(self, prediction: Prediction) -> None:
        """Write the files of the next prediction."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self.folder / name for name in self._names[len(self.files)]]
        for path, content in zip(paths, self._display.contents(prediction), strict=True):
            with replacing(path) as temporary:
                if isinstance(content, str):
                    temporary.write_text(content, encoding="utf-8")
                else:
                    content.save(temporary, "PNG")
        self.files.append(paths)


def display_names(display: Display, samples: Sequence[str]) -> list[list[str]]:
    """Return the names of the files that show each sample: its own where it is a file.

    A name that an earlier sample has is numbered, so that no file is written twice.
    """
    found: list[list[str]] = []
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    for index, sample in enumerate(samples):
        stem = Path(sample).stem if len(sample) < _LONGEST_NAME else ""
        stem = re.sub(r"[^\w.-]+", "_", stem)[:64].strip("._") or f"sample_{index}"
        names = display.names(stem)
        # Upper and lower case are the same to some file systems.
        while taken & {name.lower() for name in names}:
            number = numbers[stem] = numbers.get(stem, 1) + 1
            before, names = names, display.names(f"{stem}_{number}")
            if names == before:  # a display of the user's own that writes to one file always
                break
        taken |= {name.lower() for name in names}
        found.append(names)
    return found


def _display_of(problem: Problem, predictor: Predictor) -> Display:
    """Return the first display among the callbacks of the spec, or that of the predictor."""
    from ..training.displays import Display

    components, key = problem.components, "training.callbacks"
    found = Component(predictor.display)
    for wanted in problem.training.callbacks:
        if not wanted.name.startswith("infer_") and not wanted.is_entrypoint:
            continue
        made = components.find("callback", wanted.name, key)
        if isinstance(made, type) and issubclass(made, Display):
            found = wanted
            break
    display: Display = components.make("callback", found, key)
    return display


def _problem(
    model: str | Path | ModelSpec,
    spec: str | Path | ModelSpec | None,
    overrides: Sequence[str],
    batch_size: int | None,
    device: str | None,
    threads: int | None,
) -> tuple[Problem, bool]:
    """Return the parts of the spec, and whether its own network is run."""
    from ..runtime.detect import detect, expand
    from ..training.hardware import choose_device, set_threads
    from ..training.problem import Problem

    is_own = isinstance(model, ModelSpec) or detect(expand(model)) == "spec"
    if is_own and spec is not None:
        raise UsageError("--spec: MODEL is a spec already; expected a package or a model file")
    if not is_own and spec is None:
        raise UsageError(
            f"{model}: does not say how files are prepared; expected a spec",
            hint="--spec SPEC names the one that it was trained with",
        )
    wanted = model if is_own else spec
    if batch_size is not None:
        overrides = [*overrides, f"training.batch_size={batch_size}"]
    if isinstance(wanted, ModelSpec):
        loaded = wanted
    else:
        assert wanted is not None
        # Weights of the spec are not read where another model is run.
        loaded = load_spec(wanted, overrides, check_files=is_own)
    framework = loaded.model.framework
    set_threads(threads, framework)
    return Problem(loaded, choose_device(device, False, framework)), is_own


@contextmanager
def _opened(
    model: Any, problem: Problem, is_own: bool, options: Mapping[str, Any]
) -> Iterator[Any]:
    """Open a model as something that is called with the arguments of the forward pass.

    Args:
        model: the spec, package or model file.
        problem: the parts of the spec.
        is_own: the network is that of the spec.
        options: those of :func:`ingot.load`.
    """
    from ..runtime import load
    from ..training.evaluation import CallableModel
    from .evaluate import warn_of_random_weights

    if is_own:
        if options.get("isolate"):
            raise UsageError(
                f"{problem.label}: --isolate is for packages and model files",
                hint="ingot package makes one; --spec names the spec beside it",
            )
        warn_of_random_weights(problem, strict=False)
        yield problem.load_network(options["threads"])
        return
    with load(model, **options) as loaded:
        yield CallableModel(loaded, str(model))


def _given(problem: Problem, files: Sequence[str | Path]) -> list[str]:
    """Return the samples that are named: those of the command, or ``training.test_samples``."""
    if files:
        return [str(file) for file in files]
    found = []
    for sample in problem.training.test_samples:
        path = problem.spec.root / sample if len(sample) < _LONGEST_NAME else None
        if path is not None and path.exists():
            is_below = path.is_relative_to(Path.cwd())
            sample = str(path.relative_to(Path.cwd()) if is_below else path)
        found.append(sample)
    return found


def _write(result: FilesResult, target: Path) -> None:
    from ..training.evaluation import json_values

    if target.suffix == ".npz":
        write_atomically(target, [encode_outputs(result.outputs, ".npz")])
        return
    text = json.dumps(json_values(result.to_dict()["predictions"]), allow_nan=False)
    write_atomically(target, [f"{text}\n".encode()])
