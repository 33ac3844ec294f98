"""Every error of the spec loader: one line with file, line, key, what was found and expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ingot import SpecError
from ingot.specs import ModelSpec, load_spec

MODEL = "model: {framework: onnx, file: m.onnx}\n"
INPUT = "inputs: [{name: x, dtype: float32, shape: [2]}]\n"
OUTPUT = "outputs: [{name: y, dtype: float32, shape: [2]}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("m.onnx", "w.safetensors", "out.npz", "req.lock"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "code").mkdir()
    return tmp_path


def refused(folder: Path, content: str | bytes, name: str = "spec.yaml") -> SpecError:
    """Load a spec that has to be refused; return the error, which is one line."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert "\n" not in str(caught.value)
    assert caught.value.file == path
    return caught.value


def model(framework: str, *lines: str) -> str:
    rest = "".join(f"  {line}\n" for line in lines)
    return f"model:\n  framework: {framework}\n{rest}"


FILES: dict[str, tuple[str, str | bytes, int | None, str]] = {
    "empty": ("spec.yaml", "", None, "found nothing; expected a mapping"),
    "comments": ("spec.yaml", "# nothing\n", None, "found nothing; expected a mapping"),
    "empty json": ("spec.json", " \n", None, "found nothing; expected a mapping"),
    "empty toml": ("spec.toml", "", None, "found nothing; expected a mapping"),
    "a list": ("spec.yaml", "- a\n", None, "found a list; expected a mapping"),
    "text": ("spec.yaml", "hello", None, "found 'hello'; expected a mapping"),
    "json list": ("spec.json", "[]", None, "found an empty list; expected a mapping"),
    "binary": ("spec.yaml", b"PK\3\4\0\0", None, "found a binary file; expected text"),
    "latin 1": ("spec.yaml", "name: a\nloss: é".encode("latin-1"), 2, "not UTF-8 text"),
    "control": ("spec.yaml", "name: a\nloss: \x01", 2, "not valid YAML: special characters"),
    "large": ("spec.yaml", b"#" * (1 << 21), None, "larger than 262144 bytes"),
    "suffix": ("spec.ymal", "name: a", None, "found the suffix '.ymal'; expected one of .yaml"),
    "yaml syntax": ("spec.yaml", "name: a\nmodel: {", 2, "not valid YAML: while parsing"),
    "yaml tab": ("spec.yaml", "model:\n\tframework: onnx", 2, "not valid YAML"),
    "two documents": ("spec.yaml", "a: 1\n---\nb: 1\n", 2, "expected a single document"),
    "unknown anchor": ("spec.yaml", "name: *a\n", 1, "undefined alias"),
    "python tag": ("spec.yaml", "a: 1\nb: !!python/name:os.system\n", 2, "found the YAML tag"),
    "binary tag": ("spec.yaml", "b: !!binary aGk=\n", 1, "found the YAML tag '!!binary'"),
    "wrong tag": ("spec.yaml", "b: !!int x\n", 1, "found 'x'; expected a value of the YAML type"),
    "yaml twice": ("spec.yaml", "name: a\nrun_key: b\nname: c\n", 3, "first in line 1"),
    "nested twice": ("spec.yaml", "model:\n  file: a\n  file: b\n", 3, "first in line 2"),
    "number as key": ("spec.yaml", "name: a\nloss: {name: mse, 1: x}\n", 2, "found the key 1"),
    "list as key": ("spec.yaml", "[a]: x\n", 1, "found the key a list; expected text"),
    "merge": ("spec.yaml", "loss: {<<: 1}\n", 1, "found no mapping behind '<<'"),
    "json syntax": ("spec.json", '{"name":\n "a",}', 2, "not valid JSON: "),
    "json twice": ("spec.json", '{\t"name": "a",\n\t"name": "b"}', 2, "given twice"),
    "json NaN": ("spec.json", '{"delta": NaN}', None, "found NaN, which is no JSON number"),
    "toml syntax": ("spec.toml", 'name = "a"\nmodel = \n', 2, "not valid TOML: "),
    "toml twice": ("spec.toml", 'name = "a"\nname = "b"\n', 2, "not valid TOML: "),
    "deep yaml": ("spec.yaml", "a: " + "[" * 20_000, None, "not valid YAML: nested too deeply"),
    "deep json": ("spec.json", '{"a":' + "[" * 200_000, None, "nested too deeply"),
    "long toml key": (
        "spec.toml",
        "a" + ".a" * 100_000 + " = 1",
        None,
        "more than 200 dots in one",
    ),
    "deep toml": ("spec.toml", "a = " + "[" * 20_000, None, "nested too deeply"),
    "deeper than any spec": ("spec.json", '{"a":' + "[" * 90 + "]" * 90 + "}", None, "64 levels"),
    "alias in itself": ("spec.yaml", "a: &a [*a]\n", 1, "an alias that contains itself"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_holds_no_spec(case: str, folder: Path) -> None:
    name, content, line, message = FILES[case]
    error = refused(folder, content, name)

    assert message in str(error)
    assert error.line == line
    assert len(str(error)) < 500


def test_an_alias_bomb_ends_quickly(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]

    assert "aliases" in str(refused(folder, "\n".join(lines)))


def test_a_path_that_is_no_file(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"gone\.yaml: no such file"):
        load_spec(folder / "gone.yaml")
    with pytest.raises(SpecError, match=r"code: found a folder; expected a spec file"):
        load_spec(folder / "code")
    with pytest.raises(SpecError, match="home folder"):
        load_spec("~nobody-of-that-name/spec.yaml")


TOP = MODEL + INPUT + OUTPUT

VALUES: dict[str, tuple[str, int | None, str, str, str | None]] = {
    "unknown": (MODEL + "optimisation: x\n", 2, "optimisation", "unknown key", "'optimization'"),
    "in model": (MODEL + "entrypoint: a:b\n", 2, "entrypoint", "unknown key", "'model.entrypoint'"),
    "framework": ("model: {framework: pytorch, file: m}\n", 1, "model.framework",
                  "found 'pytorch'; expected one of torch, torchscript", "'torch'"),
    "no framework": ("model: {file: m}\n", 1, "model", "the key 'framework' is missing", None),
    "no model": ("name: a\n", None, "None", "the key 'model' is missing", None),
    "model is text": ("model: a.onnx\n", 1, "model", "found 'a.onnx'; expected a mapping", None),
    "name": (MODEL + "name: a/b\n", 2, "name", "found 'a/b'; expected a name that can", None),
    "dots": (MODEL + "name: ..\n", 2, "name", "found '..'", None),
    "name is a number": (MODEL + "name: 1\n", 2, "name", "found 1; expected a name", None),
    "alias": (MODEL + "name: a\nmodel_name: b\n", 3, "model_name",
              "'name' in line 2 says the same with another value", None),
    "inputs": (MODEL + "inputs: x\n", 2, "inputs", "expected a list of tensor specs", None),
    "no dtype": (MODEL + "inputs:\n  - name: x\n", 3, "inputs[0]", "'dtype' is missing", None),
    "tensor key": (MODEL + "inputs:\n  - name: x\n    dtype: int8\n    shap: []\n", 5,
                   "inputs[0].shap", "unknown key 'shap'", "'shape'"),
    "dtype": (MODEL + "inputs:\n  - {name: x, shape: [],\n     dtype: flot32}\n", 4,
              "inputs[0].dtype", "unknown dtype 'flot32'", "'float32'"),
    "zero": (MODEL + "inputs:\n  - name: x\n    dtype: int8\n    shape:\n    - 1\n    - 0\n", 7,
             "inputs[0].shape[1]", "tensor 'x': found 0; expected a positive integer", None),
    "same tensor": (MODEL + INPUT.replace("]\n", ",\n {name: x, dtype: int8, shape: []}]\n"), 3,
                    "inputs[1].name", "a second tensor named 'x'", None),
    "expected alone": (MODEL + "test: {expected: out.npz}\n", 2, "test.expected",
                       "found without 'inputs'; expected both or neither", None),
    "rtol": (MODEL + "test:\n  rtol: -1\n", 3, "test.rtol",
             "found -1; expected a number of at least 0", None),
    "nan": (MODEL + "test: {rtol: .nan}\n", 2, "test.rtol", "found nan; expected", None),
    "inf": (MODEL + "delta: .inf\n", 2, "delta", "found inf; expected a number", None),
    "huge": (MODEL + f"delta: 1{'0' * 400}\n", 2, "delta", "found a huge integer", None),
    "bool as number": (MODEL + "delta: true\n", 2, "delta", "found true; expected", None),
    "text as number": (MODEL + "delta: '1'\n", 2, "delta", "found '1'; expected", None),
    "null": (MODEL + "delta:\n", 2, "delta", "found null; expected a number", None),
    "level": (MODEL + "level: true\n", 2, "level", "found true; expected one of 1, 2, 3", None),
    "mode": (MODEL + "optimization: compresion\n", 2, "optimization",
             "found 'compresion'; expected one of compression, latency", "'compression'"),
    "no stage": (MODEL + "optimization: []\n", 2, "optimization", "at least 1", None),
    "mode twice": (MODEL + "optimization: [latency, latency]\n", 2, "optimization[1]",
                   "a second stage with the mode 'latency'", None),
    "two deltas": (MODEL + "optimization:\n- {mode: latency, delta: 1}\n"
                   "- {mode: quantization, delta: 2}\n", 3, "optimization[0].delta",
                   "says the same with another value", None),
    "two places": (MODEL + "optimization: {delta: 1}\ndelta: 2\n", 3, "delta",
                   "'optimization.delta' in line 2 says the same with another value", None),
    "device": (MODEL + "device: tpu\n", 2, "device", "found 'tpu'; expected one of CPU, GPU", None),
    "integer": (MODEL + "full_trainer: {epochs: 1.5}\n", 2, "full_trainer.epochs",
                "found 1.5; expected an integer of at least 0", None),
    "share": (MODEL + "custom_compression: {quantization_args: {skip_layers_ratio: 2}}\n", 2,
              "custom_compression.quantization_args.skip_layers_ratio",
              "found 2; expected a number from 0 to 1", None),
    "bits": (MODEL + "custom_compression:\n  layers:\n    a.b: {precision: 0}\n", 4,
             "custom_compression.layers['a.b'].precision", "an integer from 1 to 32", None),
    "pattern": (MODEL + "forward_pass: {model_input_pattern: [0, 2]}\n", 2,
                "forward_pass.model_input_pattern", "expected every argument position", None),
    "pattern entry": (MODEL + "forward_pass: {model_input_pattern: [0, x]}\n", 2,
                      "forward_pass.model_input_pattern[1]", "found 'x'; expected", None),
    "range": (MODEL + "evaluation: {range: [1, 0]}\n", 2, "evaluation.range",
              "found [1.0, 0.0]; expected the lowest value, then the highest", None),
    "range length": (MODEL + "evaluation: {range: [1]}\n", 2, "evaluation.range",
                     "found 1 values; expected a list of 2 values", None),
    "format": (MODEL + "export: {format: [onnx, onx]}\n", 2, "export.format[1]",
               "found 'onx'; expected one of onnx, jit", "'onnx'"),
    "resolution": (MODEL + "export: {kwargs: {resolutions: [[0, 1]]}}\n", 2,
                   "export.kwargs.resolutions[0][0]", "an integer of at least 1", None),
    "scheduler": (MODEL + "full_trainer: {scheduler: {factory: a, eval_based: true,"
                  " interval: epoch}}\n", 2, "full_trainer.scheduler.interval", "'epoch'", None),
    "no optimizer name": (MODEL + "full_trainer: {optimizer: {lr: 1}}\n", 2,
                          "full_trainer.optimizer", "the key 'name' is missing", None),
    "loss": (MODEL + "loss: 'a b'\n", 2, "loss", "a built-in name or module:attribute", None),
    "loss list": (MODEL + "loss: [a]\n", 2, "loss", "a name, or a mapping", None),
    "no splits": (MODEL + "data: {}\n", 2, "data", "the key 'splits' is missing", None),
    "external loop": (MODEL + "external_training_loop: Trainer\n", 2, "external_training_loop",
                      "found 'Trainer'; expected module:attribute", None),
    "task": (MODEL + "task_type: classify\n", 2, "task_type", "found 'classify'", None),
    "no problem": (MODEL + "problem: 3\n", 2, "problem", "found 3; expected a path", None),
    "run key": (MODEL + "run_key: ''\n", 2, "run_key", "found ''; expected text", None),
    "loop": (MODEL + "fine_tuner: {loop_params: {epoch: 1}}\n", 2, "fine_tuner.loop_params.epoch",
             "unknown key 'epoch'", "'epochs'"),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_a_wrong_value(case: str, folder: Path) -> None:
    content, line, key, message, near = VALUES[case]
    error = refused(folder, content)

    assert message in str(error)
    assert (error.line, str(error.key)) == (line, key)
    assert near is None or (error.hint or "").endswith(f"{near}?")


TORCH = ("entrypoint: net:build",)

MODELS: dict[str, tuple[str, str, str]] = {
    "no entrypoint": (model("torch"), "model", "'entrypoint' is missing; a torch model needs it"),
    "no python": (model("python"), "model", "'entrypoint' is missing"),
    "no file": (model("onnx"), "model", "'file' is missing; a onnx model needs it"),
    "no directory": (model("ludwig"), "model", "'directory' is missing"),
    "file of torch": (model("torch", *TORCH, "file: m.onnx"), "model.file",
                      "a torch model has no such key; expected entrypoint"),
    "weights of python": (model("python", *TORCH, "weights: w.safetensors"), "model.weights",
                          "a python model has no such key"),
    "no tensorflow": (model("tensorflow"), "model",
                      "found neither; expected exactly one of saved_model, graph"),
    "both": (model("tensorflow", "saved_model: code", "graph: m.onnx"), "model",
             "found saved_model and graph; expected exactly one"),
    "no mapping": (model("tensorflow", "graph: m.onnx"), "model",
                   "'node_name_mapping' is missing; 'graph' needs it"),
    "half a mapping": (model("tensorflow", "graph: m.onnx", "node_name_mapping: {x: a}"),
                       "model.node_name_mapping", "no entry for 'y'"),
    "mapping of a SavedModel": (model("tensorflow", "saved_model: code",
                                       "node_name_mapping: {x: a}"),
                                "model.node_name_mapping", "goes with 'graph'"),
    "form": (model("torch", "entrypoint: build"), "model.entrypoint",
             "found 'build'; expected module:attribute"),
    "spaces": (model("torch", "entrypoint: 'net: build'"), "model.entrypoint", "expected module:"),
    "file name": (model("torch", "entrypoint: 'net.py:build'", "weights: x"), "model.weights",
                  "no such file"),
    "gone": (model("torch", *TORCH, "weights: gone.pt"), "model.weights", "gone.pt: no such file"),
    "folder": (model("onnx", "file: code"), "model.file", "code: found a folder; expected a file"),
    "file": (model("ludwig", "directory: m.onnx"), "model.directory", "found a file; expected a"),
    "no folder": (model("ludwig", "directory: gone"), "model.directory", "gone: no such folder"),
    "long path": (model("onnx", f"file: {'x' * 5000}"), "model.file", "cannot be read"),
    "nul": (model("onnx", 'file: "a\\0"'), "model.file", "expected a path"),
    "home": (model("onnx", "file: ~nobody-of-that-name/m"), "model.file", "home folder"),
    "outside": (model("torch", *TORCH, "code_path_spec:", "- python_root: code",
                      "  dirs_to_package: [../x]"), "model.code_path_spec[0].dirs_to_package",
                "found '../x'; expected folders below python_root"),
    "packaged outside": (model("torch", *TORCH, "data_paths: [{path: m.onnx, packaged_name: /x}]"),
                         "model.data_paths[0].packaged_name", "expected a relative path"),
    "one name": (model("torch", *TORCH, "data_paths: [{path: m.onnx}, {path: m.onnx}]"),
                 "model.data_paths", "two files with the packaged name 'm.onnx'"),
    "lock": (model("torch", *TORCH, "requirements: a", "requirements_lock: req.lock"),
             "model.requirements_lock", "found beside 'requirements'; expected one"),
    "requirements file": (model("torch", *TORCH, "requirements: requirements.txt"),
                          "model.requirements", "not the name of a file"),
    "versions": (model("onnx", "file: m.onnx", "platform_version_semver: newest"),
                 "model.platform_version_semver", "expected an npm-style version range"),
    "device": (model("onnx", "file: m.onnx", "input_tensor_device: {x: tpu}"),
               "model.input_tensor_device.x", "found 'tpu'; expected one of CPU, GPU"),
    "device of": (model("onnx", "file: m.onnx", "input_tensor_device: {z: CPU}"),
                  "model.input_tensor_device", "found 'z'; expected the name of an input (x)"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_what_a_framework_needs(case: str, folder: Path) -> None:
    content, key, message = MODELS[case]
    error = refused(folder, INPUT + OUTPUT + content)

    assert message in str(error)
    assert error.key == key
    assert error.line is not None
    assert error.line >= 3


@pytest.mark.parametrize("framework", ["torch", "python", "torchscript"])
def test_models_that_do_not_say_their_tensors(framework: str, folder: Path) -> None:
    keys = ("file: m.onnx",) if framework == "torchscript" else TORCH
    error = refused(folder, INPUT + model(framework, *keys))

    assert "the key 'outputs' is missing" in str(error)


def test_lines_in_json_and_toml(folder: Path) -> None:
    text = (
        '{\n\t"model": {"framework": "onnx",\n\t\t"file": "m.onnx"},\n\t"test": {\n\t"rtol": "x"}}'
    )
    assert refused(folder, text, "spec.json").line == 5

    text = '[model]\nframework = "onnx"\nfile = "m.onnx"\n[[inputs]]\nname = "x"\ndtype = "int8"\n'
    text += 'shape = []\n[[inputs]]\nname = "y"\ndtype = "int9"\nshape = []\n'
    error = refused(folder, text, "spec.toml")
    assert (error.key, error.line) == ("inputs[1].dtype", 10)

    text = (
        'model.framework = "onnx"\nmodel.file = "m.onnx"\n[full_trainer.scheduler]\nfactry = "a"\n'
    )
    error = refused(folder, text, "spec.toml")
    assert (error.key, error.line) == ("full_trainer.scheduler.factry", 4)


def test_a_mapping_that_is_no_plain_data(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["a"] = loop
    for mapping, message in [
        ({"model": object()}, "model: found an object of type object; expected text"),
        ({1: 2}, "found the key 1; expected text"),
        ({"a\nb": 1}, "unknown key 'a\\nb'"),
        (loop, "nested more than 64 levels deep"),
        ([], "found an empty list; expected a mapping"),
    ]:
        with pytest.raises(SpecError) as caught:
            ModelSpec.from_dict(mapping, tmp_path)  # type: ignore[arg-type]
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_form_of_an_error(folder: Path) -> None:
    error = refused(folder, "name: a\nmodel:\n  framework: onnx\n  fiel: m.onnx\n")

    assert str(error) == f"{folder / 'spec.yaml'}:4: model.fiel: unknown key 'fiel'"
    assert error.hint == "did you mean 'file'?"
    assert error.exit_code == 2


def test_a_python_file_as_entry_point_gets_a_hint(folder: Path) -> None:
    error = refused(
        folder, json.dumps({"model": {"framework": "torch", "entrypoint": "net.py:f g"}})
    )

    assert error.hint == "leave out '.py': it names a module"
