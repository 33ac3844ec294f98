"""Workers serve calls of threads, of an event loop, of forks not; Ctrl-C leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from isolation_models import (
    PATIENCE,
    alive,
    descendants,
    inputs,
    moods,
    nothing_left,
    start_program,
    wait_until,
)

import ingot


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moods(tmp_path_factory.mktemp("moods"))


@pytest.fixture
def pair(spec: Path) -> Iterator[ingot.LoadedModel]:
    with nothing_left(), ingot.load(spec, isolate=True, workers=2) as model:
        yield model


def test_threads_share_the_workers(pair: ingot.LoadedModel) -> None:
    assert pair.concurrency == 2
    together = threading.Barrier(8)

    def work(seed: int) -> Counter[int]:
        rng = np.random.default_rng(seed)
        seen: Counter[int] = Counter()
        together.wait()
        for _ in range(60):
            x = rng.random(int(rng.choice((0, 1, 500, 30_000)))).astype(np.float32)
            found = pair.infer({"x": x, "how": np.array("")})
            assert np.array_equal(found["out"], x + np.float32(1))
            seen[int(found["pid"])] += 1
        return seen

    with ThreadPoolExecutor(8) as threads:
        seen = sum(threads.map(work, range(8)), Counter())
    assert sum(seen.values()) == 480
    assert set(seen) == set(pair.worker_pids)
    assert len(seen) == 2


def test_calls_run_at_the_same_time(pair: ingot.LoadedModel) -> None:
    """One worker sleeps until its call is over; the other one serves meanwhile."""
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(pair.infer, inputs("sleep:600"))
        pids = [int(pair.infer(inputs())["pid"]) for _ in range(20)]
        wait_until(lambda: len({int(pair.infer(inputs())["pid"]) for _ in range(3)}) == 1)
        assert not slow.done()
        free = int(pair.infer(inputs())["pid"])
        (busy,) = set(pair.worker_pids) - {free}
        os.kill(busy, signal.SIGKILL)
        with pytest.raises(ingot.IsolationError, match="SIGKILL"):
            slow.result(PATIENCE)
    assert pids


def test_an_event_loop(pair: ingot.LoadedModel) -> None:
    async def gather() -> list:
        calls = [pair.infer_async(inputs(count=count)) for count in range(30)]
        calls.append(pair.infer_async(inputs("raise:no luck")))
        calls.append(pair.infer_async(inputs(), ["pid"]))
        return await asyncio.gather(*calls, return_exceptions=True)

    *found, error, pid = asyncio.run(gather())
    for count, result in enumerate(found):
        assert np.array_equal(result["out"], inputs(count=count)["x"] + 1)
    assert isinstance(error, ingot.ModelError)
    assert list(pid) == ["pid"]


def test_a_cancelled_task_keeps_nobody_from_the_workers(pair: ingot.LoadedModel) -> None:
    async def run() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pair.infer_async(inputs("sleep:1")), 0.1)
        found = await asyncio.gather(*(pair.infer_async(inputs()) for _ in range(4)))
        assert all((result["out"] == inputs()["x"] + 1).all() for result in found)

    asyncio.run(run())


def test_a_closed_model(spec: Path) -> None:
    with nothing_left():
        model = ingot.load(spec, isolate=True)
        out = model.infer(inputs(count=90_000))["out"]
        (pid,) = model.worker_pids
        model.close()
        model.close()
        wait_until(lambda: not alive(pid))
        assert (out == inputs(count=90_000)["x"] + 1).all()
        with pytest.raises(ingot.InputError, match="the model is closed"):
            model.infer(inputs())
        with pytest.raises(ingot.InputError, match="the model is closed"):
            asyncio.run(model.infer_async(inputs()))
        del out


def test_a_model_that_nobody_refers_to_any_more(spec: Path) -> None:
    with nothing_left():
        model = ingot.load(spec, isolate=True, workers=2)
        model.infer(inputs(count=90_000))
        del model


@pytest.mark.parametrize("seed", range(4))
def test_a_model_may_be_closed_while_it_is_called(spec: Path, seed: int) -> None:
    with nothing_left():
        model = ingot.load(spec, isolate=True, workers=2)
        started = threading.Semaphore(0)

        def work() -> BaseException:
            while True:
                started.release()
                try:
                    found = model.infer(inputs(count=1 + seed * 20_000))
                except BaseException as error:
                    return error
                assert (found["out"] == inputs(count=1 + seed * 20_000)["x"] + 1).all()

        with ThreadPoolExecutor(6) as threads:
            waiting = [threads.submit(work) for _ in range(6)]
            for _ in range(12 + 7 * seed):
                started.acquire()
            model.close()
            for future in waiting:
                error = future.result(PATIENCE)
                assert isinstance(error, ingot.InputError), repr(error)
                assert "the model is closed" in str(error)


def test_a_call_that_waits_is_told_when_the_model_is_closed(spec: Path) -> None:
    model = ingot.load(spec, isolate=True)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(model.infer, inputs("sleep:600")) for _ in range(2)]
        wait_until(lambda: all(future.running() for future in waiting))
        model.close()
        for future in waiting:
            with pytest.raises(ingot.InputError, match="the model is closed"):
                future.result(PATIENCE)


def test_a_fork_of_the_caller_is_refused(spec: Path) -> None:
    program = """
import os, sys, ingot
sys.path.insert(0, sys.argv[2])
from isolation_models import inputs
model = ingot.load(sys.argv[1], isolate=True)
model.infer(inputs())
child = os.fork()
if child == 0:
    try:
        model.infer(inputs())
    except ingot.InputError as error:
        print(error.message, error.hint, flush=True)
    model.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
found = model.infer(inputs())
print(found["out"].tolist(), model.worker_pids == [int(found["pid"])])
"""
    process = start_program(program, spec, Path(__file__).parent)
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    said, result = out.splitlines()
    assert "its workers belong to another process" in said
    assert "load the model in this process" in said
    assert result == "[1.0, 2.0, 3.0, 4.0] True"


def interruptible() -> None:
    """A shell in the background hands on that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", ["sleep:600", "sleep-in-c:600"])
def test_ctrl_c_ends_the_command_and_its_workers(spec: Path, how: str, sent: int) -> None:
    command = [sys.executable, "-m", "ingot.cli", "infer", spec, "--isolate", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "-i", "x=[1]", "-i", f"how={how}", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    assert process.stderr is not None
    while "asleep" not in process.stderr.readline():
        assert process.poll() is None
    workers = descendants(process.pid)
    assert len(workers) >= 2
    process.send_signal(sent)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted" in out
    wait_until(lambda: not any(map(alive, workers)))


def test_ctrl_c_in_a_program_that_goes_on(spec: Path) -> None:
    """The answer to the interrupted call does not meet the next one."""
    program = """
import os, signal, sys, threading, ingot
sys.path.insert(0, sys.argv[2])
from isolation_models import inputs
with ingot.load(sys.argv[1], isolate=True) as model:
    for step in range(5):
        timer = threading.Timer(0.1 * step, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            model.infer(inputs("sleep:600"))
        except KeyboardInterrupt:
            pass
        assert model.infer(inputs(count=step))["out"].tolist() == [i + 1.0 for i in range(step)]
    print("fine")
"""
    process = start_program(program, spec, Path(__file__).parent, preexec_fn=interruptible)
    out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "fine\n"), errors
