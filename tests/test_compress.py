"""``compress``: what a search ends with, what it writes, and what it refuses before it begins."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from compress_specs import write_spec

import ingot

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")
pytest.importorskip("onnxscript")

MEASURED = {"metrics", "size_bytes", "parameters", "macs", "latency_ms"}
FILE = {"path", "format", "sha256", "size_bytes", "metrics"}
VERDICT = {
    "schema_version",
    "command",
    "model",
    "verdict",
    "reason",
    "stopped_by",
    "target",
    "eval_key",
    "eval_split",
    "higher_is_better",
    "delta",
    "drop",
    "drop_interval",
    "confirmed",
    "reference",
    "optimized",
    "size_ratio",
    "parameters_ratio",
    "macs_ratio",
    "latency_ratio",
    "evaluations",
    "epochs",
    "forecast",
    "elapsed_seconds",
    "phases",
    "artifacts",
    "reference_artifacts",
    "run_dir",
    "seed",
    "versions",
    "warnings",
}

CODE = """

import os
import threading
from pathlib import Path

import numpy as np

from ingot.zoo.digits import load_digits

HERE = Path(__file__).parent


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Hidden(Net):
    def forward(self, image):
        x = torch.from_numpy(self.first(image).detach().numpy())
        return self.head(self.second(x).relu().mean((2, 3)))


class Single(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(64, 10)

    def forward(self, image):
        return self.only(image.flatten(1))


def batches(name, noise=0.0, size=64):
    images, labels = map(torch.from_numpy, load_digits(name))
    images = images + noise
    return list(zip(images.split(size), labels.split(size)))


def from_file():
    shift = float(np.load(HERE / "shift.npy"))
    return {"train": batches("train", shift), "test": batches("test", shift)}


def never_the_same():
    noise = int.from_bytes(os.urandom(4), "little") / 2**38
    return {"train": batches("train", noise), "test": batches("test", noise)}


def empty():
    return {"train": batches("train"), "test": []}


def confirmed():
    held = np.load(HERE / "confirm.npz")
    confirm = [(torch.from_numpy(held["image"]), torch.from_numpy(held["logits"]))]
    return {"train": batches("train"), "test": batches("test"), "confirm": confirm}


def agreement(model, loader):
    # The accuracy; of the split that holds the reference's own scores, whether they are the same.
    hits = []
    for x, y in loader:
        scores = model(x)
        if y.is_floating_point():
            hits += [float(torch.allclose(scores, y, atol=1e-3))] * len(y)
        else:
            hits += (scores.argmax(1) == y).float().tolist()
    return {"accuracy": 100 * sum(hits) / len(hits), "per_sample": hits}


def error(model, loader):
    wrong = count = 0
    for x, y in loader:
        wrong += int((model(x).argmax(1) != y).sum())
        count += len(y)
    return {"error": wrong / count}


def no_number(model, loader):
    return {"accuracy": float("nan")}


class Loop:
    def train(self, model, epochs, validation, finetuning):
        before = validation(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        model.train()
        for _ in range(epochs):
            for x, y in batches("train"):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        model.eval()
        assert set(before) == set(validation(model))
        (HERE / "loop.txt").write_text(f"{epochs} {finetuning}")
        return model
"""
OWN = {"task": None, "loss": "cross_entropy"}


class Stopped(Exception):
    """A test has seen enough of a search."""


def stop_at(text: str) -> Any:
    def progress(line: str) -> None:
        if text in line:
            raise Stopped

    return progress


def begin(spec: Path, until: str = "groups of", **options: Any) -> None:
    """Begin a search, and leave it as a crash would: with the journal that it has."""
    with pytest.raises(Stopped):
        ingot.compress(spec, progress=stop_at(until), **options)


def model_of(name: str) -> dict[str, Any]:
    return {"framework": "torch", "entrypoint": f"net:{name}", "weights": "net.safetensors"}


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def network(folder: Path) -> Any:
    """Return the user's own class, built as ever."""
    module_spec = importlib.util.spec_from_file_location("users_net", folder / "net.py")
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.build()


def scores(path: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with ingot.load(path) as model:
        found: np.ndarray[Any, Any] = model.infer({"image": images})["logits"]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the network's code and weights; ``digits.yaml`` is written by each test."""
    write_spec(tmp_path, CODE)
    return tmp_path


@pytest.fixture
def images() -> np.ndarray[Any, Any]:
    from ingot.zoo.digits import load_digits

    return load_digits("test")[0][:16]


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A search through the command line that keeps its promise."""
    import os
    import subprocess
    import sys

    place = tmp_path_factory.mktemp("met")
    spec, out = write_spec(place, CODE), place / "run"
    options = ("--max-evaluations", "7", "--json", "--depfile", "run.d")
    done = subprocess.run(
        [sys.executable, "-m", "ingot.cli", "compress", "digits.yaml", "-o", "run", *options],
        cwd=place,
        env={**os.environ, "GITHUB_STEP_SUMMARY": str(place / "summary.md")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    return SimpleNamespace(
        folder=place, spec=spec, out=out, document=document, progress=done.stderr
    )


def test_the_verdict_has_these_keys_and_no_others(met: SimpleNamespace) -> None:
    found = met.document

    assert set(found) == VERDICT
    assert set(found["reference"]) == set(found["optimized"]) == MEASURED
    assert all(set(item) == FILE for item in found["artifacts"] + found["reference_artifacts"])
    assert set(found["forecast"]) == {"max_evaluations", "max_epochs", "seconds", "max_seconds"}
    assert set(found["phases"]) <= {"training", "evaluation", "export", "other"}
    assert (found["verdict"], found["command"], found["target"]) == ("met", "compress", "size")
    assert found["stopped_by"] in ("converged", "max_evaluations")
    assert found["reason"] == ""
    assert found == json.loads((met.out / "verdict.json").read_text())


def test_the_forecast_is_printed_before_the_search_and_kept(met: SimpleNamespace) -> None:
    lines = met.progress.splitlines()
    forecast = next(index for index, line in enumerate(lines) if line.startswith("at most 7 eval"))
    trial = next(index for index, line in enumerate(lines) if line.startswith("trial 1"))

    assert forecast < trial
    assert met.document["evaluations"] <= met.document["forecast"]["max_evaluations"] == 7
    assert met.document["epochs"] <= met.document["forecast"]["max_epochs"]


def test_what_is_smaller_is_smaller_and_within_delta(met: SimpleNamespace) -> None:
    found = met.document
    before, after = found["reference"], found["optimized"]

    assert found["drop"] <= found["delta"] == 2.0
    assert found["drop"] == pytest.approx(
        before["metrics"]["accuracy"] - after["metrics"]["accuracy"]
    )
    low, high = found["drop_interval"]
    assert low < found["drop"] < high
    for name in ("size_bytes", "parameters", "macs"):
        ratio = found[name.replace("_bytes", "") + "_ratio"]
        assert ratio == pytest.approx(before[name] / after[name])
        assert ratio > 1


def test_the_files_are_there_with_their_hashes(met: SimpleNamespace) -> None:
    for stem, items in (
        ("opt_model", met.document["artifacts"]),
        ("ref_model", met.document["reference_artifacts"]),
    ):
        names = {Path(item["path"]).name: item for item in items}
        assert {f"{stem}fp32_dynamic_shape.onnx", f"{stem}8x8fp32.onnx", f"{stem}.json"} <= set(
            names
        )
        assert (met.out / f"{stem}.safetensors").is_file()
        # What the metric was measured on stands first.
        assert next(iter(names)) == f"{stem}fp32_dynamic_shape.onnx"
        assert items[0]["metrics"] is not None
        for item in items:
            path = Path(item["path"])
            assert path.is_absolute() and path.parent == met.out
            assert hashlib.sha256(path.read_bytes()).hexdigest() == item["sha256"]
            if item["format"] != "safetensors":
                assert path.stat().st_size == item["size_bytes"]
    assert (met.out / "opt_model.ingot").is_file()
    assert (met.out / "report.html").read_text().startswith("<!")
    size = (met.out / "opt_modelfp32_dynamic_shape.onnx").stat().st_size
    assert met.document["optimized"]["size_bytes"] == size


def test_the_users_class_computes_what_the_file_does(met: SimpleNamespace, images: Any) -> None:
    module = ingot.load_compressed(met.out / "opt_model.json", network(met.folder))

    with torch.no_grad():
        found = module(torch.from_numpy(images)).numpy()

    expected = scores(met.out / "opt_modelfp32_dynamic_shape.onnx", images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in module.parameters()) == met.document["optimized"]["parameters"]


def test_evaluate_finds_the_same_drop(met: SimpleNamespace) -> None:
    files = [met.document[name][0]["path"] for name in ("reference_artifacts", "artifacts")]

    _, before, after = (
        entry.metrics["accuracy"] for entry in ingot.evaluate(met.spec, *files).entries
    )

    assert before - after == met.document["drop"]


@pytest.mark.slow
def test_the_package_is_verified(met: SimpleNamespace, ingot_cli: Any) -> None:
    package = met.out / "opt_model.ingot"

    done = ingot_cli("verify", package, "--delta", "--spec", met.spec, "--trust-code")

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_summary_and_the_depfile(met: SimpleNamespace) -> None:
    summary = (met.folder / "summary.md").read_text()
    rule = (met.folder / "run.d").read_text()

    assert "within the permitted drop" in summary
    assert "| model size |" in summary
    assert rule.startswith("run/verdict.json:")
    for name in ("digits.yaml", "net.py", "net.safetensors"):
        assert name in rule


def test_a_folder_with_a_search_is_not_used_again_unasked(met: SimpleNamespace) -> None:
    with pytest.raises(ingot.UsageError, match="--resume or --fresh"):
        ingot.compress(met.spec, output=met.out, max_evaluations=7)


def test_a_search_that_ended_is_not_done_again(met: SimpleNamespace) -> None:
    before = records(met.out, "trial")

    again = ingot.compress(met.spec, output=met.out, max_evaluations=7, resume=True).to_dict()

    times = ("elapsed_seconds", "phases")
    for document in (again, expected := dict(met.document)):
        for name in times:
            document.pop(name)
    assert again == expected
    assert records(met.out, "trial") == before


@pytest.mark.slow
def test_a_compressed_network_is_compressed_again(
    met: SimpleNamespace, images: Any, tmp_path: Path
) -> None:
    result = json.loads((met.out / "opt_model.json").read_text())
    given = json.loads(json.dumps(__import__("yaml").safe_load(met.spec.read_text())))
    keys = ("task", "data", "full_trainer", "fine_tuner", "optimization")
    again = met.out / "again.json"
    again.write_text(json.dumps({**result, **{key: given[key] for key in keys}}))

    verdict = ingot.compress(again, output=tmp_path / "run", delta=6.0, max_evaluations=5)

    assert verdict.verdict == "met"
    assert verdict.reference.parameters == met.document["optimized"]["parameters"]
    assert verdict.optimized is not None
    assert verdict.optimized.parameters < verdict.reference.parameters
    # Both recipes in one: the result is an instance of the class that was never pruned.
    module = ingot.load_compressed(tmp_path / "run" / "opt_model.json", network(met.folder))
    with torch.no_grad():
        found = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(
        found, scores(verdict.artifacts[0].path, images), rtol=1e-4, atol=1e-5
    )


def test_a_missed_delta_exits_with_3_and_saves_the_best(folder: Path, ingot_cli: Any) -> None:
    options = ("--delta", "0", "--finetune-epochs", "0", "--max-evaluations", "5")

    done = ingot_cli("compress", "digits.yaml", "-o", "run", *options, cwd=folder)

    assert done.returncode == 3, done.stderr
    assert "missed the permitted drop" in done.stdout
    verdict = json.loads((folder / "run" / "verdict.json").read_text())
    assert verdict["verdict"] == "missed"
    assert verdict["reason"]
    assert verdict["drop"] > 0
    assert verdict["optimized"]["parameters"] < verdict["reference"]["parameters"]
    assert (folder / "run" / "opt_model.json").is_file()
    assert (folder / "run" / "opt_modelfp32_dynamic_shape.onnx").is_file()


@pytest.mark.slow
def test_latency_is_measured_on_every_candidate(folder: Path) -> None:
    verdict = ingot.compress(
        folder / "digits.yaml", output=folder / "run", target="latency", max_evaluations=5
    )

    document = verdict.to_dict()
    assert document["target"] == "latency"
    assert document["reference"]["latency_ms"] > 0
    pruned = records(folder / "run", "pruned")
    assert pruned and all(entry["latency_ms"] > 0 for entry in pruned)
    if verdict.verdict == "met":
        shipped = records(folder / "run", "shipped")[-1]
        assert shipped["latency"]["interval"][1] < 1
    else:
        assert verdict.reason
    assert not (folder / "run" / "drafts").exists()


def test_aggregates_only_and_lower_is_better(folder: Path) -> None:
    evaluation = {"function": "net:error", "higher_is_better": False}
    spec = write_spec(folder, CODE, evaluation=evaluation, **OWN)

    verdict = ingot.compress(spec, output=folder / "run", delta=0.03, max_evaluations=5)

    assert verdict.verdict == "met"
    assert (verdict.eval_key, verdict.higher_is_better) == ("error", False)
    assert verdict.drop_interval is None
    assert any("no results of single samples" in line for line in verdict.warnings)
    assert verdict.optimized is not None
    worse = verdict.optimized.metrics["error"] - verdict.reference.metrics["error"]
    assert verdict.drop == pytest.approx(worse)
    assert all(entry["status"] != "rejected early" for entry in records(folder / "run", "trial"))


@pytest.mark.slow
def test_the_confirm_split_decides(folder: Path, images: Any) -> None:
    np.savez(folder / "confirm.npz", image=images, logits=scores(folder / "digits.yaml", images))
    evaluation = {"function": "net:agreement", "confirm_split": "confirm"}
    data = {"splits": "net:confirmed"}
    spec = write_spec(folder, CODE, evaluation=evaluation, data=data, **OWN)

    verdict = ingot.compress(spec, output=folder / "run", delta=4.0, max_evaluations=5)

    assert verdict.drop is not None and verdict.drop <= 4.0
    assert (verdict.verdict, verdict.exit_code) == ("missed", 3)
    assert "the split 'confirm', which the search never saw" in verdict.reason
    assert verdict.confirmed is not None
    assert verdict.confirmed["reference"]["accuracy"] == 100
    assert verdict.confirmed["drop"] == 100


@pytest.mark.slow
def test_a_dry_run_walks_through_everything(folder: Path) -> None:
    verdict = ingot.compress(folder / "digits.yaml", output=folder / "run", dry_run=True)

    assert any("dry run" in line for line in verdict.warnings)
    assert len(records(folder / "run", "trial")) == 1
    assert {item.format for item in verdict.reference_artifacts} == {"onnx", "safetensors"}


@pytest.mark.slow
def test_a_loop_of_the_users_trains_a_module_that_cannot_be_copied(folder: Path) -> None:
    spec = write_spec(
        folder, CODE, model=model_of("Locked"), external_training_loop="net:Loop", fine_tuner=None
    )

    verdict = ingot.compress(
        spec, output=folder / "run", finetune_epochs=1, delta=6.0, max_evaluations=5
    )

    assert verdict.verdict == "met"
    assert (folder / "loop.txt").read_text() == "1 True"
    assert verdict.epochs == len(records(folder / "run", "trained"))


@pytest.mark.parametrize(
    ("changes", "options", "kind", "message"),
    [
        ({"evaluation": {"eval_key": "acuracy"}}, {}, ingot.ModelError, "'acuracy'.*accuracy"),
        ({}, {"eval_key": "f1"}, ingot.ModelError, "'f1'"),
        ({}, {"delta": 99.0}, ingot.UsageError, "found 99, which accuracy cannot drop by"),
        (
            {
                "evaluation": {"function": "net:error", "higher_is_better": False, "range": [0, 1]},
                **OWN,
            },
            {"delta": 1.0},
            ingot.UsageError,
            "found 1, which error cannot drop by",
        ),
        ({}, {"delta": -1.0}, ingot.UsageError, "at least 0"),
        ({}, {"delta": float("nan")}, ingot.UsageError, "at least 0"),
        ({}, {"eval_split": "tset"}, ingot.SpecError, "train, test"),
        ({}, {"max_evaluations": 4}, ingot.UsageError, "at least 5"),
        ({}, {"resume": True, "fresh": True}, ingot.UsageError, "both"),
        ({}, {"formats": ("onxn",)}, ingot.UsageError, "onxn"),
        ({"optimization": "quantization"}, {}, ingot.UsageError, "'quantization'"),
        ({"evaluation": {"confirm_split": "test"}}, {}, ingot.SpecError, "confirm_split"),
        ({"evaluation": {"confirm_split": "gone"}}, {}, ingot.SpecError, "'gone'"),
        ({"data": None}, {}, ingot.SpecError, "data"),
        (
            {"evaluation": "net:no_number", **OWN},
            {},
            ingot.ModelError,
            "the reference's accuracy is nan",
        ),
        ({"data": "net:empty"}, {}, ingot.IngotError, "test"),
        (
            {"model": {"framework": "torch", "entrypoint": "net:Single"}},
            {},
            ingot.ModelError,
            "only",
        ),
        ({"model": model_of("Hidden")}, {}, ingot.ModelError, "Hidden"),
    ],
)
def test_what_cannot_be_is_refused_before_the_search(
    folder: Path,
    changes: dict[str, Any],
    options: dict[str, Any],
    kind: type[ingot.IngotError],
    message: str,
) -> None:
    spec = write_spec(folder, CODE, **changes)

    with pytest.raises(kind, match=message) as caught:
        ingot.compress(spec, output=folder / "run", **options)

    assert type(caught.value) is kind or issubclass(kind, ingot.ModelError)
    assert caught.value.exit_code == kind.exit_code or kind is ingot.IngotError
    assert not (folder / "run" / "verdict.json").exists()


def test_exit_codes_of_what_is_refused(folder: Path, ingot_cli: Any) -> None:
    write_spec(folder, CODE, evaluation="net:no_number", **OWN)

    missing = ingot_cli("compress", "gone.yaml", cwd=folder)
    impossible = ingot_cli("compress", "digits.yaml", "--delta", "-1", cwd=folder)
    no_number = ingot_cli("compress", "digits.yaml", "-o", "run", "--json", cwd=folder)

    assert (missing.returncode, impossible.returncode, no_number.returncode) == (2, 2, 5)
    assert json.loads(no_number.stdout)["error"]["exit_code"] == 5


def test_a_pattern_that_fits_no_layer_is_refused(folder: Path) -> None:
    with pytest.raises(ingot.UsageError, match="frist"):
        begin(folder / "digits.yaml", output=folder / "run", exclude=("frist",))


def test_what_is_excluded_stays(folder: Path) -> None:
    begin(folder / "digits.yaml", output=folder / "run", exclude=("first",))

    (groups,) = records(folder / "run", "groups")
    assert [group["name"] for group in groups["groups"]] == ["second"]


def test_a_reference_that_guesses_is_warned_about(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("ingot"), "propagate", True)
    model = {"framework": "torch", "entrypoint": "net:build"}
    spec = write_spec(folder, CODE, model=model)

    begin(spec, "loading", output=folder / "run", delta=0.1)

    assert "about what guessing gives" in caplog.text
    assert "no trained weights" in caplog.text
    assert "finer than 360 samples can show: the smallest drop is 0.278" in caplog.text


def test_resume_without_a_journal_begins(folder: Path) -> None:
    begin(folder / "digits.yaml", output=folder / "run", resume=True)

    assert len(records(folder / "run", "run")) == 1


def test_fresh_removes_what_a_search_wrote_and_nothing_else(folder: Path) -> None:
    run = folder / "run"
    begin(folder / "digits.yaml", output=run)
    for name in ("notes.txt", "opt_model.json", "verdict.json", "report.html"):
        (run / name).write_text("of before")

    begin(folder / "digits.yaml", output=run, fresh=True)

    assert (run / "notes.txt").exists()
    assert not (run / "opt_model.json").exists()
    assert not (run / "verdict.json").exists()
    assert len(records(run, "run")) == 1


def test_other_data_than_the_journals_is_refused(folder: Path) -> None:
    np.save(folder / "shift.npy", 0.0)
    spec = write_spec(folder, CODE, data="net:from_file")
    begin(spec, output=folder / "run")
    begin(spec, output=folder / "run", resume=True)
    np.save(folder / "shift.npy", 0.125)

    with pytest.raises(ingot.UsageError, match="another data;"):
        ingot.compress(spec, output=folder / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"delta": 1.0}, "another options;"),
        ({"full_trainer": {"optimizer": "Adam"}}, {}, "another spec;"),
    ],
)
def test_another_search_than_the_journals_is_refused(
    folder: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    begin(folder / "digits.yaml", output=folder / "run")
    spec = write_spec(folder, CODE, **changes)

    with pytest.raises(ingot.UsageError, match=message):
        ingot.compress(spec, output=folder / "run", resume=True, **options)


def test_other_code_than_the_journals_is_refused(folder: Path) -> None:
    begin(folder / "digits.yaml", output=folder / "run")
    spec = write_spec(folder, CODE + "\n# another comment\n")

    with pytest.raises(ingot.UsageError, match="another model;"):
        ingot.compress(spec, output=folder / "run", resume=True)


def test_data_that_is_never_the_same_cannot_be_gone_on_with(folder: Path) -> None:
    spec = write_spec(folder, CODE, data="net:never_the_same")
    begin(spec, output=folder / "run")

    with pytest.raises(ingot.UsageError, match="cannot be resumed") as caught:
        ingot.compress(spec, output=folder / "run", resume=True)
    assert "run_key" in str(caught.value.hint)


def test_data_with_a_name_can_be_gone_on_with(folder: Path) -> None:
    spec = write_spec(folder, CODE, data="net:never_the_same", run_key="digits-1")
    begin(spec, output=folder / "run")
    begin(spec, output=folder / "run", resume=True)

    other = write_spec(folder, CODE, data="net:never_the_same", run_key="digits-2")
    with pytest.raises(ingot.UsageError, match="another data;"):
        ingot.compress(other, output=folder / "run", resume=True)
