"""``ingot evaluate``: the metrics, what can be evaluated, and what is refused."""

from __future__ import annotations

import csv
import json
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from training_specs import write_spec

import ingot

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from ingot.specs import load_spec  # noqa: E402
from ingot.training import evaluate_spec, measure  # noqa: E402
from ingot.training.evaluation import CallableModel  # noqa: E402
from ingot.training.torch_metrics import (  # noqa: E402
    ClassificationEvaluation,
    SegmentationEvaluation,
)
from ingot.zoo.digits import load_digits  # noqa: E402


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a spec, its trained weights, and the network in other forms."""
    folder = tmp_path_factory.mktemp("trained")
    spec = write_spec(folder)
    result = ingot.train(spec, folder / "run", epochs=2)
    (folder / "weights.safetensors").write_bytes(result.weights.read_bytes())
    model = {"framework": "torch", "entrypoint": "net:build", "weights": "weights.safetensors"}
    spec = write_spec(folder, model=model)
    images, labels = load_digits("test")
    np.savez(folder / "test.npz", image=images, label=labels)
    np.savez(folder / "golden.npz", image=images[:4])
    return folder, spec, result


def export(folder: Path, spec: Path) -> Path:
    """Write the network as ONNX with a free batch size."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    output = folder / "exported"
    output.mkdir(exist_ok=True)
    ingot.export(spec, ["onnx"], output, mode="dynamic", name="digits", force=True)
    (path,) = output.glob("*.onnx")
    return path


def test_an_onnx_file_is_as_good_as_its_spec(ingot_cli, trained):
    folder, spec, result = trained
    onnx = export(folder, spec)

    done = ingot_cli("evaluate", spec, onnx, "--json", cwd=folder)
    alone = ingot_cli("evaluate", onnx, "--data", "test.npz", "--per-sample", "out.npz", cwd=folder)
    table = ingot.evaluate(spec, onnx, per_sample=folder / "both.npz", force=True)

    document = json.loads(done.stdout)
    assert document["metrics"] == result.metrics
    assert [entry["metrics"] for entry in document["models"]] == [result.metrics] * 2
    assert [entry["samples"] for entry in document["models"]] == [360, 360]
    assert document["models"][1]["path"] == str(onnx)
    assert alone.returncode == 0, alone.stderr
    accuracy = f"{result.metrics['accuracy']:.4f}".rstrip("0").rstrip(".")
    assert ["accuracy", accuracy] in [line.split() for line in alone.stdout.splitlines()]
    with np.load(folder / "out.npz") as arrays:
        assert arrays["accuracy"].shape == (360,)
        assert 100 * arrays["accuracy"].mean() == pytest.approx(result.metrics["accuracy"])
    with np.load(folder / "both.npz") as arrays:
        assert set(arrays) == {f"{spec}/accuracy", f"{onnx}/accuracy"}
    assert table.entries[1].metrics == result.metrics
    with pytest.raises(ingot.UsageError, match="exists already"):
        ingot.evaluate(spec, per_sample=folder / "both.npz")


def test_a_package_is_evaluated_with_the_data_of_a_spec(trained, tmp_path):
    _, spec, result = trained
    ingot.package(spec, tmp_path / "digits.ingot", overrides=["test.inputs=golden.npz"])

    done = ingot.evaluate(spec, tmp_path / "digits.ingot", trust_code=True)

    assert [entry.metrics for entry in done.entries] == [result.metrics] * 2
    with pytest.raises(ingot.UntrustedCodeError):
        ingot.evaluate(spec, tmp_path / "digits.ingot")
    with pytest.raises(ingot.UsageError, match="says nothing of data; expected --data"):
        ingot.evaluate(tmp_path / "digits.ingot", trust_code=True)


def test_a_spec_of_another_framework_has_data_of_its_own(trained, tmp_path):
    folder, spec, result = trained
    model = {"framework": "onnx", "file": str(export(folder, spec))}
    onnx = write_spec(tmp_path, model=model, inputs=None, outputs=None)

    assert ingot.evaluate(onnx).entries[0].metrics == result.metrics
    with pytest.raises(ingot.UsageError, match="'onnx'; only keras and torch can be trained"):
        ingot.train(onnx, tmp_path / "run")


def test_another_split_and_a_spec_on_a_file(trained):
    _, spec, result = trained

    train = ingot.evaluate(spec, split="train")
    file = ingot.evaluate(spec, data=spec.parent / "test.npz")

    assert train.entries[0].samples == 1437
    assert train.split == "train"
    assert file.entries[0].metrics == result.metrics
    with pytest.raises(ingot.SpecError, match="--split: found 'tset'; the data has the splits"):
        ingot.evaluate(spec, split="tset")


@pytest.mark.parametrize(
    ("code", "key", "message"),
    [
        ("return 0.5", None, "'evaluate' returned a float; expected a dict of metrics"),
        (
            "return {'acc': 0.5, 'loss': 1}",
            "accuracy",
            "found 'accuracy', which the evaluation does not return; it returns acc, loss",
        ),
        ("return {'acc': 'high'}", "acc", "returned a str for 'acc'; expected a number"),
        (
            "return {'acc': 1, 'per_sample': [[1, 2]]}",
            "acc",
            "returned per_sample 'acc' of shape (1, 2); expected one number a sample",
        ),
        ("return 1 / 0", "acc", "the evaluation raised ZeroDivisionError: division by zero"),
    ],
)
def test_evaluations_that_are_wrong(tmp_path, code, key, message):
    evaluation = {"function": "net:evaluate", **({} if key is None else {"eval_key": key})}
    spec = write_spec(
        tmp_path, f"\n\ndef evaluate(model, loader):\n    {code}\n", evaluation=evaluation
    )

    # A key that the spec has wrong is a fault of the spec.
    kind = ingot.SpecError if key == "accuracy" else ingot.ModelError
    with pytest.raises(kind) as caught:
        ingot.evaluate(spec)

    assert message in caught.value.message


def test_a_function_of_the_users_own_sees_one_convention(trained, tmp_path):
    folder, spec, _ = trained
    code = """

import torch


def evaluate(model, loader):
    model.eval()
    model.to("cpu")
    assert not model.training
    hits = []
    for x, y in loader:
        scores = model(x)
        assert isinstance(scores, torch.Tensor) and not scores.requires_grad
        hits += (scores.argmax(1) == y).tolist()
    return {"top1": sum(hits) / len(hits), "per_sample": hits}
"""
    model = {
        "framework": "torch",
        "entrypoint": "net:build",
        "weights": str(folder / "weights.safetensors"),
    }
    mine = write_spec(tmp_path, code, model=model, evaluation="net:evaluate", task=None)

    done = ingot.evaluate(mine, export(folder, spec), per_sample=tmp_path / "out.npz")

    assert done.eval_key == "top1"
    assert done.entries[0].metrics == done.entries[1].metrics
    assert done.entries[0].per_sample["top1"].shape == (360,)


def test_a_batch_that_does_not_fit_the_pattern_exits_5(ingot_cli, tmp_path):
    spec = write_spec(tmp_path, forward_pass={"model_input_pattern": [0, 1, "_"]})

    done = ingot_cli("evaluate", spec)

    assert done.returncode == 5
    assert "a batch is a tuple of 2, which does not fit model_input_pattern" in done.stderr


def test_evaluate_spec_for_the_searches(trained):
    _, path, result = trained
    spec = load_spec(path)

    assert evaluate_spec(spec) == result.metrics
    worse = evaluate_spec(spec, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    assert worse["accuracy"] < result.metrics["accuracy"]
    assert evaluate_spec(spec, split="train")["accuracy"] > 80


Loaded = namedtuple("Loaded", ["inputs", "outputs", "infer"])


def loaded(batch, outputs=("y",), dtype="float32"):
    """A loaded model that doubles its input, and takes batches of one size only."""
    spec = ingot.TensorSpec("x", dtype, (batch, 3))
    calls = []

    def infer(arrays):
        calls.append(arrays["x"].shape[0])
        assert arrays["x"].dtype.name == dtype
        assert batch in ("batch", arrays["x"].shape[0])
        return {name: arrays["x"] * (index + 2) for index, name in enumerate(outputs)}

    return CallableModel(Loaded((spec,), (), infer), "model"), calls


def test_a_loaded_model_answers_in_kind():
    model, _ = loaded("batch")
    several, _ = loaded("batch", ("y", "z"))
    half, _ = loaded("batch", dtype="float16")
    x = torch.ones(5, 3)

    assert torch.equal(model(x), 2 * x)
    assert torch.equal(model(x=x), 2 * x)
    assert (model(x.numpy()) == 2).all()
    assert isinstance(model(x.numpy()), np.ndarray)
    assert [float(value.mean()) for value in several(x)] == [2.0, 3.0]
    assert half(x).dtype == torch.float16
    assert model.eval().train().to("cpu").cuda().requires_grad_(False) is model
    with pytest.raises(ingot.InputError, match="called with 2 arguments; the model takes x"):
        model(x, x)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_of_a_fixed_batch_size_is_run_in_parts(batch):
    model, calls = loaded(batch)
    x = torch.arange(15.0).reshape(5, 3)

    assert torch.equal(model(x), 2 * x)
    assert calls == [batch] * (5 if batch == 1 else 2)


def test_classification_counts_exactly():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20000, 7, generator=generator)
    labels = torch.randint(0, 7, (20000,), generator=generator)
    batches = list(zip(scores.split(333), labels.split(333), strict=True))

    for form in (lambda y: y, lambda y: y[:, None], lambda y: torch.eye(7)[y]):
        data = {"test": [(x, form(y)) for x, y in batches]}
        found = measure(torch.nn.Identity(), data, evaluation=ClassificationEvaluation)
        hits = (scores.argmax(1) == labels).numpy()
        top5 = (scores.topk(5).indices == labels[:, None]).any(1).sum().item()
        assert found.metrics == {"accuracy": 100 * hits.sum() / 20000, "top5": 100 * top5 / 20000}
        assert (found.per_sample["accuracy"] == hits).all()
    wrong = [(scores[:2], labels[:2]), (scores[:2], torch.tensor([1, 7]))]
    with pytest.raises(ingot.InputError, match=r"sample 3: found the label 7; expected 0\.\.6"):
        measure(torch.nn.Identity(), {"test": wrong})


def test_one_score_is_no_classification():
    with pytest.raises(ingot.InputError, match=r"\(4, 1\); expected \(batch, classes\), two"):
        measure(torch.nn.Identity(), {"test": [(torch.zeros(4, 1), torch.zeros(4))]})


def test_segmentation_counts_over_the_whole_set():
    target = torch.tensor([[[0, 0], [1, 1]], [[2, 2], [255, 0]]])
    predicted = torch.tensor([[[0, 1], [1, 1]], [[2, 0], [2, 0]]])
    logits = torch.nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2).float()

    found = measure(
        torch.nn.Identity(), {"test": [(logits, target)]}, evaluation=SegmentationEvaluation
    )

    assert found.metrics["pixel_accuracy"] == pytest.approx(5 / 7)
    # class 0: 2 of 4, class 1: 2 of 3, class 2: 1 of 2; class 3 does not occur
    assert found.metrics["miou"] == pytest.approx((2 / 4 + 2 / 3 + 1 / 2) / 3)
    assert found.per_sample["pixel_accuracy"] == pytest.approx([3 / 4, 2 / 3])


def test_a_segmentation_network_trains_by_its_task(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.random((64, 1, 8, 8), np.float32)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", image=x, label=(x[:, 0] > 0.5).astype(np.int64))
    code = "\n\ndef pixels():\n    return nn.Conv2d(1, 2, 1)\n"
    files = {"train": "train.npz", "test": "test.npz"}
    spec = write_spec(
        tmp_path,
        code,
        task="segmentation",
        model={"framework": "torch", "entrypoint": "net:pixels"},
        outputs=[{"name": "logits", "dtype": "float32", "shape": ["batch", 2, 8, 8]}],
        data={"splits": "npz", "kwargs": {"files": files, "batch_size": 16}},
        full_trainer={"optimizer": {"name": "Adam", "lr": 0.1}, "epochs": 40},
    )

    result = ingot.train(spec, tmp_path / "run")

    assert result.eval_key == "miou"
    assert result.metrics["miou"] > 0.9


def test_random_weights_are_said_or_refused(ingot_cli, trained, tmp_path):
    _, spec, _ = trained
    random = write_spec(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    code = "\n\ndef made():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, False))\n"
    code += "\n\ndef loaded():\n    m = made()\n    nn.init.ones_(m[1].weight)\n    return m\n"
    loaded = write_spec(own, code, model={"framework": "torch", "entrypoint": "net:loaded"})

    for command in ("evaluate", "profile"):
        extra = () if command == "evaluate" else ("--runs", 1)
        warned = ingot_cli(command, random, *extra)
        refused = ingot_cli(command, random, "--strict", *extra)
        assert warned.returncode == 0
        assert "the key 'model.weights' is missing: the weights are random" in warned.stderr
        assert refused.returncode == 2
        assert "the weights are random; expected trained ones (--strict)" in refused.stderr
        assert "profiling" not in refused.stderr
    assert ingot.evaluate(spec, strict=True, device="CPU").entries
    assert ingot.evaluate(loaded, strict=True, device="CPU").entries
    assert ingot.profile(random, strict=True, metrics=False, runs=1).model.metrics == {}


def test_options_that_do_not_fit_are_refused_before_the_work(trained, tmp_path):
    folder, spec, _ = trained
    wrong = [
        ({"per_sample": tmp_path / "nodir" / "x.npz"}, "its folder does not exist"),
        ({"per_sample": tmp_path}, "found a folder; expected a file"),
        ({"split": "test", "data": folder / "test.npz"}, "found both --split and --data"),
        ({"batch_size": 4}, "--batch-size 4: is of --data; found no --data"),
        ({"batch_size": 0, "data": folder / "test.npz"}, "batch_size: found 0"),
    ]
    for options, message in wrong:
        with pytest.raises(ingot.UsageError, match=message):
            ingot.evaluate(spec, overrides=["model.entrypoint=net:nothing"], **options)
    assert ingot.evaluate(spec, data=folder / "test.npz", batch_size=7).entries[0].samples == 360


@pytest.mark.slow
def test_the_published_resnet20_through_the_jpeg_inputter(shared, tmp_path):
    archive = shared / "data" / "cifar10-jpg.zip"
    names = sorted(name for name in zipfile.ZipFile(archive).namelist() if "test/" in name)
    names = [name for name in names if name.endswith(".jpg")]
    classes = sorted({name.split("/")[1] for name in names})
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows((name, classes.index(name.split("/")[1])) for name in names)
    (tmp_path / "resnet20.py").write_bytes((shared / "models" / "resnet20.py").read_bytes())
    weights = shared / "models" / "resnet20_cifar10.safetensors"
    kwargs = {
        "files": {"test": "test.csv"},
        "archive": str(archive),
        "num_classes": 10,
        "scale": 1.0,
        "mean": [125.3, 123.0, 113.9],
        "std": [63.0, 62.1, 66.7],
    }
    spec = write_spec(
        tmp_path,
        model={"framework": "torch", "entrypoint": "resnet20:build", "weights": str(weights)},
        inputs=[{"name": "x", "dtype": "float32", "shape": ["batch", 3, 32, 32]}],
        data={"splits": "csv", "kwargs": kwargs},
    )

    result = ingot.evaluate(spec)

    assert result.entries[0].samples == 10000
    assert result.entries[0].metrics["accuracy"] == 87.49
