"""``compress``: what is refused before the search, and which journals it goes on with."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compress_code import CODE, OWN, begin, model_of, records
from compress_specs import write_spec

import ingot

pytest.importorskip("torch")
pytest.importorskip("torch_pruning")
pytest.importorskip("onnxscript")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the network's code and weights; ``digits.yaml`` is written by each test."""
    write_spec(tmp_path, CODE)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "options", "kind", "message"),
    [
        ({"evaluation": {"eval_key": "acuracy"}}, {}, ingot.SpecError, "'acuracy'.*accuracy"),
        ({}, {"eval_key": "f1"}, ingot.SpecError, "'f1'"),
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
        ({"data": "net:empty"}, {}, ingot.InputError, "no batch"),
        (
            {"model": {"framework": "torch", "entrypoint": "net:Single"}},
            {},
            ingot.ModelError,
            "only",
        ),
        ({"model": model_of("Hidden")}, {}, ingot.ModelError, "Hidden"),
        ({"model": model_of("Locked")}, {}, ingot.ModelError, "Locked cannot be copied"),
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
