"""What becomes of workers when their caller forks, forgets them, asks for too much, is killed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from isolation_models import (
    alive,
    inputs,
    moods,
    nothing_left,
    python_model,
    start_program,
    wait_until,
)

import ingot
from ingot.errors import IngotError


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moods(tmp_path_factory.mktemp("moods"))


@pytest.fixture
def model(spec: Path) -> Iterator[ingot.LoadedModel]:
    with nothing_left(), ingot.load(spec, isolate=True) as loaded:
        yield loaded


def works(model: ingot.LoadedModel) -> None:
    assert np.array_equal(model.infer(inputs())["out"], inputs()["x"] + 1)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    ingot.package(moods(folder), folder / "moods.ingot")
    return folder / "moods.ingot"


def test_more_memory_than_there_is_is_refused_before_it_is_touched(
    model: ingot.LoadedModel,
) -> None:
    with pytest.raises(IngotError, match="cannot make a block of 140737488355328 bytes"):
        model.allocate("x", (1 << 45,))
    works(model)


def test_a_fork_that_ends_leaves_the_package_of_its_parent(package: Path) -> None:
    with nothing_left(), ingot.load(package, isolate=True, trust_code=True) as model:
        child = os.fork()
        if child == 0:
            model.close()
            os._exit(0)
        os.waitpid(child, 0)
        works(model)
        first = model.worker_pids[0]
        os.kill(first, signal.SIGKILL)  # the next one reads the extracted package again
        wait_until(lambda: not alive(first), "the worker ended")
        works(model)


FORKING = """
import os, sys, time, ingot
model = ingot.load(sys.argv[1], isolate=True)
child = os.fork()
if child == 0:
    time.sleep(600)
print(model.worker_pids[0], child, flush=True)
time.sleep(600)
"""


def test_a_fork_of_a_killed_caller_keeps_no_worker_alive(spec: Path) -> None:
    caller = start_program(FORKING, spec)
    assert caller.stdout is not None
    worker, child = map(int, caller.stdout.readline().split())
    try:
        caller.kill()
        caller.wait()
        wait_until(lambda: not alive(worker), "the worker ended")
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)
        caller.communicate()


def test_a_model_in_a_cycle_is_closed_by_the_garbage_collector(spec: Path) -> None:
    class Owner:
        pass

    with nothing_left():
        owner = Owner()
        owner.itself = owner  # type: ignore[attr-defined]
        owner.model = ingot.load(spec, isolate=True)  # type: ignore[attr-defined]
        worker = owner.model.worker_pids[0]  # type: ignore[attr-defined]
        del owner
        gc.collect()
        wait_until(lambda: not alive(worker), "the worker ended")


def test_waiting_calls_hear_of_one_failed_start_together(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    spec = python_model(
        folder,
        "import pathlib, time\n"
        "def build():\n"
        f"    if pathlib.Path({str(tmp_path / 'broken')!r}).exists():\n"
        "        time.sleep(0.5)\n"
        "        raise ValueError('broken now')\n"
        "    return lambda x: {'y': x}\n",
        "inputs: [{name: x, dtype: float32, shape: [n]}]\n"
        "outputs: [{name: y, dtype: float32, shape: [n]}]\n",
    )
    with nothing_left(), ingot.load(spec, isolate=True) as model:
        (tmp_path / "broken").touch()
        os.kill(model.worker_pids[0], signal.SIGKILL)
        wait_until(lambda: not model.worker_pids, "the worker ended")
        messages: list[str] = []

        def call() -> None:
            with pytest.raises(IngotError) as caught:
                model.infer({"x": np.ones(2, np.float32)})
            messages.append(str(caught.value))

        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(messages) == 6
        assert all("broken now" in message for message in messages)
        (tmp_path / "broken").unlink()
        assert model.infer({"x": np.ones(2, np.float32)})["y"].tolist() == [1, 1]


def test_queued_calls_of_a_closed_model_say_so(spec: Path) -> None:
    async def calls() -> list[object]:
        model = ingot.load(spec, isolate=True)
        tasks = [asyncio.ensure_future(model.infer_async(inputs("sleep:600"))) for _ in range(4)]
        await asyncio.sleep(0.5)
        model.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with nothing_left():
        found = asyncio.run(calls())
    assert len(found) == 4
    for error in found:
        assert isinstance(error, ingot.InputError)
        assert "the model is closed" in str(error)


def test_a_folder_for_blocks_that_does_not_exist(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGOT_SHARED_MEMORY", "/nonexistent")
    with nothing_left(), pytest.raises(IngotError, match="/nonexistent"):
        ingot.load(spec, isolate=True)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system has no pidfd_open")
def test_without_process_descriptors_workers_are_started_again(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise PermissionError(1, "not permitted here")

    monkeypatch.setattr(os, "pidfd_open", refuse)  # as a sandbox does
    with nothing_left(), ingot.load(spec, isolate=True) as model:
        works(model)
        first = model.worker_pids[0]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: model.worker_pids not in ([first], []), "another worker")
        works(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_limit": "9" * 400}, "memory_limit"),
        ({"workers": "2"}, "workers"),
        ({"timeout": "2"}, "timeout"),
        ({"cpus": ["0"]}, "cpus"),
    ],
)
def test_impossible_options_are_named(spec: Path, options: dict, message: str) -> None:
    with pytest.raises(ingot.UsageError, match=message):
        ingot.load(spec, isolate=True, **options)


def test_a_wrapper_script_is_ended_with_its_interpreter(spec: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\n{sys.executable} "$@"\nexit $?\n')
    wrapper.chmod(0o755)
    text = (
        "import sys, time, ingot\n"
        "model = ingot.load(sys.argv[1], isolate=True, python=sys.argv[2])\n"
        "print(model.infer({'x': __import__('numpy').ones(1, 'f4'), 'how': ''})['pid'],"
        " model.worker_pids[0], flush=True)\n"
        "time.sleep(600)\n"
    )
    caller = start_program(text, spec, wrapper)
    assert caller.stdout is not None
    pids = list(map(int, caller.stdout.readline().split()))
    caller.kill()
    caller.communicate()
    for pid in pids:
        wait_until(lambda pid=pid: not alive(pid), "the worker ended")
