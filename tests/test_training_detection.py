"""Object detection: the loss of SSD, the metrics of COCO, and both on the zoo's network."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pycocotools")

import ingot  # noqa: E402
from ingot.training import fit, measure  # noqa: E402
from ingot.training.torch_ssd import (  # noqa: E402
    DetectionEvaluation,
    SsdMultibox,
    coco_metrics,
    match_anchors,
)
from ingot.zoo import get_model_by_name  # noqa: E402
from ingot.zoo.networks.ssd import anchors, decode  # noqa: E402

SIZE = (128, 128)
BOX = torch.tensor([[0.2, 0.3, 0.6, 0.7]])


def test_coco_metrics_of_boxes():
    label, score = torch.tensor([1]), torch.tensor([0.9])
    exact = coco_metrics([(BOX, score, label)], [(BOX, label)], *SIZE)
    shifted = BOX + torch.tensor([0.0, 0.0, 0.1, 0.0])  # overlap 0.8
    near = coco_metrics([(shifted, score, label)], [(BOX, label)], *SIZE)
    other = coco_metrics([(BOX, score, torch.tensor([2]))], [(BOX, label)], *SIZE)
    nothing = coco_metrics([(BOX[:0], score[:0], label[:0])], [(BOX, label)], *SIZE)

    assert [exact["map"], exact["map50"]] == pytest.approx([1, 1])
    assert near["map50"] == near["map75"] == pytest.approx(1)
    assert near["map"] == pytest.approx(0.6)  # one of ten overlaps a step
    assert other["map"] == nothing["map"] == 0


def test_the_loss_matches_anchors_as_decode_reads_them():
    places = anchors(*SIZE)
    loss = SsdMultibox(image_size=SIZE)
    targets = [{"boxes": BOX, "labels": torch.tensor([1])}]
    classes, offsets = match_anchors(places, (BOX, torch.tensor([1])), 0.5)
    logits = torch.nn.functional.one_hot(classes, 3).float()[None] * 20

    perfect = loss.compare((logits, offsets[None]), targets)
    wrong = loss.compare((logits.roll(1, -1), offsets[None] + 1), targets)

    assert (classes > 0).any()
    torch.testing.assert_close(
        decode(offsets[None], places)[0][classes > 0], BOX.expand(int((classes > 0).sum()), 4)
    )
    assert float(sum(perfect.values())) < 1e-3
    assert float(sum(wrong.values())) > 1
    with pytest.raises(ingot.InputError, match="predicts 3 boxes; images of"):
        loss.compare((logits[:, :3], offsets[None, :3]), targets)
    empty = [{"boxes": BOX[:0], "labels": torch.zeros(0, dtype=torch.long)}]
    assert torch.isfinite(sum(loss.compare((logits, offsets[None]), empty).values()))


def test_the_zoos_detector_learns_one_image():
    torch.manual_seed(0)
    model = get_model_by_name("ssdlite", "vww", num_classes=3, width=0.25)
    image = torch.zeros(2, 3, *SIZE)
    image[:, :, 38:90, 26:77] = 1
    targets = [{"boxes": BOX, "labels": torch.tensor([1])}] * 2
    data = {"train": [(image, targets)] * 25}
    data["test"] = [(image, targets)]
    evaluation = DetectionEvaluation(image_size=SIZE)

    trained = fit(
        model,
        data,
        {"optimizer": {"name": "Adam", "lr": 0.003}, "epochs": 1},
        loss=SsdMultibox(image_size=SIZE),
        evaluation=evaluation,
    )

    assert trained.eval_key == "map"
    assert set(trained.state.history[0]["metrics"]) >= {"map", "map50", "map75"}
    model.train()  # with the batch's own statistics, as it was trained
    with torch.no_grad():
        found = model(image)
    metrics = coco_metrics(evaluation.decoded(*found), [(BOX, torch.tensor([1]))] * 2, *SIZE)
    assert metrics["map50"] > 0.5
    assert measure(model, data, evaluation=evaluation).metrics.keys() == metrics.keys()
