"""Pruned models on disk: they stand wherever a spec can, and load into the user's own class."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import write
from pruning_networks import images, prepared
from safetensors.torch import save_file

import ingot
from ingot.errors import ModelError, OutputExistsError, SpecError
from ingot.optimizers.pruning import channel_groups, prune, save_compressed
from ingot.specs import load_spec
from ingot.zoo import get_model_by_name

OPTIONS = {"dim": 24, "depth": 2, "heads": 3, "hidden": 32, "patch": 8}
CODE = f"""
    from ingot.zoo import get_model_by_name


    def build():
        return get_model_by_name("vit", "cifar10", **{OPTIONS})
"""
TENSORS = """
inputs:
- {name: images, dtype: float32, shape: [batch, 3, 32, 32]}
outputs:
- {name: logits, dtype: float32, shape: [batch, 10]}
"""
IMAGES = np.random.default_rng(3).random((2, 3, 32, 32), np.float32)


def build() -> torch.nn.Module:
    return get_model_by_name("vit", "cifar10", **OPTIONS)


def halved(module: torch.nn.Module) -> tuple[torch.nn.Module, Any]:
    groups = channel_groups(module, images(2, 3, 32, 32))
    keep = {group.name: range(group.channels // 2, group.channels) for group in groups}
    return prune(module, keep, groups)


def logits(module: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return module.eval()(torch.from_numpy(IMAGES)).numpy()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    write(folder / "net.py", CODE)
    module = prepared(build)
    save_file(module.state_dict(), folder / "vit.safetensors")
    model = "{framework: torch, entrypoint: net:build, weights: vit.safetensors}"
    return write(folder / "vit.yaml", f"name: vit\nmodel: {model}{TENSORS}")


@pytest.fixture
def compressed(source: Path, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    pruned, recipe = halved(prepared(build))
    (tmp_path / "out").mkdir()
    path, weights = save_compressed(tmp_path / "out" / "opt", pruned, recipe, load_spec(source))
    assert sorted(path.parent.iterdir()) == [path, weights]
    return path, pruned


def infer(path: Path, **options: Any) -> np.ndarray:
    with ingot.load(path, **options) as model:
        return model.infer({"images": IMAGES})["logits"]


def test_it_loads_into_the_users_class(compressed: tuple[Path, torch.nn.Module]) -> None:
    path, pruned = compressed
    original = prepared(build)
    before = logits(original)
    for name in (path, path.with_suffix(""), path.with_suffix(".safetensors"), str(path)):
        loaded = ingot.load_compressed(name, original)
        assert type(loaded) is type(original)
        assert not loaded.training
        np.testing.assert_array_equal(logits(loaded), logits(pruned))
    # Neutrino's name of the file, which is not there.
    loaded = ingot.load_compressed(path.with_suffix(".pkl"), original)
    np.testing.assert_array_equal(logits(loaded), logits(pruned))
    np.testing.assert_array_equal(logits(original), before)


def test_it_is_a_spec(compressed: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path, pruned = compressed
    document = json.loads(path.read_text())
    assert document["model"]["recipe"]["version"] == 1
    assert document["model"]["code_path_spec"][0]["python_root"] == "../code"
    np.testing.assert_array_equal(infer(path), logits(pruned))
    (artifact,) = ingot.export(path, "safetensors", tmp_path / "again").artifacts
    np.testing.assert_array_equal(infer(artifact.path), logits(pruned))
    assert artifact.path.with_suffix(".safetensors").stat().st_size < 30_000


@pytest.mark.slow
def test_it_exports_to_onnx(compressed: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path, pruned = compressed
    artifact = ingot.export(path, "onnx", tmp_path / "onnx").artifacts[0]
    np.testing.assert_allclose(infer(artifact.path), logits(pruned), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_can_be_packaged_and_unpacked(
    compressed: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    path, pruned = compressed
    package = ingot.package(path, tmp_path / "opt.ingot", as_directory=True).path
    np.testing.assert_array_equal(infer(package, trust_code=True), logits(pruned))
    spec = ingot.init(package, output=tmp_path / "unpacked.yaml", trust_code=True).path
    assert not list(tmp_path.glob("unpacked*/**/ingot_*.py"))
    np.testing.assert_array_equal(infer(spec), logits(pruned))
    again = ingot.package(spec, tmp_path / "again.ingot").path
    np.testing.assert_array_equal(infer(again, trust_code=True), logits(pruned))

    # Neuropod calls the wrapper inside, which has nothing but the package's own code.
    np.save(tmp_path / "images.npy", IMAGES)
    script = f"""
import numpy, sys
sys.path.insert(0, {str(package / "0" / "code")!r})
import ingot_entry
model = ingot_entry.get_model({str(package / "0" / "data")!r})
numpy.save("logits.npy", model(images=numpy.load("images.npy"))["logits"])
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), logits(pruned))


def test_compressing_a_compressed_result(
    compressed: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    path, _ = compressed
    with ingot.load(path) as model:
        smaller, recipe = halved(model.native)
    again, _ = save_compressed(tmp_path / "smaller.json", smaller, recipe, load_spec(path))
    np.testing.assert_array_equal(infer(again), logits(smaller))
    loaded = ingot.load_compressed(again, build())
    np.testing.assert_array_equal(logits(loaded), logits(smaller))
    groups = json.loads(again.read_text())["model"]["recipe"]["groups"]
    assert groups["patches"] == {"channels": 24, "kept": list(range(18, 24))}


def test_what_is_there_stays(source: Path, compressed: tuple[Path, torch.nn.Module]) -> None:
    path, _ = compressed
    before = path.read_bytes()
    pruned, recipe = halved(prepared(build))
    with pytest.raises(OutputExistsError, match=r"opt\.json: is there already"):
        save_compressed(path, pruned, recipe, load_spec(source))
    save_compressed(path, pruned, recipe, load_spec(source), force=True)
    assert path.read_bytes() == before


def test_bad_files(compressed: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path, _ = compressed
    with pytest.raises(ModelError, match=r"other\.pkl: a pickle may hold any code"):
        ingot.load_compressed(tmp_path / "other.pkl", build())
    with pytest.raises(SpecError, match=r"other\.json"):
        ingot.load_compressed(tmp_path / "other", build())
    with pytest.raises(ModelError, match=r"does not fit CifarResNet: the module has no layer"):
        ingot.load_compressed(path, get_model_by_name("resnet20", "cifar10"))
    document = json.loads(path.read_text())
    for change, message in (
        ({"version": 9}, "found version 9; expected 1"),
        ({"layers": {"head": {"in_features": 12}}}, r"layer 'head' \(Linear\): found the sizes"),
        ({"tensors": {"positions": {"dim": 2, "kept": [99]}}}, "tensor 'positions'"),
        ({"attributes": {"": {"__class__": 3}}}, "'' has no number '__class__'"),
        ({"pickle": {}}, "the unknown key 'pickle'"),
    ):
        changed = {**document["model"], "recipe": {**document["model"]["recipe"], **change}}
        path.write_text(json.dumps({**document, "model": changed}))
        for load in (infer, lambda file: ingot.load_compressed(file, build())):
            with pytest.raises(ModelError, match=message):
                load(path)
    without = {key: value for key, value in document["model"].items() if "weights" not in key}
    path.write_text(json.dumps({**document, "model": without}))
    with pytest.raises(SpecError, match="'weights' is missing; 'recipe' needs it"):
        infer(path)
    path.write_text(json.dumps(document))
    (path.with_suffix(".safetensors")).write_bytes(b"other")
    with pytest.raises(ModelError, match="not the file of weights that belongs to it"):
        ingot.load_compressed(path, build())
