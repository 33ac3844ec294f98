"""Inputters: what they yield, in which order, and what they refuse."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from training_specs import write_spec

import ingot

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from ingot.specs import load_spec  # noqa: E402
from ingot.training.augment import CifarAugmenter  # noqa: E402
from ingot.training.data import ArrayInputter  # noqa: E402
from ingot.training.inputter import random_generator  # noqa: E402
from ingot.training.problem import Problem  # noqa: E402

SIZE = 6


def splits(folder: Path, **changes):
    return Problem(load_spec(write_spec(folder, **changes))).splits


def write_images(folder: Path, count: int = 10, archive: Path | None = None) -> list[np.ndarray]:
    """Write PNG images and ``list.csv``, to a folder or a zip; return the pixels."""
    generator = np.random.default_rng(0)
    pixels = [generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(count)]
    zipped = None if archive is None else zipfile.ZipFile(archive, "w")
    folder.mkdir(exist_ok=True)
    for index, image in enumerate(pixels):
        data = io.BytesIO()
        Image.fromarray(image).save(data, "PNG")
        if zipped is None:
            (folder / f"{index}.png").write_bytes(data.getvalue())
        else:
            zipped.writestr(f"pictures/{index}.png", data.getvalue())
    rows = [(f"{index}.png", index % 3) for index in range(count)]
    if zipped is not None:
        text = "".join(f"{path},{label}\n" for path, label in rows)
        zipped.writestr("pictures/list.csv", text)
        zipped.close()
    else:
        with (folder / "list.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return pixels


def images(**kwargs):
    return {"splits": "csv", "kwargs": {"num_classes": 3, "batch_size": 4, "threads": 2, **kwargs}}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_images_of_a_csv(tmp_path, zipped, cache):
    archive = tmp_path / "pictures.zip" if zipped else None
    pixels = write_images(tmp_path / "pictures", archive=archive)
    extra = {"archive": str(archive)} if zipped else {}
    data = images(files={"train": "pictures/list.csv"}, scale=1.0, cache=cache, **extra)

    loader = splits(tmp_path, data=data)["train"]

    for epoch in range(2):
        seen = {}
        for batch, labels in loader.batches(epoch):
            assert batch.dtype == torch.float32
            assert labels.dtype == torch.int64
            for image, label in zip(batch.numpy(), labels.tolist(), strict=True):
                match = [i for i, p in enumerate(pixels) if (p.transpose(2, 0, 1) == image).all()]
                seen[match[0]] = label
        assert seen == {index: index % 3 for index in range(10)}
    assert len(loader) == 3


def test_several_csvs_size_scaling_and_grey(tmp_path):
    write_images(tmp_path / "a", 4)
    write_images(tmp_path / "b", 5)
    data = images(
        files={"train": "a/list.csv, b/list.csv", "test": "a/list.csv"},
        image_size=[3, 4],
        channels=1,
        mean=[0.5],
        std=[0.5],
    )

    found = splits(tmp_path, data=data)
    batches = list(found["train"])

    assert sum(len(labels) for _, labels in batches) == 9
    assert batches[0][0].shape == (4, 1, 3, 4)
    assert -1 <= float(batches[0][0].min()) < float(batches[0][0].max()) <= 1
    again = list(found["test"])
    assert [label.tolist() for _, label in again] == [[0, 1, 2, 0]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("3.png,7", "row 2: 3.png: found the label '7'; expected an integer 0..2"),
        ("3.png,-1", "row 2: 3.png: found the label '-1'"),
        ("3.png,cat", "row 2: 3.png: found the label 'cat'"),
        ("gone.png,1", "gone.png: no such file"),
        ("3.png", "row 2: found 1 column; expected path,label"),
    ],
)
def test_bad_rows_are_named(ingot_cli, tmp_path, row, message):
    write_images(tmp_path / "pictures")
    (tmp_path / "pictures" / "list.csv").write_text(f"0.png,0\n{row}\n")
    spec = write_spec(tmp_path, data=images(files={"train": "pictures/list.csv"}))

    with pytest.raises(ingot.InputError) as caught:
        ingot.train(spec, tmp_path / "run")

    assert caught.value.exit_code == 5
    assert message in caught.value.message
    assert str(tmp_path / "pictures" / "list.csv") in caught.value.message
    assert "row 2" in caught.value.message


def test_a_file_that_is_no_image_is_named(tmp_path):
    write_images(tmp_path / "pictures")
    (tmp_path / "pictures" / "7.png").write_bytes(b"nonsense")
    loader = splits(tmp_path, data=images(files={"train": "pictures/list.csv"}))["train"]

    with pytest.raises(ingot.InputError, match=r"row 8: .*7\.png: cannot be decoded"):
        list(loader)


def break_member(path: Path, name: str, offset: int, new: bytes) -> None:
    """Change the local and the central header of a zip's member, or its content."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        start = opened.getinfo(name).header_offset
    if offset < 0:
        place = start + 30 + len(name)
        data[place : place + len(new)] = new
    else:
        central = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
        for place in (start + offset, central + offset + 2):
            data[place : place + len(new)] = new
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("offset", "new", "message"),
    [
        (6, b"\x01\x00", "RuntimeError: .*encrypted"),
        (8, b"\x63\x00", "NotImplementedError: .*compression"),
        (-1, b"\xff", "error: Error -3 while decompressing"),
    ],
)
@pytest.mark.parametrize("member", ["pictures/7.png", "pictures/list.csv"])
def test_a_member_that_cannot_be_read_is_named(tmp_path, member, offset, new, message):
    archive = tmp_path / "pictures.zip"
    write_images(tmp_path / "pictures", archive=tmp_path / "stored.zip")
    with zipfile.ZipFile(tmp_path / "stored.zip") as old, zipfile.ZipFile(archive, "w") as packed:
        for name in old.namelist():
            packed.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    break_member(archive, member, offset, new)
    data = images(files={"train": "pictures/list.csv"}, archive=str(archive), image_size=[6, 6])

    with pytest.raises(ingot.InputError) as caught:
        list(splits(tmp_path, data=data)["train"])

    where = "" if member.endswith("csv") else rf"{archive}/pictures/list\.csv: row 8: "
    expected = f"{where}{archive}: {member}: cannot be read: .*{message}.*"
    assert re.fullmatch(expected, caught.value.message)


def test_a_csv_and_images_that_cannot_be_decoded_are_named(tmp_path, monkeypatch):
    write_images(tmp_path / "pictures")
    data = images(files={"train": "pictures/list.csv"})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)

    with pytest.raises(ingot.InputError, match=r"row \d+: .*png: cannot be decoded: Decompression"):
        list(splits(tmp_path, data=data)["train"])
    (tmp_path / "pictures" / "list.csv").write_bytes(b"0.png,0\n\xfc.png,1\n")
    with pytest.raises(ingot.InputError, match=r"csv: row 2: found the byte 0xfc; expected UTF-8"):
        splits(tmp_path, data=data)
    (tmp_path / "pictures" / "list.csv").write_text("0.png,0\n" + "x" * 200_000 + ",1\n")
    with pytest.raises(ingot.InputError, match=r"list\.csv: row 2: cannot be read: field larger"):
        splits(tmp_path, data=data)


@pytest.mark.parametrize(("name", "records"), [("cifar10", 1), ("cifar100", 2)])
def test_cifar_in_its_binary_form(tmp_path, name, records):
    generator = np.random.default_rng(0)
    names = {
        "cifar10": [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"],
        "cifar100": ["train.bin", "test.bin"],
    }[name]
    rows = generator.integers(0, 256, (6, records + 3072), np.uint8)
    rows[:, :records] = generator.integers(0, 10, (6, records))
    for file in names:
        rows.tofile(tmp_path / file)
    data = {"splits": name, "kwargs": {"folder": ".", "scale": 1.0}}

    found = splits(tmp_path, data=data)
    ((pixels, labels),) = list(found["test"])

    assert found["train"].num_samples == 6 * (len(names) - 1)
    assert (pixels.numpy().astype(np.uint8).reshape(6, -1) == rows[:, records:]).all()
    assert labels.tolist() == rows[:, records - 1].tolist()
    (tmp_path / names[0]).write_bytes(b"123")
    with pytest.raises(ingot.InputError, match=f"{names[0]}: found 3 bytes"):
        splits(tmp_path, data=data)


def test_arrays_of_npz_files(tmp_path):
    image = np.random.default_rng(0).random((9, 1, 8, 8), np.float32)
    np.savez(tmp_path / "train.npz", image=image, label=np.arange(9))
    data = {"splits": "npz", "kwargs": {"files": {"train": "train.npz"}, "batch_size": 4}}

    loader = splits(tmp_path, data=data)["train"]

    for batch, labels in loader:
        assert (batch.numpy() == image[labels]).all()
    np.savez(tmp_path / "train.npz", image=image, labels=np.arange(9))
    with pytest.raises(ingot.InputError, match="found no array 'label'") as caught:
        splits(tmp_path, data=data)
    assert caught.value.hint == "did you mean 'labels'?"
    np.savez(tmp_path / "train.npz", image=image, label=np.arange(8))
    with pytest.raises(ingot.InputError, match="found image 9, label 8 samples"):
        splits(tmp_path, data=data)


def test_the_order_is_one_of_seed_and_epoch():
    labels = np.arange(50)

    def order(seed, epoch, start=0, rank=0, workers=1):
        loader = ArrayInputter((labels,), 8, shuffle=True, seed=seed)
        loader.rank, loader.workers = rank, workers
        return np.concatenate([batch[0] for batch in loader.batches(epoch, start)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == labels.tolist()
    assert len({tuple(order(0, 0)), tuple(order(0, 1)), tuple(order(1, 0))}) == 3
    assert order(0, 3, start=2) == order(0, 3)[16:]
    parts = [order(0, 0, rank=rank, workers=3) for rank in range(3)]
    assert [len(part) for part in parts] == [16, 16, 16]
    assert len({label for part in parts for label in part}) == 48


def test_the_cifar_augmenter():
    image = np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8)
    augment = CifarAugmenter(padding=2, brightness=10.0, contrast=(0.5, 1.5), standardise=True)

    changed = augment(image, random_generator(1))
    plain = augment(image, None)
    only_flip = CifarAugmenter(padding=0)(np.repeat(image, 50, 0), random_generator(0))

    assert changed.shape == plain.shape == image.shape
    assert changed.dtype == np.float32
    assert (changed == augment(image, random_generator(1))).all()
    for found in (changed, plain):
        np.testing.assert_allclose(found.mean((1, 2, 3)), 0, atol=1e-5)
        np.testing.assert_allclose(found.std((1, 2, 3)), 1, rtol=1e-5)
    flipped = [(row[..., ::-1] == image[index // 50]).all() for index, row in enumerate(only_flip)]
    same = [(row == image[index // 50]).all() for index, row in enumerate(only_flip)]
    assert all(one != other for one, other in zip(flipped, same, strict=True))
    assert 20 < sum(flipped) < 80


def test_test_images_are_neither_shuffled_nor_augmented(tmp_path):
    write_images(tmp_path / "pictures")
    data = images(files={"train": "pictures/list.csv", "test": "pictures/list.csv"})
    training = {"augmenter": {"name": "cifar", "padding": 2}, "batch_size": 5}

    found = splits(tmp_path, data=data, training=training)
    train, plain = ([batch[0] for batch in found[name].batches(0)] for name in ("train", "test"))
    bare = splits(tmp_path, data=data)["test"]

    assert torch.equal(torch.cat(plain), torch.cat([batch[0] for batch in bare]))
    assert [len(batch) for batch in plain] == [5, 5]
    assert not torch.equal(torch.cat(plain), torch.cat(train))


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (
            {"data": {"splits": "cifer10"}},
            "data.splits: found 'cifer10'; expected module:attribute, or one of",
            "did you mean 'cifar10'?",
        ),
        (
            {"data": {"splits": "digits", "kwargs": {"batchsize": 1}}},
            "data.splits: 'digits' cannot be made",
            "did you mean 'batch_size'?",
        ),
        (
            {"data": "net:build", "training": {"batch_size": 8}},
            "training.batch_size: 'net:build' takes no batch_size",
            "give it that parameter, or leave out training.batch_size",
        ),
        (
            {"evaluation": {"eval_split": "val"}},
            "evaluation.eval_split: found 'val'; the data has the splits train, test",
            None,
        ),
        ({"data": None}, "the key 'data' is missing", "data: {splits: digits}"),
        ({"data": "net:build"}, "returned a Sequential; expected splits by name", None),
        (
            {"data": "digits", "training": {"augmenter": "cifer"}},
            "training.augmenter: found 'cifer'",
            "did you mean 'cifar'?",
        ),
    ],
)
def test_data_that_is_wrong(tmp_path, changes, message, hint):
    spec = write_spec(tmp_path, **changes)

    with pytest.raises(ingot.IngotError) as caught:
        ingot.train(spec, tmp_path / "run")

    assert message in caught.value.message
    assert caught.value.hint == hint
