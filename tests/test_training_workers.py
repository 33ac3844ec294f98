"""Several workers train together; the one that dies takes the others with it, and is named."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest
from training_specs import same_weights, write_spec

import ingot

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from safetensors.torch import load_file  # noqa: E402

pytestmark = pytest.mark.slow

PLAIN = """

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
MODEL = {"framework": "torch", "entrypoint": "net:plain"}


def plain_spec(folder, code="", **changes):
    """A network without random or batch-wise parts, and batches that fit 1,437 images twice."""
    data = {"splits": "digits", "kwargs": {"batch_size": 100}}
    return write_spec(folder, PLAIN + code, **{"model": MODEL, "data": data, **changes})


def test_two_workers_do_what_one_does_with_batches_of_both(ingot_cli, tmp_path):
    spec = plain_spec(tmp_path)
    one = tmp_path / "one"
    one.mkdir()
    single = plain_spec(one, data={"splits": "digits", "kwargs": {"batch_size": 200}})

    done = ingot_cli("train", spec, "-o", "run", "--nproc", "2", "--json", timeout=100)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    alone = ingot.train(single, one / "run")

    together, by_one = load_file(result["weights"]), load_file(alone.weights)
    # the one worker has a last sample that two cannot share
    torch.testing.assert_close(together["1.weight"], by_one["1.weight"], rtol=0.05, atol=0.02)
    weights = f"model.weights={result['weights']}"
    measured = ingot.evaluate(spec, overrides=[weights]).entries[0]
    assert measured.metrics == result["metrics"]
    assert measured.samples == 360


def test_workers_resume_and_their_rate_is_scaled(ingot_cli, tmp_path):
    training = {"scale_learning_rate": True, "checkpoint_frequency": 3}
    spec = write_spec(tmp_path, training=training)
    options = ("train", spec, "--nproc", "2", "--json")

    whole = ingot_cli(*options, "-o", "whole", timeout=100)
    assert whole.returncode == 0, whole.stderr
    part = ingot_cli(*options, "-o", "part", "--epochs", "1", timeout=100)
    assert part.returncode == 0, part.stderr
    resumed = ingot_cli(*options, "-o", "part", "--resume", timeout=100)
    assert resumed.returncode == 0, resumed.stderr

    assert json.loads(whole.stdout)["history"][0]["learning_rate"] == 0.4
    assert same_weights(
        tmp_path / "whole" / "weights.safetensors", tmp_path / "part" / "weights.safetensors"
    )


@pytest.mark.parametrize(
    ("code", "message", "exit_code"),
    [
        ("os.kill(os.getpid(), 9)", "worker 1 was ended by SIGKILL", 1),
        ("raise ValueError('a bad sample')", "ValueError: a bad sample (net.py:", 5),
    ],
)
def test_a_worker_that_dies_ends_the_others_with_the_cause(
    ingot_cli, tmp_path, code, message, exit_code
):
    loss = f"""

import os

from torch.nn import functional


def loss(model, batch):
    loss.steps += 1
    if os.environ["RANK"] == "1" and loss.steps == 5:
        {code}
    return functional.cross_entropy(model(batch[0]), batch[1])


loss.steps = 0
"""
    spec = plain_spec(tmp_path, loss, loss="net:loss")

    start = time.monotonic()
    done = ingot_cli("train", spec, "-o", "run", "--nproc", "2", timeout=100)

    assert done.returncode == exit_code, done.stderr
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
    assert time.monotonic() - start < 60


def test_what_the_first_worker_refuses_is_said_once(ingot_cli, tmp_path):
    spec = plain_spec(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.safetensors").write_bytes(b"")

    done = ingot_cli("train", spec, "-o", "run", "--nproc", "2", timeout=100)

    assert done.returncode == 2
    assert done.stderr.count("holds an earlier run") == 1


def test_torchrun_starts_the_workers_itself(tmp_path):
    spec = plain_spec(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    command = ["-m", "ingot.cli", "train", str(spec), "-o", str(tmp_path / "run"), "--json"]

    done = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["accuracy"] > 70


def test_a_data_loader_is_dealt_out(ingot_cli, tmp_path):
    code = """

import torch
from ingot.zoo.digits import load_digits
from torch.utils.data import DataLoader, TensorDataset

SEEN = []


def loaders():
    found = {}
    for split in ("train", "test"):
        data = TensorDataset(*map(torch.from_numpy, load_digits(split)))
        found[split] = DataLoader(data, 100, shuffle=split == "train")
    return found


def loss(model, batch):
    SEEN.append(batch[0].sum().item())
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def evaluate(model, loader):
    import torchmetrics

    metric = torchmetrics.classification.MulticlassAccuracy(10, average="micro")
    for x, y in loader:
        metric.update(model(x), y)
    return {"accuracy": metric.compute(), "steps": len(SEEN), "seen": sum(SEEN)}
"""
    spec = plain_spec(
        tmp_path, code, data="net:loaders", loss="net:loss", evaluation="net:evaluate"
    )

    done = ingot_cli(
        "train", spec, "-o", "run", "--nproc", "2", "--epochs", "1", "--json", timeout=100
    )

    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["steps"] == 8  # 718 of 1,437 images in batches of 100
    assert 0.45 < metrics["seen"] / ingot.zoo.digits.load_digits("train")[0].sum() < 0.55
