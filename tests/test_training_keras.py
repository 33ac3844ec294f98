"""Training and evaluation of Keras networks through the interfaces of PyTorch's."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
from training_keras_specs import arrays_of, same_weights, write_spec

import ingot
from ingot.errors import TrainingError
from ingot.specs import ModelSection, ModelSpec
from ingot.training import Problem

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

LONG = {"full_trainer": {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9}, "epochs": 4}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A spec, and its result."""
    folder = tmp_path_factory.mktemp("keras")
    spec = write_spec(folder, **LONG, training={"callbacks": ["train_accuracy"]})
    return spec, ingot.train(spec, folder / "run")


def test_it_learns_and_the_same_seed_gives_the_same_weights(trained, tmp_path):
    spec, result = trained
    assert result.metrics["accuracy"] > 85
    assert result.eval_key == "accuracy"
    assert [entry["step"] for entry in result.history] == [12, 24, 36, 48]
    assert set(arrays_of(result.weights)) == {
        "bn/beta",
        "bn/gamma",
        "bn/moving_mean",
        "bn/moving_variance",
        "conv/bias",
        "conv/kernel",
        "head/bias",
        "head/kernel",
    }

    again = ingot.train(spec, tmp_path / "again", epochs=1)
    other = ingot.train(spec, tmp_path / "other", epochs=1, seed=1)

    assert again.history[0] == result.history[0]
    assert not same_weights(again.weights, other.weights)


def test_weights_and_file_measure_the_same(trained):
    spec, result = trained
    weights = ingot.evaluate(spec, overrides=[f"model.weights={result.weights}"])
    model = f"model={{framework: keras, file: {result.model}}}"
    file = ingot.evaluate(spec, overrides=[model])

    assert weights.entries[0].metrics == file.entries[0].metrics == result.metrics
    assert weights.entries[0].samples == 360


def test_random_weights_are_told(trained):
    spec, _ = trained
    with pytest.raises(ingot.UsageError, match=r"'model.weights' is missing"):
        ingot.evaluate(spec, strict=True)


def test_the_result_is_packaged_inferred_and_profiled(trained, tmp_path):
    spec, result = trained
    weights = [f"model.weights={result.weights}"]
    package = ingot.package(spec, tmp_path / "digits.zip", overrides=weights)
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    with ingot.load(package.path) as packaged, ingot.load(result.model) as bare:
        (name,) = (item.name for item in bare.inputs)
        (logits,) = bare.infer({name: images}).values()
        np.testing.assert_array_equal(packaged.infer({"image": images})["logits"], logits)
    profile = ingot.profile(spec, overrides=weights)
    assert profile.to_dict()["parameters"] == 4 * 9 + 4 + 4 * 4 + 64 * 10 + 10


@pytest.mark.slow
def test_the_result_is_exported_within_its_accuracy(trained, tmp_path):
    spec, result = trained
    weights = [f"model.weights={result.weights}"]
    (tmp_path / "out").mkdir()
    ingot.export(spec, output=tmp_path / "out", formats=["onnx"], overrides=weights)
    (file,) = [path for path in (tmp_path / "out").glob("*.onnx") if "dynamic" in path.name]
    measured = ingot.evaluate(spec, file, overrides=weights)
    assert measured.entries[1].metrics == pytest.approx(result.metrics)


def test_a_file_is_trained_from_its_weights(trained, tmp_path):
    _, base = trained
    spec = write_spec(tmp_path, model={"framework": "keras", "file": str(base.model)}, **LONG)
    more = ingot.train(spec, tmp_path / "run", epochs=1)
    assert more.history[0]["loss"] < base.history[1]["loss"]


def test_summaries_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    training = {"callbacks": ["train_summary", "early_stopping"]}
    ingot.train(write_spec(tmp_path, training=training), tmp_path / "run", epochs=1)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_regularizers_are_part_of_the_loss(tmp_path):
    code = """

def regular():
    regularizer = keras.regularizers.L2(0.1)
    return keras.Sequential([
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(10, kernel_regularizer=regularizer),
    ])


from ingot import Callback


class Parts(Callback):
    def after_step(self, runner):
        assert set(runner.losses) == {"loss", "regularization"}
        assert runner.losses["regularization"] > 0
"""
    model = {"framework": "keras", "entrypoint": "net:regular"}
    spec = write_spec(tmp_path, code, model=model, training={"callbacks": ["net:Parts"]})
    ingot.train(spec, tmp_path / "run", epochs=1)


def test_images_of_a_csv_come_channels_last(tmp_path):
    image = pytest.importorskip("PIL.Image")
    with (tmp_path / "all.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        for index in range(20):
            # the class is the colour: red is the first channel
            pixels = np.zeros((6, 10, 3), np.uint8)
            pixels[..., index % 2] = 255
            image.fromarray(pixels).save(tmp_path / f"{index}.png")
            rows.writerow((f"{index}.png", index % 2))
    code = """

def colours():
    return keras.Sequential([
        keras.Input((6, 10, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)
    ])
"""
    spec = write_spec(
        tmp_path,
        code,
        model={"framework": "keras", "entrypoint": "net:colours"},
        inputs=[{"name": "image", "dtype": "float32", "shape": ["batch", 6, 10, 3]}],
        outputs=[{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}],
        data={
            "splits": "csv",
            "kwargs": {
                "files": {"train": "all.csv", "test": "all.csv"},
                "num_classes": 2,
                "batch_size": 4,
            },
        },
        full_trainer={"optimizer": {"name": "sgd", "lr": 1.0}, "epochs": 3},
        training={"augmenter": {"name": "cifar", "padding": 0}},
    )
    assert ingot.train(spec, tmp_path / "run").metrics == {"accuracy": 100.0}
    with pytest.raises(ingot.InputError, match=r"3 channels and 6x10 pixels.*\(batch, 5, 10, 3\)"):
        ingot.train(
            spec,
            tmp_path / "no",
            overrides=["inputs=[{name: image, dtype: float32, shape: [batch, 5, 10, 3]}]"],
        )


def test_segmentation_of_npz_arrays(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.random((32, 8, 8, 1), np.float32)
    labels = (images[..., 0] > 0.5).astype(np.int64)
    labels[0, 0, 0] = 255  # does not count
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", image=images, label=labels)
    code = """

def pixels():
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 1)), layers.Conv2D(8, 1, activation="relu"), layers.Conv2D(2, 1)
    ])
"""
    spec = write_spec(
        tmp_path,
        code,
        model={"framework": "keras", "entrypoint": "net:pixels"},
        outputs=[{"name": "logits", "dtype": "float32", "shape": ["batch", 8, 8, 2]}],
        task="segmentation",
        data={
            "splits": "npz",
            "kwargs": {"files": {"train": "train.npz", "test": "test.npz"}, "batch_size": 8},
        },
        full_trainer={"optimizer": {"name": "adam", "lr": 0.1}, "epochs": 10},
    )
    done = ingot.train(spec, tmp_path / "run")
    assert done.metrics["pixel_accuracy"] > 0.9
    assert 0.8 < done.metrics["miou"] <= done.metrics["pixel_accuracy"]


def test_segmentation_of_a_csv_is_trained_and_inferred(tmp_path):
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    with (tmp_path / "all.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        for index in range(16):
            mask = (generator.random((6, 10)) > 0.5).astype(np.uint8)
            pixels = np.stack([255 * mask, 0 * mask, 0 * mask], -1)  # class 1 is red
            image.fromarray(pixels).save(tmp_path / f"{index}.png")
            image.fromarray(mask).save(tmp_path / f"{index}_mask.png")
            rows.writerow((f"{index}.png", f"{index}_mask.png"))
    code = "\n\ndef pixels():\n"
    code += "    return keras.Sequential([keras.Input((6, 10, 3)), keras.layers.Conv2D(2, 1)])\n"
    spec = write_spec(
        tmp_path,
        code,
        model={"framework": "keras", "entrypoint": "net:pixels"},
        inputs=[{"name": "image", "dtype": "float32", "shape": ["batch", 6, 10, 3]}],
        outputs=[{"name": "logits", "dtype": "float32", "shape": ["batch", 6, 10, 2]}],
        task="segmentation",
        data={
            "splits": "segmentation_csv",
            "kwargs": {
                "files": {"train": "all.csv", "test": "all.csv"},
                "num_classes": 2,
                "batch_size": 4,
            },
        },
        full_trainer={"optimizer": {"name": "adam", "lr": 0.3}, "epochs": 6},
    )
    done = ingot.train(spec, tmp_path / "run")
    assert done.metrics["miou"] == 1.0

    weights = [f"model.weights={done.weights}"]
    found = ingot.infer_files(spec, [tmp_path / "3.png"], overrides=weights).predictions
    with image.open(tmp_path / "3_mask.png") as wanted:
        np.testing.assert_array_equal(found[0].mask, np.asarray(wanted))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loss=ssd_multibox", r"loss: found 'ssd_multibox', which is for networks of PyTorch"),
        ("loss=SmoothL1Loss", r"loss: found 'SmoothL1Loss'; expected .*a class of keras.losses"),
        ("loss=net:torch_loss", r"'net:torch_loss' is a MSELoss, and the network one of Keras"),
        ("evaluation.function=object_detection", "'object_detection', which is for .* PyTorch"),
        ("task=object_detection", r"'ssd_multibox', which is for networks of PyTorch"),
        ("full_trainer.optimizer.name=lbfgs", "found 'lbfgs'; expected .*an optimizer of Keras"),
        ("full_trainer.scheduler={name: OneCycleLR}", "a class of keras.optimizers.schedules"),
        ("training.network={name: unet, dataset: cifar10}", "unet: there is none of Keras"),
    ],
)
def test_what_is_of_pytorch_is_refused(tmp_path, change, message):
    code = "\n\ndef torch_loss():\n    import torch\n\n    return torch.nn.MSELoss()\n"
    code = code.replace("def torch_loss():", "def make():") + "\n\ntorch_loss = make()\n"
    spec = write_spec(tmp_path, code)
    with pytest.raises((ingot.SpecError, ingot.UsageError), match=message):
        ingot.train(spec, tmp_path / "run", overrides=[change])
    assert not (tmp_path / "run").exists()


def test_losses_of_keras_and_of_the_users_own(tmp_path):
    code = """

def mine(model, batch):
    return {"first": keras.ops.mean(model(batch[0]) ** 2), "second": keras.ops.mean(batch[0])}
"""
    spec = write_spec(tmp_path, code)
    named = "loss={name: SparseCategoricalCrossentropy, from_logits: true}"
    by_keras = ingot.train(spec, tmp_path / "keras", epochs=1, overrides=[named])
    built_in = ingot.train(spec, tmp_path / "built_in", epochs=1)
    own = ingot.train(spec, tmp_path / "own", epochs=1, overrides=["loss=net:mine"])
    metric = ["evaluation.function=SparseTopKCategoricalAccuracy"]
    top = ingot.evaluate(spec, overrides=[*metric, f"model.weights={built_in.weights}"])

    assert by_keras.history[0]["loss"] == pytest.approx(built_in.history[0]["loss"], rel=1e-4)
    assert np.isfinite(own.history[0]["loss"])
    assert top.entries[0].metrics["sparse_top_k_categorical_accuracy"] == pytest.approx(
        built_in.metrics["top5"] / 100
    )


def test_a_label_out_of_range_is_named(tmp_path):
    code = """

import numpy as np


def splits():
    good = np.zeros((4, 8, 8, 1), "float32"), np.arange(4)
    return {"train": [(good[0], np.array([0, 1, 12, 3]))], "test": [good]}
"""
    spec = write_spec(tmp_path, code, data="net:splits")
    with pytest.raises(ingot.InputError, match=r"sample 2 of a batch: found the label 12; .*0..9"):
        ingot.train(spec, tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    trainer = {"optimizer": {"name": "sgd", "lr": 1e30}, "epochs": 2}
    with pytest.raises(TrainingError, match=r"step \d+ \(epoch 1\): .*expected a finite"):
        ingot.train(write_spec(tmp_path, full_trainer=trainer), tmp_path / "run")


@pytest.mark.slow
def test_networks_of_the_zoo(tmp_path):
    spec = write_spec(
        tmp_path,
        model={
            "framework": "keras",
            "entrypoint": "ingot.zoo:get_model_by_name",
            "kwargs": {
                "model_name": "resnet20",
                "dataset_name": "digits",
                "framework": "keras",
                "width": 4,
            },
        },
        full_trainer={"optimizer": {"name": "momentum", "lr": 0.1}, "epochs": 2},
    )
    done = ingot.train(spec, tmp_path / "run", epochs=1)
    network = "training.network={name: resnet20, dataset: digits, width: 4}"
    named = ingot.train(spec, tmp_path / "named", epochs=1, overrides=[network])
    assert same_weights(done.weights, named.weights)


def test_python_objects_train(tmp_path):
    from ingot.training import fit, measure
    from ingot.training.data import ArrayInputter
    from ingot.zoo.digits import load_digits

    images, labels = load_digits("train")
    data = {"train": ArrayInputter((images.transpose(0, 2, 3, 1), labels), 128, shuffle=True)}
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    trained = fit(model, data, {"optimizer": {"name": "Adam", "lr": 0.05}, "epochs": 3})
    assert trained.modeler.network is model
    found = measure(model, data, split="train")
    assert found.metrics["accuracy"] > 90
    assert len(found.per_sample["accuracy"]) == len(labels)


@pytest.mark.slow
def test_another_backend_of_keras_is_refused(ingot_cli, tmp_path):
    spec = write_spec(tmp_path)
    done = ingot_cli("train", spec, "-o", "run", env={"KERAS_BACKEND": "jax"})
    assert done.returncode == 5
    assert "KERAS_BACKEND: found 'jax'; only 'tensorflow' can be trained" in done.stderr


def test_framework_of_a_spec_that_cannot_be_trained_is_told():
    problem = Problem(ModelSpec(model=ModelSection("onnx")))
    with pytest.raises(ingot.UsageError, match="only keras and torch can be trained"):
        problem.build_network()


WITHOUT = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(name, name=name)


sys.meta_path.insert(0, Missing())
from ingot.cli import main

sys.exit(main())
"""


@pytest.mark.parametrize(
    ("missing", "code", "message"),
    [
        ("tensorflow", 6, "this needs tensorflow, which is not installed"),
        ("torch", 0, ""),
    ],
)
def test_tensorflow_is_needed_and_pytorch_is_not(tmp_path, missing, code, message):
    (tmp_path / "main.py").write_text(WITHOUT.format(missing=[missing]))
    spec = write_spec(tmp_path)
    command = [sys.executable, str(tmp_path / "main.py"), "train", str(spec), "--epochs", "1"]

    done = subprocess.run(
        [*command, "-o", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )

    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert (tmp_path / "run" / "weights.safetensors").is_file() == (code == 0)
    assert ("ingot[tensorflow]" in done.stderr) == (code == 6)
