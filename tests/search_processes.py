"""Searches in processes of their own, and what of a verdict does not depend on a clock."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What is measured with a clock, or depends on when it was.
TIMES = (
    "latency_ms",
    "latency_ratio",
    "elapsed_seconds",
    "phases",
    "seconds",
    "max_seconds",
    "run_dir",
    "path",
)


def start_search(command: str, spec: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a search that prints its verdict as JSON."""
    ingot = [sys.executable, "-m", "ingot.cli", command, str(spec), "-o", str(out), "--json"]
    return subprocess.Popen(
        [*ingot, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell in the background hands on that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def without_times(value: Any) -> Any:
    """Return JSON values without what is measured with a clock."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def records_of(out: Path) -> list[dict[str, Any]]:
    """Return the records of a search's journal."""
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]


def check_kills(
    command: str,
    spec: Path,
    folder: Path,
    arguments: Sequence[str],
    kills: int,
    whole: tuple[dict[str, Any], float],
) -> None:
    """Kill searches at random moments, and resume them; each ends as the whole one did.

    Args:
        command: of the search.
        spec: what is searched.
        folder: where runs go.
        arguments: of the command.
        kills: how many in all.
        whole: the verdict of a search that was not killed, and the seconds that it took.
    """
    expected, seconds = whole
    random_ = random.Random(7)
    killed = runs = 0
    while killed < kills:
        runs += 1
        out = folder / str(runs)
        resume: tuple[str, ...] = ()
        while True:
            process = start_search(command, spec, out, *arguments, *resume)
            begun = time.monotonic()
            limit = random_.uniform(0.2, 1.0) * seconds if killed < kills else 600
            try:
                output, errors = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                killed += 1
                resume = ("--resume",)
                continue
            assert process.returncode == expected["exit"], errors
            # The machine may be faster now than when the whole search was timed.
            seconds = min(seconds, time.monotonic() - begun)
            break
        assert without_times(json.loads(output)) == without_times(expected["verdict"])
        names = Counter(
            (record["kind"], record["name"])
            for record in records_of(out)
            if record["kind"] != "verdict"
        )
        assert set(names.values()) == {1}, "something was done twice"
    assert killed == kills


def whole_search(
    command: str, spec: Path, out: Path, *arguments: str
) -> tuple[dict[str, Any], float]:
    """Run a search to its end; return its verdict and exit code, and how long it took."""
    begun = time.monotonic()
    process = start_search(command, spec, out, *arguments)
    output, errors = process.communicate(timeout=600)
    assert process.returncode in (0, 3), errors
    found = {"verdict": json.loads(output), "exit": process.returncode}
    return found, time.monotonic() - begun
