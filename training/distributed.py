"""Workers that train together (torch.distributed): each has a part of every epoch's data."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..errors import UsageError
from .device import Device

_WAIT = timedelta(hours=12)
"""The others wait while the first worker evaluates; that one died is noticed by the launcher."""

STOP_STEPS = 10
"""Steps from one time that workers ask each other whether to stop to the next."""


@dataclass(frozen=True)
class Workers:
    """The place of this process among those that train together.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local_rank: its number on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Workers:
        """Read what torchrun says; without it there is one worker."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        return cls(
            int(os.environ["RANK"]),
            int(os.environ["WORLD_SIZE"]),
            int(os.environ.get("LOCAL_RANK", "0")),
        )

    @property
    def is_first(self) -> bool:
        """Whether this process writes, evaluates and talks."""
        return self.rank == 0


@contextmanager
def joined(workers: Workers, device: Device) -> Iterator[None]:
    """Let the workers find each other, and part again (gloo on a CPU, NCCL on GPUs)."""
    if workers.count == 1:
        yield
        return
    import torch
    from torch import distributed

    if device is Device.GPU:
        if workers.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"--nproc: worker {workers.local_rank} has no GPU; this machine has"
                f" {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(workers.local_rank)
    # A worker that waits for one that has failed runs no handler of Python's.
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    distributed.init_process_group(
        "nccl" if device is Device.GPU else "gloo",
        rank=workers.rank,
        world_size=workers.count,
        timeout=_WAIT,
    )
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def alone(count: int) -> Iterator[None]:
    """Let code of this process alone believe that there are no other workers.

    Metrics (torchmetrics, and a user's own) would otherwise wait for the others to join in.
    """
    if count == 1 or not _has_group():
        yield
        return
    from torch.distributed.distributed_c10d import GroupMember

    world = GroupMember.WORLD
    GroupMember.WORLD = None
    try:
        yield
    finally:
        GroupMember.WORLD = world


def _has_group() -> bool:
    """Whether workers of PyTorch have found each other; those of Keras are in no such group."""
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_initialized())


def wait_for_all(workers: Workers) -> None:
    """Go on when every worker of PyTorch has come here."""
    if workers.count > 1 and _has_group():
        from torch import distributed

        distributed.barrier()


def any_worker(value: bool, count: int) -> bool:
    """Whether ``value`` is true on any worker."""
    if count == 1:
        return value
    import torch
    from torch import distributed

    kind = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor([int(value)], device=kind)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag.item())


def of_first(value: Any, count: int) -> Any:
    """Return the first worker's value, on every worker."""
    if count == 1:
        return value
    from torch import distributed

    found = [value]
    distributed.broadcast_object_list(found, src=0)
    return found[0]


def of_all(value: Any, count: int) -> list[Any]:
    """Return every worker's value, on every worker."""
    if count == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * count
    distributed.all_gather_object(found, value)
    return found
