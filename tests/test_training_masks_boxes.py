"""The inputters of segmentation and detection: what they yield, and what they refuse."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from training_specs import write_spec

import ingot

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from ingot.specs import load_spec  # noqa: E402
from ingot.training.augment import MirrorAugmenter  # noqa: E402
from ingot.training.inputter import random_generator  # noqa: E402
from ingot.training.problem import Problem  # noqa: E402

HEIGHT, WIDTH = 6, 8
BOX = [1, 2, 4, 3]


def splits(folder, data, **changes):
    return Problem(load_spec(write_spec(folder, data=data, **changes))).splits


def write_masks(folder, count=5):
    """Write images, masks (of 0, 1, 2 and 255) and ``list.csv``; return images and masks."""
    generator = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    images = generator.integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)
    masks = generator.choice(np.array([0, 1, 2, 255], np.uint8), (count, HEIGHT, WIDTH))
    for index in range(count):
        Image.fromarray(images[index]).save(folder / f"{index}.png")
        mask = Image.fromarray(masks[index])
        if index % 2:
            mask.putpalette(bytes(range(256)) * 3)
        mask.save(folder / f"{index}_mask.png")
    rows = "".join(f"{index}.png,{index}_mask.png\n" for index in range(count))
    (folder / "list.csv").write_text(rows)
    return images, masks


def masks_of(**kwargs):
    kwargs = {"num_classes": 3, "batch_size": 2, "threads": 2, **kwargs}
    return {"splits": "segmentation_csv", "kwargs": kwargs}


@pytest.mark.parametrize("cache", [True, False])
def test_images_and_masks_of_a_csv(tmp_path, cache):
    images, masks = write_masks(tmp_path / "data")
    data = masks_of(files={"test": "data/list.csv"}, scale=1.0, cache=cache)

    loader = splits(tmp_path, data)["test"]

    for epoch in range(2):
        batches = list(loader.batches(epoch))
        found, wanted = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
        assert found.dtype == np.float32
        assert wanted.dtype == np.int64
        assert (found == images.transpose(0, 3, 1, 2)).all()
        assert (wanted == masks).all()


def test_masks_are_scaled_without_new_classes(tmp_path):
    write_masks(tmp_path / "data")
    data = masks_of(files={"test": "data/list.csv"}, image_size=[3, 4], channels=1)

    batches = list(splits(tmp_path, data)["test"])

    assert batches[0][0].shape == (2, 1, 3, 4)
    assert batches[0][1].shape == (2, 3, 4)
    assert set(torch.cat([masks for _, masks in batches]).unique().tolist()) <= {0, 1, 2, 255}


def test_images_and_masks_are_mirrored_together(tmp_path):
    images, masks = write_masks(tmp_path / "data")
    data = masks_of(files={"train": "data/list.csv"}, scale=1.0)

    loader = splits(tmp_path, data, training={"augmenter": "mirror"})["train"]

    plain = {(image.tobytes(), mask.tobytes()) for image, mask in zip(images, masks, strict=True)}
    mirrored = 0
    for epoch in range(4):
        for found, wanted in loader.batches(epoch):
            for image, mask in zip(found.numpy(), wanted.numpy(), strict=True):
                pixels = image.transpose(1, 2, 0).astype(np.uint8)
                pair = pixels.tobytes(), mask.astype(np.uint8).tobytes()
                if pair not in plain:
                    mirrored += 1
                    back = pixels[:, ::-1].tobytes(), mask[:, ::-1].astype(np.uint8).tobytes()
                    assert back in plain
    assert 2 < mirrored < 18


def test_what_changes_images_alone_is_refused(tmp_path):
    write_masks(tmp_path / "data")
    data = masks_of(files={"train": "data/list.csv"})

    with pytest.raises(ingot.SpecError, match="CifarAugmenter changes images without their masks"):
        splits(tmp_path, data, training={"augmenter": "cifar"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "0.png;0_mask.png",
            r"found 1 column, divided by ';' in place of ','; expected image,mask",
        ),
        ("0.png\t0_mask.png", r"found 1 column, divided by '\\t' in place of ','"),
        ("0.png,0_mask.png,1", "found 3 columns; expected image,mask"),
        ("0.png,gone.png", r"gone\.png: no such file"),
        ("0.png,small.png", r"small\.png: found a mask of 4x3 pixels; its image .*0\.png has 8x6"),
        (
            "0.png,wrong.png",
            r"wrong\.png: pixel \(3, 2\): found the class 7; expected 0\.\.2, or 255",
        ),
        ("0.png,1.png", r"1\.png: found a mask of mode RGB; expected one value a pixel"),
        ("0.png,text.png", r"text\.png: cannot be decoded"),
        ("text.png,0_mask.png", r"text\.png: cannot be decoded"),
    ],
)
def test_bad_rows_of_masks_are_named(tmp_path, row, message):
    _, masks = write_masks(tmp_path / "data")
    wrong = masks[0].copy()
    wrong[2, 3] = 7
    Image.fromarray(wrong).save(tmp_path / "data" / "wrong.png")
    Image.fromarray(masks[0][:3, :4]).save(tmp_path / "data" / "small.png")
    (tmp_path / "data" / "text.png").write_text("nonsense")
    (tmp_path / "data" / "list.csv").write_text(f"1.png,1_mask.png\n{row}\n")

    with pytest.raises(ingot.InputError, match=rf"list\.csv: row 2: .*{message}") as caught:
        list(splits(tmp_path, masks_of(files={"test": "data/list.csv"}))["test"])

    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.message


def test_an_empty_csv_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("\n\n")

    with pytest.raises(ingot.InputError, match=r"list\.csv: found no rows; expected image,mask"):
        splits(tmp_path, masks_of(files={"test": "list.csv"}))


def write_boxes(folder, **changes):
    """Write three images and ``boxes.json``: two categories, a crowd, an image without boxes."""
    folder.mkdir(exist_ok=True)
    for index in range(3):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), index, np.uint8)).save(folder / f"{index}.png")
    size = {"width": WIDTH, "height": HEIGHT}
    document = {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", **size} for i in range(3)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"image_id": 10, "category_id": 3, "bbox": BOX},
            {"image_id": 10, "category_id": 7, "bbox": [6, 4, 9, 9]},
            {"image_id": 12, "category_id": 7, "bbox": BOX, "iscrowd": 1},
            {"image_id": 12, "category_id": 7, "bbox": [0, 0, 0, 3]},
            {"image_id": 12, "category_id": 7, "bbox": [0, 0, 8, 6]},
        ],
    }
    for path, value in changes.items():
        section, index, key = path.split("__")
        if value is None:
            del document[section][int(index)][key]
        else:
            document[section][int(index)][key] = value
    (folder / "boxes.json").write_text(json.dumps(document))
    return document


def boxes_of(**kwargs):
    kwargs = {"files": {"test": "data/boxes.json"}, "image_size": [HEIGHT, WIDTH], **kwargs}
    return {"splits": "coco", "kwargs": {"batch_size": 3, "threads": 2, **kwargs}}


def test_images_and_boxes_of_annotations(tmp_path):
    write_boxes(tmp_path / "data")

    loader = splits(tmp_path, boxes_of(scale=1.0))["test"]
    ((images, targets),) = list(loader)

    assert loader.class_names == ("cat", "dog")
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert [entry["labels"].tolist() for entry in targets] == [[1, 2], [], [2]]
    expected = torch.tensor([[1 / 8, 2 / 6, 5 / 8, 5 / 6], [6 / 8, 4 / 6, 1, 1]])
    torch.testing.assert_close(targets[0]["boxes"], expected)
    assert targets[1]["boxes"].shape == (0, 4)
    assert targets[2]["boxes"].tolist() == [[0, 0, 1, 1]]


def test_class_names_order_the_labels(tmp_path):
    write_boxes(tmp_path / "data")

    loader = splits(tmp_path, boxes_of(class_names=["bird", "dog", "cat"]))["test"]

    assert loader.targets[0]["labels"].tolist() == [3, 2]
    with pytest.raises(ingot.InputError, match=r"boxes\.json: found the category 'cat'"):
        splits(tmp_path, boxes_of(class_names=["dog", "cab"]))


def test_boxes_are_mirrored_with_their_images():
    images = np.arange(20 * 3 * 2 * 4, dtype=np.uint8).reshape(20, 3, 2, 4)
    boxes = [np.array([[0.1, 0.2, 0.4, 0.6]], np.float32)] * 19 + [np.zeros((0, 4), np.float32)]

    found, moved = MirrorAugmenter().with_boxes(images, boxes, random_generator(1))

    flags = [(found[i] != images[i]).any() for i in range(20)]
    assert 3 < sum(flags) < 17
    for image, box, old, flag in zip(found[:19], moved, images, flags, strict=False):
        assert (image == (old[..., ::-1] if flag else old)).all()
        wanted = [0.6, 0.2, 0.9, 0.6] if flag else [0.1, 0.2, 0.4, 0.6]
        np.testing.assert_allclose(box[0], wanted, rtol=1e-5)
    assert moved[19].shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations__1__category_id": 9},
            r"annotations\[1\]: category 9 does not exist; .* 3, 7",
        ),
        ({"annotations__4__image_id": 13}, r"annotations\[4\]: image 13 does not exist"),
        ({"images__2__file_name": "no.png"}, r"image 12: .*no\.png: no such file"),
        ({"images__2__id": 10}, r"images\[2\]: found the id 10 a second time"),
        ({"images__0__width": 0}, r"images\[0\]: found the size \(0, 6\)"),
        ({"annotations__0__bbox": [1, 2, 3]}, r"annotations\[0\]: bbox: found \[1, 2, 3\]"),
        ({"annotations__0__bbox": [1, 2, -3, 4]}, r"expected \[left, top, width, height\]"),
        ({"annotations__0__bbox": None}, r"annotations\[0\]: the key 'bbox' is missing"),
        ({"categories__0__name": None}, r"categories\[0\]: the key 'name' is missing"),
        ({"categories__1__name": "dog"}, r"categories\[1\]: found the name 'dog' a second time"),
        ({"categories__1__name": 3}, r"categories\[1\]: name: found 3; expected a text"),
        ({"categories__1__id": "3"}, r"categories\[1\]: id: found '3'; expected an integer"),
        ({"images__1__id": [1]}, r"images\[1\]: id: found \[1\]; expected an integer or a text"),
        ({"images__1__file_name": 5}, r"images\[1\]: file_name: found 5; expected a text"),
        ({"images__1__width": True}, r"images\[1\]: width: found True; expected an integer"),
        ({"annotations__1__image_id": [10]}, r"annotations\[1\]: image_id: found \[10\]; expected"),
        ({"annotations__1__image_id": "10"}, r"image_id: found '10'; expected an integer, as the"),
        (
            {"annotations__1__category_id": {}},
            r"annotations\[1\]: category_id: found \{\}; expected",
        ),
        (
            {"annotations__0__bbox": [1, 2, float("nan"), 4]},
            r"bbox: found \[1, 2, nan, 4\]; expected",
        ),
        ({"annotations__0__bbox": [1, 2, 10**400, 4]}, r"annotations\[0\]: bbox: found \[1, 2, 10"),
        (
            {"annotations__0__bbox": [8, 2, 4, 3]},
            r"bbox: found \[8, 2, 4, 3\], outside of its image 10 of 8x6 pixels",
        ),
        ({"annotations__0__bbox": [1, -3, 4, 3]}, r"bbox: found \[1, -3, 4, 3\], outside of its"),
    ],
)
def test_bad_annotations_are_named(tmp_path, changes, message):
    write_boxes(tmp_path / "data", **changes)

    with pytest.raises(ingot.InputError, match=rf"boxes\.json: .*{message}") as caught:
        splits(tmp_path, boxes_of())

    assert caught.value.exit_code == 5


def test_what_is_no_annotation_file_is_named(tmp_path):
    document = write_boxes(tmp_path / "data")
    path = tmp_path / "data" / "boxes.json"

    for text, message in (
        ("[", "cannot be read as JSON"),
        ("[1]", "found no list 'images'"),
        (json.dumps({**document, "annotations": {}}), "found no list 'annotations'"),
        (json.dumps({"images": [], "annotations": [], "categories": []}), "found no images"),
    ):
        path.write_text(text)
        with pytest.raises(ingot.InputError, match=rf"boxes\.json: {message}"):
            splits(tmp_path, boxes_of())


def test_a_file_that_the_spec_names_and_that_is_not_there(tmp_path):
    write_boxes(tmp_path / "data")
    files = {"test": "data/boxes.json", "train": "data/none.json"}
    masks = masks_of(files={"test": "none.csv"})

    for data, message in (
        (boxes_of(files=files), r"data\.kwargs\.files\.train: .*data/none\.json: no such file"),
        (boxes_of(images="pictures"), r"data\.kwargs\.images: .*pictures: no such folder"),
        (boxes_of(archive="all.zip"), r"data\.kwargs\.archive: .*all\.zip: no such file"),
        (masks, r"data\.kwargs\.files\.test: .*none\.csv: no such file"),
    ):
        with pytest.raises(ingot.SpecError, match=message) as caught:
            splits(tmp_path, data)
        assert caught.value.exit_code == 2
    inputter = {"name": "segmentation_csv", **masks["kwargs"]}
    spec = load_spec(write_spec(tmp_path, data=None, training={"inputter": inputter}))
    with pytest.raises(ingot.SpecError, match=r"training\.inputter\.files\.test: .*no such file"):
        _ = Problem(spec).splits


def test_messages_have_paths_below_the_current_folder_and_no_addresses(tmp_path, monkeypatch):
    write_masks(tmp_path / "data")
    (tmp_path / "data" / "text.png").write_text("nonsense")
    (tmp_path / "data" / "list.csv").write_text("0.png,text.png\n")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ingot.InputError) as caught:
        list(splits(tmp_path, masks_of(files={"test": "data/list.csv"}))["test"])

    assert caught.value.message == (
        "data/list.csv: row 1: data/text.png: cannot be decoded: found no image; expected JPEG, PNG"
        " or another format that Pillow reads"
    )


def test_a_header_and_other_delimiters_have_a_hint(tmp_path):
    write_masks(tmp_path / "data")
    path = tmp_path / "data" / "list.csv"

    for rows, hint in (
        (
            "image,mask\n0.png,0_mask.png\n",
            "rows have no header: take out the first row, if 'image'",
        ),
        ("0.png;,0_mask.png\n", "columns are divided by ','; found ';' in '0.png;'"),
    ):
        path.write_text(rows)
        with pytest.raises(ingot.InputError, match=r"row 1: .*no such file") as caught:
            splits(tmp_path, masks_of(files={"test": "data/list.csv"}))
        assert caught.value.hint.startswith(hint)


def test_an_image_of_another_size_than_its_annotations_say_is_named(tmp_path):
    write_boxes(tmp_path / "data", images__1__width=16)

    message = r"boxes\.json: image 11: .*1\.png: found an image of 8x6 pixels; expected 16x6"
    with pytest.raises(ingot.InputError, match=message):
        list(splits(tmp_path, boxes_of())["test"])


def test_splits_of_different_categories_are_refused(tmp_path):
    document = write_boxes(tmp_path / "data")
    other = copy.deepcopy(document)
    other["categories"][1]["name"] = "cow"
    (tmp_path / "data" / "other.json").write_text(json.dumps(other))
    files = {"train": "data/boxes.json", "test": "data/other.json"}

    with pytest.raises(ingot.InputError, match=r"\.json: found the categories c(at|ow), dog"):
        splits(tmp_path, boxes_of(files=files))


def test_a_category_that_the_network_does_not_know_is_named(tmp_path):
    from ingot.training.torch_ssd import SsdMultibox
    from ingot.zoo.networks.ssd import anchors

    count = len(anchors(64, 64))
    outputs = torch.zeros(1, count, 3), torch.zeros(1, count, 4)
    targets = [{"boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]), "labels": torch.tensor([3])}]

    with pytest.raises(ingot.InputError, match=r"a box of class 3; the network knows 1\.\.2"):
        SsdMultibox(image_size=(64, 64)).compare(outputs, targets)
