"""Object detection: the loss of SSD, the metrics of COCO, and both on the zoo's network."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pycocotools")

import ingot  # noqa: E402
from ingot.training import fit, measure  # noqa: E402
from ingot.training.coco import coco_evaluation, coco_metrics  # noqa: E402
from ingot.training.torch_ssd import (  # noqa: E402
    DetectionEvaluation,
    SsdMultibox,
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


def test_each_image_has_an_average_precision_of_its_own():
    torch.manual_seed(0)
    found, wanted = [], []
    for count in (0, 1, 3, 5, 2):
        corner, size = torch.rand(count, 2) * 0.5, 0.1 + torch.rand(count, 2) * 0.3
        boxes, labels = torch.cat([corner, corner + size], 1), torch.randint(1, 3, (count,))
        moved = torch.cat([boxes + 0.02 * torch.randn(count, 4), torch.rand(2, 4).sort(1)[0]])
        found.append((moved, torch.rand(count + 2), torch.cat([labels, torch.tensor([1, 2])])))
        wanted.append((boxes, labels))
    nothing = (BOX[:0], torch.zeros(0), torch.zeros(0, dtype=torch.long))

    metrics, image_ap = coco_evaluation([*found, nothing], [*wanted, nothing[::2]], *SIZE)

    assert image_ap.shape == (6,)
    assert 0 < metrics["map"] < 1
    alone = [coco_metrics([one], [true], *SIZE) for one, true in zip(found, wanted, strict=True)]
    assert image_ap[1:5] == pytest.approx([entry["map"] for entry in alone[1:]])
    assert image_ap[0] == pytest.approx(1 - float(found[0][1].max()))
    assert image_ap[5] == 1
    # Without any prediction, or any true box, in the whole set.
    assert coco_evaluation([nothing] * 2, [wanted[1], nothing[::2]], *SIZE)[1].tolist() == [0, 1]
    assert coco_evaluation([found[0]], [wanted[0]], *SIZE)[1] == image_ap[:1]


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
    measured = measure(model, data, evaluation=evaluation)
    assert measured.metrics.keys() == metrics.keys()
    assert measured.per_sample["image_ap"].shape == (2,)
