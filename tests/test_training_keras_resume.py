"""A run of Keras that was killed goes on to the weights of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from training_keras_specs import arrays_of, same_weights, write_spec

import ingot

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

STOP_AT_20 = """

from ingot import Callback


class Stop(Callback):
    def after_step(self, runner):
        runner.stop_requested = runner.state.step == 20
"""

EVERYTHING = {
    "full_trainer": {
        "optimizer": {"name": "Adam", "lr": 0.01},
        "scheduler": {"factory": {"name": "cosine"}, "interval": "iteration"},
        "epochs": 2,
        "ema": {"decay_rate": 0.9, "period": 2},
        "early_stopping_patience": 5,
    },
    "training": {"warmup_epochs": 0.5, "weight_decay": 1e-3, "weight_decay_skip": ["bn", "bias"]},
}


def interrupted(folder, code="", **changes):
    """Return a spec whose run ended in the middle of epoch 2."""
    training = {"callbacks": ["net:Stop"], **changes.pop("training", {})}
    spec = write_spec(folder, STOP_AT_20 + code, training=training, **changes)
    with pytest.raises(ingot.IngotError, match="interrupted after step 20"):
        ingot.train(spec, folder / "run")
    return spec


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, changes):
    (tmp_path / "other").mkdir()
    whole = ingot.train(write_spec(tmp_path / "other", **changes), tmp_path / "whole")
    spec = interrupted(tmp_path, **{**changes, "training": dict(changes.get("training", {}))})

    resumed = ingot.train(spec, tmp_path / "run", resume=True)

    assert same_weights(whole.weights, resumed.weights)
    assert resumed.history == whole.history
    assert resumed.best == whole.best
    assert (tmp_path / "run" / "model.keras").read_bytes() == (
        tmp_path / "whole" / "model.keras"
    ).read_bytes()


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    slow = """

import time

from ingot import Callback


class Slow(Callback):
    def after_step(self, runner):
        time.sleep(0.05)
"""
    training = {**EVERYTHING["training"], "checkpoint_frequency": 4, "callbacks": ["net:Slow"]}
    spec = write_spec(tmp_path, slow, **{**EVERYTHING, "training": training})
    whole = ingot.train(spec, tmp_path / "whole")
    command = [sys.executable, "-m", "ingot.cli", "train", str(spec), "-o", str(tmp_path / "run")]

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        from test_training_resume import wait_for_checkpoint

        wait_for_checkpoint(tmp_path / "run", process)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    resumed = ingot.train(spec, tmp_path / "run", resume=True)

    assert same_weights(whole.weights, resumed.weights)
    assert resumed.history == whole.history


OWN_DATA = """

import numpy as np

from ingot.zoo.digits import load_digits


class Stream:
    \"\"\"Batches in an order that is drawn while they are trained on.\"\"\"

    def __init__(self, split):
        images, labels = load_digits(split)
        self.images, self.labels = images.transpose(0, 2, 3, 1), labels

    def __iter__(self):
        for _ in range(12):
            chosen = np.random.randint(0, len(self.labels), 64)
            yield self.images[chosen], self.labels[chosen]


def splits():
    return {"train": Stream("train"), "test": Stream("test")}
"""


def test_data_of_the_users_own_resumes_to_the_same_batches(tmp_path):
    (tmp_path / "other").mkdir()
    spec = write_spec(tmp_path / "other", OWN_DATA, data="net:splits")
    whole = ingot.train(spec, tmp_path / "whole")
    spec = interrupted(tmp_path, OWN_DATA, data="net:splits")

    resumed = ingot.train(spec, tmp_path / "run", resume=True)

    assert same_weights(whole.weights, resumed.weights)


def test_what_belongs_to_the_state_cannot_change(tmp_path, caplog):
    spec = write_spec(tmp_path)
    ingot.train(spec, tmp_path / "run", epochs=1)

    for change, message in (
        ("full_trainer.optimizer={name: Adam}", "was written with optimizer SGD; found Adam"),
        ("training.trainable=[head]", "trainable []; found ['head']"),
        ("evaluation.eval_key=top5", "its best value is that of eval_key"),
    ):
        with pytest.raises(ingot.UsageError) as caught:
            ingot.train(spec, tmp_path / "run", resume=True, overrides=[change])
        assert message in caught.value.message
    with pytest.raises(ingot.ModelError, match=r"another network.*'conv/kernel'.*\(3, 3, 1, 4\)"):
        ingot.train(spec, tmp_path / "run", resume=True, overrides=["model.kwargs={width: 5}"])
    taken = ["full_trainer.optimizer.lr=0.1", "full_trainer.optimizer.nesterov=true"]
    done = ingot.train(spec, tmp_path / "run", resume=True, overrides=taken)
    assert [entry["learning_rate"] for entry in done.history] == pytest.approx([0.2, 0.1])
    assert "learning_rate 0.2 (now 0.1), nesterov False (now True)" in caplog.text


def test_a_schedule_that_is_over_cannot_be_gone_on_with(tmp_path):
    trainer = {"optimizer": {"name": "SGD", "lr": 0.1}, "scheduler": "cosine", "epochs": 1}
    spec = write_spec(tmp_path, full_trainer=trainer)
    ingot.train(spec, tmp_path / "run")

    with pytest.raises(ingot.UsageError, match=r"CosineDecay\) ends after 1 epochs; found 2"):
        ingot.train(spec, tmp_path / "run", resume=True, epochs=2)


def test_averaging_that_is_switched_off_is_dropped(tmp_path):
    spec = write_spec(tmp_path)
    ingot.train(spec, tmp_path / "run", epochs=1, overrides=["full_trainer.ema=true"])
    plain = ingot.train(spec, tmp_path / "plain")

    resumed = ingot.train(spec, tmp_path / "run", resume=True)

    assert same_weights(plain.weights, resumed.weights)
    assert "head/kernel" in arrays_of(resumed.weights)
