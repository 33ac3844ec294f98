"""The application "object detection", in a shortened form, through all of its modes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from applications import copied

import ingot

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")
Image = pytest.importorskip("PIL.Image")

from ingot.commands.infer_files import infer_files  # noqa: E402

pytestmark = pytest.mark.slow

SHORT = ("training.predictor={name: object_detection, score: 0.2}",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A copy of the example, trained for a few seconds, and its result."""
    folder = copied("detection", tmp_path_factory.mktemp("app"), 320, 40)
    result = ingot.train(folder / "detection.yaml", folder / "run", epochs=8, overrides=SHORT)
    return folder, result


def test_it_learns_what_random_weights_do_not_know(trained):
    folder, result = trained

    measured = ingot.evaluate(folder / "detection.yaml", overrides=SHORT).entries[0].metrics

    assert measured == pytest.approx(result.metrics)
    assert measured["map50"] > 0.1  # random weights: below 0.001


def test_infer_draws_boxes_on_the_test_samples(trained, tmp_path):
    folder, _ = trained
    spec = folder / "detection.yaml"

    found = infer_files(spec, overrides=SHORT, display=tmp_path / "shown")

    assert sorted(path.name for path in (tmp_path / "shown").iterdir()) == [
        f"{index:04}.png" for index in range(4)
    ]
    arrays = found.outputs
    count = sum(len(prediction.boxes) for prediction in found.predictions)
    assert arrays["boxes"].shape == (count, 4)
    assert count > 0
    assert (arrays["scores"] >= 0.2).all()
    assert set(arrays["classes"].tolist()) <= {1, 2, 3}
    assert (arrays["boxes"] >= 0).all()
    assert (arrays["boxes"] <= 96).all()
    for prediction, (picture,) in zip(found.predictions, found.pictures, strict=True):
        with Image.open(prediction.sample) as image, Image.open(picture) as drawn:
            bare = image.convert("RGB").resize(drawn.size, Image.Resampling.NEAREST)
            is_same = (np.asarray(bare) == np.asarray(drawn)).all()
        assert is_same == (len(prediction.boxes) == 0)
    document = json.loads(json.dumps(found.to_dict()))
    names = {box["name"] for entry in document["predictions"] for box in entry["boxes"]}
    assert names <= {"circle", "square", "triangle"}


def test_boxes_are_in_pixels_of_the_file(trained, tmp_path):
    folder, _ = trained
    sample = folder / "data" / "test" / "0000.png"
    with Image.open(sample) as image:
        image.resize((192, 288), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    changes = {"overrides": ("training.predictor={name: object_detection, score: 0.05}",)}

    small = infer_files(folder / "detection.yaml", [sample], **changes).predictions[0]
    large = infer_files(folder / "detection.yaml", [tmp_path / "large.png"], **changes)

    boxes = large.predictions[0].boxes
    assert len(boxes)
    assert len(small.boxes)
    # Scaled back, the picture differs a little from what it was, and so does its surest box.
    np.testing.assert_allclose(boxes[0], small.boxes[0] * [2, 3, 2, 3], atol=12)


def test_it_goes_on_through_package_and_export(trained, tmp_path):
    pytest.importorskip("onnxscript")
    folder, _ = trained
    spec, files = folder / "detection.yaml", [folder / "data" / "test"]
    changes = {"overrides": SHORT}

    package = ingot.package(spec, tmp_path / "shapes.ingot", **changes).path
    exported = ingot.export(spec, "onnx", tmp_path / "out", **changes).artifacts[0].path
    metrics = [item.metrics["map"] for item in ingot.evaluate(spec, exported).entries]

    assert metrics[1] == pytest.approx(metrics[0], abs=1e-3)
    expected = infer_files(spec, files, **changes).outputs
    for model in (package, exported):
        found = infer_files(model, files, spec=spec, trust_code=True, **changes).outputs
        np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.1)
        np.testing.assert_array_equal(found["classes"], expected["classes"])
