"""Loading a spec: the three formats, every section, other spellings, and paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ingot.specs import (
    Component,
    EmaSection,
    EvaluationSection,
    ForwardPassSection,
    ModelSpec,
    Stage,
    TensorSpec,
    load_spec,
)

TENSORS = {
    "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
    "outputs": [{"name": "logits", "dtype": "float", "shape": ["batch", 10]}],
}
ONNX = {"framework": "onnx", "file": "m.onnx"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the specs of this module name."""
    for name in ("m.onnx", "w.safetensors", "in.npz", "out.npz", "data.txt", "op.so", "req.lock"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "code").mkdir()
    return tmp_path


def full(folder: Path) -> dict[str, Any]:
    """A spec with every section, without null: TOML has none."""
    return {
        "name": "digits_cnn",
        "model": {
            "framework": "torch",
            "entrypoint": "net.cnn:build",
            "kwargs": {"width": 8, "names": ["on", "no", "y"], "deep": {"a": 1.5}},
            "weights": "w.safetensors",
            "code_path_spec": [{"python_root": "code", "dirs_to_package": [""]}],
            "data_paths": [{"path": "data.txt", "packaged_name": "words/data.txt"}],
            "requirements": ["numpy>=1.26", "regex"],
            "platform_version_semver": ">=2.1.0 <3",
            "custom_ops": ["op.so"],
            "input_tensor_device": {"image": "CPU"},
            "default_input_tensor_device": "GPU",
        },
        **TENSORS,
        "test": {"inputs": "in.npz", "expected": "out.npz", "rtol": 1e-3, "atol": 0},
        "task": "classification",
        "data": {"splits": "data:loaders", "kwargs": {"batch_size": 128}},
        "forward_pass": {"model_input_pattern": [1, 0, "_", 2], "expecting_common_inputs": True},
        "loss": {"name": "cross_entropy", "label_smoothing": 0.1},
        "evaluation": {
            "function": "data:accuracy",
            "eval_key": "accuracy",
            "eval_split": "val",
            "confirm_split": "test",
            "higher_is_better": True,
            "range": [0, 100],
        },
        "optimization": [
            {"mode": "compression", "delta": 0.5, "level": 2},
            {"mode": "quantization", "deepsearch": True, "device": "cpu"},
        ],
        "full_trainer": {
            "optimizer": {"name": "SGD", "lr": 0.05},
            "scheduler": {
                "factory": {"name": "ReduceLROnPlateau", "mode": "max"},
                "eval_based": True,
            },
            "epochs": 5,
            "eval_freq": 2,
            "ema": {"decay_rate": 0.99, "period": 4},
            "early_stopping_patience": 3,
        },
        "fine_tuner": {"loop_params": {"epochs": 1, "optimizer": {"name": "Adam"}}},
        "external_training_loop": "net:Trainer",
        "custom_compression": {
            "quantization_args": {"quantize_conv11": True, "skip_layers": [8, 9]},
            "layers": {"model.block.0.conv1": {"precision": 2}},
        },
        "bn_fusion": True,
        "export": {
            "format": ["onnx", "jit"],
            "kwargs": {
                "root_path": "out",
                "precision": "fp16",
                "resolutions": [[32, 32], [36, 36]],
            },
        },
        "training": {
            "inputter": {"name": "csv", "files": ["train.csv"]},
            "augmenter": "cifar",
            "network": {"name": "resnet20"},
            "callbacks": ["loss", {"name": "net:Logger", "every": 10}],
            "batch_size": 64,
        },
        "run_key": "digits-1",
        "license": "Apache-2.0",
    }


def dump_toml(values: dict[str, Any]) -> str:
    """Write TOML with inline values below the top level, which JSON nearly is."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {inline(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(inline, value)) + "]"
        return json.dumps(value)

    return "".join(f"{json.dumps(name)} = {inline(value)}\n" for name, value in values.items())


def write(folder: Path, values: dict[str, Any], name: str = "spec.yaml") -> Path:
    path = folder / name
    text = {
        ".json": lambda: json.dumps(values, indent="\t"),
        ".toml": lambda: dump_toml(values),
        ".yaml": lambda: yaml.safe_dump(values, sort_keys=False),
    }[path.suffix]()
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, values: dict[str, Any], *overrides: str) -> ModelSpec:
    return load_spec(write(folder, values), overrides)


def onnx(**more: Any) -> dict[str, Any]:
    return {"model": dict(ONNX), **more}


def test_every_section_is_read(folder: Path) -> None:
    spec = load(folder, full(folder))

    assert spec.path == folder / "spec.yaml"
    assert spec.root == folder
    assert spec.inputs == (TensorSpec("image", "float32", ("batch", 1, 8, 8)),)
    assert spec.outputs == (TensorSpec("logits", "float64", ("batch", 10)),)
    model = spec.model
    assert (model.framework, model.entrypoint) == ("torch", "net.cnn:build")
    assert model.kwargs == {"width": 8, "names": ["on", "no", "y"], "deep": {"a": 1.5}}
    assert model.weights == folder / "w.safetensors"
    assert model.code_path_spec is not None
    assert model.code_path_spec[0].python_root == folder / "code"
    assert model.code_path_spec[0].dirs_to_package == ("",)
    assert model.data_paths[0].path == folder / "data.txt"
    assert model.data_paths[0].packaged_name == "words/data.txt"
    assert model.requirements == ("numpy>=1.26", "regex")
    assert model.custom_ops == (folder / "op.so",)
    assert model.input_tensor_device == {"image": "CPU"}
    assert spec.test is not None
    assert spec.test.inputs == folder / "in.npz"
    assert spec.test.expected == folder / "out.npz"
    assert (spec.test.rtol, spec.test.atol) == (1e-3, 0.0)
    assert spec.task == "classification"
    assert spec.data is not None
    assert (spec.data.splits, spec.data.kwargs) == ("data:loaders", {"batch_size": 128})
    assert spec.forward_pass.model_input_pattern == (1, 0, "_", 2)
    assert spec.loss == Component("cross_entropy", {"label_smoothing": 0.1})
    assert spec.evaluation.range == (0.0, 100.0)
    assert spec.evaluation.eval_split == "val"
    assert spec.optimization == (
        Stage("compression", 0.5, 2),
        Stage("quantization", 0.5, 1, True, "CPU"),
    )
    trainer = spec.full_trainer
    assert trainer is not None
    assert trainer.optimizer == Component("SGD", {"lr": 0.05})
    assert trainer.scheduler is not None
    assert trainer.scheduler.factory == Component("ReduceLROnPlateau", {"mode": "max"})
    assert trainer.scheduler.interval == "eval"
    assert trainer.ema == EmaSection(0.99, 4)
    assert spec.fine_tuner is not None
    assert spec.fine_tuner.loop_params.epochs == 1
    assert spec.fine_tuner.loop_params.optimizer == Component("Adam")
    assert spec.external_training_loop == "net:Trainer"
    compression = spec.custom_compression
    assert compression is not None
    assert compression.quantization_args is not None
    assert compression.quantization_args.skip_layers == (8, 9)
    assert compression.layers["model.block.0.conv1"].precision == 2
    assert spec.export is not None
    assert spec.export.format == ("onnx", "jit")
    assert spec.export.kwargs.root_path == folder / "out"
    assert spec.export.kwargs.resolutions == ((32, 32), (36, 36))
    assert spec.training is not None
    assert spec.training.augmenter == Component("cifar")
    assert spec.training.callbacks == (Component("loss"), Component("net:Logger", {"every": 10}))
    assert spec.training.callbacks[1].is_entrypoint
    assert (spec.bn_fusion, spec.run_key, spec.license) == (True, "digits-1", "Apache-2.0")


def test_the_three_formats_give_equal_specs(folder: Path) -> None:
    specs = [
        load_spec(write(folder, full(folder), f"spec.{suffix}"))
        for suffix in ("yaml", "json", "toml")
    ]

    assert specs[0] == specs[1] == specs[2]
    assert specs[0] == ModelSpec.from_dict(full(folder), folder)


def test_what_a_short_spec_leaves_out_has_defaults(folder: Path) -> None:
    spec = load(folder, onnx())

    assert spec.name == "spec"
    assert spec.inputs is None
    assert spec.test is spec.data is spec.loss is spec.full_trainer is spec.export is None
    assert spec.custom_compression is spec.task is spec.bn_fusion is None
    assert spec.forward_pass == ForwardPassSection()
    assert spec.forward_pass.model_input_pattern == (0, "_")
    assert spec.evaluation == EvaluationSection()
    assert spec.optimization == (Stage(mode="compression", delta=1.0, level=1),)
    assert spec.model.platform_version_semver == "*"
    assert spec.model.default_input_tensor_device == "GPU"


def test_a_spec_that_is_dumped_loads_again(folder: Path) -> None:
    spec = load(folder, full(folder))

    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())), folder)

    assert again == spec


NEUTRINO = {
    "deepsearch": True,
    "level": 3,
    "delta": 2,
    "device": "GPU",
    "use_horovod": False,
    "task_type": "classification",
    "bn_fusion": True,
    "export": {"format": "onnx", "kwargs": {"precision": "fp16"}},
    "custom_compression": {"quant_args": {"skip_layers_ratio": 0.1, "skip_layers": None}},
    "full_trainer": {
        "optimizer": {"name": "SGD", "lr": 0.1},
        "scheduler": {"factory": "net:MySchedulerFactory", "eval_based": False},
        "epochs": 100,
        "eval_freq": 2,
        "eval_key": "mykey",
        "eval_split": "val",
        "ema": True,
    },
}


def test_a_neutrino_config_pastes_in(folder: Path) -> None:
    spec = load(folder, onnx(**NEUTRINO))

    assert spec.optimization == (Stage("compression", 2.0, 2, True, "GPU", False),)
    assert spec.task == "classification"
    assert spec.export is not None
    assert spec.export.format == ("onnx",)
    assert spec.custom_compression is not None
    assert spec.custom_compression.quantization_args is not None
    assert spec.custom_compression.quantization_args.skip_layers_ratio == 0.1
    assert spec.custom_compression.quantization_args.skip_layers == ()
    assert (spec.evaluation.eval_key, spec.evaluation.eval_split) == ("mykey", "val")
    assert spec.full_trainer is not None
    assert spec.full_trainer.ema == EmaSection()
    assert spec.full_trainer.scheduler is not None
    assert spec.full_trainer.scheduler.interval == "epoch"


def test_neuropod_names_are_read(folder: Path) -> None:
    spec = load(
        folder,
        onnx(model_name="m", input_spec=TENSORS["inputs"], output_spec=TENSORS["outputs"]),
    )

    assert spec.name == "m"
    assert spec.inputs is not None
    assert spec.outputs is not None
    assert load(folder, onnx(licence="MIT")).license == "MIT"


@pytest.mark.parametrize(
    ("value", "modes", "delta"),
    [
        ("latency", ["latency"], 1.0),
        ({"mode": "latency", "delta": 0.5}, ["latency"], 0.5),
        (["compression", "quantization"], ["compression", "quantization"], 1.0),
        (["compression", {"mode": "latency", "delta": 3}], ["compression", "latency"], 3.0),
    ],
)
def test_optimization_becomes_stages_with_one_delta(
    value: Any, modes: list[str], delta: float, folder: Path
) -> None:
    stages = load(folder, onnx(optimization=value)).optimization

    assert [stage.mode for stage in stages] == modes
    assert {stage.delta for stage in stages} == {delta}


def test_shorthands(folder: Path) -> None:
    spec = load(
        folder,
        onnx(
            loss="net:Loss",
            evaluation="net:evaluate",
            data="net:splits",
            forward_pass="net:Forward",
            full_trainer={"optimizer": "Adam", "scheduler": {"name": "StepLR", "step_size": 3}},
        ),
    )

    assert spec.loss == Component("net:Loss")
    assert spec.evaluation.function == "net:evaluate"
    assert spec.data is not None
    assert spec.data.splits == "net:splits"
    assert spec.forward_pass.name == "net:Forward"
    assert spec.full_trainer is not None
    assert spec.full_trainer.scheduler is not None
    assert spec.full_trainer.scheduler.factory == Component("StepLR", {"step_size": 3})


def test_yaml_follows_version_1_2(folder: Path) -> None:
    text = (
        "model: {framework: onnx, file: m.onnx}\n"
        "inputs: [{name: on, dtype: int8, shape: []}, {name: no, dtype: int8, shape: [y, 010]}]\n"
        "test: {inputs: in.npz, rtol: 1e-4, atol: 1E-5}\n"
        "loss: {name: mse, when: 2020-01-01, at: 1:30, yes: off}\n"
    )
    (folder / "spec.yml").write_text("\ufeff" + text, encoding="utf-8")

    spec = load_spec(folder / "spec.yml")

    assert [tensor.name for tensor in spec.inputs or ()] == ["on", "no"]
    assert (spec.inputs or ())[1].shape == ("y", 10)
    assert spec.test is not None
    assert (spec.test.rtol, spec.test.atol) == (1e-4, 1e-5)
    assert spec.loss is not None
    assert spec.loss.kwargs == {"when": "2020-01-01", "at": "1:30", "yes": "off"}


def test_yaml_anchors_and_merges(folder: Path) -> None:
    text = (
        "model: &m {framework: onnx, file: m.onnx}\n"
        "loss: &l {name: a, x: 1, y: 2}\n"
        "training: {network: {<<: *l, name: b, y: 3}, callbacks: [*l]}\n"
    )
    (folder / "spec.yaml").write_text(text)

    training = load_spec(folder / "spec.yaml").training

    assert training is not None
    assert training.network == Component("b", {"x": 1, "y": 3})
    assert training.callbacks == (Component("a", {"x": 1, "y": 2}),)


def test_requirements_as_text(folder: Path) -> None:
    model = {
        "framework": "python",
        "entrypoint": "net:build",
        "requirements": "numpy>=1.26  # arrays\n\n# more\nregex\n",
    }

    assert load(folder, {"model": model, **TENSORS}).model.requirements == ("numpy>=1.26", "regex")


def test_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder / "sub")

    home = load(folder, {"model": {"framework": "onnx", "file": "~/m.onnx"}})
    up = load(folder / "sub", {"model": {"framework": "onnx", "file": "../m.onnx"}})
    tilde = load_spec("~/spec.yaml")
    given = ModelSpec.from_dict({"model": {"framework": "onnx", "file": Path("m.onnx")}}, folder)
    absent = ModelSpec.from_dict(
        {"model": {"framework": "onnx", "file": "x.onnx"}}, check_files=False
    )

    assert home.model.file == up.model.file == tilde.model.file == folder / "m.onnx"
    assert given.model.file == folder / "m.onnx"
    assert absent.model.file == folder / "sub" / "x.onnx"
