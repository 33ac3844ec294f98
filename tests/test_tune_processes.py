"""``ingot tune`` in processes that are killed, interrupted, or share a study."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from training_specs import write_spec

from ingot.optimizers import study
from ingot.specs import ParameterSection

pytest.importorskip("torch")
pytest.importorskip("torchmetrics")
pytest.importorskip("optuna")

# Ends the process, or waits, in the second epoch of a trial; once.
STOPS = """

import os
import signal
import time

from ingot.training.callbacks import Callback


class Stops(Callback):
    def __init__(self, folder):
        self.trial = folder.name
        self.flag = folder.parent.parent.parent / f"flag-{folder.parent.parent.name}"

    def after_step(self, runner):
        if self.trial == "0003" and runner.state.step == 13 and not self.flag.exists():
            self.flag.touch()
            HOW


class Waits(Callback):
    def after_epoch(self, runner):
        time.sleep(0.3)
"""
SPACE = {
    "trials": 7,
    "parameters": {
        "full_trainer.optimizer.lr": {"log_uniform": [1e-3, 1.0]},
        "model.kwargs.width": {"int": [2, 8]},
    },
    "fixed": {"full_trainer.epochs": 2},
}


def start(spec, folder, *arguments):
    command = [sys.executable, "-m", "ingot.cli", "tune", spec, "-o", folder, *arguments]
    return subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell in the background hands on that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def outcome(document):
    """Return what does not depend on a clock."""
    names = ("trial", "state", "value", "params", "values", "metrics", "epochs", "best_epoch")
    return [{name: trial[name] for name in names} for trial in document["trials"]]


@pytest.mark.slow
def test_a_study_that_was_killed_ends_as_one_that_was_not(tmp_path):
    code = STOPS.replace("HOW", "os.kill(os.getpid(), signal.SIGKILL)")
    spec = write_spec(tmp_path, code, tune=SPACE, training={"callbacks": ["net:Stops"]})
    (tmp_path / "flag-whole").touch()
    whole, killed = start(spec, tmp_path / "whole", "--json"), start(spec, tmp_path / "run")
    expected, _ = whole.communicate(timeout=300)
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    goes_on = start(spec, tmp_path / "run", "--json")
    found, said = goes_on.communicate(timeout=300)
    assert goes_on.returncode == 0, said
    assert "3 trials have ended" in said
    begun = [int(line.split()[1]) for line in said.splitlines() if "lr=" in line]
    assert begun == [3, 4, 5, 6]
    assert outcome(json.loads(found)) == outcome(json.loads(expected))


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path):
    spec = write_spec(tmp_path, STOPS, tune=SPACE, training={"callbacks": ["net:Waits"]})
    processes = [start(spec, tmp_path / "run") for _ in range(2)]
    begun = []
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        begun.append([int(line.split()[1]) for line in said.splitlines() if "lr=" in line])
    assert sorted([*begun[0], *begun[1]]) == list(range(7))
    assert begun[0]
    assert begun[1]
    last = start(spec, tmp_path / "run", "--json")
    document = json.loads(last.communicate(timeout=300)[0])
    assert document["finished"] == 7
    assert len({json.dumps(trial["params"]) for trial in document["trials"]}) == 7


@pytest.mark.slow
def test_an_interrupted_study_says_how_to_go_on(tmp_path):
    code = STOPS.replace("HOW", "time.sleep(2)")
    spec = write_spec(tmp_path, code, tune=SPACE, training={"callbacks": ["net:Stops"]})
    process = start(spec, tmp_path / "run", "--trials", "5")
    for _ in range(600):
        if (tmp_path / "flag-run").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "interrupted; 3 of 5 trials have ended" in said
    assert "the same command goes on with" in said
    document = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert document["trials"][3]["state"] == "interrupted"
    assert (tmp_path / "run" / "best.yaml").is_file()
    goes_on = start(spec, tmp_path / "run", "--trials", "5")
    table, said = goes_on.communicate(timeout=300)
    assert goes_on.returncode == 0, said
    assert "5 of 5 ended" in table
    assert max(map(len, table.splitlines()[:6])) <= 80  # below it there are paths


@pytest.mark.slow
def test_a_study_that_another_process_works_on_is_not_removed(tmp_path, ingot_cli):
    code = STOPS.replace("HOW", "time.sleep(600)")
    spec = write_spec(tmp_path, code, tune=SPACE, training={"callbacks": ["net:Stops"]})
    process = start(spec, tmp_path / "run")
    for _ in range(600):
        if (tmp_path / "flag-run").exists():
            break
        time.sleep(0.1)
    done = ingot_cli("tune", spec, "-o", tmp_path / "run", "--fresh")
    process.kill()
    process.communicate()
    assert done.returncode == 2
    assert "another process works on trial 3" in done.stderr


def test_the_command_line_refuses_another_space_with_exit_code_2(tmp_path, ingot_cli):
    spec = write_spec(tmp_path, tune={**SPACE, "trials": 1})
    environment = {"INGOT_HOME": str(tmp_path / "home")}
    first = ingot_cli("tune", spec, "--json", env=environment)
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert document["schema_version"] == 1
    assert document["run_dir"].startswith(str(tmp_path / "home" / "runs" / "tune-digits-"))
    wider = "tune.parameters={model.kwargs.width: {int: [2, 9]}}"
    second = ingot_cli("tune", spec, "--set", wider, "--json", env=environment)
    assert second.returncode == 2
    error = json.loads(second.stdout)["error"]
    assert "full_trainer.optimizer.lr: found nothing" in error["message"]


def test_a_trial_that_ends_while_another_process_looks_is_not_run_again(tmp_path, monkeypatch):
    space = {"x": ParameterSection(uniform=(0.0, 1.0))}
    first, second = (study.Study(tmp_path, space, seed=0) for _ in range(2))
    trial = first.next_trial(2)
    hold = study._hold

    def hold_late(folder):
        if folder == trial.folder:
            trial.end("complete", 1.0)
        return hold(folder)

    monkeypatch.setattr(study, "_hold", hold_late)
    assert second.next_trial(2).number == 1
    assert [record.state for record in second.records()] == ["complete", "interrupted"]
