"""``ingot train``: what it learns, what it writes, and how it stops."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from training_specs import same_weights, write_spec

import ingot

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from safetensors.torch import load_file  # noqa: E402


def test_a_spec_is_trained_and_its_weights_are_evaluated(ingot_cli, tmp_path):
    spec = write_spec(tmp_path)

    trained = ingot_cli("train", spec, "-o", "run", "--epochs", "4", "--json")
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    weights = f"model.weights={result['weights']}"
    measured = ingot_cli("evaluate", spec, "--set", weights, "--json")

    assert result["metrics"]["accuracy"] > 85
    assert result["epochs"] == 4
    assert result["steps"] == 4 * 12
    assert "epoch 1/4  loss" in trained.stderr
    assert json.loads(measured.stdout)["metrics"] == result["metrics"]
    assert json.loads((tmp_path / "run" / "train.json").read_text()) == result


def test_the_seed_decides_the_weights(tmp_path):
    spec = write_spec(tmp_path)
    runs = [
        ingot.train(spec, tmp_path / name, epochs=1, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]

    assert same_weights(runs[0].weights, runs[1].weights)
    assert not same_weights(runs[0].weights, runs[2].weights)


def test_the_run_folder_is_in_ingot_home_by_default(ingot_cli, tmp_path):
    spec = write_spec(tmp_path)
    home = tmp_path / "home"

    done = ingot_cli("train", spec, "--epochs", "0", "--json", env={"INGOT_HOME": str(home)})

    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["run_dir"])
    assert folder.parent == home / "runs"
    assert folder.name.startswith("train-digits-")


def test_a_nan_loss_stops_with_its_step_and_keeps_the_last_good_checkpoint(ingot_cli, tmp_path):
    code = """

from torch.nn import functional


def loss(model, batch):
    loss.steps += 1
    found = functional.cross_entropy(model(batch[0]), batch[1])
    return found * float("nan") if loss.steps == 15 else found


loss.steps = 0
"""
    spec = write_spec(tmp_path, code, loss="net:loss")

    done = ingot_cli("train", spec, "-o", "run")

    assert done.returncode == 1
    assert "step 15 (epoch 2): the loss is nan" in done.stderr
    (kept,) = (tmp_path / "run").glob("checkpoint-*")
    assert kept.name == "checkpoint-000000012.safetensors"
    assert str(kept.relative_to(tmp_path)) in done.stderr
    assert all(value.isfinite().all() for value in load_file(kept).values())


SPOILT = """

from ingot import Callback
from torch.nn import functional


class Spoil(Callback):
    \"\"\"In the last step a gradient becomes NaN, or the average of a weight infinite.\"\"\"

    def __init__(self, what):
        self.what = what

    def before_step(self, runner):
        weight = runner.modeler.network[6].weight
        if runner.state.step == 23 and self.what == "gradient":
            weight.register_hook(lambda gradient: gradient * float("nan"))

    def after_step(self, runner):
        if runner.state.step == 24 and self.what == "average":
            runner.modeler.average["6.weight"][0, 0] = float("inf")


class Masked(nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.register_buffer("mask", torch.full((2,), float("-inf")))


def masked():
    return Masked(*build())
"""


@pytest.mark.parametrize(
    ("what", "found"),
    [("gradient", "the weight '6.weight'"), ("average", "the average of '6.weight'")],
)
def test_weights_that_are_not_finite_are_never_delivered(tmp_path, what, found):
    spec = write_spec(
        tmp_path,
        "\n\nimport torch\n" + SPOILT,
        model={"framework": "torch", "entrypoint": "net:masked"},
        full_trainer={"ema": True, "epochs": 2, "optimizer": {"name": "SGD", "lr": 0.1}},
        training={"callbacks": [{"name": "net:Spoil", "what": what}]},
    )

    with pytest.raises(ingot.IngotError) as caught:
        ingot.train(spec, tmp_path / "run")

    assert caught.value.exit_code == 1
    assert caught.value.message.startswith(f"step 24 (epoch 2): {found} is not finite")
    (kept,) = (tmp_path / "run").glob("checkpoint-*")
    assert kept.name == "checkpoint-000000012.safetensors"
    assert str(kept) in caught.value.hint
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_a_gpu_that_is_not_there(ingot_cli, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    spec = write_spec(tmp_path)

    warned = ingot_cli("train", spec, "-o", "run", "--epochs", "0", "--device", "GPU")
    refused = ingot_cli("train", spec, "-o", "other", "--device", "GPU", "--strict")

    assert warned.returncode == 0
    assert "sees no GPU here; running on the CPU" in warned.stderr
    assert refused.returncode == 2
    assert not (tmp_path / "other").exists()


def test_early_stopping_ends_with_the_best_weights(tmp_path):
    code = """

values = iter([0, 10, 50, 40, 30, 20, 10])  # the first is a trial, before the training


def evaluate(model, loader):
    return {"score": next(values)}
"""
    spec = write_spec(
        tmp_path,
        code,
        evaluation={"function": "net:evaluate", "eval_key": "score"},
        full_trainer={"epochs": 6, "early_stopping_patience": 2},
    )

    result = ingot.train(spec, tmp_path / "run")

    assert result.stop_reason == "no improvement of score in 2 evaluations"
    assert result.epochs == 4
    assert result.best == {"value": 50, "epoch": 2}
    assert result.metrics == {"score": 50}
    assert same_weights(result.weights, tmp_path / "run" / "best.safetensors")


def test_a_pretrained_network_is_tuned_in_part(tmp_path):
    spec = write_spec(tmp_path)
    first = ingot.train(spec, tmp_path / "first", epochs=2)
    code = """

def other():
    found = build()
    found[6] = nn.Linear(64, 5)
    return found


def nothing(model, loader):
    return {"x": 1}
"""
    other = tmp_path / "other"
    other.mkdir()
    spec = write_spec(
        other,
        code,
        model={"framework": "torch", "entrypoint": "net:other"},
        outputs=[{"name": "logits", "dtype": "float32", "shape": ["batch", 5]}],
        loss="MultiMarginLoss",
        evaluation={"function": "net:nothing", "eval_key": "x"},
        training={"pretrained": str(first.weights), "pretrained_skip": "6.", "trainable": "6."},
        data={"splits": "synthetic", "kwargs": {"shape": [1, 8, 8], "classes": 5, "samples": 64}},
    )

    tuned = ingot.train(spec, other / "run", epochs=1)

    before, after = load_file(first.weights), load_file(tuned.weights)
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert after["6.weight"].shape == (5, 64)
    with pytest.raises(ingot.ModelError, match=r"tensor '6.weight' is \(10, 64\); expected"):
        ingot.train(spec, other / "more", overrides=["training.pretrained_skip=[]"])


def test_an_external_loop_trains_in_place_of_ours(tmp_path):
    code = """


class Loop:
    def train(self, model, epochs, validation, finetuning):
        assert epochs == 3 and not finetuning
        before = validation(model)
        assert set(before) == {"accuracy", "top5"}
        nn.init.zeros_(model[6].weight)
        return model
"""
    spec = write_spec(tmp_path, code, external_training_loop="net:Loop", full_trainer=None)

    result = ingot.train(spec, tmp_path / "run", epochs=3)

    assert not load_file(result.weights)["6.weight"].any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_and_channels_last(tmp_path, precision):
    spec = write_spec(tmp_path, training={"precision": precision, "channels_last": True})

    result = ingot.train(spec, tmp_path / "run", epochs=2)

    assert result.metrics["accuracy"] > 60
    assert all(value.dtype != torch.bfloat16 for value in load_file(result.weights).values())


def test_a_forward_pass_network_and_loss_of_the_users_own(tmp_path):
    code = """

from ingot import LossFunction, TorchForwardPass
from torch.nn import functional


class Flat(TorchForwardPass):
    def extract_model_inputs(self, batch):
        (x,) = super().extract_model_inputs(batch)
        return (x.flatten(1)[:, None, None, :],)


class Loss(LossFunction):
    def __init__(self, device, forward_pass, factor):
        super().__init__(device)
        self.forward_pass, self.factor = forward_pass, factor

    def __call__(self, model, batch):
        x = self.forward_pass.extract_model_inputs(batch)
        out = self.forward_pass.model_call(model, x, self.device)
        return self.factor * functional.cross_entropy(out, batch[1])


def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
    spec = write_spec(
        tmp_path,
        code,
        forward_pass="net:Flat",
        loss={"name": "net:Loss", "factor": 2.0},
        training={"network": "net:flat"},
    )

    result = ingot.train(spec, tmp_path / "run", epochs=3)

    assert result.metrics["accuracy"] > 80
    assert set(load_file(result.weights)) == {"1.weight", "1.bias"}
    zoo = ["training.network={name: mlp, dataset: digits}", "forward_pass={}", "loss=cross_entropy"]
    assert ingot.train(spec, tmp_path / "zoo", epochs=0, overrides=zoo).epochs == 0


def test_summaries_and_callbacks_by_name(tmp_path):
    pytest.importorskip("tensorboard")
    code = """

from ingot import Callback


class Count(Callback):
    def __init__(self, path):
        self.path, self.count = path, 0

    def after_step(self, runner):
        self.count += 1

    def after_run(self, runner):
        names = [type(callback).__name__ for callback in runner.callbacks]
        assert names.count("LossCallback") == names.count("SpeedCallback") == 1
        with open(self.path, "w") as file:
            file.write(str(self.count))
"""
    names = ["train_basic", "train_loss", "train_accuracy", "train_speed", "train_summary"]
    mine = {"name": "net:Count", "path": str(tmp_path / "count")}
    spec = write_spec(tmp_path, code, training={"callbacks": [*names, mine], "log_frequency": 4})

    ingot.train(spec, tmp_path / "run", epochs=1)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert (tmp_path / "count").read_text() == "12"
    assert set(events.Tags()["scalars"]) >= {
        "train/loss",
        "train/train_accuracy",
        "train/samples_per_second",
        "eval/accuracy",
    }
    assert [event.step for event in events.Scalars("train/loss")] == [4, 8, 12]


DATA = """

import random

import numpy as np
import torch
from ingot.zoo.digits import load_digits

SEEN = {}


def splits():
    images, labels = load_digits("train")
    order = np.random.permutation(len(images))
    picked = random.sample(list(order), 400)
    held_out = picked[:100]
    noise = torch.rand(400)
    SEEN.setdefault("held out", []).append([int(item) for item in held_out])
    SEEN.setdefault("noise", []).append(noise.tolist())
    pairs = [
        (torch.from_numpy(images[part]), torch.from_numpy(labels[part]))
        for part in (picked[100:], held_out)
    ]
    return {"train": [pairs[0]], "test": [pairs[1]]}


def note(model, loader):
    import json
    import os

    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps([SEEN, [x.sum().item() for x, _ in loader]]) + "\\n")
    return {"noted": 1.0}
"""


def test_what_is_held_out_at_random_is_the_same_in_every_command(tmp_path, monkeypatch):
    notes = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(notes))
    evaluation = {"function": "net:note", "eval_key": "noted"}
    spec = write_spec(tmp_path, DATA, data="net:splits", evaluation=evaluation)

    runs = [ingot.train(spec, tmp_path / name, epochs=1, seed=1) for name in ("a", "b")]
    ingot.train(spec, tmp_path / "c", epochs=1, seed=2)
    ingot.evaluate(spec, overrides=[f"model.weights={runs[0].weights}"])

    assert len(set(notes.read_text().splitlines())) == 1
    assert same_weights(runs[0].weights, runs[1].weights)


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal of POSIX")
def test_a_terminal_shows_how_far_the_run_is(tmp_path, empty_home):
    import fcntl
    import pty
    import struct
    import termios

    code = """

import time

from torch.nn import functional


def slow(model, batch):
    time.sleep(0.04)
    return functional.cross_entropy(model(batch[0]), batch[1])
"""
    spec = write_spec(tmp_path, code, loss="net:slow", training={"log_frequency": 2})
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command = [sys.executable, "-m", "ingot.cli", "train", str(spec), "-o", str(tmp_path / "run")]
    environment = {**os.environ, "HOME": str(empty_home), "TERM": "xterm-256color"}
    shown = b""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, env=environment
    ) as process:
        os.close(theirs)
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.wait(60) == 0, shown[-2000:]
    os.close(ours)

    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    bars = [line for line in re.split(r"[\r\n]+", text) if line.startswith("epoch ")]
    wanted = r"epoch 2/2 .*loss \d\.\d+  [\d,]+ samples/s  accuracy \d+\.\d+ +\d+s left"
    assert any(re.search(wanted, line) for line in bars), bars[-5:]
    assert any(re.search(r"epoch 1/2 .*loss .* samples/s +\d+s left", line) for line in bars)
