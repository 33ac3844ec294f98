"""Which format can be made of which model: the table of ``docs/export.md``, over real networks.

Every file is run with its own runtime, on another batch than any that the export has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import exports
import networks
import numpy as np
import pytest
from conftest import IngotCli

import ingot
from ingot.errors import IngotError, ModelError, UsageError

FORMATS = ("onnx", "jit", "pt2", "savedmodel", "tflite", "openvino")
_TORCH = ("onnx", "jit", "pt2", "tflite", "openvino")
_TENSORFLOW = ("onnx", "savedmodel", "tflite", "openvino")
POSSIBLE = {
    "torch": _TORCH,
    "torchscript": _TORCH,
    "keras": _TENSORFLOW,
    "tensorflow": _TENSORFLOW,
    "onnx": ("onnx", "openvino"),
    "python": (),
}
NAMES = {
    "torch": "PyTorch code",
    "torchscript": "TorchScript",
    "keras": "Keras",
    "tensorflow": "TensorFlow",
    "onnx": "ONNX",
    "python": "Python code",
}
FRAMEWORKS = {
    **dict.fromkeys(networks.NETWORKS, "torch"),
    "torchscript_cnn": "torchscript",
    **dict.fromkeys(("keras_cnn", "keras_lstm", "keras_two_inputs"), "keras"),
    **dict.fromkeys(("saved_model", "frozen_graph"), "tensorflow"),
    "strings": "python",
    "onnx_file": "onnx",
}
RESOLUTIONS = {
    "digits_cnn": "8x8",
    **dict.fromkeys(("resnet18", "mobilenet_v2", "torchscript_cnn"), "32x32"),
    "unet": "32x24",
    **dict.fromkeys(("two_inputs", "onnx_file"), "16x16"),
    **dict.fromkeys(("keras_cnn", "keras_two_inputs", "saved_model", "frozen_graph"), "16x16"),
}
REFUSED: dict[tuple[str, str], tuple[type[IngotError], str]] = {
    ("lstm", "pt2"): (
        ModelError,
        r"dimension 1 \(length\) of the input 'tokens' is free in the spec,"
        r" but torch\.export fixes it to 7",
    ),
    ("keras_lstm", "tflite"): (
        UsageError,
        r"recurrent layers .* only if their batch and time steps are fixed",
    ),
}
"""Cells where the format takes such models, but not this one with its free sizes."""

ROUNDING = 5e-5


@dataclass
class Exports:
    """Exports of a module, each made when it is first asked for."""

    folder: Path
    specs: dict[str, Path] = field(default_factory=dict)
    made: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    runs: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)

    def source(self, name: str) -> Path:
        if name == "onnx_file":
            return self.artifacts("two_inputs", "onnx")[0].path
        if name not in self.specs:
            self.specs[name] = networks.NETWORKS[name](self._new(name))
        return self.specs[name]

    def _new(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def out(self, name: str) -> Path:
        return self.folder / f"{name}_out"

    def artifacts(self, name: str, form: str) -> list[Any]:
        """Return the files of a format. Those of a network are made together, as most is shared.

        ``.pt2`` archives take the longest to check: only one is made.
        """
        if (name, form) not in self.made:
            possible = [item for item in POSSIBLE[FRAMEWORKS[name]] if _installed(item)]
            together = [item for item in possible if item != "pt2" and (name, item) not in REFUSED]
            result = ingot.export(
                self.source(name),
                "pt2" if form == "pt2" else together,
                self.out(name),
                mode="dynamic" if form == "pt2" else "both",
            )
            for artifact in result.artifacts:
                self.made.setdefault((name, artifact.format), []).append(artifact)
        return self.made[name, form]

    def run(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return inputs of a batch of 5, and what the source makes of them."""
        if name not in self.runs:
            source = "two_inputs" if name == "onnx_file" else name
            with np.load(self.source(source).parent / "golden.npz") as golden:
                feeds = {key: _of_batch(array, 5) for key, array in golden.items()}
            with ingot.load(self.source(name)) as model:
                self.runs[name] = feeds, dict(model.infer(feeds))
        return self.runs[name]


def _of_batch(array: np.ndarray, batch: int) -> np.ndarray:
    random = np.random.default_rng(11)
    shape = (batch, *array.shape[1:])
    if array.dtype.kind == "f":
        return random.random(shape, np.float32)
    return random.integers(0, networks.WORDS, shape)


def _installed(form: str) -> bool:
    return form != "openvino" or find_spec("openvino") is not None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("table"))


def _cells(possible: bool) -> list[Any]:
    without_openvino = pytest.mark.skipif(
        not _installed("openvino"), reason="OpenVINO is not installed: pip install ingot[openvino]"
    )
    cells = []
    for name, framework in FRAMEWORKS.items():
        for form in FORMATS:
            if (form in POSSIBLE[framework] and (name, form) not in REFUSED) is possible:
                marks = [pytest.mark.slow] if possible or (name, form) in REFUSED else []
                marks += [without_openvino] if possible and form == "openvino" else []
                cells.append(pytest.param(name, form, marks=marks, id=f"{name}-{form}"))
    return cells


def _file_names(name: str, form: str) -> list[str]:
    """The names that Neutrino gives: dynamic shape, then the data's own resolution."""
    stem = "two_inputs" if name == "onnx_file" else name
    if form in ("jit", "savedmodel"):
        return [f"{stem}_jit.pt" if form == "jit" else f"{stem}_savedmodel"]
    suffix = {"openvino": "xml"}.get(form, form)
    dynamic = f"{stem}fp32_dynamic_shape.{suffix}"
    fixed = f"{stem}{RESOLUTIONS.get(name, '')}fp32.{suffix}"
    if form == "tflite" and FRAMEWORKS[name] in ("torch", "torchscript"):
        return [fixed]
    if name not in RESOLUTIONS or form == "pt2":
        return [dynamic]
    return [dynamic, fixed]


@pytest.mark.parametrize(("name", "form"), _cells(possible=True))
def test_it_computes_what_its_source_does(made: Exports, name: str, form: str) -> None:
    artifacts = made.artifacts(name, form)
    assert [item.path.name for item in artifacts] == _file_names(name, form)
    feeds, expected = made.run(name)
    per_sample = form == "tflite" and FRAMEWORKS[name] in ("torch", "torchscript")
    for item in artifacts:
        assert 0 <= item.parity.worst.scaled < ROUNDING <= item.parity.tolerance
        assert item.parity.cosine == pytest.approx(1, abs=1e-6)
        assert item.parity.latency_ms > 0
        assert item.size_bytes > 0
        assert len(item.parity.inputs) >= 2, "batches of 1 and of 3"
        outputs = list(expected)
        if form == "onnx":
            actual = exports.run_onnx(item.path, feeds)
        elif form == "jit":
            actual = exports.run_jit(item.path, feeds, outputs)
        elif form == "pt2":
            actual = exports.run_pt2(item.path, feeds, outputs)
        elif form == "savedmodel":
            actual = exports.run_savedmodel(item.path, feeds)
        elif form == "tflite":
            actual = exports.run_tflite(item.path, feeds, per_sample)
        else:
            actual = exports.run_openvino(item.path, feeds)
        assert exports.worst(expected, actual) < ROUNDING, item.path.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_inputs", "keras_two_inputs"])
def test_files_have_the_names_of_the_spec(made: Exports, name: str) -> None:
    """In its order, too; and ``ingot.load`` takes the files by these names."""
    feeds, expected = made.run(name)
    for form in POSSIBLE[FRAMEWORKS[name]]:
        if form in ("jit", "pt2") or not _installed(form):
            continue  # they tell no names, or those of the code
        with ingot.load(made.artifacts(name, form)[0].path) as model:
            assert {spec.name for spec in model.inputs} == {"image", "features"}
            assert {spec.name for spec in model.outputs} == {"logits", "embedding"}
            if form == "onnx":
                assert [spec.name for spec in model.inputs] == list(feeds)
                assert [spec.name for spec in model.outputs] == ["logits", "embedding"]
                assert [spec.shape for spec in model.outputs] == [("batch", 3), ("batch", 6)]
            if form != "tflite":
                assert exports.worst(expected, model.infer(feeds)) < ROUNDING


@pytest.mark.slow
def test_free_sizes_are_free_in_the_file(made: Exports) -> None:
    """Height and width of a U-Net, the length of sequences: far from those traced and checked."""
    random = np.random.default_rng(5)
    cases = {
        "unet": {"image": random.random((2, 3, 20, 52), np.float32)},
        "transformer_encoder": {"tokens": random.integers(0, networks.WORDS, (2, 19))},
        "lstm": {"tokens": random.integers(0, networks.WORDS, (2, 19))},
        "keras_lstm": {"tokens": random.integers(0, networks.WORDS, (2, 19))},
    }
    for name, feeds in cases.items():
        with ingot.load(made.source(name)) as model:
            expected = dict(model.infer(feeds))
        (path,) = [item.path for item in made.artifacts(name, "onnx") if "dyn" in item.path.name]
        assert exports.worst(expected, exports.run_onnx(path, feeds)) < ROUNDING, name


@pytest.mark.parametrize(("name", "form"), _cells(possible=False))
def test_what_cannot_be_made_is_refused(made: Exports, name: str, form: str) -> None:
    if (name, form) in REFUSED:
        kind, pattern = REFUSED[name, form]
        with pytest.raises(kind, match=pattern) as raised:
            ingot.export(made.source(name), form, made.folder / "refused")
        assert raised.value.hint is not None
    else:
        # A damaged file would do as well: nothing is loaded for this.
        source = made.source(name) if name != "onnx_file" else made.folder / "damaged.onnx"
        if name == "onnx_file":
            source.write_bytes(b"\x00")
        possible = POSSIBLE[FRAMEWORKS[name]]
        with pytest.raises(UsageError) as raised:
            ingot.export(source, form, made.folder / "refused")
        assert raised.value.exit_code == 2
        expected = f"{NAMES[FRAMEWORKS[name]]} cannot be exported to {form}; possible: "
        assert f"{expected}{', '.join(possible) or 'nothing'}" in str(raised.value)
        assert raised.value.hint, "what to do instead"
    assert not (made.folder / "refused").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "keras_lstm"])
def test_what_needs_fixed_sizes_can_be_had_with_fixed_ones(made: Exports, name: str) -> None:
    form = {"lstm": "pt2", "keras_lstm": "tflite"}[name]
    result = ingot.export(made.source(name), form, made.out(name), mode="fixed")
    (artifact,) = result.artifacts
    assert artifact.path.name == f"{name}fp32.{form}"
    assert artifact.parity.worst.scaled < ROUNDING


def test_strings_are_refused_by_the_command(made: Exports, ingot_cli: IngotCli) -> None:
    done = ingot_cli("export", made.source("strings"), "--format", "onnx", "-o", "out")
    assert done.returncode == 2, done.stderr
    assert "Python code cannot be exported to onnx; possible: nothing" in done.stderr
    assert "ingot package" in done.stderr
    assert done.stdout == ""
