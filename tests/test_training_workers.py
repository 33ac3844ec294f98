"""Several workers train together; the one that dies takes the others with it, and is named."""

from __future__ import annotations

import json
import os
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


SEEN = """

import json
import os
import random

import numpy as np
import torch
from ingot.zoo.digits import load_digits
from torch.utils.data import DataLoader, Dataset, Sampler

RANK = os.environ.get("RANK", "0")


def note(name, value):
    with open(os.path.join(os.environ["NOTES"], f"{name}-{RANK}"), "a") as file:
        file.write(json.dumps(value) + "\\n")


def loss(model, batch):
    images, labels, indices, noise = batch
    note("seen", indices.tolist())
    note("noise", noise.tolist())
    loss.steps += 1
    if RANK == "1" and loss.steps == int(os.environ.get("KILLED_AT", "0")):
        os.kill(os.getpid(), 9)
    return torch.nn.functional.cross_entropy(model(images), labels)


loss.steps = 0
"""

STREAM = """

class Stream:
    \"\"\"Shuffles as it goes, and draws numbers of all kinds for each batch.\"\"\"

    def __iter__(self):
        images, labels = map(torch.from_numpy, load_digits("train"))
        indices = list(range(len(labels) // 50))
        random.shuffle(indices)
        for index in indices:
            part = slice(50 * index, 50 * index + 50)
            noise = 0.1 * torch.rand(50) + float(np.random.rand())
            shown = images[part] + noise.reshape(-1, 1, 1, 1)
            yield shown, labels[part], torch.arange(part.start, part.stop), noise


def splits():
    return {"train": Stream(), "test": [tuple(map(torch.from_numpy, load_digits("test")))]}
"""


def notes_of(folder, name, rank):
    return [json.loads(line) for line in (folder / f"{name}-{rank}").read_text().splitlines()]


def test_a_killed_run_of_two_hosts_resumes_with_the_data_of_an_uninterrupted_one(
    ingot_cli, tmp_path
):
    """The second host has none of the files; the network has dropout, the loader its own order."""
    notes = {name: tmp_path / name for name in ("whole", "killed", "resumed")}
    for folder in notes.values():
        folder.mkdir()
    training = {"checkpoint_frequency": 5}
    changes = {"data": "net:splits", "loss": "net:loss", "training": training}
    spec = write_spec(tmp_path, SEEN + STREAM, **changes)
    options = ("train", spec, "--nproc", "2")
    whole = ingot_cli(*options, "-o", "a", env={"NOTES": str(notes["whole"])}, timeout=100)
    assert whole.returncode == 0, whole.stderr

    dying = {"NOTES": str(notes["killed"]), "KILLED_AT": "22"}
    killed = ingot_cli(*options, "-o", "b", env=dying, timeout=100)
    assert killed.returncode == 1, killed.stderr
    assert "worker 1 was ended by SIGKILL" in killed.stderr
    assert (tmp_path / "b" / "checkpoint-000000020.safetensors").exists()
    with pytest.raises(ingot.UsageError, match=r"middle of epoch 2 with workers 2; found 1"):
        ingot.train(spec, tmp_path / "b", resume=True)
    run_on_hosts(spec, ["b", "empty"], notes["resumed"], tmp_path)

    one, two = (notes_of(notes["whole"], "seen", rank) for rank in (0, 1))
    for first, second in ((one[:14], two[:14]), (one[14:], two[14:])):  # 14 of 28 batches an epoch
        indices = [index for batch in first + second for index in batch]
        assert sorted(indices) == list(range(1400))
    assert one[:14] != one[14:]
    assert notes_of(notes["whole"], "noise", 0) != notes_of(notes["whole"], "noise", 1)
    for name in ("seen", "noise"):
        for rank in (0, 1):
            rest = notes_of(notes["whole"], name, rank)[20:]
            assert notes_of(notes["resumed"], name, rank) == rest
    weights = [tmp_path / name / "weights.safetensors" for name in ("a", "b")]
    assert same_weights(*weights)
    assert not list((tmp_path / "empty").glob("*"))


def run_on_hosts(spec, folders, notes, tmp_path):
    """Go on with a run whose workers each have a folder of their own, as on several machines."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    workers = []
    for rank, folder in enumerate(folders):
        place = {"RANK": str(rank), "WORLD_SIZE": str(len(folders)), "LOCAL_RANK": "0"}
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "NOTES": str(notes)}
        command = ["-m", "ingot.cli", "train", str(spec), "--resume", "-o", str(tmp_path / folder)]
        workers.append(
            subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **place, **address},
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for worker in workers:
        _, said = worker.communicate(timeout=100)
        assert worker.returncode == 0, said


LOADERS = """

from ingot import Callback


class Rows(Dataset):
    def __init__(self, split):
        self.images, self.labels = map(torch.from_numpy, load_digits(split))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(())
        return self.images[index], self.labels[index], index, noise


class Even(Sampler):
    \"\"\"The even rows, in an order that it draws as it goes.\"\"\"

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows) // 2

    def __iter__(self):
        left = list(range(0, len(self) * 2, 2))
        while left:
            yield left.pop(random.randrange(len(left)))


class Mine(DataLoader):
    name = "a loader of the user's own"


def start(worker):
    pass


def splits():
    rows = Rows("train")
    options = {"generator": torch.Generator(), "worker_init_fn": start, "drop_last": True}
    options |= {"num_workers": 1, "prefetch_factor": 3, "persistent_workers": True, "timeout": 60}
    options |= {"multiprocessing_context": "fork"}
    train = Mine(rows, 50, sampler=Even(rows), **options)
    return {"train": train, "test": DataLoader(Rows("test"), 100)}


class Options(Callback):
    def after_run(self, runner):
        loader = runner.splits["train"]
        names = ("prefetch_factor", "persistent_workers", "timeout", "drop_last", "batch_size")
        note("options", [type(loader).__name__, loader.name, *(getattr(loader, n) for n in names)])
        context = loader.multiprocessing_context.get_start_method()
        note("options", [loader.worker_init_fn is start, loader.generator is not None, context])
"""


def test_a_data_loader_keeps_its_sampler_and_its_options(ingot_cli, tmp_path):
    spec = write_spec(
        tmp_path,
        SEEN + LOADERS,
        data="net:splits",
        loss="net:loss",
        training={"callbacks": ["net:Options"]},
        forward_pass={"model_input_pattern": [0, "_", "_", "_"]},
    )

    done = ingot_cli(
        "train", spec, "-o", "run", "--nproc", "2", env={"NOTES": str(tmp_path)}, timeout=100
    )

    assert done.returncode == 0, done.stderr
    seen = [notes_of(tmp_path, "seen", rank) for rank in (0, 1)]
    assert [len(batches) for batches in seen] == [14, 14]  # 359 of 718 rows, in batches of 50
    for epoch in (slice(0, 7), slice(7, 14)):
        rows = [index for batches in seen for batch in batches[epoch] for index in batch]
        assert len(rows) == len(set(rows)) == 700
        assert not any(row % 2 for row in rows)
    assert seen[0][:7] != seen[0][7:]
    assert notes_of(tmp_path, "noise", 0)[0] != notes_of(tmp_path, "noise", 1)[0]
    assert notes_of(tmp_path, "options", 1) == [
        ["Mine", "a loader of the user's own", 3, True, 60, True, 50],
        [True, True, "fork"],
    ]
