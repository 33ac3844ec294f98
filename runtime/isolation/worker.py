"""The process that runs a model for a caller; see docs/worker-protocol.md.

Only the standard library is imported before the model is asked for, so that a missing NumPy is told
like every other error.
"""

from __future__ import annotations

import argparse
import atexit
import faulthandler
import fcntl
import io
import os
import platform
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...errors import IngotError, MissingDependencyError
from . import protocol
from .protocol import END_SECONDS, Connection, ConnectionClosed, Message, ProtocolError

if TYPE_CHECKING:
    from .service import Service

_LISTEN_BACKLOG = 16
_MOST_TEXT = 10_000


class _Now:
    """What the threads of this process know of each other.

    Attributes:
        in_call: the main thread is with a call.
        owns_group: the process group is the worker's, even if a script that started it leads it.
    """

    in_call = False
    owns_group = False


def main(arguments: Sequence[str]) -> int:
    """Run a worker until its caller is gone; return its exit code."""
    parser = argparse.ArgumentParser("python -m ingot.runtime.isolation")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, help="an inherited, connected Unix socket")
    where.add_argument("--listen", metavar="PATH", help="a socket file to make")
    parser.add_argument("--lifeline", type=int, help="a socket that is closed when the caller ends")
    parser.add_argument("--cpus", help="numbers of the CPUs to run on, as in 0,2")
    parser.add_argument("--path", action="append", default=[], help="searched first for modules")
    options = parser.parse_args(arguments)
    sys.path[:0] = options.path
    if sys.stderr is not None:
        faulthandler.enable()
    _quiet_standard_output()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides what Ctrl-C ends
    if options.cpus:
        os.sched_setaffinity(0, [int(cpu) for cpu in options.cpus.split(",")])
    if options.listen:
        return _listen(options.listen)
    sock = socket.socket(fileno=options.fd)
    sock.set_inheritable(False)
    if options.lifeline is not None:
        _die_with_lifeline(options.lifeline)
    _end_with_caller(sock)
    code = _serve(Connection(sock))
    # The caller waits: what was registered for the end is done, frameworks are not taken down.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)


def _quiet_standard_output() -> None:
    """Send what the model prints to standard error: standard output is the caller's."""
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    if isinstance(sys.stdout, io.TextIOWrapper):  # the worker may be ended at any time
        sys.stdout.reconfigure(line_buffering=True)


def _end_with_caller(sock: socket.socket) -> None:
    """End this process when the caller closes its socket or dies, in the middle of a call too."""

    def watch() -> None:
        poll = select.poll()
        poll.register(sock, 0)  # a closed peer is reported whether asked for or not
        while True:
            try:
                found = poll.poll()
            except OSError:
                return
            gone = select.POLLHUP | select.POLLERR | select.POLLNVAL
            if any(events & gone for _, events in found):
                # The main thread, if it is idle, ends in the regular way.
                time.sleep(0 if _Now.in_call else END_SECONDS)
                _kill_own_group()

    threading.Thread(target=watch, name="ingot-caller", daemon=True).start()


def _kill_own_group() -> None:
    if _Now.owns_group or os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _die_with_lifeline(descriptor: int) -> None:
    """Have the kernel kill this process group when the other end of a socket is closed.

    A model that never lets go of the interpreter lock would keep the thread above from doing it.
    Nothing is ever sent on that socket, so its one event is the end (fcntl(2), ``F_SETSIG``).
    """
    os.set_inheritable(descriptor, False)
    _Now.owns_group = True
    if not hasattr(fcntl, "F_SETSIG"):
        return
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)


def _listen(path: str) -> int:
    """Serve one caller after the other at a socket file that only this user may connect to."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        server.bind(path)
    except OSError as error:
        print(f"error: {path}: {error.strerror}", file=sys.stderr)
        return 2
    finally:
        os.umask(mask)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    try:
        server.listen(_LISTEN_BACKLOG)
        while True:
            sock, _ = server.accept()
            user = _peer_user(sock)
            if user is not None and user != os.getuid():
                print(f"refused a caller of the user {user}", file=sys.stderr)
                sock.close()
                continue
            _serve(Connection(sock))
    finally:
        server.close()
        Path(path).unlink(missing_ok=True)


def _peer_user(sock: socket.socket) -> int | None:
    """Return the user id of the other side; None where the system does not say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    credentials = sock.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    found: int = struct.unpack("3i", credentials)[1]
    return found


def _serve(connection: Connection) -> int:
    """Load what the caller asks for, and answer its calls until it is gone."""
    service: Service | None = None
    sequence = 0
    try:
        connection.send(
            protocol.HELLO,
            0,
            {"ingot": __version__, "python": platform.python_version(), "pid": os.getpid()},
        )
        message = protocol.expect(connection.receive(), protocol.LOAD)
        sequence = message.sequence
        service = _load(message)
        connection.send(protocol.READY, sequence, service.describe())
        while True:
            sequence = 0
            message = protocol.expect(connection.receive(), protocol.INFER)
            sequence = message.sequence
            _Now.in_call = True
            kind, payload, descriptors = service.infer(message)
            _Now.in_call = False
            connection.send(kind, sequence, payload, descriptors)
            service.sent()
    except ConnectionClosed:
        return 0
    except Exception as error:
        with suppress(ConnectionClosed, OSError):
            connection.send(protocol.ERROR, sequence, error_values(error))
        if isinstance(error, ProtocolError):
            print(f"refused: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, IngotError) else 1
    finally:
        connection.close()
        if service is not None:
            service.close()


def _load(message: Message) -> Service:
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"a worker needs NumPy, which cannot be imported: {error}",
            hint="pip install numpy",
        ) from error
    from .service import Service

    return Service(message)


def error_values(error: BaseException) -> dict[str, Any]:
    """Return an exception as the payload of an ERROR."""
    if isinstance(error, IngotError):
        return {
            "type": type(error).__name__,
            "message": error.message[:_MOST_TEXT],
            "hint": error.hint,
            "exit_code": error.exit_code,
            "framework_version": getattr(error, "framework_version", None),
            "module": getattr(error.__cause__, "name", None),
        }
    import traceback

    traceback.print_exception(error)
    return {
        "type": type(error).__name__,
        "message": f"unexpected {type(error).__name__} in the worker: {error}"[:_MOST_TEXT],
        "hint": None,
        "exit_code": 1,
    }
