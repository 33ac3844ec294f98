"""Specs made of several parts: ``problem: FILE``, and ``--set key.path=value``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ingot import SpecError
from ingot.specs import ModelSpec, Stage, TensorSpec, load_spec

TENSORS = {
    "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
    "outputs": [{"name": "logits", "dtype": "float64", "shape": ["batch", 10]}],
}
MODEL = {"framework": "onnx", "file": "m.onnx"}
STAGES = [{"mode": "compression", "delta": 0.5}, {"mode": "quantization"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the specs of this module name."""
    for name in ("m.onnx", "in.npz", "out.npz"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def write(folder: Path, values: dict[str, Any], name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
    return path


def load(folder: Path, values: dict[str, Any], *overrides: str) -> ModelSpec:
    return load_spec(write(folder, values), overrides)


def onnx(**more: Any) -> dict[str, Any]:
    return {"model": dict(MODEL), **more}


def full() -> dict[str, Any]:
    code = {"framework": "python", "entrypoint": "net:build", "kwargs": {"width": 8}}
    test = {"inputs": "in.npz"}
    return {"model": code, **TENSORS, "test": test, "loss": "mse", "run_key": "a"}


class TestProblem:
    """``problem: FILE`` shares inputs, outputs and test."""

    @pytest.fixture
    def shared(self, folder: Path) -> Path:
        (folder / "shared").mkdir()
        (folder / "shared" / "in.npz").write_bytes(b"")
        test = {"inputs": "in.npz", "rtol": 0.5}
        return write(folder / "shared", {**TENSORS, "test": test}, "problem.yaml")

    def test_it_supplies_them_with_its_own_paths(self, folder: Path, shared: Path) -> None:
        spec = load(folder, onnx(problem="shared/problem.yaml"))

        assert spec.problem == shared
        assert [tensor.name for tensor in spec.inputs or ()] == ["image"]
        assert spec.test is not None
        assert spec.test.inputs == folder / "shared" / "in.npz"

    def test_an_equal_value_may_stand_in_both_places(self, folder: Path, shared: Path) -> None:
        double = [{**TENSORS["outputs"][0], "dtype": "double"}]

        spec = load(folder, onnx(problem="shared/problem.yaml", output_spec=double))

        assert spec.outputs == (TensorSpec("logits", "float64", ("batch", 10)),)

    def test_another_value_is_an_error(self, folder: Path, shared: Path) -> None:
        with pytest.raises(SpecError, match=r"spec\.yaml:\d+: inputs: differs from 'inputs' in"):
            load(folder, onnx(inputs=[], problem="shared/problem.yaml"))

    def test_errors_name_the_problem_file(self, folder: Path, shared: Path) -> None:
        write(folder / "shared", {"inputs": [{"name": "x"}]}, "problem.yaml")
        with pytest.raises(SpecError, match=r"problem\.yaml:3: inputs\[0\]: the key 'dtype'"):
            load(folder, onnx(problem="shared/problem.yaml"))
        write(folder / "shared", {"modle": {}}, "problem.yaml")
        with pytest.raises(SpecError, match=r"problem\.yaml:2: modle: unknown key"):
            load(folder, onnx(problem="shared/problem.yaml"))

    def test_it_has_to_be_there(self, folder: Path) -> None:
        with pytest.raises(SpecError, match=r"spec\.yaml:\d: problem: .*no\.yaml: no such file"):
            load(folder, onnx(problem="no.yaml"))

    def test_it_can_be_overridden(self, folder: Path, shared: Path) -> None:
        spec = load(folder, onnx(), "test.rtol=0.1", "problem=shared/problem.yaml")

        assert spec.test is not None
        assert spec.test.rtol == 0.1
        assert spec.test.inputs == folder / "shared" / "in.npz"


class TestOverrides:
    """``--set key.path=value``."""

    @pytest.mark.parametrize(
        ("text", "get", "expected"),
        [
            ("optimization.delta=0.5", lambda spec: spec.optimization[0].delta, 0.5),
            ("delta=0.5", lambda spec: spec.optimization[0].delta, 0.5),
            ("optimization=latency", lambda spec: spec.optimization[0].mode, "latency"),
            ("optimization[0].level=2", lambda spec: spec.optimization[0].level, 2),
            ("eval_key=mAP", lambda spec: spec.evaluation.eval_key, "mAP"),
            ("inputs[0].shape=[n, 2]", lambda spec: spec.inputs[0].shape, ("n", 2)),
            ("input_spec[0].shape[1]=null", lambda s: s.inputs[0].shape[1], None),
            ("model_name=other", lambda spec: spec.name, "other"),
            ("model.kwargs.width=1e1", lambda spec: spec.model.kwargs["width"], 10.0),
            ("model.kwargs.a.b.c=x=y", lambda s: s.model.kwargs["a"], {"b": {"c": "x=y"}}),
            ("run_key=", lambda spec: spec.run_key, None),
            (
                'custom_compression.layers["model.block.0.conv1"].precision=4',
                lambda s: s.custom_compression.layers["model.block.0.conv1"].precision,
                4,
            ),
            (
                "custom_compression.quant_args.skip_layers=[]",
                lambda s: s.custom_compression.quantization_args.skip_layers,
                (),
            ),
            ("loss.reduction=sum", lambda s: s.loss.kwargs["reduction"], "sum"),
            ("test.inputs=out.npz", lambda spec: spec.test.inputs.name, "out.npz"),
        ],
    )
    def test_they_change_any_key(self, text: str, get: Any, expected: Any, folder: Path) -> None:
        assert get(load(folder, {**full(), "optimization": "compression"}, text)) == expected

    def test_without_an_index_every_stage_is_meant(self, folder: Path) -> None:
        stages = load(folder, onnx(optimization=STAGES), "optimization.delta=0.25").optimization

        assert [stage.delta for stage in stages] == [0.25, 0.25]

    def test_they_reach_through_shorthands_and_make_sections(self, folder: Path) -> None:
        values = onnx(optimization="latency", delta=2)

        spec = load(folder, values, "delta=1", "export.kwargs.precision=fp16", "eval_split=val")

        assert spec.optimization == (Stage("latency", 1.0),)
        assert spec.export is not None
        assert spec.export.kwargs.precision == "fp16"
        assert spec.evaluation.eval_split == "val"

    def test_the_last_one_counts(self, folder: Path) -> None:
        assert load(folder, onnx(), "name=a", "name=b").name == "b"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("model.frmework=torch", "--set: model.frmework: unknown key"),
            ("modle.file=x", "--set: modle: unknown key"),
            ("delta=much", "--set: delta: found 'much'; expected a number of at least 0"),
            ("inputs[0].shape=[0]", "--set: inputs[0].shape[0]: tensor 'image': found 0"),
            ("model.file.x=1", "--set: model.file.x: 'model.file' is 'm.onnx'; expected a mapping"),
            ("model[0]=1", "--set: model[0]: 'model' is a mapping; expected a list"),
            ("inputs[3].name=x", "--set: inputs[3].name: 'inputs' has 1 entries"),
            ("delta", "--set: found 'delta'; expected key.path=value"),
            ("=1", "--set: found '=1'; expected key.path=value"),
            ("a..b=1", "expected key.path=value"),
            ("[0]=1", "expected key.path=value"),
            ("name=[a", "--set: name: not valid YAML"),
            ("model.file=gone.onnx", "gone.onnx: no such file"),
        ],
    )
    def test_a_bad_one_is_an_error(self, text: str, message: str, folder: Path) -> None:
        with pytest.raises(SpecError) as caught:
            load(folder, {**onnx(), **TENSORS}, text)

        assert message in str(caught.value)
        assert caught.value.file == "--set"
