"""``compress``: what a search ends with, and what it writes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from compress_code import CODE, OWN, begin, network, records, scores
from compress_specs import write_spec

import ingot

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")
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
            assert path.is_absolute()
            assert path.parent == met.out
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
    given = yaml.safe_load(met.spec.read_text())
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
def test_a_candidate_that_missed_is_saved(folder: Path) -> None:
    verdict = ingot.compress(
        write_spec(folder, CODE, evaluation="net:accuracy", **OWN),
        output=folder / "run",
        delta=0.3,
        finetune_epochs=0,
        max_evaluations=5,
    )

    assert (verdict.verdict, verdict.exit_code) == ("missed", 3)
    assert "expected at most 0.3" in verdict.reason
    assert verdict.drop is not None
    assert verdict.drop > 0.3
    assert verdict.optimized is not None
    assert verdict.optimized.size_bytes < verdict.reference.size_bytes
    assert {item.format for item in verdict.artifacts} == {"onnx", "safetensors", "package"}
    assert all(item.path.exists() for item in verdict.artifacts)


@pytest.mark.slow
def test_latency_is_measured_on_every_candidate(folder: Path) -> None:
    verdict = ingot.compress(
        folder / "digits.yaml", output=folder / "run", target="latency", max_evaluations=5
    )

    document = verdict.to_dict()
    assert document["target"] == "latency"
    assert document["reference"]["latency_ms"] > 0
    pruned = records(folder / "run", "pruned")
    assert pruned
    assert all(entry["latency_ms"] > 0 for entry in pruned)
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

    assert verdict.drop is not None
    assert verdict.drop <= 4.0
    assert (verdict.verdict, verdict.exit_code) == ("missed", 3)
    assert "the split 'confirm', which the search never saw" in verdict.reason
    assert verdict.confirmed is not None
    assert verdict.confirmed["reference"]["accuracy"] == 100
    assert verdict.confirmed["drop"] == 100


@pytest.mark.slow
def test_the_best_effort_is_what_lies_there(folder: Path, images: Any) -> None:
    np.savez(folder / "confirm.npz", image=images, logits=scores(folder / "digits.yaml", images))
    evaluation = {"function": "net:smaller_is_better", "confirm_split": "confirm"}
    data = {"splits": "net:confirmed"}
    spec = write_spec(folder, CODE, evaluation=evaluation, data=data, **OWN)

    verdict = ingot.compress(spec, output=folder / "run", delta=4.0, max_evaluations=6)

    assert verdict.verdict == "missed"
    assert len(records(folder / "run", "shipped")) == 2
    for item in verdict.artifacts:
        assert hashlib.sha256(item.path.read_bytes()).hexdigest() == item.sha256


@pytest.mark.slow
def test_another_format_on_resume(folder: Path) -> None:
    options = {"output": folder / "run", "max_evaluations": 5}
    begin(folder / "digits.yaml", "at most", formats=("jit",), **options)

    verdict = ingot.compress(folder / "digits.yaml", resume=True, formats=("onnx",), **options)

    before, after = verdict.reference_artifacts[0], verdict.artifacts[0]
    assert before.format == after.format


@pytest.mark.slow
def test_a_dry_run_walks_through_everything(folder: Path) -> None:
    verdict = ingot.compress(folder / "digits.yaml", output=folder / "run", dry_run=True)

    assert any("dry run" in line for line in verdict.warnings)
    assert len(records(folder / "run", "trial")) == 1
    assert {item.format for item in verdict.reference_artifacts} == {"onnx", "safetensors"}


@pytest.mark.slow
def test_a_loop_of_the_users_trains_in_place_of_the_runner(folder: Path) -> None:
    spec = write_spec(folder, CODE, external_training_loop="net:Loop", fine_tuner=None)

    verdict = ingot.compress(
        spec, output=folder / "run", finetune_epochs=1, delta=6.0, max_evaluations=5
    )

    assert verdict.verdict == "met"
    assert (folder / "loop.txt").read_text() == "1 True"
    assert verdict.epochs == len(records(folder / "run", "trained"))
