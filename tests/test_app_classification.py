"""The application "image classification", in a shortened form, through all of its modes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from applications import copied

import ingot

pytest.importorskip("torchmetrics")
Image = pytest.importorskip("PIL.Image")

from ingot.commands.infer_files import infer_files  # noqa: E402

pytestmark = pytest.mark.slow

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
SHORT = ("model.kwargs.model_name=resnet20", "training.batch_size=16")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A copy of the example, trained for a few seconds, and its result."""
    folder = copied("classification", tmp_path_factory.mktemp("app"), 480, 60)
    result = ingot.train(folder / "resnet32.yaml", folder / "run", epochs=5, overrides=SHORT)
    return folder, result


def test_it_learns_what_random_weights_do_not_know(trained):
    folder, result = trained

    measured = ingot.evaluate(folder / "resnet32.yaml", overrides=SHORT[:1]).entries[0].metrics

    assert measured == result.metrics
    assert measured["accuracy"] > 35  # of six classes, one answer of six is right by chance


def test_infer_labels_the_test_samples(trained, tmp_path):
    folder, result = trained

    found = infer_files(folder / "resnet32.yaml", overrides=SHORT[:1], display=tmp_path / "shown")

    assert [path.name for paths in found.pictures for path in paths] == [
        f"{index:04}.png" for index in range(4)
    ]
    assert found.outputs["probabilities"].shape == (4, 6)
    entries = found.to_dict()["predictions"]
    assert [entry["name"] for entry in entries] == [SHAPES[i] for i in found.outputs["classes"]]
    everything = infer_files(
        folder / "resnet32.yaml", [folder / "data" / "test.csv"], overrides=SHORT[:1]
    )
    labels = np.arange(60) % 6
    hits = 100 * (everything.outputs["classes"] == labels).mean()
    assert hits == pytest.approx(result.metrics["accuracy"], abs=1e-3)


def test_it_goes_on_through_package_and_export(trained, tmp_path):
    pytest.importorskip("onnxscript")
    folder, _ = trained
    spec, files = folder / "resnet32.yaml", [folder / "data" / "test"]
    changes = {"overrides": SHORT[:1]}

    package = ingot.package(spec, tmp_path / "shapes.ingot", **changes).path
    exported = ingot.export(spec, "onnx", tmp_path / "out", **changes).artifacts[0].path

    expected = infer_files(spec, files, **changes).outputs["probabilities"]
    for model in (package, exported):
        found = infer_files(model, files, spec=spec, trust_code=True, **changes)
        np.testing.assert_allclose(found.outputs["probabilities"], expected, atol=1e-4)


def test_its_learning_rate_is_tuned(trained, tmp_path):
    pytest.importorskip("optuna")
    folder, _ = trained
    changes = (SHORT[0], "tune.fixed={full_trainer.epochs: 1}")

    study = ingot.tune(folder / "resnet32.yaml", tmp_path / "study", trials=2, overrides=changes)

    assert len(study.trials) == 2
    assert (tmp_path / "study" / "best.yaml").is_file()


def test_transfer_learning_has_the_same_modes(ingot_cli, tmp_path):
    folder = copied("transfer", tmp_path)
    for name in ("base", "tuned"):
        done = ingot_cli("train", f"{name}.yaml", "-o", name, cwd=folder)
        assert done.returncode == 0, done.stderr

    evaluated = ingot_cli("evaluate", "tuned.yaml", "--json", cwd=folder)
    ran = ingot_cli("infer", "tuned.yaml", "--display", "shown", "--json", cwd=folder)
    exported = ingot_cli("export", "tuned.yaml", "--format", "onnx", cwd=folder)

    assert json.loads(evaluated.stdout)["metrics"]["accuracy"] > 80
    entries = json.loads(ran.stdout)["predictions"]
    right = sum(entry["classes"] == index for index, entry in enumerate(entries))
    assert right >= 3  # drawn.py writes one test image of each digit
    assert len(list((folder / "shown").iterdir())) == len(entries) == 5
    assert exported.returncode == 0, exported.stderr
