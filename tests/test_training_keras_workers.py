"""Keras trains on several devices of one process, under a strategy of tf.distribute."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from training_keras_specs import arrays_of, same_weights, write_spec

import ingot

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

pytestmark = pytest.mark.slow

PLAIN = """

def plain():
    return keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
"""


def plain_spec(folder, batch_size):
    """A network without random or batch-wise parts."""
    return write_spec(
        folder,
        PLAIN,
        model={"framework": "keras", "entrypoint": "net:plain"},
        data={
            "splits": "synthetic",
            "kwargs": {"shape": [8, 8, 1], "samples": 800, "batch_size": batch_size},
        },
        training={"weight_decay": 0.01, "callbacks": ["train_accuracy"]},
    )


def test_two_devices_do_what_one_does_with_batches_of_both(ingot_cli, tmp_path):
    (tmp_path / "one").mkdir()
    done = ingot_cli(
        "train", plain_spec(tmp_path, 100), "-o", "run", "--nproc", "2", "--json", timeout=100
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    alone = ingot.train(plain_spec(tmp_path / "one", 200), tmp_path / "one" / "run")

    assert result["steps"] == alone.steps == 2 * 4
    together, by_one = arrays_of(result["weights"]), arrays_of(alone.weights)
    for name, array in together.items():
        np.testing.assert_allclose(array, by_one[name], rtol=1e-4, atol=1e-6)
    measured = ingot.evaluate(
        tmp_path / "digits.yaml", overrides=[f"model.weights={result['weights']}"]
    ).entries[0]
    assert measured.metrics == result["metrics"]
    assert measured.samples == 800


def test_two_devices_resume_bit_for_bit(ingot_cli, tmp_path):
    training = {"scale_learning_rate": True, "checkpoint_frequency": 4}
    trainer = {
        "optimizer": {"name": "momentum", "lr": 0.05},
        "epochs": 2,
        "ema": {"decay_rate": 0.9},
    }
    spec = write_spec(tmp_path, training=training, full_trainer=trainer)
    options = ("train", spec, "--nproc", "2", "--json")

    whole = ingot_cli(*options, "-o", "whole", timeout=100)
    assert whole.returncode == 0, whole.stderr
    part = ingot_cli(*options, "-o", "part", "--epochs", "1", timeout=100)
    assert part.returncode == 0, part.stderr
    resumed = ingot_cli(*options, "-o", "part", "--resume", timeout=100)
    assert resumed.returncode == 0, resumed.stderr

    assert json.loads(whole.stdout)["history"][0]["learning_rate"] == 0.1
    assert same_weights(
        tmp_path / "whole" / "weights.safetensors", tmp_path / "part" / "weights.safetensors"
    )


def test_two_processes_do_what_one_does_and_resume(ingot_cli, tmp_path):
    (tmp_path / "one").mkdir()
    spec = plain_spec(tmp_path, 100)
    alone = ingot.train(plain_spec(tmp_path / "one", 200), tmp_path / "one" / "run")

    together(ingot_cli, spec, "-o", "run", "--epochs", "1")
    result = together(ingot_cli, spec, "-o", "run", "--resume")

    ours, by_one = arrays_of(result["weights"]), arrays_of(alone.weights)
    # a worker takes every second sample of an order, so that batches hold the same ones
    for name, array in ours.items():
        np.testing.assert_allclose(array, by_one[name], rtol=1e-4, atol=1e-6)
    assert result["steps"] == alone.steps
    assert result["metrics"] == pytest.approx(alone.metrics)
    assert (tmp_path / "run" / "model.keras").is_file()


def together(ingot_cli, *arguments):
    """Run a command in two processes of one TF_CONFIG; return what the first one printed."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        places = [f"127.0.0.1:{item.getsockname()[1]}" for item in sockets]

    def run(rank):
        task = {"type": "worker", "index": rank}
        config = json.dumps({"cluster": {"worker": places}, "task": task})
        return ingot_cli("train", *arguments, "--json", env={"TF_CONFIG": config}, timeout=100)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == ""
    return json.loads(first.stdout)


def test_a_bad_tf_config_is_told(ingot_cli, tmp_path):
    done = ingot_cli("train", write_spec(tmp_path), "-o", "run", env={"TF_CONFIG": "worker 1"})
    assert done.returncode == 2
    assert "TF_CONFIG: found 'worker 1'; expected JSON with cluster and task" in done.stderr
