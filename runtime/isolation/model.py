"""A model that runs in worker processes, behind the interface of every other model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...frameworks import LoadOptions, Model, ModelSource
from ..exchange import pack_source, unpack_specs
from .limits import Isolation
from .pool import WorkerPool

if TYPE_CHECKING:
    from ...frameworks.base import Arrays


class IsolatedModel(Model):
    """A model in worker processes.

    Args:
        source: the model; what it needs must be on disk.
        options: device and threads.
        isolation: the workers, and what they may use.
        lock: the package's locked requirements, which the worker compares with what it finds.
        path: folders that the workers search first for modules.

    Raises:
        IngotError: the workers cannot be started, or cannot load the model.
    """

    def __init__(
        self,
        source: ModelSource,
        options: LoadOptions,
        isolation: Isolation,
        lock: str | None = None,
        path: Sequence[str] = (),
    ) -> None:
        threads = isolation.threads(options.threads)
        payload = {
            "source": pack_source(source),
            "options": {"device": options.device, "threads": threads},
            "lock": lock,
        }
        self._pool = WorkerPool(source.label, isolation, payload, threads, path)
        ready = self._pool.ready
        self.inputs = unpack_specs(ready["inputs"])
        self.outputs = unpack_specs(ready["outputs"])
        self.version = ready["framework_version"]
        self.concurrency = isolation.workers

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        made: Mapping[str, Any] = arrays
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # unchecked
            made = {name: np.asarray(array) for name, array in arrays.items()}
        return self._pool.call(made, outputs)

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        return self._pool.allocate(dtype, shape)

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers."""
        return self._pool.pids

    def close(self) -> None:
        self._pool.close()
