"""``ingot evaluate``, and what trains: labels, loaders and metrics that are wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from training_specs import write_spec

import ingot

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from ingot.training import measure  # noqa: E402
from ingot.training.torch_metrics import SegmentationEvaluation  # noqa: E402


def test_segmentation_labels_out_of_range_are_named(tmp_path):
    image = np.zeros((6, 1, 4, 4), np.float32)
    label = np.zeros((6, 4, 4), np.int64)
    np.savez(tmp_path / "good.npz", image=image, label=label)
    label[4, 1, 2] = 7
    np.savez(tmp_path / "bad.npz", image=image, label=label)

    def run(train, test):
        kwargs = {"files": {"train": f"{train}.npz", "test": f"{test}.npz"}, "batch_size": 6}
        code = "\n\ndef pixels():\n    return nn.Conv2d(1, 3, 1)\n"
        model = {"framework": "torch", "entrypoint": "net:pixels"}
        data = {"splits": "npz", "kwargs": kwargs}
        tensors = {
            "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 4, 4]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3, 4, 4]}],
        }
        task = {"task": "segmentation", "model": model, "data": data}
        spec = write_spec(tmp_path, code, **task, **tensors)
        ingot.train(spec, tmp_path / "run")

    expected = r"pixel \[1, 2\]: found the label 7; expected 0\.\.2, or 255 for none"
    with pytest.raises(ingot.InputError, match=f"^sample 4, {expected}"):
        run("good", "bad")
    with pytest.raises(ingot.InputError, match=rf"^sample \d of a batch, {expected}"):
        run("bad", "good")
    short = {"test": [(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 3))]}
    with pytest.raises(ingot.InputError, match=r"labels of shape \(2, 3, 3\) for logits"):
        measure(torch.nn.Identity(), short, evaluation=SegmentationEvaluation)


def strict_json(text: str):
    """Read JSON that has no NaN and no Infinity."""

    def refuse(constant: str):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_metrics_that_are_no_numbers_are_null(ingot_cli, tmp_path):
    code = """


def evaluate(model, loader):
    return {"score": float("nan"), "other": float("-inf"), "one": 1.0}
"""
    spec = write_spec(tmp_path, code, evaluation={"function": "net:evaluate", "eval_key": "score"})
    null = {"score": None, "other": None, "one": 1.0}

    trained = ingot_cli("train", spec, "-o", "run", "--epochs", 1, "--json")
    evaluated = ingot_cli("evaluate", spec, "--json")
    profiled = ingot_cli("profile", spec, "--compare", spec, "--runs", 1, "--json")

    document = strict_json(trained.stdout)
    assert strict_json((tmp_path / "run" / "train.json").read_text()) == document
    assert document["metrics"] == document["history"][0]["metrics"] == null
    assert document["best"]["value"] is None
    assert strict_json(evaluated.stdout)["models"][0]["metrics"] == null
    assert strict_json(profiled.stdout)["metrics"] == null
    assert strict_json(profiled.stdout)["compare"]["enhancements"]["metrics"]["score"] is None
    assert strict_json(json.dumps(ingot.evaluate(spec).to_dict()))["metrics"] == null


def test_a_loader_that_fails_is_named_with_its_split(ingot_cli, tmp_path):
    code = """

class Broken:
    def __init__(self, good):
        self.good = good

    def __iter__(self):
        yield from self.good
        open("gone.bin")


class Remote:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        open("far.bin")


def build_splits(bad="test"):
    import torch

    batch = (torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))
    remote = torch.utils.data.DataLoader(Remote(), num_workers=1)
    splits = {"train": [batch], "test": [batch], "remote": remote}
    return {**splits, bad: Broken([batch] * 3)}
"""
    spec = write_spec(tmp_path, code, data="net:build_splits")
    place = r"digits\.yaml: data\.splits 'net:build_splits': the split '{}' raised"
    found = place + r" FileNotFoundError: .*gone\.bin' \(net\.py:\d+\)$"

    with pytest.raises(ingot.ModelError, match=found.format("test")):
        ingot.evaluate(spec)
    with pytest.raises(ingot.ModelError, match=found.format("test")):
        ingot.train(spec, tmp_path / "run")
    with pytest.raises(ingot.ModelError, match=found.format("train")):
        ingot.train(spec, tmp_path / "other", overrides=["data.kwargs={bad: train}"])
    with pytest.raises(
        ingot.ModelError, match=place.format("remote") + r" FileNotFound.*far\.bin'"
    ):
        ingot.evaluate(spec, split="remote")


def test_without_pytorch_another_framework_is_evaluated(tmp_path):
    code = """

import numpy as np


def build():
    return lambda image: {"logits": -image.reshape(len(image), -1)[:, :10]}


def evaluate(model, loader):
    hits = [hit for x, y in loader for hit in (model(x).argmax(1) == y).tolist()]
    return {"top1": sum(hits) / len(hits)}
"""
    model = {"framework": "python", "entrypoint": "net:build"}
    spec = write_spec(tmp_path, model=model, task=None, evaluation="net:evaluate")
    (tmp_path / "net.py").write_text(code)
    np.savez(tmp_path / "data.npz", image=np.zeros((3, 1, 8, 8), np.float32), label=np.arange(3))
    program = """
import sys
sys.modules["torch"] = None
import ingot
own, file = ingot.evaluate(sys.argv[1]), ingot.evaluate(sys.argv[1], data=sys.argv[2])
assert own.entries[0].samples == 360 and file.entries[0].metrics == {"top1": 1 / 3}
try:
    ingot.evaluate(sys.argv[1], device="GPU", strict=True)
except ingot.UsageError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(spec), str(tmp_path / "data.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "device: found GPU, but python sees no GPU here (--strict)" in done.stdout
