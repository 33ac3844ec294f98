"""The own format: a JSON spec beside safetensors, which stands wherever a spec can."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from models import INPUTS, SPEC_TENSORS, torch_scale, write

import ingot
from ingot.errors import ModelError, OutputExistsError, SpecError, UsageError
from ingot.runtime.package import Package
from ingot.specs import ModelSpec


def export(spec: Path, out: Path, **options: Any) -> Path:
    """Export to the own format; return the JSON file."""
    result = ingot.export(spec, "safetensors", out, **options)
    (artifact,) = result.artifacts
    assert artifact.companions == (artifact.path.with_suffix(".safetensors"),)
    assert sorted(out.iterdir()) == [artifact.path, *artifact.companions]
    return artifact.path


def change(path: Path, **keys: Any) -> Path:
    """Change keys of ``model``; None removes one."""
    document = json.loads(path.read_text())
    document["model"] |= keys
    document["model"] = {k: v for k, v in document["model"].items() if v is not None}
    path.write_text(json.dumps(document))
    return path


def assert_same(found: Path, source: Path, inputs: dict[str, np.ndarray], **options: Any) -> None:
    with ingot.load(source) as ours, ingot.load(found, **options) as theirs:
        expected, actual = ours.infer(inputs), theirs.infer(inputs)
    assert expected.keys() == actual.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)


@pytest.fixture(scope="module")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    networks.digits_cnn(folder / "code")
    export(folder / "code" / "digits_cnn.yaml", folder / "out")
    return folder


@pytest.fixture(scope="module")
def keras_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    networks.keras_cnn(folder / "code")
    export(folder / "code" / "keras_cnn.yaml", folder / "out")
    return folder


@pytest.fixture
def torch_json(torch_folder: Path, tmp_path: Path) -> Path:
    """A copy of the exported PyTorch network, which a test may spoil."""
    shutil.copytree(torch_folder, tmp_path / "copy")
    return tmp_path / "copy" / "out" / "digits_cnn.json"


@pytest.fixture
def keras_json(keras_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(keras_folder / "out", tmp_path / "copy")
    return tmp_path / "copy" / "keras_cnn.json"


def golden(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "golden.npz") as arrays:
        return dict(arrays)


def test_torch_weights_keep_their_names_and_code_stays_where_it_is(torch_folder: Path) -> None:
    from safetensors.numpy import load_file

    out, code = torch_folder / "out", torch_folder / "code"
    document = json.loads((out / "digits_cnn.json").read_text())

    assert document["format_version"] == 1
    assert document["name"] == "digits_cnn"
    model = document["model"]
    assert model["entrypoint"] == "net:build"
    assert model["weights"] == "digits_cnn.safetensors"
    assert model["code_path_spec"] == [{"python_root": "../code", "dirs_to_package": []}]
    saved = load_file(out / model["weights"])
    given = load_file(code / "net.safetensors")
    assert saved.keys() == given.keys()  # BatchNorm is not folded
    assert all(np.array_equal(saved[name], array) for name, array in given.items())
    assert_same(out / "digits_cnn.json", code / "digits_cnn.yaml", golden(code))


@pytest.mark.parametrize("make", [networks.two_inputs, torch_scale])
def test_other_torch_models_compute_the_same(make: Callable[..., Path], tmp_path: Path) -> None:
    source = make(tmp_path / "code")

    found = export(source, tmp_path / "deep" / "out")

    assert_same(found, source, golden(tmp_path / "code"))


def test_keras_models_hold_their_architecture(keras_folder: Path) -> None:
    out, code = keras_folder / "out", keras_folder / "code"
    model = json.loads((out / "keras_cnn.json").read_text())["model"]

    assert model["architecture"]["class_name"] == "Functional"
    assert "file" not in model
    assert_same(out / "keras_cnn.json", code / "keras_cnn.yaml", golden(code))


def test_a_keras_model_of_dicts_computes_the_same(tmp_path: Path) -> None:
    source = networks.keras_two_inputs(tmp_path / "code")

    found = export(source, tmp_path / "out")

    assert_same(found, source, golden(tmp_path / "code"))


def keras_file(folder: Path, make: Callable[[Any], Any]) -> Path:
    """Save what ``make(keras)`` returns; return the file."""
    from ingot.frameworks.keras import import_keras

    folder.mkdir(parents=True, exist_ok=True)
    make(import_keras()).save(folder / "net.keras")
    return folder / "net.keras"


def shared_names(keras: Any) -> Any:
    """Two models in a model, whose layers have the same names; and a Normalization layer."""

    def part(units: int) -> Any:
        x = keras.Input((4,))
        return keras.Model(x, keras.layers.Dense(units, name="dense")(x))

    x = keras.Input((4,), name="x")
    layer = keras.layers.Normalization()
    layer.adapt(np.arange(20, dtype=np.float32).reshape(5, 4) ** 2)
    scaled = layer(x)
    return keras.Model(x, keras.layers.Concatenate(name="y")([part(3)(scaled), part(3)(scaled)]))


def sequential(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.Bidirectional(layers.LSTM(3)),
            layers.Dense(2, dtype="bfloat16"),
            layers.Dense(2, dtype="float32"),
        ]
    )


@pytest.mark.parametrize(("make", "name"), [(shared_names, "x"), (sequential, "input")])
def test_variables_are_told_apart(make: Callable[[Any], Any], name: str, tmp_path: Path) -> None:
    source = keras_file(tmp_path, make)

    found = export(source, tmp_path / "out")

    shape = (3, 4) if name == "x" else (3, 6, 4)
    array = np.random.default_rng(0).random(shape, np.float32)
    assert_same(found, source, {name: array})
    if make is shared_names:
        again = export(found, tmp_path / "again")
        for suffix in (".json", ".safetensors"):
            assert again.with_suffix(suffix).read_bytes() == found.with_suffix(suffix).read_bytes()


def test_exports_repeat_byte_by_byte(
    torch_folder: Path, keras_folder: Path, tmp_path: Path
) -> None:
    for folder in (torch_folder, keras_folder):
        out = folder / "again"
        (source,) = (folder / "code").glob("*.yaml")
        again = export(source, out)
        for file in (again, again.with_suffix(".safetensors")):
            assert file.read_bytes() == (folder / "out" / file.name).read_bytes()
        shutil.rmtree(out)


@pytest.mark.parametrize("name", ["torch_folder", "keras_folder"])
def test_it_can_be_packaged(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(name)
    (found,) = (folder / "out").glob("*.json")
    (source,) = (folder / "code").glob("*.yaml")

    # Below the folder of the code, too: the package takes only what the entry point imports.
    target = folder / "code" / "made.ingot"
    ingot.package(found, target)

    try:
        assert_same(target, source, golden(folder / "code"), trust_code=name == "torch_folder")
        if name == "torch_folder":
            with Package(target) as package:
                files = sorted(file for file in package.reader.names if "code" in file)
                parts = ("__init__", "ingot_entry", "net")
                assert files == [f"0/code/{part}.py" for part in parts]
            with pytest.raises(UsageError, match="lies in a package") as caught:
                ingot.export(target, "safetensors", tmp_path / "out", trust_code=True)
            assert f"ingot init {target}" in str(caught.value.hint)
    finally:
        target.unlink()


@pytest.mark.parametrize("name", ["torch_folder", "keras_folder"])
def test_it_can_be_exported(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(name)
    (found,) = (folder / "out").glob("*.json")

    result = ingot.export(found, "onnx", tmp_path, mode="dynamic")

    arrays = golden(folder / "code")
    with ingot.load(found) as ours, ingot.load(result.artifacts[0].path) as theirs:
        expected, actual = ours.infer(arrays)["logits"], theirs.infer(arrays)["logits"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_it_does_not_replace_its_source(torch_json: Path) -> None:
    with pytest.raises(OutputExistsError, match="own source"):
        ingot.export(torch_json, "safetensors", torch_json.parent, force=True)


def test_folders_are_moved_together(torch_json: Path, tmp_path: Path) -> None:
    shutil.move(torch_json.parent.parent, tmp_path / "elsewhere")
    found = tmp_path / "elsewhere" / "out" / torch_json.name

    with ingot.load(found) as model:
        assert model.infer(golden(tmp_path / "elsewhere" / "code"))["logits"].shape == (4, 10)

    shutil.move(tmp_path / "elsewhere" / "code", tmp_path / "lost")
    with pytest.raises(SpecError, match="no such folder") as caught:
        ingot.load(found)
    assert caught.value.key == "model.code_path_spec[0].python_root"


@pytest.mark.parametrize("name", ["torch_json", "keras_json"])
def test_other_weights_are_refused(name: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(name)
    weights = found.with_suffix(".safetensors")
    expected = json.loads(found.read_text())["model"]["weights_sha256"]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)

    for call in (ingot.load, lambda path: ingot.package(path, found.parent / "p.ingot")):
        with pytest.raises(ModelError) as caught:
            call(found)
        assert caught.value.exit_code == 5
        assert weights.name in caught.value.message
        assert f"expected {expected}" in caught.value.message
    assert not (found.parent / "p.ingot").exists()


@pytest.mark.parametrize("name", ["torch_json", "keras_json"])
def test_damaged_weights_are_refused_without_a_hash(
    name: str, request: pytest.FixtureRequest
) -> None:
    found = change(request.getfixturevalue(name), weights_sha256=None)
    weights = found.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])

    with pytest.raises(ModelError, match=r"safetensors: not a readable safetensors file"):
        ingot.load(found)


def test_keras_weights_have_to_fit(keras_json: Path) -> None:
    from safetensors.numpy import load_file, save_file

    change(keras_json, weights_sha256=None)
    weights = keras_json.with_suffix(".safetensors")
    arrays = load_file(weights)
    kernel, array = "logits/kernel", arrays["logits/kernel"]
    spoiled = {
        "lacks tensor 'logits/kernel'": {k: v for k, v in arrays.items() if k != kernel},
        "has the unknown tensor 'more'": {**arrays, "more": array},
        r"tensor 'logits/kernel' is float32\[10, ": {**arrays, kernel: array.T.copy()},
        r"tensor 'logits/kernel' is float64": {**arrays, kernel: array.astype(np.float64)},
    }
    for message, tensors in spoiled.items():
        save_file(tensors, weights)
        with pytest.raises(ModelError, match=message):
            ingot.load(keras_json)


def test_lambda_layers_are_refused(keras_json: Path) -> None:
    from ingot.frameworks.keras import import_keras

    keras = import_keras()
    x = keras.Input((16, 16, 3), name="image")
    model = keras.Model(x, keras.layers.Lambda(lambda value: value + 1)(x))
    record = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))

    with pytest.raises(ModelError, match="cannot load it") as caught:
        ingot.load(change(keras_json, architecture=record))
    assert "Lambda layer is code" in str(caught.value.hint)


@pytest.mark.parametrize(
    "record", [{}, {"class_name": "Dense"}, {"module": "os", "class_name": "system", "config": {}}]
)
def test_what_is_no_model_is_refused(record: dict[str, Any], keras_json: Path) -> None:
    with pytest.raises(ModelError, match="cannot load it"):
        ingot.load(change(keras_json, architecture=record))


def test_a_vocabulary_is_refused(tmp_path: Path) -> None:
    def make(keras: Any) -> Any:
        layer = keras.layers.IntegerLookup()
        layer.adapt(np.array([3, 5, 7]))
        x = keras.Input((2,), dtype="int64", name="x")
        return keras.Model(x, layer(x))

    with pytest.raises(ModelError, match="vocabulary"):
        ingot.export(keras_file(tmp_path, make), "safetensors", tmp_path / "out")


def test_a_later_version_says_that_a_newer_ingot_is_needed(torch_json: Path) -> None:
    document = json.loads(torch_json.read_text())
    torch_json.write_text(json.dumps({**document, "format_version": 2, "recipe": {}}))

    with pytest.raises(SpecError, match=r"found 2; expected 1, .* that Ingot 0") as caught:
        ingot.load(torch_json)
    assert caught.value.key == "format_version"
    assert "pip install -U ingot" in str(caught.value.hint)


TIED = """
    import torch
    from pathlib import Path
    from torch import nn


    class Net(nn.Module):
        def __init__(self, offset, sizes):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.turned = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
            rows = torch.arange(8.0)
            self.register_buffer("low", rows[:4])
            self.register_buffer("high", rows[4:])
            self.offset = offset

        def forward(self, x, y):
            tied = self.two(self.one((x + y)[:, None] + self.low)) + self.high
            return tied.sum(1) * self.turned.sum() + self.offset


    def build(data_root, scale, sizes):
        return Net(float(Path(data_root, "offset.txt").read_text()) * scale, sizes)
"""


def test_tied_weights_views_and_data_files(tmp_path: Path) -> None:
    code = tmp_path / "code"
    write(code / "net.py", TIED)
    write(code / "lib" / "offset-1.txt", "2.5")
    text = (
        "model:\n"
        "  framework: torch\n"
        "  entrypoint: net:build\n"
        "  kwargs: {scale: 2, sizes: {b: 1, a: 2}}\n"
        "  data_paths: [{path: lib/offset-1.txt, packaged_name: offset.txt}]\n"
        "  platform_version_semver: '>=2.0'\n"
        "license: MIT\n" + SPEC_TENSORS
    )
    source = write(code / "net.yaml", text)

    found = export(source, tmp_path / "out")

    document = json.loads(found.read_text())
    assert document["license"] == "MIT"
    assert document["model"]["platform_version_semver"] == ">=2.0"
    # Code may depend on the order of its arguments.
    assert list(document["model"]["kwargs"]["sizes"]) == ["b", "a"]
    ingot.package(found, tmp_path / "made.ingot")
    assert_same(tmp_path / "made.ingot", found, INPUTS, trust_code=True)


@pytest.mark.parametrize(
    ("model", "key", "message"),
    [
        ({}, "model", "found neither; expected exactly one of file, architecture, entrypoint"),
        ({"file": "x.keras", "kwargs": {"a": 1}}, "model", "'entrypoint' is missing; 'kwargs'"),
        ({"architecture": {}}, "model", "'weights' is missing; 'architecture' needs it"),
        ({"architecture": {}, "file": "x.keras"}, "model", "found file and architecture"),
        (
            {"architecture": {}, "weights": "w", "weights_sha256": "abc"},
            "model.weights_sha256",
            "64 hexadecimal digits",
        ),
    ],
)
def test_keys_that_belong_together(model: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        ModelSpec.from_dict({"model": {"framework": "keras", **model}}, check_files=False)
    assert caught.value.key == key
