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


def test_another_recipe_is_resumed_with_a_warning(tmp_path, caplog):
    spec = write_spec(tmp_path)
    ingot.train(spec, tmp_path / "run", epochs=1)

    ingot.train(spec, tmp_path / "run", resume=True, overrides=["full_trainer.optimizer.lr=0.1"])

    assert "was written with another optimizer" in caplog.text
