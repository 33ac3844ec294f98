"""A worker's process: how it is started, how it is ended with all that it started, how it ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import IsolationError
from .protocol import END_SECONDS

_STARTER = Path(__file__).with_name("__main__.py")


class WorkerProcess:
    """A process that runs a worker, in a process group of its own.

    Attributes:
        socket: this side of its connection.
        ended_by: what was said when it was killed; None when nobody did.
        is_lost: it was seen to have ended, and what it had started with it.

    Args:
        label: the model, for messages.
        python: the interpreter.
        arguments: further arguments of the worker.
        environment: of the process.

    Raises:
        IsolationError: the interpreter cannot be started.
    """

    def __init__(
        self, label: str, python: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.ended_by: str | None = None
        self.is_lost = False
        self.socket, theirs = socket.socketpair()
        # Nothing is ever sent on the second pair: when our end is closed, however we end, the
        # kernel kills the worker's process group.
        self._lifeline, their_lifeline = socket.socketpair()
        passed = [theirs.fileno(), their_lifeline.fileno()]
        command = [python, str(_STARTER), "--fd", str(passed[0]), "--lifeline", str(passed[1])]
        try:
            self._process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=_standard_error(),
                pass_fds=passed,
                start_new_session=True,
                env=dict(environment),
            )
        except BaseException as error:
            self._hang_up()
            if not isinstance(error, OSError):
                raise
            raise IsolationError(
                f"{label}: cannot start the interpreter {python}: {error.strerror}"
            ) from error
        finally:
            theirs.close()
            their_lifeline.close()

        _processes.add(self)

    def _hang_up(self) -> None:
        self.socket.close()
        self._lifeline.close()

    @property
    def pid(self) -> int:
        """The process id, which is that of its group, too."""
        return self._process.pid

    def poll(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def kill(self, reason: str | None = None) -> None:
        """Kill the process and all that it started.

        Args:
            reason: what to say of how it ended.
        """
        if reason is not None:
            self.ended_by = f"(process {self.pid}) {reason}"
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()

    def dismiss(self) -> None:
        """Let an idle worker end by itself: it sees that nobody will call again."""
        with suppress(OSError):  # it is closed
            self.socket.shutdown(socket.SHUT_RDWR)

    def wait_for_end(self, seconds: float = END_SECONDS) -> None:
        """Give the process some time to end by itself, and kill it after that."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def end(self) -> str:
        """End the process and all that it started; return how it ended."""
        if not self.poll():
            # A worker whose socket is closed is about to end: let it say how by itself.
            self.wait_for_end(END_SECONDS if self._peer_closed() else 0)
        self.lost()
        self._lifeline.close()
        return self.ended_by or _how_ended(self.pid, self._process.wait())

    def lost(self) -> None:
        """End what a process that has ended had started, and whoever waits for its answer.

        A child of it may hold the socket open, so that nothing else would tell.
        """
        if not self.is_lost:
            self.is_lost = True
            self.kill()
        self.dismiss()

    def _peer_closed(self) -> bool:
        """Whether the worker has closed its end of the socket."""
        try:
            flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
            return self.socket.recv(1, flags) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


_processes: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


def _hang_up_in_fork() -> None:
    """Close what a fork of the caller inherits: workers would outlive its parent."""
    for process in list(_processes):
        process._hang_up()


os.register_at_fork(after_in_child=_hang_up_in_fork)


def _standard_error() -> int:
    """Return where a worker's standard output goes: ours is for results."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return 2


def _how_ended(pid: int, code: int) -> str:
    """Say how a process ended, by its return code as ``subprocess`` gives it."""
    if code >= 0:
        return f"(process {pid}) ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    meaning = {
        "SIGSEGV": " (segmentation fault)",
        "SIGABRT": " (abort)",
        "SIGKILL": " (by somebody, or for lack of memory)",
        "SIGILL": " (an instruction that this CPU does not know)",
        "SIGBUS": " (bus error)",
    }.get(name, "")
    return f"(process {pid}) was ended by {name}{meaning}"
