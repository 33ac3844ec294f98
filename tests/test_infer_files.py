"""``infer --files``: images through the inputter of a spec and its network, and what shows them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from applications import EXAMPLES
from training_specs import write_spec

import ingot

pytest.importorskip("torchmetrics")
Image = pytest.importorskip("PIL.Image")

from ingot.cli.options import Settings  # noqa: E402
from ingot.commands.infer_files import display_names, infer_files  # noqa: E402
from ingot.training.displays import ImageSegmentationDisplay, colour_map  # noqa: E402
from ingot.training.image_predictions import probabilities_of  # noqa: E402
from ingot.zoo.digits import load_digits  # noqa: E402
from ingot.zoo.shapes import draw_scene  # noqa: E402

OWN_CODE = """

from ingot.training.data import ArrayInputter
from ingot.training.displays import Display
from ingot.training.images import ImageInputter
from ingot.training.csv_rows import Row
from ingot.zoo.digits import load_digits
import torch


class Half(ArrayInputter):
    def for_files(self, files):
        rows = [Row((file,), "") for file in files]
        return ImageInputter(
            rows, image_size=(8, 8), channels=1, batch_size=2, convert=torch.from_numpy
        )


def splits():
    return {"train": Half(load_digits("train"), 64), "test": Half(load_digits("test"), 64)}


class Plain(Display):
    def names(self, stem):
        return [stem + ".txt"]

    def contents(self, prediction):
        return [f"a {prediction.classes}"]
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with a trained spec, an exported model, and the first digits as PNG files."""
    folder = tmp_path_factory.mktemp("digits")
    names = [f"number {index}" for index in range(10)]
    data = {"splits": "digits", "kwargs": {"batch_size": 64}}
    spec = write_spec(folder, OWN_CODE, data=data)
    ingot.train(spec, folder / "run", epochs=3)
    text = spec.read_text().replace("net:build", "net:build\n  weights: run/weights.safetensors")
    spec.write_text(text)
    images, labels = load_digits("test")
    (folder / "files").mkdir()
    with (folder / "files" / "list.csv").open("w", newline="") as file:
        for index in range(12):
            pixels = Image.fromarray((images[index, 0] * 255).round().astype(np.uint8))
            pixels.save(folder / "files" / f"{index:02}.png")
            csv.writer(file).writerow([f"{index:02}.png", labels[index]])
    return folder, labels[:12], names


def test_files_folders_and_csvs_give_classes_and_probabilities(digits):
    folder, labels, _ = digits
    spec = folder / "digits.yaml"

    found = infer_files(spec, [folder / "files"])
    listed = infer_files(spec, [folder / "files" / "list.csv"], batch_size=5)
    named = infer_files(spec, [f"{folder}/files/00.png,{folder}/files/01.png"])

    assert (found.outputs["classes"] == labels).mean() > 0.7  # random weights: 0.1
    assert found.outputs["probabilities"].shape == (12, 10)
    np.testing.assert_allclose(found.outputs["probabilities"].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        listed.outputs["probabilities"], found.outputs["probabilities"], rtol=1e-4, atol=1e-6
    )
    assert [entry.sample for entry in named.predictions] == [
        f"{folder}/files/00.png",
        f"{folder}/files/01.png",
    ]


def test_the_preprocessing_is_that_of_the_evaluation(digits):
    folder, _, _ = digits
    spec = folder / "digits.yaml"
    images, _ = load_digits("test")

    with ingot.load(spec) as model:
        expected = model.infer({"image": images[:12]})["logits"]
    found = infer_files(spec, [folder / "files"]).outputs["probabilities"]

    # PNG files hold whole numbers: the digits are sixteenths.
    np.testing.assert_allclose(found, probabilities_of(expected), atol=0.02)


def test_a_model_file_takes_the_preprocessing_of_a_spec(digits, tmp_path):
    pytest.importorskip("onnxscript")
    folder, _, _ = digits
    spec, package = folder / "digits.yaml", tmp_path / "digits.ingot"
    ingot.package(spec, package)
    exported = ingot.export(spec, formats=["onnx"], output=tmp_path / "out").artifacts[0].path

    expected = infer_files(spec, [folder / "files"]).outputs["probabilities"]

    for model, options in ((package, {"trust_code": True}), (exported, {})):
        found = infer_files(model, [folder / "files"], spec=spec, **options).outputs
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-4)
    with pytest.raises(ingot.UsageError, match="does not say how files are prepared"):
        infer_files(exported, [folder / "files"])


def test_pictures_are_labelled_images(digits, tmp_path):
    folder, _, _ = digits
    files = [folder / "files" / "00.png", folder / "files" / "01.png"]

    found = infer_files(folder / "digits.yaml", files, display=tmp_path / "shown")

    assert found.pictures == [[tmp_path / "shown" / "00.png"], [tmp_path / "shown" / "01.png"]]
    with Image.open(tmp_path / "shown" / "00.png") as picture:
        assert picture.width == 256  # 8 pixels, magnified
        assert picture.height > 256
    with pytest.raises(ingot.UsageError, match=r"00\.png: exists already"):
        infer_files(folder / "digits.yaml", files, display=tmp_path / "shown")
    again = infer_files(folder / "digits.yaml", files[:1], display=tmp_path / "shown", force=True)
    assert again.to_dict()["predictions"][0]["shown"] == [str(tmp_path / "shown" / "00.png")]


def test_results_as_files(digits, tmp_path):
    folder, _, _ = digits
    files = [folder / "files"]

    infer_files(folder / "digits.yaml", files, output=tmp_path / "found.npz")
    infer_files(folder / "digits.yaml", files, output=tmp_path / "found.json")

    entries = json.loads((tmp_path / "found.json").read_text())
    with np.load(tmp_path / "found.npz") as arrays:
        assert [entry["classes"] for entry in entries] == arrays["classes"].tolist()
        assert arrays["probabilities"].dtype == np.float32
    assert set(entries[0]) == {"file", "classes", "name", "probabilities"}
    with pytest.raises(ingot.UsageError, match="exists already"):
        infer_files(folder / "digits.yaml", files, output=tmp_path / "found.json")


def test_data_and_display_of_the_users_own(digits, tmp_path):
    folder, _, _ = digits
    changes = ["data=net:splits", "training={callbacks: [net:Plain]}"]
    files = [folder / "files"]

    expected = infer_files(folder / "digits.yaml", files)
    found = infer_files(
        folder / "digits.yaml", files, overrides=changes, display=tmp_path / "shown"
    )

    np.testing.assert_allclose(
        found.outputs["probabilities"], expected.outputs["probabilities"], atol=1e-6
    )
    said = (tmp_path / "shown" / "00.txt").read_text()
    assert said == f"a {expected.predictions[0].classes}"
    with pytest.raises(ingot.UsageError, match="'synthetic' prepares no single files"):
        infer_files(
            folder / "digits.yaml",
            files,
            overrides=["data={splits: synthetic, kwargs: {shape: [1, 8, 8]}}"],
        )


def test_masks_and_boxes_need_no_training_data(tmp_path):
    pytest.importorskip("pycocotools")
    image = draw_scene((0, 0), (80, 120)).image
    image.save(tmp_path / "scene.png")
    files, changes = [tmp_path / "scene.png"], ["model.weights=null"]

    masks = infer_files(
        EXAMPLES / "segmentation" / "segmentation.yaml",
        files,
        overrides=changes,
        display=tmp_path / "masks",
    )
    boxes = infer_files(
        EXAMPLES / "detection" / "detection.yaml",
        files,
        overrides=[*changes, "training.predictor={name: object_detection, score: 0.05, most: 4}"],
        display=tmp_path / "boxes",
    )

    assert masks.outputs["masks"].shape == (1, 80, 120)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        "scene.png",
        "scene_mask.png",
    ]
    assert boxes.outputs["boxes"].shape == (4, 4)
    assert boxes.outputs["image"].tolist() == [0] * 4
    with Image.open(tmp_path / "boxes" / "scene.png") as picture:
        shown = np.asarray(picture)
    assert shown.shape == (240, 360, 3)  # magnified three times
    drawn = (shown != np.asarray(image.resize((360, 240), Image.Resampling.NEAREST))).any(2)
    assert 0.001 < drawn.mean() < 0.7


def test_names_of_classes(digits):
    folder, _, names = digits
    data = "data={{splits: csv, kwargs: {{num_classes: 10, files: {{}}, class_names: [{}]}}}}"

    found = infer_files(
        folder / "digits.yaml",
        [folder / "files" / "00.png"],
        overrides=[data.format(", ".join(names))],
    )

    entry = found.to_dict()["predictions"][0]
    assert entry["name"] == f"number {entry['classes']}"
    assert entry["name"] in found.predictions[0].line()
    with pytest.raises(ingot.InputError, match="found 2 names; the network has 10 classes"):
        infer_files(
            folder / "digits.yaml", [folder / "files"], overrides=[data.format("zero, one")]
        )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["files/gone.png"], "files/gone.png: no such file"),
        (["net.py"], "net.py: cannot be decoded"),
        (["run"], "run: found no files that end in"),
        (["rows.csv"], r"rows\.csv: row 1: .*nothing\.png: no such file"),
        (["empty.csv"], r"empty\.csv: found no rows"),
        (["net.onnx"], r"net\.onnx: found a model, or weights; --files expected"),
        ([], "found no samples; expected --files, or training.test_samples"),
    ],
)
def test_samples_that_are_not_there(digits, files, message):
    folder, _, _ = digits
    (folder / "rows.csv").write_text("nothing.png,1\n")
    (folder / "empty.csv").write_text("\n")
    (folder / "net.onnx").write_bytes(b"\x08")

    with pytest.raises(ingot.IngotError, match=message):
        infer_files(folder / "digits.yaml", [folder / file for file in files])


def test_a_list_with_another_delimiter_has_a_hint(digits, tmp_path):
    folder, _, _ = digits
    (tmp_path / "list.csv").write_text(f"{folder}/files/00.png;1\n")

    with pytest.raises(ingot.InputError, match=r"list\.csv: row 1: .*no such file") as caught:
        infer_files(folder / "digits.yaml", [tmp_path / "list.csv"])

    assert caught.value.hint.startswith("columns are divided by ','; found ';' in")


def test_no_sample_takes_the_files_of_another():
    samples = ["a/x.png", "a/x_mask.png", "b/X.png", "b/x.png", "?" * 300]

    names = display_names(ImageSegmentationDisplay(), samples)

    assert names[:2] == [["x.png", "x_mask.png"], ["x_mask_2.png", "x_mask_2_mask.png"]]
    assert names[4] == ["sample_4.png", "sample_4_mask.png"]
    every = [name.lower() for entry in names for name in entry]
    assert len(set(every)) == len(every) == 10


def test_rows_of_masks_stand_on_a_line_each_in_json(capsys):
    document = {"mask": [[0, 1, 2], [3, 4, 5]], "text": "[\n 1,\n 2]", "of": ["a"], "none": []}

    Settings().print_json(document, has_arrays=True)

    printed = capsys.readouterr().out
    assert json.loads(printed) == {"schema_version": 1, **document}
    assert "\n    [0, 1, 2],\n    [3, 4, 5]\n  ]" in printed


def test_the_command(ingot_cli, digits, tmp_path):
    folder, _, _ = digits
    files = ("--files", "files/00.png", "files/01.png", "files/02.png")

    printed = ingot_cli("infer", "digits.yaml", *files, cwd=folder)
    shown = tmp_path / "shown"
    ran = ingot_cli(
        "infer", "digits.yaml", *files, "--display", shown, "--json", "--batch-size", 2, cwd=folder
    )
    streamed = ingot_cli("infer", "digits.yaml", *files, "-o", "-", cwd=folder)
    sampled = ingot_cli(
        "infer", "digits.yaml", "--set", "training={test_samples: [files/00.png]}", cwd=folder
    )

    assert [line.split(":")[0] for line in printed.stdout.splitlines()] == list(files[1:])
    entries = json.loads(ran.stdout)["predictions"]
    assert [entry["file"] for entry in entries] == list(files[1:])
    assert sorted(path.name for path in shown.iterdir()) == ["00.png", "01.png", "02.png"]
    assert f"wrote {shown / '00.png'}" in ran.stderr
    classes = [entry["classes"] for entry in json.loads(streamed.stdout)]
    assert classes == [entry["classes"] for entry in entries]
    assert sampled.stdout.startswith("files/00.png: ")


def test_a_network_of_keras_answers_as_well(digits, tmp_path):
    pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    from training_keras_specs import write_spec as write_keras_spec

    folder, labels, _ = digits
    optimizer = {"name": "SGD", "lr": 0.05, "momentum": 0.9}
    spec = write_keras_spec(tmp_path, full_trainer={"optimizer": optimizer, "epochs": 2})
    weights = ingot.train(spec, tmp_path / "run").weights

    found = infer_files(spec, [folder / "files"], overrides=[f"model.weights={weights}"])

    assert (found.outputs["classes"] == labels).mean() > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("files/00.png",), "found 'files/00.png' after MODEL; expected --files first"),
        (("--files", "files", "-i", "image=1"), "--files cannot be combined with -i"),
        (("--files", "files", "--repeat", 3), "--files cannot be combined with --repeat"),
        (("--display", "shown"), "--display needs --files, or training.test_samples"),
        (("--files", "files", "--isolate"), "--isolate is for packages and model files"),
        (("--files", "files", "-o", "found.txt"), "expected a name that ends in .npz or .json"),
        (("--files", "files", "--spec", "digits.yaml"), "--spec: MODEL is a spec already"),
    ],
)
def test_options_that_do_not_fit(ingot_cli, digits, arguments, message):
    done = ingot_cli("infer", "digits.yaml", *arguments, cwd=digits[0])

    assert done.returncode == 2
    assert message in done.stderr
    assert not done.stdout


def test_scores_become_probabilities():
    scores = np.array([[1.0, 2.0], [0.0, 0.0]])

    found = probabilities_of(scores)

    np.testing.assert_allclose(found[0], [0.268941, 0.731059], rtol=1e-5)
    np.testing.assert_allclose(probabilities_of(found), found)  # they are some already
    np.testing.assert_allclose(probabilities_of(np.array([[0.0]])), [[0.5, 0.5]])  # a sigmoid
    assert colour_map(4).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
