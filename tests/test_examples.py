"""The specs of examples/, run as the documentation says, through real commands."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import ingot

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SPECS = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.name != "problem.yaml")
PACKAGED = ("keras.yaml", "onnx.yaml", "pytorch.yaml", "torchscript.yaml")
DIGITS = [path.name for path in SPECS if path.parent.name == "digits" and path.name in PACKAGED]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A copy of examples/digits in which the network has been trained and written in every form."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("examples") / "digits"
    shutil.copytree(EXAMPLES / "digits", folder, ignore=shutil.ignore_patterns("__pycache__"))
    process = subprocess.run(
        [sys.executable, "train.py", "."], cwd=folder, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture
def addition(tmp_path):
    """A copy of examples/addition."""
    folder = tmp_path / "addition"
    shutil.copytree(EXAMPLES / "addition", folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("path", SPECS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_spec_fits_the_published_schema(path):
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    schema = json.loads((EXAMPLES.parent / "specs" / "spec.schema.json").read_text())
    yaml = pytest.importorskip("yaml")

    assert not list(validator(schema).iter_errors(yaml.safe_load(path.read_text())))


def test_addition_from_spec_to_verified_package(ingot_cli, addition):
    np.savez(addition / "golden.npz", x=np.float32([1, 2]), y=np.float32([10, 20.5]))

    made = ingot_cli("package", "addition.yaml", "--set", "test.inputs=golden.npz", cwd=addition)
    assert made.returncode == 0, made.stderr
    values = ("-i", "x=[1, 2]", "-i", "y=[10, 20.5]")
    ran = ingot_cli("infer", "addition.ingot", *values, "--json", "--trust-code", cwd=addition)
    verified = ingot_cli("verify", "addition.ingot", "--json", "--trust-code", cwd=addition)

    assert json.loads(ran.stdout)["outputs"]["total"]["values"] == [11.0, 22.5]
    assert all(check["status"] == "pass" for check in json.loads(verified.stdout)["checks"])


def test_addition_runs_straight_from_its_spec(ingot_cli, addition):
    text = json.dumps({"x": [1, 2], "y": [3, 4]})

    ran = ingot_cli("infer", "addition.yaml", "--inputs", "-", "-o", "-", cwd=addition, input=text)

    assert json.loads(ran.stdout) == {"total": [4.0, 6.0]}


def test_addition_asks_for_trust_once_it_is_a_package(ingot_cli, addition):
    assert ingot_cli("package", "addition.yaml", cwd=addition).returncode == 0

    refused = ingot_cli("infer", "addition.ingot", "-i", "x=[1]", "-i", "y=[2]", cwd=addition)

    assert refused.returncode == 5
    assert "--trust-code" in refused.stderr


def test_addition_refuses_inputs_of_two_lengths(ingot_cli, addition):
    ran = ingot_cli("infer", "addition.yaml", "-i", "x=[1]", "-i", "y=[2, 3]", cwd=addition)

    assert ran.returncode == 5
    assert "symbol 'n'" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_digits_is_packaged_run_and_verified(ingot_cli, digits, name, tmp_path):
    package, out = tmp_path / "digits.ingot", tmp_path / "out.npz"
    trust = ["--trust-code"] if name == "pytorch.yaml" else []

    made = ingot_cli("package", digits / name, "-o", package)
    assert made.returncode == 0, made.stderr
    stream = ("--inputs", digits / "test.npz", "--batch-size", 90, "-o", out)
    ran = ingot_cli("infer", package, *stream, *trust)
    assert ran.returncode == 0, ran.stderr
    verified = ingot_cli("verify", package, "--json", *trust)

    assert verified.returncode == 0, verified.stdout
    assert [check["status"] for check in json.loads(verified.stdout)["checks"]] == ["pass"] * 5
    labels = np.load(digits / "test_labels.npy")
    assert (np.load(out)["logits"].argmax(1) == labels).mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_digits_packages_compute_what_the_source_does(digits, name, tmp_path):
    package = ingot.package(digits / name, tmp_path / "digits.ingot").path
    image = np.load(digits / "golden.npz")["image"]

    with ingot.load(digits / name) as source, ingot.load(package, trust_code=True) as packaged:
        expected = source.infer({"image": image})["logits"]
        found = packaged.infer({"image": image})["logits"]

    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_digits_as_it_is_compressed_is_the_network_that_was_trained(digits):
    with ingot.load(digits / "pytorch.yaml") as trained:
        expected = trained.infer({"image": np.load(digits / "golden.npz")["image"]})["logits"]
    with ingot.load(digits / "compress.yaml") as model:
        found = model.infer({"image": np.load(digits / "golden.npz")["image"]})["logits"]

    np.testing.assert_array_equal(found, expected)
    assert ingot.evaluate(digits / "compress.yaml").entries[0].metrics["accuracy"] > 97


@pytest.mark.slow
def test_demo_runs_from_start_to_end(tmp_path, empty_home):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    pytest.importorskip("onnxscript")

    process = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), str(tmp_path / "demo")],
        env={**os.environ, "HOME": str(empty_home), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    assert process.stdout.count("5/5 checks") == 4
    assert "within the permitted drop" in process.stdout
    assert "PASS  delta" in process.stdout
    ratios = {}
    for name in ("both/compress", "quantized", "both"):
        verdict = json.loads((tmp_path / "demo" / name / "verdict.json").read_text())
        assert verdict["drop"] <= verdict["delta"] == 1.0
        ratios[name] = verdict["size_ratio"]
    assert min(ratios.values()) > 2
    assert max(ratios, key=ratios.get) == "both"
    assert not any(empty_home.iterdir())


@pytest.mark.slow
def test_transfer_learning_beats_a_start_from_scratch(ingot_cli, tmp_path):
    pytest.importorskip("torchmetrics")
    folder = tmp_path / "transfer"
    shutil.copytree(EXAMPLES / "transfer", folder, ignore=shutil.ignore_patterns("__pycache__"))

    accuracy = {}
    for name, run, options in (
        ("base", "base", ()),
        ("tuned", "tuned", ()),
        ("tuned", "scratch", ("--set", "training={}")),
    ):
        done = ingot_cli("train", f"{name}.yaml", "-o", run, "--json", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        accuracy[run] = json.loads(done.stdout)["metrics"]["accuracy"]

    assert accuracy["base"] > 97
    assert accuracy["tuned"] > accuracy["scratch"] > 70


def test_the_cifar10_application_runs_on_a_small_zip(ingot_cli, tmp_path):
    pytest.importorskip("torchmetrics")
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "cifar10"
    shutil.copytree(EXAMPLES / "cifar10", folder, ignore=shutil.ignore_patterns("__pycache__"))
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "cifar10-jpg.zip", "w") as archive:
        for split, name in itertools.product(("train", "test"), "abcdefghij"):
            pixels = io.BytesIO()
            image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(pixels, "JPEG")
            archive.writestr(f"{split}/{name}/0.jpg", pixels.getvalue())

    written = subprocess.run(
        [sys.executable, "make_csv.py", "cifar10-jpg.zip"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    done = ingot_cli("train", "resnet32.yaml", "-o", "run", "--epochs", "1", "--json", cwd=folder)

    assert "train.csv: 10 images of 10 classes" in written.stdout
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["metrics"]) == {"accuracy", "top5"}
