"""Lambda's suite under its own names: the script of its guide, and one of our own."""

from __future__ import annotations

import importlib
import textwrap

import numpy as np
import pytest

from ingot.compat import demos
from ingot.errors import UsageError
from ingot.specs import load_spec
from ingot.specs.template import flow

pytest.importorskip("torch")
pytest.importorskip("torchmetrics")
Image = pytest.importorskip("PIL.Image")

OWN = """\
from torch import nn

from ingot.training import Augmenter, Callback


def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 49, num_classes),
    )


class Mirror(Augmenter):
    def __call__(self, images, generator):
        return images if generator is None else images[..., ::-1]


class Counts(Callback):
    steps = 0

    def __init__(self, by=1):
        self.by = by

    def after_step(self, runner):
        Counts.steps += self.by

    def after_run(self, runner):
        open("counted", "w").write(str(Counts.steps))
"""


@pytest.fixture
def images(tmp_path):
    """Ninety-six images of two classes, dark and bright, with CSVs for training and evaluation."""
    folder = tmp_path / "demo" / "data" / "cifar10"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(96):
        label = number % 2
        pixels = generator.integers(120 * label, 120 * label + 120, (32, 32, 3), np.uint8)
        # A cross in bright images: standardising takes the brightness away.
        pixels[14:18] = 255 * label
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{label}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    (folder / "eval.csv").write_text("\n".join(rows[:32]) + "\n")
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def guide_script(shared):
    """Return the script of the guide, its quotes and tabs mended."""
    (guide,) = (shared / "seeds").glob("003_*.txt")
    text = guide.read_text(encoding="utf-8")
    block = text.split(".. code-block:: python\n")[1].split(".. _define_inputter:")[0]
    mended = block.replace('train.csv \\")', 'train.csv")').replace("\t", "      ")
    mended = textwrap.dedent(mended).replace("source.", "ingot.compat.demos.")
    imports = "import importlib\nfrom ingot.compat.demos import *\n"
    return imports + mended


@pytest.mark.slow
def test_the_script_of_the_guide_runs(shared, images, home):
    script = guide_script(shared)
    names = {}
    exec(compile(script, "guide.py", "exec"), names)
    folder = home / "demo" / "model" / "image_classification_cifar10"
    assert (folder / "weights.safetensors").is_file()
    runner = names["runner"]
    assert runner.spec.full_trainer.epochs == 4
    assert runner.spec.training.batch_size == 64
    again = runner.run()  # it goes on from the newest checkpoint, which is the last
    assert again.steps == 8
    assert list((folder / "tensorboard").iterdir())


def configs(mode, images, **inputter):
    common = {"mode": mode, "batch_size_per_gpu": 8, "gpu_count": 2}
    data = demos.InputterConfig(**common, **inputter)
    network = demos.ModelerConfig(
        **common,
        optimizer="momentum",
        learning_rate=0.02,
        piecewise_boundaries="3",
        piecewise_lr_decay="1.0,0.1",
    )
    return (
        demos.ImageClassificationInputterConfig(data, num_classes=2),
        demos.ImageClassificationModelerConfig(network, num_classes=2),
        demos.CallbackConfig(**common, model_dir="~/demo/model/own", log_every_n_iter=2),
        demos.RunnerConfig(**common, summary_names=["loss"]),
    )


def application(mode, images, **inputter):
    """Return inputter, modeler and runner, all parts of which are of the user's own."""
    data, network, callback, run = configs(mode, images, **inputter)
    names = {
        "train": ["train_basic", "train_loss"],
        "eval": ["eval_basic", "eval_loss"],
        "infer": ["infer_basic", "infer_display_image_classification"],
    }[mode]
    load = importlib.import_module
    callbacks = [load(f"ingot.compat.demos.callback.{name}").build(callback) for name in names]
    if mode == "train":
        callbacks.append(demos.build("callback", "own:Counts", callback, by=3))
    source = "ingot.compat.demos.inputter.image_classification_csv_inputter"
    inputter = load(source).build(data, "own:Mirror")
    modeler = load("ingot.compat.demos.modeler.image_classification_modeler").build(
        network, "own:net"
    )
    parts = load("ingot.compat.demos.runner.parameter_server_runner")
    return inputter, modeler, parts.build(run, inputter, modeler, callbacks)


def test_an_application_of_ones_own_trains_evaluates_and_predicts(images, home, capsys):
    (home / "own.py").write_text(OWN)
    train = {"epochs": 4, "dataset_meta": str(images / "train.csv")}
    _, _, runner = application("train", images, **train)
    result = runner.run()
    assert result.run_dir == home / "demo" / "model" / "own"
    assert result.epochs == 4
    assert (home / "counted").read_text() == str(3 * 24)
    assert "step 2 of 24  loss" in capsys.readouterr().err
    spec = runner.spec
    assert spec.training.batch_size == 16
    assert spec.full_trainer.scheduler.factory.kwargs == {"boundaries": [3], "decay": [0.1]}

    assert runner.modeler.network is not None  # with the weights of the run
    _, _, runner = application("eval", images, dataset_meta=f"{images}/eval.csv")
    found = runner.run().entries[0]
    assert found.metrics["accuracy"] == 100
    assert "loss 0." in capsys.readouterr().err

    files = f"{images}/0.png, {images}/1.png"
    _, _, runner = application("infer", images, test_samples=files)
    predicted = runner.run().predictions
    assert [item.classes for item in predicted] == [0, 1]
    assert [float(item.probabilities.sum()) for item in predicted] == pytest.approx([1, 1])
    assert len(list((home / "demo" / "model" / "own" / "infer").iterdir())) == 2


def test_input_fn_and_model_fn_give_what_the_guide_says(images, home):
    (home / "own.py").write_text(OWN)
    train = {"epochs": 2, "dataset_meta": str(images / "train.csv")}
    inputter, modeler, _ = application("train", images, **train)
    batches = list(inputter.input_fn())
    assert len(batches) == 2 * 6
    pixels, labels = batches[0]
    assert pixels.shape == (16, 3, 32, 32)
    assert str(labels.dtype) == "torch.int64"
    found = modeler.model_fn(batches[0])
    assert found.keys() == {"loss", "grads", "accuracy", "learning_rate"}
    assert found["grads"]["0.weight"].shape == (8, 3, 3, 3)
    assert 0 <= float(found["accuracy"]) <= 1
    assert found["learning_rate"] == 0.02

    inputter, modeler, _ = application("eval", images, dataset_meta=f"{images}/eval.csv")
    (batch, *_) = inputter.input_fn()
    assert modeler.model_fn(batch).keys() == {"loss", "accuracy"}

    inputter, modeler, _ = application("infer", images)
    (batch,) = inputter.input_fn([f"{images}/0.png", f"{images}/1.png"])
    found = modeler.model_fn(batch)
    assert found["classes"].shape == (2,)
    assert found["probabilities"].sum(1).tolist() == pytest.approx([1, 1])


def test_the_spec_of_an_application_is_one_that_every_command_takes(images, home, tmp_path):
    (home / "own.py").write_text(OWN)
    train = {"epochs": 1, "dataset_meta": str(images / "train.csv")}
    _, _, runner = application("train", images, **train)
    lines = [f"{name}: {flow(value)}" for name, value in runner.spec.to_dict().items()]
    (tmp_path / "spec.yaml").write_text("\n".join(lines))
    assert load_spec(tmp_path / "spec.yaml").to_dict() == runner.spec.to_dict()


def test_names_of_the_suite_become_those_of_the_zoo(images, home):
    data, _, callback, run = configs("train", images, dataset_meta=str(images / "train.csv"))
    common = {"mode": "train", "batch_size_per_gpu": 8, "gpu_count": 2}
    network = demos.ModelerConfig(
        **common, skip_l2_loss_vars="BatchNorm,preact,postnorm", trainable_vars="fc"
    )
    augmenter = importlib.import_module("ingot.compat.demos.augmenter.cifar_augmenter")
    net = importlib.import_module("ingot.compat.demos.network.resnet32").net
    parts = (
        demos.build("inputter", "image_classification_csv_inputter", data, augmenter),
        demos.build(
            "modeler",
            "image_classification_modeler",
            demos.ImageClassificationModelerConfig(network, num_classes=2),
            net,
        ),
    )
    runner = demos.build("runner", "parameter_server_runner", run, *parts, [])
    training = runner.spec.training
    assert training.weight_decay_skip == ("bn.", ".b1.", ".b2.")
    assert training.trainable == ("fc",)
    assert training.augmenter.kwargs["brightness"] == 63
    assert callback.model_dir is not None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: demos.Config(mode="tune"), "mode: found 'tune'"),
        (lambda: demos.Config(batch_size_per_gpu=0), "batch_size_per_gpu"),
        (lambda: demos.ModelerConfig(optimizer="momentm"), "optimizer: found 'momentm'"),
        (lambda: demos.ModelerConfig(optimizer="ftrl"), "optimizer: found 'ftrl'"),
        (lambda: demos.ModelerConfig(framework="tensorflow"), "framework: found 'tensorflow'"),
        (lambda: demos.build("inputer", "x"), "build: found 'inputer'"),
        (lambda: demos.build("callback", "train_los", None), "found 'train_los'"),
        (
            lambda: demos.build(
                "inputter", "image_classification_csv_inputter", demos.InputterConfig()
            ),
            "expected an ImageClassificationInputterConfig",
        ),
    ],
)
def test_what_is_wrong_is_refused(call, said):
    with pytest.raises(UsageError, match=said):
        call()


def test_an_optimizer_of_the_framework_is_taken():
    assert demos.ModelerConfig(optimizer="AdamW").optimizer == "AdamW"
    with pytest.raises(UsageError) as caught:
        demos.ModelerConfig(optimizer="momentm")
    assert caught.value.hint == "did you mean 'momentum'?"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("callback.train_bsic", r"demos\.callback has no module 'train_bsic'; .*'train_basic'"),
        ("calback.train_basic", r"demos has no module 'calback'; expected .*'callback'"),
        ("network.vgg", r"demos\.network has no module 'vgg'; expected one of resnet32$"),
    ],
)
def test_a_module_that_is_misspelt_is_told(name, said):
    with pytest.raises(ModuleNotFoundError, match=said) as caught:
        importlib.import_module(f"ingot.compat.demos.{name}")
    assert caught.value.name.startswith("ingot.compat.demos.")


def test_configurations_that_differ_are_refused(images, home):
    train = {"dataset_meta": str(images / "train.csv")}
    data, network, _, _ = configs("train", images, **train)
    parts = (
        demos.build("inputter", "image_classification_csv_inputter", data),
        demos.build("modeler", "image_classification_modeler", network, "own:net"),
    )
    with pytest.raises(UsageError, match="batch_size_per_gpu: found 8; the runner has 10"):
        demos.build("runner", "parameter_server_runner", demos.RunnerConfig(), *parts)


@pytest.mark.slow
def test_a_keras_network_trains_when_it_is_asked_for(images, home):
    pytest.importorskip("keras")
    data, network, callback, run = configs(
        "train", images, epochs=1, dataset_meta=str(images / "train.csv")
    )
    network.framework = "keras"
    net = importlib.import_module("ingot.compat.demos.network.resnet32").net
    inputter = demos.build("inputter", "image_classification_csv_inputter", data)
    modeler = demos.build("modeler", "image_classification_modeler", network, net)
    callbacks = [demos.build("callback", "train_loss", callback)]
    runner = demos.build("runner", "parameter_server_runner", run, inputter, modeler, callbacks)
    result = runner.run()
    assert (result.steps, result.weights.is_file()) == (6, True)
    with pytest.raises(UsageError, match="model_fn: found the framework 'keras'"):
        modeler.model_fn((None, None))
