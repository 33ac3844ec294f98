"""A run that was killed, by whatever, goes on to the weights of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_specs import same_weights, write_spec

import ingot

pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from safetensors.torch import load_file

SLOW_LOSS = """

import time

from torch.nn import functional


def slow(model, batch):
    time.sleep(0.05)
    return functional.cross_entropy(model(batch[0]), batch[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGTERM, {}),
        (
            signal.SIGKILL,
            {
                "full_trainer": {
                    "optimizer": {"name": "AdamW", "lr": 0.01},
                    "scheduler": {"name": "one_cycle", "max_lr": 0.02},
                    "epochs": 2,
                    "ema": {"decay_rate": 0.9, "period": 2},
                    "early_stopping_patience": 5,
                },
                "training": {"warmup_epochs": 0.5, "augmenter": {"name": "cifar", "padding": 1}},
            },
        ),
    ],
    ids=["terminated", "killed"],
)
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path, number, options):
    training = {**options.get("training", {}), "checkpoint_frequency": 4}
    spec = write_spec(tmp_path, SLOW_LOSS, loss="net:slow", **{**options, "training": training})
    whole = ingot.train(spec, tmp_path / "whole")
    command = [sys.executable, "-m", "ingot.cli", "train", str(spec), "-o", str(tmp_path / "run")]

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for_checkpoint(tmp_path / "run", process)
        process.send_signal(number)
        process.wait(60)
        assert process.stderr is not None
        said = process.stderr.read()
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert "interrupted after step" in said
        assert "--resume" in said
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    resumed = ingot.train(spec, tmp_path / "run", resume=True)

    assert same_weights(whole.weights, resumed.weights)
    assert resumed.history == whole.history
    assert resumed.best == whole.best


def wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not list(folder.glob("checkpoint-*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.1)


USER_LOADER = """

import numpy as np
import torch
from ingot.zoo.digits import load_digits
from torch.utils.data import DataLoader, TensorDataset


class Noisy(TensorDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.rand(()) + float(np.random.rand()), label


def loaders():
    found = {}
    for split in ("train", "test"):
        data = Noisy(*map(torch.from_numpy, load_digits(split)))
        found[split] = DataLoader(data, 256, shuffle=split == "train")
    return found


class Stop(Exception):
    pass


def stop_after_ten(model, batch):
    stop_after_ten.count += 1
    if stop_after_ten.count > 10:
        raise Stop("pretend to be killed")
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


stop_after_ten.count = 0
"""


def test_a_loader_of_the_users_own_resumes_in_the_middle_of_an_epoch(tmp_path):
    spec = write_spec(
        tmp_path, USER_LOADER, data="net:loaders", training={"checkpoint_frequency": 1}
    )
    whole = ingot.train(spec, tmp_path / "whole", epochs=3)
    with pytest.raises(ingot.ModelError, match=r"Stop: pretend to be killed \(net.py:\d+\)"):
        ingot.train(spec, tmp_path / "run", epochs=3, overrides=["loss=net:stop_after_ten"])

    resumed = ingot.train(spec, tmp_path / "run", epochs=3, resume=True)

    assert same_weights(whole.weights, resumed.weights)


def test_an_earlier_run_needs_resume_or_fresh(ingot_cli, tmp_path):
    spec = write_spec(tmp_path)
    first = ingot.train(spec, tmp_path / "run", epochs=1)

    again = ingot_cli("train", spec, "-o", "run")
    assert again.returncode == 2
    assert "holds an earlier run" in again.stderr
    assert "--resume" in again.stderr
    resumed = ingot.train(spec, tmp_path / "run", epochs=1, resume=True)
    assert resumed.metrics == first.metrics
    longer = ingot.train(spec, tmp_path / "run", epochs=2, resume=True)
    assert longer.epochs == 2
    assert len(longer.history) == 2
    fresh = ingot.train(spec, tmp_path / "run", epochs=1, fresh=True)
    assert fresh.metrics == first.metrics


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    spec = write_spec(tmp_path)
    ingot.train(spec, tmp_path / "run", epochs=1)

    with pytest.raises(ingot.ModelError, match=r"another network.*'0.weight'.*\(4, 1, 3, 3\)"):
        ingot.train(spec, tmp_path / "run", resume=True, overrides=["model.kwargs={width: 5}"])


def test_a_schedule_that_is_over_cannot_be_gone_on_with(tmp_path):
    trainer = {"optimizer": {"name": "SGD", "lr": 0.1}, "scheduler": "cosine", "epochs": 1}
    spec = write_spec(tmp_path, full_trainer=trainer)
    ingot.train(spec, tmp_path / "run")

    with pytest.raises(ingot.UsageError, match=r"CosineAnnealingLR\) ends after 1 epochs; found 2"):
        ingot.train(spec, tmp_path / "run", resume=True, epochs=2)


STOP_AT_20 = """

from ingot import Callback


class Stop(Callback):
    def after_step(self, runner):
        runner.stop_requested = runner.state.step == 20
"""


def interrupted(tmp_path, **changes):
    """Return a spec whose run ends in the middle of epoch 2, and its folder."""
    training = {"callbacks": ["net:Stop"], **changes.pop("training", {})}
    spec = write_spec(tmp_path, STOP_AT_20, training=training, **changes)
    with pytest.raises(ingot.IngotError, match="interrupted after step 20"):
        ingot.train(spec, tmp_path / "run")
    return spec, tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "seed", "message"),
    [
        ("data.kwargs.batch_size=64", 0, "batch_size 128, batches 12, data.batch_size 128; found"),
        ("training.batch_size=64", 0, "batch_size 128, batches 12; found 64, 23"),
        ("data.splits=net:splits", 0, "data.splits digits"),
        ("training.augmenter=cifar", 0, "augmenter none; found {'name': 'cifar'}"),
        ("name=other", 1, "seed 0; found 1"),
    ],
    ids=["kwargs", "batch size", "data", "augmenter", "seed"],
)
def test_the_rest_of_an_epoch_is_not_trained_on_other_data(tmp_path, change, seed, message):
    spec, run = interrupted(tmp_path)
    with (tmp_path / "net.py").open("a") as file:
        file.write("\n\ndef splits(batch_size):\n    return {'train': [1], 'test': [1]}\n")

    with pytest.raises(ingot.UsageError) as caught:
        ingot.train(spec, run, resume=True, overrides=[change], seed=seed)

    assert "was written in the middle of epoch 2 with " in caught.value.message
    assert message in caught.value.message


def test_after_a_whole_epoch_the_data_may_change(tmp_path, caplog):
    spec = write_spec(tmp_path)
    ingot.train(spec, tmp_path / "run", epochs=1)

    change = ["data.kwargs.batch_size=64"]
    done = ingot.train(spec, tmp_path / "run", resume=True, overrides=change)

    assert done.steps == 12 + 23
    assert "was written with another batch_size 128 (now 64), batches 12 (now 23)" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("full_trainer.optimizer={name: Adam}", "was written with optimizer SGD; found Adam"),
        ("full_trainer.scheduler={name: StepLR, step_size: 3}", "scheduler none; found {'class'"),
        ("training.trainable=['6.']", "trainable []; found ['6.']"),
        ("evaluation.eval_key=top5", "its best value is that of eval_key"),
    ],
)
def test_what_belongs_to_the_state_cannot_change(tmp_path, change, message):
    spec = write_spec(tmp_path)
    ingot.train(spec, tmp_path / "run", epochs=1)

    with pytest.raises(ingot.UsageError) as caught:
        ingot.train(spec, tmp_path / "run", resume=True, overrides=[change])

    assert message in caught.value.message


def test_options_of_the_optimizer_are_taken(tmp_path, caplog):
    scheduler = {"name": "ExponentialLR", "gamma": 0.5}
    trainer = {"optimizer": {"name": "SGD", "lr": 0.2}, "scheduler": scheduler, "epochs": 2}
    code = """

from ingot import Callback


class Note(Callback):
    def after_run(self, runner):
        (group,) = runner.optimizer.param_groups
        assert group["weight_decay"] == 0.01 or runner.state.epoch < 4
"""
    callbacks = {"callbacks": ["net:Note"]}
    spec = write_spec(tmp_path, code, full_trainer=trainer, training=callbacks)
    ingot.train(spec, tmp_path / "run")

    changes = ["full_trainer.optimizer.lr=0.1", "full_trainer.optimizer.weight_decay=0.01"]
    done = ingot.train(spec, tmp_path / "run", resume=True, epochs=4, overrides=changes)

    rates = [entry["learning_rate"] for entry in done.history]
    assert rates == pytest.approx([0.2, 0.1, 0.025, 0.0125])
    assert "was written with another lr 0.2 (now 0.1), weight_decay 0 (now 0.01)" in caplog.text


def test_averaging_is_switched_on_and_off(tmp_path):
    spec = write_spec(tmp_path)
    average = ["full_trainer.ema={decay_rate: 0.999}"]
    ingot.train(spec, tmp_path / "on", epochs=1)
    ingot.train(spec, tmp_path / "off", epochs=1, overrides=average)
    plain = ingot.train(spec, tmp_path / "plain", epochs=2)
    first = load_file(tmp_path / "on" / "weights.safetensors")["6.weight"]
    whole = load_file(plain.weights)["6.weight"]

    off = ingot.train(spec, tmp_path / "off", epochs=2, resume=True)
    # An epoch of nothing moves no weight: the average is what was there when it was resumed.
    still = ["full_trainer.optimizer.lr=0.0", "full_trainer.optimizer.momentum=0.0"]
    on = ingot.train(spec, tmp_path / "on", epochs=2, resume=True, overrides=[*average, *still])

    assert same_weights(off.weights, plain.weights)
    assert not whole.equal(first)
    assert load_file(on.weights)["6.weight"].allclose(first, atol=1e-6)


CONSTANT = """


def evaluate(model, loader):
    return {"score": 50.0}
"""


def test_a_run_that_stopped_early_goes_on(tmp_path):
    spec = write_spec(
        tmp_path,
        CONSTANT,
        evaluation={"function": "net:evaluate", "eval_key": "score"},
        full_trainer={"epochs": 6, "early_stopping_patience": 2},
    )
    stopped = ingot.train(spec, tmp_path / "run")

    same = ingot.train(spec, tmp_path / "run", resume=True)
    more = ingot.train(spec, tmp_path / "run", resume=True, epochs=7)
    patient = ["full_trainer.early_stopping_patience=50"]
    all_of_it = ingot.train(spec, tmp_path / "run", resume=True, epochs=7, overrides=patient)

    assert [run.epochs for run in (stopped, same, more, all_of_it)] == [3, 3, 5, 7]
    assert stopped.stop_reason == same.stop_reason == "no improvement of score in 2 evaluations"
    assert all_of_it.stop_reason is None


def test_callbacks_of_one_class_keep_their_own_state(tmp_path):
    code = """

from ingot import Callback


class Count(Callback):
    def __init__(self, by, path):
        self.by, self.path, self.count = by, path, 0

    def after_epoch(self, runner):
        self.count += self.by

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count = state["count"]

    def after_run(self, runner):
        with open(self.path, "a") as file:
            file.write(f"{self.count} ")
"""
    notes = tmp_path / "notes"
    counts = [{"name": "net:Count", "by": by, "path": str(notes)} for by in (1, 10)]
    spec = write_spec(tmp_path, code, training={"callbacks": counts})

    ingot.train(spec, tmp_path / "run", epochs=1)
    ingot.train(spec, tmp_path / "run", epochs=2, resume=True)

    assert notes.read_text() == "1 10 2 20 "


BUFFERED = """

import random

import torch
from ingot.zoo.digits import load_digits


class Stream:
    \"\"\"Batches out of a buffer, drawn from it while they are trained on.\"\"\"

    def __iter__(self):
        images, labels = map(torch.from_numpy, load_digits("train"))
        buffer = []
        for index in range(20):
            buffer.append(slice(64 * index, 64 * index + 64))
            if len(buffer) > 4:
                part = buffer.pop(random.randrange(len(buffer)))
                yield images[part] + torch.rand(()), labels[part]


def splits():
    return {"train": Stream(), "test": [tuple(map(torch.from_numpy, load_digits("test")))]}


def noisy(model, batch):
    noise = random.random() + torch.rand(())
    return noise * torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


def test_a_loader_that_draws_as_it_goes_resumes_to_the_same_batches(tmp_path):
    (tmp_path / "whole").mkdir()
    changes = {"data": "net:splits", "loss": "net:noisy"}
    whole = write_spec(tmp_path / "whole", BUFFERED, **changes)
    uninterrupted = ingot.train(whole, tmp_path / "whole" / "run")
    spec = write_spec(
        tmp_path, BUFFERED + STOP_AT_20, training={"callbacks": ["net:Stop"]}, **changes
    )
    with pytest.raises(ingot.IngotError, match="interrupted after step 20"):
        ingot.train(spec, tmp_path / "run")

    overrides = ["training.callbacks=[]"]
    resumed = ingot.train(spec, tmp_path / "run", resume=True, overrides=overrides)

    assert resumed.steps == 32
    assert same_weights(uninterrupted.weights, resumed.weights)
