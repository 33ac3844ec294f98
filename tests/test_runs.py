"""``ingot runs``: on folders whose journals are written here as a search writes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from search_records import VERDICT, run_records, trial

import ingot
from ingot.commands.runs import find_run, follow_run, list_runs, show_run
from ingot.commands.runs_clean import clean_runs
from ingot.optimizers.journal import JOURNAL, Journal

TRIALS = [
    trial("1", "", "accepted", 8000, 0.4, {"conv1": (12, 16)}),
    trial("2", "1", "missed", 5000, 1.7, {"conv1": (4, 16)}),
]
HOLDER = """
import sys
from pathlib import Path
from ingot.optimizers.journal import Journal
from search_records import VERDICT, trial

with Journal(Path(sys.argv[1])) as journal:
    print("open", flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "verdict":
            journal.append("verdict", document=VERDICT)
        elif word:
            values = trial(word, "", "accepted", 7000, 0.5, {})
            journal.append(values.pop("kind"), values.pop("name"), **values)
        print("done", flush=True)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty INGOT_HOME; the runs are in ``runs``."""
    folder = tmp_path / "home"
    monkeypatch.setenv("INGOT_HOME", str(folder))
    return folder / "runs"


def write_run(folder: Path, *records: Mapping[str, Any], verdict: str | None = None) -> Path:
    """Write the journal of a search that was killed, or that ended with a verdict."""
    folder.mkdir(parents=True)
    with Journal(folder) as journal:
        for record in records:
            values = dict(record)
            journal.append(values.pop("kind"), values.pop("name"), **values)
        if verdict is not None:
            journal.append("verdict", document={**VERDICT, "verdict": verdict})
    return folder


def write_training(folder: Path, *, done: bool) -> Path:
    folder.mkdir(parents=True)
    (folder / "checkpoint-000000010.safetensors").write_bytes(bytes(100))
    if done:
        result = {"name": "digits", "metrics": {"accuracy": 97.5}, "epochs": 3}
        (folder / "train.json").write_text(json.dumps({**result, "elapsed_seconds": 20}))
    return folder


@contextmanager
def holding(folder: Path) -> Iterator[Callable[[str], None]]:
    """Let a process search in a folder; yields a function that makes it write a record."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"

    def write(word: str) -> None:
        process.stdin.write(word + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"

    try:
        yield write
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


@pytest.fixture
def runs(home: Path) -> Path:
    """Runs in every state in which one can be that no process holds."""
    write_run(home / "compress-met-1", *run_records(), *TRIALS, verdict="met")
    write_run(home / "compress-missed-2", *run_records(), *TRIALS, verdict="missed")
    write_run(home / "compress-interrupted-3", *run_records(), verdict="interrupted")
    write_run(home / "compress-killed-4", *run_records(), *TRIALS)
    write_run(home / "compress-empty-5")
    write_training(home / "train-digits-abc", done=True)
    write_training(home / "train-digits-abd", done=False)
    (home / "no-run").mkdir()
    (home / "no-run" / "precious").touch()
    return home


def states() -> dict[str, str]:
    return {run.name: run.state for run in list_runs()}


def test_list_shows_every_run_and_nothing_else(runs, ingot_cli):
    done = ingot_cli("runs", "list", "--json")
    document = json.loads(done.stdout)
    found = {run["name"]: run for run in document["runs"]}

    assert {name: run["state"] for name, run in found.items()} == {
        "compress-met-1": "met",
        "compress-missed-2": "missed",
        "compress-interrupted-3": "interrupted",
        "compress-killed-4": "unfinished",
        "compress-empty-5": "unfinished",
        "train-digits-abc": "trained",
        "train-digits-abd": "unfinished",
    }
    met, killed = found["compress-met-1"], found["compress-killed-4"]
    assert (met["ratio"], met["drop"], met["evaluations"]) == (1.6, 0.6, 7)
    assert (killed["ratio"], killed["drop"], killed["evaluations"]) == (1.25, 0.4, 2)
    assert (met["command"], met["model"], met["target"]) == ("compress", "digits_cnn", "size")
    assert found["train-digits-abd"]["model"] == "digits"
    assert all(run["size_bytes"] >= 0 for run in found.values())


def test_tables_fit_80_columns(runs, ingot_cli):
    for words in (("list",), ("show", "compress-killed-4"), ("show", "compress-met-1")):
        done = ingot_cli("runs", *words, env={"COLUMNS": "80"})

        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if str(runs) not in line]
        assert max(map(len, lines[:-1])) <= 80, lines
    assert "1.25x" in ingot_cli("runs", "list").stdout


def test_list_of_nothing_is_no_error(home, ingot_cli):
    assert "no runs in" in ingot_cli("runs", "list").stdout
    assert json.loads(ingot_cli("runs", "list", "--json").stdout)["runs"] == []


def test_a_damaged_journal_is_listed_and_not_shown(runs, ingot_cli):
    path = runs / "compress-met-1" / JOURNAL
    path.write_bytes(path.read_bytes() + b"no json\n")

    assert states()["compress-met-1"] == "damaged"
    done = ingot_cli("runs", "show", "compress-met-1")
    assert done.returncode == 5
    assert f"{path}:" in done.stderr


def test_a_line_that_is_being_written_is_not_read(runs):
    path = runs / "compress-killed-4" / JOURNAL
    path.write_bytes(path.read_bytes() + b'{"kind": "trial", "na')

    details = show_run("compress-killed-4")

    assert [record["name"] for record in details.trials] == ["1", "2"]


def test_a_search_that_was_taken_up_again_is_not_ended(home):
    folder = write_run(home / "compress-x", *run_records(), verdict="interrupted")
    with Journal(folder) as journal:
        values = dict(TRIALS[0])
        journal.append(values.pop("kind"), values.pop("name"), **values)

    assert show_run("compress-x").run.state == "unfinished"
    assert show_run("compress-x").verdict == {}


@pytest.mark.parametrize("name", ["compress-met-1", "compress-me", "./compress-met-1"])
def test_a_run_is_found_by_name_beginning_and_path(runs, name, monkeypatch):
    monkeypatch.chdir(runs)

    assert find_run(name).resolve() == runs / "compress-met-1"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("compress-m", "found 2 runs (compress-met-1, compress-missed-2); expected one"),
        ("nothing", "no such run"),
        ("", "no such run"),
        ("no-run", "no such run"),
        ("./no-run", "without a journal"),
        ("./nowhere", "no such run"),
    ],
)
def test_what_is_no_run_is_refused(runs, name, said, monkeypatch):
    monkeypatch.chdir(runs)

    with pytest.raises(ingot.UsageError) as caught:
        find_run(name)
    assert said in caught.value.message


def test_show_says_all_that_is_known(runs, ingot_cli):
    shown = ingot_cli("runs", "show", "compress-met").stdout
    for said in ("level=1", "torch 2.9", "at most 20 evaluations", "accepted", "1.25x", "met: "):
        assert said in shown

    document = json.loads(ingot_cli("runs", "show", "compress-met", "--json").stdout)
    assert document["verdict"] == VERDICT
    assert [entry["status"] for entry in document["trials"]] == ["accepted", "missed"]
    assert document["reference"]["eval_key"] == "accuracy"
    assert "--resume" in ingot_cli("runs", "show", "compress-killed").stdout
    assert "97.5" in ingot_cli("runs", "show", "train-digits-abc").stdout


def test_markdown_is_the_table_of_the_verdict(runs, ingot_cli):
    text = ingot_cli("runs", "show", "compress-met", "--markdown").stdout

    assert text.startswith("### digits\\_cnn: ")
    assert "| accuracy | 98.0000 | 97.4000 | -0.6000 |" in text
    assert "unfinished" in ingot_cli("runs", "show", "compress-killed", "--markdown").stdout


def test_names_cannot_steer_the_terminal(home, ingot_cli):
    write_run(home / "compress-x", *run_records(model="\x1b[31mred"), *TRIALS, verdict="met")

    for words in (("list",), ("show", "compress-x"), ("show", "compress-x", "--follow")):
        assert "\x1b" not in ingot_cli("runs", *words).stdout


def test_follow_ends_with_a_search_that_is_over(runs, ingot_cli):
    for name in ("compress-met-1", "compress-killed-4"):
        done = ingot_cli("runs", "show", name, "--follow", timeout=60)

        assert done.returncode == 0, done.stderr
        assert [line.split()[1] for line in done.stdout.splitlines() if line[:6] == "trial "] == [
            "1",
            "2",
        ]
    assert ingot_cli("runs", "show", "train-digits-abc", "--follow").returncode == 2


def test_follow_shows_trials_as_they_come_and_ends_with_the_verdict(home):
    folder = write_run(home / "compress-x", *run_records(), *TRIALS)
    seen: list[str] = []

    with holding(folder) as write:
        steps = iter(["3", "4", "verdict"])

        def report(records: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
            seen.append(record["name"])
            if record["name"] != "1":
                write(next(steps))

        details = follow_run("compress-x", report, poll=0.01)

    assert seen == ["1", "2", "3", "4"]
    assert details.verdict == VERDICT


def test_follow_ends_when_the_process_is_gone(home):
    folder = write_run(home / "compress-x", *run_records())
    command = [sys.executable, "-m", "ingot.cli", "runs", "show", "compress-x", "--follow"]

    with holding(folder) as write:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        write("1")
        assert process.stdout.readline().startswith("trial   1  accepted")
        assert process.poll() is None
    rest, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert rest == "compress-x: unfinished, no verdict\n"


def test_a_run_that_is_searching_is_shown_as_such_and_never_removed(home, ingot_cli):
    folder = write_run(home / "compress-x", *run_records(), *TRIALS, verdict="met")

    with holding(folder):
        (run,) = list_runs()
        assert run.state == "running"
        assert run.process is not None
        everything = ingot_cli("runs", "clean", "--all", "--yes")
        named = ingot_cli("runs", "clean", "compress-x", "--yes")
        assert "is searching in it" in everything.stderr
        assert (everything.returncode, named.returncode) == (0, 2)
        assert "is searching in it" in named.stderr
        assert (folder / JOURNAL).exists()
    assert clean_runs(["compress-x"]).removed


def test_clean_removes_what_has_finished(runs, ingot_cli):
    tried = json.loads(ingot_cli("runs", "clean", "--dry-run", "--json").stdout)
    assert len(states()) == 7

    done = json.loads(ingot_cli("runs", "clean", "--yes", "--json").stdout)

    assert tried["removed"] == done["removed"]
    assert {entry["state"] for entry in done["removed"]} == {"met", "missed", "trained"}
    assert done["size_bytes"] == sum(entry["size_bytes"] for entry in done["removed"]) > 0
    assert {entry["reason"] for entry in done["kept"]} >= {"it is interrupted", "it is unfinished"}
    assert len(states()) == 4
    assert (runs / "no-run" / "precious").exists()


def test_clean_all_leaves_only_what_may_be_training(runs):
    old = runs / "train-digits-abd"

    assert [run.name for run, _ in clean_runs(every=True).kept] == [old.name]
    hours_ago = time.time() - 7200
    for path in (*old.iterdir(), old):
        os.utime(path, (hours_ago, hours_ago))
    assert [run.name for run in clean_runs(every=True).removed] == [old.name]
    assert [path.name for path in runs.iterdir()] == ["no-run"]


def test_clean_asks_where_it_can_and_else_wants_a_word(runs, ingot_cli):
    done = ingot_cli("runs", "clean")

    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert len(states()) == 7


def test_clean_of_names_removes_all_or_nothing(runs, ingot_cli):
    assert ingot_cli("runs", "clean", "compress-killed", "nothing").returncode == 2
    assert "compress-killed-4" in states()

    done = ingot_cli("runs", "clean", "compress-killed", runs / "compress-empty-5")

    assert done.returncode == 0, done.stderr
    assert f"removed {runs / 'compress-killed-4'}" in done.stdout
    assert len(states()) == 5


def test_clean_takes_care_of_folders_of_the_user(runs, tmp_path, monkeypatch, ingot_cli):
    outside = write_run(tmp_path / "work" / "run", *run_records(), verdict="met")
    work = write_run(tmp_path / "work" / "project", *run_records(), verdict="met")
    (work / ".git").mkdir()
    below = work / "below"
    below.mkdir()
    link = runs / "compress-link"
    link.symlink_to(outside)

    assert ingot_cli("runs", "clean", outside).returncode == 2
    assert ingot_cli("runs", "clean", work, "--force").returncode == 2
    (work / ".git").rmdir()
    for place in (work, below):
        assert ingot_cli("runs", "clean", work, "--force", cwd=place).returncode == 2
    assert ingot_cli("runs", "clean", tmp_path, "--force").returncode == 2
    assert "compress-link" not in states()
    assert ingot_cli("runs", "clean", outside, "--force").returncode == 0
    assert not outside.exists()
    assert (work / JOURNAL).exists()


@pytest.mark.parametrize("name", ["list", "show", "clean"])
def test_help_has_an_example(ingot_cli, name):
    assert "Example: ingot runs" in ingot_cli("runs", name, "--help").stdout
