"""A search that is killed, at any moment, ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from compress_specs import write_spec
from search_processes import (
    check_kills,
    records_of,
    start_search,
    whole_search,
    without_times,
)

ARGUMENTS = ("--max-evaluations", "9", "--delta", "2")
KILLS = 20


def start(spec: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    return start_search("compress", spec, out, *ARGUMENTS, *arguments)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spec(tmp_path_factory.mktemp("spec"))


@pytest.fixture(scope="module")
def whole(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The verdict of a search that was not killed, and how long it took."""
    return whole_search("compress", spec, tmp_path_factory.mktemp("whole") / "run", *ARGUMENTS)


@pytest.mark.slow
def test_killed_at_random_points(
    spec: Path, whole: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    """The process is killed 20 times in all, in the middle of whatever it does."""
    check_kills("compress", spec, tmp_path, ARGUMENTS, KILLS, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_best_so_far(
    number: signal.Signals, spec: Path, whole: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(spec, out)
    journal = out / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and '"accepted"' in journal.read_text():
            break
        time.sleep(0.02)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    verdict = json.loads(output)
    assert (verdict["verdict"], verdict["stopped_by"]) == ("interrupted", "signal")
    assert "--resume" in verdict["reason"]
    assert [Path(item["path"]).name for item in verdict["artifacts"]] == ["opt_model.json"]
    assert (out / "opt_model.safetensors").exists()
    assert (out / "report.html").exists()
    process = start(spec, out, "--resume")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert without_times(json.loads(output)) == without_times(whole[0]["verdict"])


def test_two_processes_on_one_folder(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = start(spec, out)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (out / "journal.jsonl").exists():
            time.sleep(0.02)
        time.sleep(0.5)
        second = start(spec, out, "--resume")
        _, errors = second.communicate(timeout=120)
        assert second.returncode == 2
        assert f"another process (number {first.pid}) is searching" in errors
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()


def test_a_full_disk_stops_the_search_and_room_lets_it_go_on(
    spec: Path, whole: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    """The disk takes no file beyond a size: the weights of a candidate do not fit."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "run"
    process = start(spec, out)
    journal = out / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and '"forecast"' in journal.read_text():
            break
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    told = json.loads(output)["error"]
    assert "cannot be written" in told["message"]
    assert "--resume" in told["hint"]
    assert not list(out.rglob("*.part"))
    output, errors = start(spec, out, "--resume").communicate(timeout=300)
    assert without_times(json.loads(output)) == without_times(whole[0]["verdict"]), errors


@pytest.mark.slow
def test_several_workers_train_the_candidates(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(spec, out, "--nproc", "2", "--finetune-epochs", "2")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    verdict = json.loads(output)
    assert verdict["verdict"] == "met"
    trials = [record for record in records_of(out) if record["kind"] == "trial"]
    assert any(len(trial["losses"]) == 2 for trial in trials)
    assert not list((out / "trials").glob("*.training"))
