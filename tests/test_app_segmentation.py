"""The application "segmentation", in a shortened form, through all of its modes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from applications import copied

import ingot

pytest.importorskip("torchmetrics")
Image = pytest.importorskip("PIL.Image")

from ingot.commands.infer_files import infer_files  # noqa: E402

pytestmark = pytest.mark.slow

SHORT = ("model.kwargs={classes: 4, width: 8, depth: 4}", "training.batch_size=8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A copy of the example, trained for a few seconds, and its result."""
    folder = copied("segmentation", tmp_path_factory.mktemp("app"), 320, 40)
    result = ingot.train(folder / "segmentation.yaml", folder / "run", epochs=5, overrides=SHORT)
    return folder, result


def test_it_learns_what_random_weights_do_not_know(trained):
    folder, result = trained

    measured = ingot.evaluate(folder / "segmentation.yaml", overrides=SHORT).entries[0].metrics

    assert measured == pytest.approx(result.metrics)
    assert measured["miou"] > 0.3  # the ground everywhere: 0.2
    assert measured["pixel_accuracy"] > 0.7


def test_infer_lays_masks_over_the_test_samples(trained, tmp_path):
    folder, _ = trained
    spec = folder / "segmentation.yaml"

    found = infer_files(spec, overrides=SHORT, display=tmp_path / "shown")

    assert [path.name for path in found.pictures[0]] == ["0000.png", "0000_mask.png"]
    assert len(list((tmp_path / "shown").iterdir())) == 8
    for prediction, (picture, mask) in zip(found.predictions, found.pictures, strict=True):
        with Image.open(mask) as opened:
            assert (np.asarray(opened) == prediction.mask).all()
        with Image.open(picture) as opened:
            assert opened.width == 2 * 256  # the image, and the mask laid over it
    everything = infer_files(spec, [folder / "data" / "test.csv"], overrides=SHORT)
    masks = [np.asarray(Image.open(folder / f"data/test_masks/{i:04}.png")) for i in range(40)]
    expected = ingot.evaluate(spec, overrides=SHORT).entries[0].metrics["pixel_accuracy"]
    assert (everything.outputs["masks"] == masks).mean() == pytest.approx(expected, abs=1e-3)


def test_masks_have_the_size_of_the_file(trained, tmp_path):
    folder, _ = trained
    with Image.open(folder / "data" / "test" / "0000.png") as image:
        image.resize((128, 96)).save(tmp_path / "wide.png")
    files = [tmp_path / "wide.png", folder / "data" / "test" / "0000.png"]

    found = infer_files(folder / "segmentation.yaml", files, overrides=SHORT)

    assert [prediction.mask.shape for prediction in found.predictions] == [(96, 128), (64, 64)]
    with pytest.raises(ingot.UsageError, match="masks have 2 sizes"):
        _ = found.outputs
    entry = found.to_dict()["predictions"][0]
    assert sum(item["share"] for item in entry["classes"]) == pytest.approx(1)
    assert entry["classes"][0]["name"] == "ground"
    assert np.array(entry["mask"]).shape == (96, 128)


def test_the_whole_way(tmp_path, empty_home):
    """``walk.sh``: train, evaluate, infer, package, verify, export, compress, quantize."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("torch_pruning")
    folder = copied("segmentation", tmp_path, 4, 4)
    spec = (folder / "segmentation.yaml").read_text()
    spec = spec.replace("width: 12", "width: 8").replace("batch_size: 16", "batch_size: 8")
    (folder / "segmentation.yaml").write_text(spec)
    short = {"TRAIN": "320", "TEST": "40", "EPOCHS": "5", "EVALUATIONS": "5"}

    done = subprocess.run(
        ["sh", "walk.sh"],
        cwd=folder,
        env={
            **os.environ,
            **short,
            "HOME": str(empty_home),
            "INGOT": f"{sys.executable} -m ingot.cli",
            "PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    for name in ("compressed", "quantized"):
        verdict = json.loads((folder / name / "verdict.json").read_text())
        assert verdict["verdict"] in ("met", "missed")
        assert verdict["reference"]["metrics"]["miou"] > 0.3
    assert json.loads((folder / "quantized" / "verdict.json").read_text())["size_ratio"] > 2
    assert len(list((folder / "pictures").iterdir())) == 8
    assert (
        done.stdout.count("data/test/0000.png: ground") == 4
    )  # the spec's answer, and the packages'
