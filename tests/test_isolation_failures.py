"""Workers that die, hang or take too much: the call says so, and the next one works."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
    python_model,
    shared_memory,
    start_program,
    wait_until,
)

import ingot


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moods(tmp_path_factory.mktemp("moods"))


@pytest.fixture
def model(spec: Path) -> Iterator[ingot.LoadedModel]:
    with nothing_left(), ingot.load(spec, isolate=True) as loaded:
        yield loaded


def works(model: ingot.LoadedModel) -> None:
    found = model.infer(inputs(count=1000))
    assert np.array_equal(found["out"], inputs(count=1000)["x"] + 1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("segfault", r"worker 1 \(process \d+\) was ended by SIGSEGV \(segmentation fault\)"),
        ("kill", r"worker 1 \(process \d+\) was ended by SIGKILL \(by somebody, or for lack of"),
        ("exit:3", r"worker 1 \(process \d+\) ended with exit code 3 during a call"),
        ("exit:0", r"worker 1 \(process \d+\) ended with exit code 0 during a call"),
        ("leave:4", r"worker 1 \(process \d+\) ended with exit code 4 during a call"),
        ("fork-and-segfault", r"worker 1 \(process \d+\) was ended by SIGSEGV"),
    ],
)
def test_a_worker_that_ends_during_a_call(model: ingot.LoadedModel, how: str, message: str) -> None:
    for _ in range(2):
        pid = model.worker_pids
        with pytest.raises(ingot.IsolationError, match=message) as caught:
            model.infer(inputs(how, 50_000))
        assert caught.value.exit_code == 5
        works(model)
        assert model.worker_pids != pid


def test_a_worker_that_is_killed_in_a_call(model: ingot.LoadedModel) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(model.infer, inputs("sleep:600"))
        wait_until(lambda: waiting.running())
        time.sleep(0.2)
        (pid,) = model.worker_pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ingot.IsolationError, match=rf"\(process {pid}\) was ended by SIGKILL"):
            waiting.result(PATIENCE)
    works(model)


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_that_are_killed_while_idle_are_missed_by_nobody(spec: Path, workers: int) -> None:
    with nothing_left(), ingot.load(spec, isolate=True, workers=workers) as model:
        for _ in range(5):
            for pid in model.worker_pids:
                os.kill(pid, signal.SIGKILL)
            for _ in range(3):
                works(model)
        wait_until(lambda: len(model.worker_pids) == workers, "all workers are back")


@pytest.mark.parametrize("how", ["sleep:600", "sleep-in-c:600"])
def test_a_call_that_takes_too_long(spec: Path, how: str) -> None:
    with nothing_left(), ingot.load(spec, isolate=True, timeout=2) as model:
        (pid,) = model.worker_pids
        with pytest.raises(ingot.IsolationError, match="did not answer within 2 s and was ended"):
            model.infer(inputs(how, 30_000))
        assert not alive(pid)
        works(model)


def test_a_stopped_worker_takes_too_long(spec: Path) -> None:
    with nothing_left(), ingot.load(spec, isolate=True, timeout=2) as model:
        (pid,) = model.worker_pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ingot.IsolationError, match="did not answer within 2 s"):
            model.infer(inputs())
        assert not alive(pid)
        works(model)


@pytest.mark.parametrize("seconds", [1e7, 1e300, float("inf")])
def test_a_timeout_may_be_long(spec: Path, seconds: float) -> None:
    with ingot.load(spec, isolate=True, timeout=seconds, start_timeout=seconds) as model:
        works(model)


def test_a_call_that_takes_too_much_memory(spec: Path) -> None:
    limit = 400 << 20
    with nothing_left(), ingot.load(spec, isolate=True, memory_limit=limit) as model:
        for _ in range(2):
            with pytest.raises(ingot.IsolationError, match=r"used .* of memory, more than its lim"):
                model.infer(inputs("allocate:600"))
            works(model)
        assert model.infer(inputs("grow:50000", 400))["out"].nbytes == 80_000_000


SLOW_IMPORT = """
import time
time.sleep(600)
def build(): pass
"""
LARGE_IMPORT = """
import time
import numpy as np
held = np.ones(600 << 20, np.uint8)
time.sleep(600)
def build(): pass
"""
DYING_IMPORT = """
import os
os._exit(9)
"""
TENSORS = """
inputs: [{name: x, dtype: float32, shape: [n]}]
outputs: [{name: out, dtype: float32, shape: [n]}]
"""


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        (SLOW_IMPORT, {"start_timeout": 3}, "did not load the model within 3 s"),
        (LARGE_IMPORT, {"memory_limit": "400M"}, "more than its limit of 400 MiB, and was ended"),
        (DYING_IMPORT, {}, "ended with exit code 9 before the model was loaded"),
        ("raise OSError('no luck')", {}, "no luck"),
        ("import not_there", {}, "not_there"),
        ("def build(x): pass", {}, "build"),
    ],
)
def test_a_model_that_cannot_be_loaded(
    code: str, options: dict, message: str, tmp_path: Path
) -> None:
    path = python_model(tmp_path, code, TENSORS)
    with nothing_left(), pytest.raises(ingot.IngotError, match=message):
        ingot.load(path, isolate=True, **options)


def test_a_model_that_cannot_be_loaded_again_recovers(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    code = f"""
    import os
    if os.path.exists({str(flag)!r}):
        raise OSError("not now")
    def build():
        return lambda x: x
    """
    x = np.ones(3, np.float32)
    with nothing_left(), ingot.load(python_model(tmp_path, code, TENSORS), isolate=True) as model:
        flag.touch()
        os.kill(model.worker_pids[0], signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(ingot.SpecError, match="not now"):
                model.infer({"x": x})
        assert model.worker_pids == []
        flag.unlink()
        assert model.infer({"x": x})["out"].tolist() == [1, 1, 1]


def test_children_of_the_model_end_with_its_worker(model: ingot.LoadedModel) -> None:
    child = int(model.infer(inputs("fork"))["pid"])
    other = int(model.infer(inputs("fork"))["pid"])
    assert alive(child)
    os.kill(model.worker_pids[0], signal.SIGKILL)
    works(model)
    wait_until(lambda: not alive(child) and not alive(other), "the children are gone")


CALLER = """
import os, sys, threading, ingot
sys.path.insert(0, sys.argv[2])
from isolation_models import inputs
model = ingot.load(sys.argv[1], isolate=True, workers=2)
x = model.allocate("x", (100_000,))
held = model.infer({**inputs(), "x": x})
children = [int(model.infer(inputs("fork"))["pid"]) for _ in range(2)] if sys.argv[4] else []
print(*model.worker_pids, *children, flush=True)
if sys.argv[3]:
    threading.Thread(target=model.infer, args=(inputs(sys.argv[3]),)).start()
    threading.Thread(target=model.infer, args=(inputs(sys.argv[3]),)).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("children", ["", "children"])
@pytest.mark.parametrize("how", ["", "sleep:600", "sleep-in-c:600"])
def test_a_caller_that_is_killed_leaves_nothing(spec: Path, how: str, children: str) -> None:
    names = shared_memory()
    process = start_program(CALLER, spec, Path(__file__).parent, how, children)
    assert process.stdout is not None
    assert process.stderr is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == (4 if children else 2)
    for _ in range(2 if how else 0):
        while "asleep" not in process.stderr.readline():
            pass
    started = {*pids, *descendants(process.pid)}
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(alive, started)), f"gone: {started}")
    assert shared_memory() <= names
    process.communicate()


@pytest.mark.slow
def test_random_kills_under_load(spec: Path) -> None:
    """200 kills: each call returns what is right or says that its worker ended."""
    rng = random.Random(1)
    stop = threading.Event()
    with nothing_left(), ingot.load(spec, isolate=True, workers=3) as model:

        def work(seed: int) -> Counter[str]:
            rng = np.random.default_rng(seed)
            counts: Counter[str] = Counter()
            held: list = []
            while not stop.is_set():
                x = rng.random(int(rng.choice((0, 5, 20_000, 100_000)))).astype(np.float32)
                if len(x) == 20_000:
                    lent = model.allocate("x", x.shape)
                    lent[:] = x
                else:
                    lent = x
                try:
                    out = model.infer({"x": lent, "how": np.array("")})["out"]
                except ingot.IsolationError as error:
                    counts["failed" if "ended by SIGKILL" in str(error) else str(error)] += 1
                    continue
                assert np.array_equal(out, x + np.float32(1))
                counts["right"] += 1
                held = [*held[-3:], (out, x)]
                assert all(np.array_equal(out, x + np.float32(1)) for out, x in held)
            return counts

        with ThreadPoolExecutor(4) as threads:
            waiting = [threads.submit(work, seed) for seed in range(4)]
            kills = 0
            end = time.monotonic() + 10 * PATIENCE
            try:
                while kills < 200 and not any(future.done() for future in waiting):
                    assert time.monotonic() < end
                    time.sleep(rng.random() * 0.1)
                    for pid in model.worker_pids[: rng.choice((0, 1, 1, 3))]:
                        with suppress(ProcessLookupError):  # killed, and not started again yet
                            os.kill(pid, signal.SIGKILL)
                            kills += 1
            finally:
                stop.set()
            counts = sum((future.result(PATIENCE) for future in waiting), Counter[str]())
        assert kills >= 200
        assert set(counts) == {"right", "failed"}, counts
        assert counts["right"] > 200
        works(model)
        wait_until(lambda: len(model.worker_pids) == 3, "all workers are back")
        works(model)
