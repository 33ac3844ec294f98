"""The workers of one model: they serve calls in parallel, and are started again when they end."""

from __future__ import annotations

import atexit
import logging
import os
import select
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import InputError, IsolationError
from .client import NotBegunError, Worker
from .limits import Isolation, describe_size, memory_of
from .memory import Blocks, Lease
from .protocol import END_SECONDS
from .tensors import Array, view

_MEMORY_SECONDS = 0.05
_POLL_SECONDS = 0.5
_RETRY_SECONDS = 10.0
_MOST_DEATHS = 5
_ATTEMPTS = 3
"""How often a call is tried that no worker has begun with."""


@dataclass
class _Slot:
    """The place of one worker.

    Attributes:
        number: 0-based.
        state: ``starting``, ``idle``, ``busy`` or ``failed``.
        worker: its process; None before the first.
        error: why it could not be started.
        failed: when that was, on the clock of ``time.monotonic``.
        deaths: how often it has ended since its last call.
    """

    number: int
    state: str = "starting"
    worker: Worker | None = None
    error: BaseException | None = None
    failed: float = 0.0
    deaths: int = 0


class WorkerPool:
    """Worker processes that all run one model; its methods are safe for threads.

    Args:
        label: the model, for messages.
        isolation: how many workers, and what they may use.
        payload: of LOAD.
        threads: threads of one operator; None leaves that to the framework.
        path: folders that the workers search first for modules.

    Raises:
        IngotError: a worker cannot load the model.
    """

    def __init__(
        self,
        label: str,
        isolation: Isolation,
        payload: Mapping[str, Any],
        threads: int | None = None,
        path: Sequence[str] = (),
    ) -> None:
        self._state = state = _State(label, isolation, payload, threads, path)
        # The garbage collector may run in any thread, one of the pool's included: no waiting there.
        weakref.finalize(self, state.abandon).atexit = False
        _states.add(state)
        state.thread.start()
        try:
            self.ready = state.wait_for_start()
        except BaseException:
            state.close()
            raise

    def call(
        self, arrays: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run the model on one batch, in a worker that is free, or as soon as one is.

        Args:
            arrays: by input name.
            outputs: names; None means all.

        Returns:
            arrays by output name; the memory of large ones is lent as long as they live.

        Raises:
            IsolationError: the worker died or hung during the call.
            IngotError: the model failed.
        """
        return self._state.call(arrays, outputs)

    def allocate(self, dtype: Any, shape: tuple[int, ...]) -> Array:
        """Return an array in shared memory, filled with zeros, which calls do not copy.

        Args:
            dtype: a name of a spec, no string.
            shape: its sizes.

        Raises:
            SharedMemoryError: there is no memory left.
        """
        return self._state.allocate(dtype, shape)

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that run, in the order of their numbers."""
        return self._state.pids()

    def close(self) -> None:
        """End all workers; calls in flight fail."""
        self._state.close()


class _State:
    """What the pool and its supervisor share; the supervisor's thread keeps no pool alive."""

    def __init__(
        self,
        label: str,
        isolation: Isolation,
        payload: Mapping[str, Any],
        threads: int | None,
        path: Sequence[str],
    ) -> None:
        self.owner = os.getpid()
        self._label = label
        self._isolation = isolation
        self._payload = payload
        self._python = isolation.interpreter()
        self._environment = isolation.environment(threads)
        self._arguments = [f"--path={folder}" for folder in path]
        self._blocks = Blocks(self._drop)
        self._slots = [_Slot(number) for number in range(isolation.workers)]
        self._idle: list[_Slot] = []
        self._to_start = list(self._slots)
        self._changed = threading.Condition()
        self._closed = False
        self._polls = False
        self._ready: dict[str, Any] | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self.thread = threading.Thread(target=self._supervise, name="ingot-workers", daemon=True)

    # Calls, in the callers' threads.

    def call(self, arrays: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]:
        attempts = _ATTEMPTS + len(self._slots)  # as many may have ended without being missed
        how = ""
        for _ in range(attempts):
            held: list[_Slot] = []
            try:
                worker = self._acquire(held)
                found = worker.call(arrays, outputs, self._isolation.timeout)
                held[0].deaths = 0
                return found
            except NotBegunError as error:
                how = str(error)
            except IsolationError:
                if self._closed:
                    raise self._closed_error() from None
                raise
            finally:
                for slot in held:
                    self._release(slot)
        raise IsolationError(
            f"{self._label}: {attempts} workers in a row ended before the call; the last one {how}"
        )

    def _acquire(self, held: list[_Slot]) -> Worker:
        """Return a worker that is free; wait for one, and start one when there is none.

        Args:
            held: gets its place, which has to be released; Ctrl-C may come at any time.
        """
        if self.owner != os.getpid():
            raise InputError(
                f"{self._label}: its workers belong to another process, which this one was forked"
                " from",
                hint="load the model in this process",
            )
        began = time.monotonic()
        with self._changed:
            while True:
                if self._closed:
                    raise self._closed_error()
                if self._idle:
                    slot = self._idle[-1]
                    held.append(slot)
                    slot.state = "busy"
                    self._idle.pop()
                    assert slot.worker is not None
                    return slot.worker
                if all(slot.state == "failed" for slot in self._slots):
                    newest = max(self._slots, key=lambda slot: slot.failed)
                    if newest.failed >= began and newest.error is not None:
                        raise newest.error  # one attempt tells all that wait
                    self._restart(newest)
                self._retry_failed()
                self._changed.wait()

    def _retry_failed(self) -> None:
        """Try again to start workers that could not be started a while ago."""
        since = time.monotonic() - _RETRY_SECONDS
        for slot in self._slots:
            if slot.state == "failed" and slot.failed < since:
                self._restart(slot)

    def _release(self, slot: _Slot) -> None:
        worker = slot.worker
        assert worker is not None
        with self._changed:
            if slot in self._idle:  # it was hardly taken when Ctrl-C came
                self._idle.remove(slot)
            closed = self._closed
            if worker.process.is_lost and not worker.ended:  # its last answer had come before
                worker.end()
            if not closed and worker.ended:
                self._restart(slot)
            elif not closed:
                self._set_idle(slot)
        if closed:
            worker.end()

    def _set_idle(self, slot: _Slot) -> None:
        slot.state = "idle"
        self._idle.append(slot)
        self._changed.notify()

    def _restart(self, slot: _Slot) -> None:
        slot.state = "starting"
        self._to_start.append(slot)
        self._wake()

    def _closed_error(self) -> InputError:
        return InputError(f"{self._label}: the model is closed")

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> Array:
        from math import prod

        from ...specs.dtypes import numpy_dtype
        from .tensors import empty

        length = prod(shape) * numpy_dtype(dtype).itemsize
        if length == 0:
            return empty(dtype, shape)
        block = self._blocks.take(length)
        array = view(Lease(block, block.address, self._blocks.give), 0, dtype, length, shape)
        array.fill(0)
        return array

    def _drop(self, number: int) -> None:
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.drop(number)

    def pids(self) -> list[int]:
        with self._changed:
            return [
                slot.worker.process.pid
                for slot in self._slots
                if slot.worker is not None and slot.state in ("idle", "busy")
            ]

    # Start and end.

    def wait_for_start(self) -> dict[str, Any]:
        """Wait until every worker has loaded the model, and return what the first one said."""
        with self._changed:
            while True:
                for slot in self._slots:
                    if slot.error is not None:
                        raise slot.error
                if self._closed:
                    raise self._closed_error()
                if self._ready is not None and all(slot.state == "idle" for slot in self._slots):
                    return self._ready
                self._changed.wait()

    def close(self) -> None:
        """End the workers, and wait until they have ended."""
        self.abandon()
        if self.owner == os.getpid() and self.thread.ident is not None:
            self.thread.join()

    def abandon(self) -> None:
        """Have the supervisor end the workers; a fork of the caller has none."""
        if self.owner != os.getpid():
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._wake()

    def _wake(self) -> None:
        if self._wake_write >= 0:
            with suppress(BlockingIOError):  # it has been woken often enough
                os.write(self._wake_write, b"x")

    # The supervisor, in a thread of its own.

    def _supervise(self) -> None:
        watched: dict[int, _Slot] = {}
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        timeout = _MEMORY_SECONDS if self._isolation.memory_limit is not None else None
        try:
            while not self._closed:
                self._start_waiting(poll, watched)
                seconds = timeout or (_POLL_SECONDS if self._polls else None)
                ready = poll.poll(None if seconds is None else seconds * 1000)
                for descriptor, _ in ready:
                    if descriptor == self._wake_read:
                        os.read(self._wake_read, 1 << 16)
                    else:
                        poll.unregister(descriptor)
                        os.close(descriptor)
                        del watched[descriptor]
                self._restart_ended()
                if self._isolation.memory_limit is not None:
                    self._check_memory(self._isolation.memory_limit)
        finally:
            for descriptor in watched:
                os.close(descriptor)
            self._end_all()
            with self._changed:
                for descriptor in (self._wake_read, self._wake_write):
                    os.close(descriptor)
                self._wake_write = -1
            self._blocks.close()

    def _start_waiting(self, poll: select.poll, watched: dict[int, _Slot]) -> None:
        while True:
            with self._changed:
                if not self._to_start or self._closed:
                    return
                slot = self._to_start.pop(0)
            try:
                worker = self._start(slot)
            except BaseException as error:
                self._failed(slot, error)
                continue
            try:
                descriptor = os.pidfd_open(worker.process.pid)
            except (AttributeError, OSError):  # an old kernel, a sandbox, no descriptor left
                self._polls = True
            else:
                watched[descriptor] = slot
                poll.register(descriptor, select.POLLIN)
            loading = threading.Thread(
                target=self._load, args=(slot, worker), name="ingot-worker-start", daemon=True
            )
            try:
                loading.start()
            except RuntimeError as error:  # no thread left
                worker.end()
                self._failed(slot, IsolationError(f"{self._label}: cannot load the model: {error}"))

    def _start(self, slot: _Slot) -> Worker:
        arguments = list(self._arguments)
        cpus = self._isolation.cpus_of(slot.number)
        if cpus is not None:
            arguments.append("--cpus=" + ",".join(map(str, cpus)))
        worker = Worker(
            f"worker {slot.number + 1}",
            self._label,
            self._blocks,
            self._python,
            arguments,
            self._environment,
        )
        with self._changed:
            slot.worker, slot.error = worker, None
        return worker

    def _load(self, slot: _Slot, worker: Worker) -> None:
        try:
            ready = worker.load(self._payload, self._isolation.start_timeout)
        except BaseException as error:
            self._failed(slot, error)
            return
        with self._changed:
            closed = self._closed
            if not closed:
                self._ready = self._ready or ready
                self._set_idle(slot)
                self._changed.notify_all()
        if closed:
            worker.end()

    def _failed(self, slot: _Slot, error: BaseException) -> None:
        with self._changed:
            slot.state, slot.error = "failed", error
            slot.failed = time.monotonic()
            self._changed.notify_all()

    def _restart_ended(self) -> None:
        """Start those again that ended while no call was with them, and end the calls of others."""
        with self._changed:
            for slot in self._slots:
                worker = slot.worker
                if worker is None or worker.ended or not worker.process.poll():
                    continue
                if slot in self._idle:
                    self._idle.remove(slot)
                    self._idle_end(slot, worker.end())
                else:
                    worker.process.lost()

    def _idle_end(self, slot: _Slot, how: str) -> None:
        """Start a worker again that ended by itself, unless it does that all the time."""
        slot.deaths += 1
        what = f"{self._label}: worker {slot.number + 1} {how}"
        if slot.deaths < _MOST_DEATHS:
            logging.getLogger("ingot").warning("%s, and is started again", what)
            self._restart(slot)
            return
        error = IsolationError(f"{what}, for the {slot.deaths}th time without a call")
        slot.deaths = 0
        self._failed(slot, error)

    def _check_memory(self, limit: int) -> None:
        for slot in self._slots:
            worker = slot.worker
            if worker is None or worker.process.poll():
                continue
            used = memory_of(worker.process.pid)
            if used > limit:
                worker.process.kill(
                    f"used {describe_size(used)} of memory, more than its limit of"
                    f" {describe_size(limit)}, and was ended"
                )

    def _end_all(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            idle = [slot.worker for slot in self._idle if slot.worker is not None]
            workers = [slot.worker for slot in self._slots if slot.worker is not None]
        for worker in workers:
            if worker in idle:
                worker.process.dismiss()
            elif not worker.process.poll():
                worker.process.kill("was ended, because the model was closed")
        end = time.monotonic() + END_SECONDS
        for worker in workers:
            worker.process.wait_for_end(max(0.0, end - time.monotonic()))
            worker.process.lost()
        for worker in idle:  # the thread that waits for an answer of any other one closes it
            worker.end()


_states: weakref.WeakSet[_State] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Let the workers of models that were not closed end in the regular way."""
    for state in list(_states):
        state.close()
