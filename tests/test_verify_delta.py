"""``verify --delta``: the promise of a search, measured again on the files that it shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compress_specs import write_spec

import ingot

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")
pytest.importorskip("onnxscript")

AGGREGATES = """

def error(model, loader):
    wrong = count = 0
    for x, y in loader:
        wrong += int((model(x).argmax(1) != y).sum())
        count += len(y)
    return {"error": wrong / count}


def broken(model, loader):
    return {"error": float("nan") if hasattr(model, "loaded") else 0.5}
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A spec, and the verdict of a search on it."""
    folder = tmp_path_factory.mktemp("delta")
    spec = write_spec(folder, AGGREGATES)
    return spec, ingot.compress(spec, output=folder / "run", max_evaluations=5)


def shipped(verdict: Any, form: str) -> Path:
    return next(item.path for item in verdict.artifacts if item.format == form)


def test_the_file_keeps_what_the_verdict_says(searched: tuple[Path, Any]) -> None:
    spec, verdict = searched
    reference = verdict.reference_artifacts[0].path

    result = ingot.verify(shipped(verdict, "onnx"), spec=spec, reference=reference)

    found = result.delta
    assert [check.name for check in result.checks] == ["delta"]
    assert result.exit_code == 0
    assert (found.delta, found.eval_key, found.eval_split) == (2.0, "accuracy", "test")
    assert found.drop == verdict.drop
    assert found.drop_interval == verdict.drop_interval
    assert found.metrics == verdict.optimized.metrics
    assert found.reference_metrics == verdict.reference.metrics
    assert found.samples == 360


@pytest.mark.slow
def test_the_package_is_checked_as_ever_and_measured(
    searched: tuple[Path, Any], ingot_cli: Any
) -> None:
    spec, verdict = searched
    package = shipped(verdict, "package")
    options = ("--delta", "--spec", spec, "--trust-code")

    shown = ingot_cli("verify", package, *options)
    written = ingot_cli("verify", package, *options, "--json")
    document = json.loads(written.stdout)

    assert (shown.returncode, written.returncode) == (0, 0), shown.stderr + written.stderr
    assert "PASS  delta    accuracy" in shown.stdout
    assert [check["name"] for check in document["checks"]] == [
        "archive",
        "config",
        "layout",
        "hashes",
        "golden",
        "delta",
    ]
    assert document["passed"]
    assert set(document["delta"]) == {
        "reference",
        "eval_key",
        "eval_split",
        "higher_is_better",
        "samples",
        "delta",
        "drop",
        "drop_interval",
        "reference_metrics",
        "metrics",
    }
    # The network that was given, in PyTorch: the same accuracy as that of its ONNX file.
    assert document["delta"]["reference"] is None
    assert document["delta"]["drop"] == pytest.approx(verdict.drop)


def test_a_drop_above_delta_exits_with_4(searched: tuple[Path, Any], ingot_cli: Any) -> None:
    spec, verdict = searched
    assert verdict.drop > 0.25, "the search has to lose something for this test"

    done = ingot_cli("verify", shipped(verdict, "onnx"), "--delta", "0.25", "--spec", spec)

    assert done.returncode == 4, done.stderr
    assert "FAIL" in done.stdout
    assert "0.25 permitted" in " ".join(done.stdout.split())


def test_a_result_in_ingots_own_format_and_other_files(searched: tuple[Path, Any]) -> None:
    spec, verdict = searched

    own = ingot.verify(shipped(verdict, "safetensors"), spec=spec)
    itself = ingot.verify(spec, spec=spec, delta=0)

    assert own.delta.drop == pytest.approx(verdict.drop)
    assert (itself.delta.drop, itself.exit_code) == (0, 0)


def test_a_split_of_choice(searched: tuple[Path, Any]) -> None:
    spec, verdict = searched

    result = ingot.verify(shipped(verdict, "onnx"), spec=spec, eval_split="train")

    assert result.delta.eval_split == "train"
    assert result.delta.samples == 1437
    low, high = result.delta.drop_interval
    assert low < result.delta.drop < high


def test_a_metric_without_results_of_single_samples(searched: tuple[Path, Any]) -> None:
    spec, verdict = searched
    changes = ("evaluation.function=net:error", "evaluation.higher_is_better=false")

    result = ingot.verify(
        shipped(verdict, "onnx"), spec=spec, delta=0.02, overrides=[*changes, "task=null"]
    )

    assert result.exit_code == 0
    assert result.delta.drop == pytest.approx(verdict.drop / 100)
    assert result.delta.drop_interval is None
    assert not result.delta.higher_is_better


def test_a_metric_that_is_no_number_is_no_success(
    searched: tuple[Path, Any], ingot_cli: Any
) -> None:
    spec, verdict = searched
    changes = ("--set", "evaluation={function: net:broken, higher_is_better: false}")

    done = ingot_cli(
        "verify", shipped(verdict, "onnx"), "--delta", "1", "--spec", spec, *changes, "--json"
    )

    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout)["delta"]["drop"] is None


def test_a_reference_that_is_no_number(searched: tuple[Path, Any]) -> None:
    spec, verdict = searched
    file = shipped(verdict, "onnx")
    change = "evaluation={function: net:broken, higher_is_better: false}"

    with pytest.raises(ingot.ModelError, match="the reference's error is nan"):
        ingot.verify(file, spec=spec, reference=file, overrides=[change])


def test_a_changed_package_is_not_measured(searched: tuple[Path, Any], tmp_path: Path) -> None:
    import zipfile

    spec, verdict = searched
    changed = tmp_path / "changed.ingot"
    with (
        zipfile.ZipFile(shipped(verdict, "package")) as before,
        zipfile.ZipFile(changed, "w") as after,
    ):
        for name in before.namelist():
            data = before.read(name)
            after.writestr(name, data + b"\n" if name.endswith("net.py") else data)

    result = ingot.verify(changed, spec=spec, trust_code=True)

    assert result.exit_code == 4
    assert result.delta is None
    assert result.checks[-1].status == "skip"
    assert "another check failed" in result.checks[-1].message


def test_code_that_is_not_trusted_is_not_run(searched: tuple[Path, Any]) -> None:
    spec, verdict = searched

    result = ingot.verify(shipped(verdict, "package"), spec=spec)

    assert result.exit_code == 5
    assert result.checks[-1].status == "skip"
    assert "--trust-code" in result.checks[-1].message
    assert result.to_dict()["delta"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("FILE", "--delta"), 2, "--spec"),
        (("FILE", "--spec", "SPEC"), 2, "--delta"),
        (("FILE", "--delta", "nan", "--spec", "SPEC"), 2, "at least 0"),
        (("--delta", "FILE", "--spec", "SPEC"), 2, "PACKAGE stands before --delta"),
        (("FILE", "--delta", "--spec", "FILE"), 2, "expected a spec"),
        (("FILE", "--delta", "--spec", "SPEC", "--eval-split", "tset"), 2, "train, test"),
        (("FILE", "--delta", "--spec", "SPEC", "--reference", "gone.onnx"), 5, "gone.onnx"),
        (("FILE", "--delta", "--spec", "gone.yaml"), 2, "gone.yaml"),
        (("FILE",), 5, "expected a package"),
    ],
)
def test_what_cannot_be_is_refused(
    searched: tuple[Path, Any],
    ingot_cli: Any,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    spec, verdict = searched
    names = {"FILE": shipped(verdict, "onnx"), "SPEC": spec}

    done = ingot_cli("verify", *(names.get(name, name) for name in arguments))

    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert not done.stdout


def test_options_in_python_that_cannot_be(searched: tuple[Path, Any]) -> None:
    spec, verdict = searched

    with pytest.raises(ingot.UsageError, match="found -1; expected a number of at least 0"):
        ingot.verify(shipped(verdict, "onnx"), spec=spec, delta=-1)
    with pytest.raises(ingot.UsageError, match="without its spec"):
        ingot.verify(shipped(verdict, "onnx"), delta=1)
