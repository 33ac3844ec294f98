"""A model that is ready to run, with every call checked."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..errors import InputError
from ..frameworks import Model
from ..specs import TensorSpec, format_shape
from .validation import TensorChecker

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from .extraction import ExtractionFolder


class LoadedModel:
    """A model that is loaded; made by :func:`load`.

    Attributes:
        name: the model's name.
        platform: the platform of its package, or its framework.
        inputs: what it takes.
        outputs: what it returns; empty for a bare TorchScript file, which does not say.
        framework_version: version of the framework that runs it.
    """

    def __init__(
        self,
        name: str,
        platform: str,
        label: str,
        model: Model,
        check: bool,
        folder: ExtractionFolder | None = None,
    ) -> None:
        self.name = name
        self.platform = platform
        self._label = label
        self._cleanup = None
        self._executor: ThreadPoolExecutor | None = None
        self._model: Model | None = model
        if folder is not None:
            self._cleanup = weakref.finalize(self, folder.remove)
        self.inputs: tuple[TensorSpec, ...] = tuple(self._model.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(self._model.outputs)
        self.framework_version = self._model.version
        self._run: Callable[..., dict[str, np.ndarray[Any, Any]]] = self._model.run
        self._output_names = [spec.name for spec in self.outputs]
        self._check_inputs = TensorChecker(self.inputs, "input", self._label) if check else None
        self._check_outputs = (
            TensorChecker(self.outputs, "output", self._label) if check and self.outputs else None
        )

    @property
    def native(self) -> Any:
        """The framework's own object (``nn.Module``, ``keras.Model``, ...), or None."""
        return self._open().native

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Compute the outputs of one batch.

        Args:
            inputs: one array an input, by name. They are not copied where the framework can take a
                view, never changed, and never cast.
            outputs: the outputs wanted; None means all.

        Returns:
            arrays by output name, in the order of the spec (or of ``outputs``).

        Raises:
            InputError: a tensor does not fit the spec, or a requested output does not exist.
            ModelError: the model fails.
        """
        if self._model is None:
            self._open()
        if self._check_inputs is not None:
            inputs = self._check_inputs(inputs)
        if outputs is not None:
            outputs = self._requested(outputs)
        returned = self._run(inputs, outputs)
        names = self._output_names if outputs is None else outputs
        if not names:
            return returned
        result = {name: returned[name] for name in names if name in returned}
        if len(result) != len(names) and (self._check_outputs is not None or outputs is not None):
            missing = next(name for name in names if name not in returned)
            found = ", ".join(repr(name) for name in returned) or "nothing"
            raise InputError(
                f"{self._label}: the model did not return the output {missing!r}; found {found}"
            )
        if self._check_outputs is not None:
            return self._check_outputs(result, frozenset())
        return result

    async def infer_async(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Compute the outputs of one batch without blocking the event loop.

        As many calls run at once as there are workers; in this process one after the other. A call
        whose task is cancelled runs to its end, and its outputs are dropped.

        Args:
            inputs: as for :meth:`infer`.
            outputs: as for :meth:`infer`.

        Returns:
            arrays by output name.

        Raises:
            InputError, ModelError: as :meth:`infer`.
        """
        import asyncio

        model = self._open()
        if self._executor is None:
            from concurrent.futures import ThreadPoolExecutor

            self._executor = ThreadPoolExecutor(model.concurrency, thread_name_prefix="ingot-infer")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self.infer, inputs, outputs)

    def allocate(self, name: str, shape: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return an array of zeros for an input; filled and passed to a call, it is not copied.

        Args:
            name: the input.
            shape: its sizes, which have to fit the spec.

        Returns:
            an array of the input's dtype: for an isolated model in the memory that its workers
            share. It may be used for many calls; a worker reads it only during a call.

        Raises:
            InputError: there is no such input, its type is string or unknown, or the shape differs.
            SharedMemoryError: there is no memory left.
        """
        model = self._open()
        spec = next((spec for spec in self.inputs if spec.name == name), None)
        sizes = tuple(int(size) for size in shape)
        if spec is None:
            known = ", ".join(repr(known.name) for known in self.inputs) or "none"
            raise InputError(f"{self._label}: unknown input {name!r}; expected {known}")
        if spec.dtype in (None, "string"):
            raise InputError(
                f"{self._label}: input {name!r}: cannot allocate {spec.describe()}; expected a type"
                " of numbers"
            )
        wanted = spec.shape
        if any(size < 0 for size in sizes) or (
            wanted is not None
            and (
                len(wanted) != len(sizes)
                or any(
                    type(dim) is int and dim != size
                    for dim, size in zip(wanted, sizes, strict=True)
                )
            )
        ):
            raise InputError(
                f"{self._label}: input {name!r}: found the shape {format_shape(sizes)}; expected"
                f" {format_shape(wanted)}"
            )
        return model.allocate(spec.dtype or "", sizes)

    @property
    def concurrency(self) -> int:
        """How many calls it serves at once, from several threads: the number of its workers."""
        return self._open().concurrency

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that run; none when the model is in this process."""
        return list(getattr(self._open(), "worker_pids", ()))

    def close(self) -> None:
        """Release the model and remove what was extracted; it cannot be used afterwards."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)  # what waits there hears that it is closed
            self._executor = None
        if self._model is not None:
            self._model.close()
            self._model = None
            self._run = self._refuse
        if self._cleanup is not None:
            self._cleanup()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name}: {spec.describe()}" for spec in self.inputs)
        return f"<LoadedModel {self.name!r} on {self.platform}: {inputs}>"

    def _open(self) -> Model:
        if self._model is None:
            self._refuse()
        return self._model

    def _refuse(self, *_: Any) -> NoReturn:
        raise InputError(f"{self._label}: the model is closed")

    def _requested(self, outputs: Sequence[str]) -> list[str]:
        """Return the requested outputs, each one once.

        Raises:
            InputError: it is no list of names, or one does not exist.
        """
        if isinstance(outputs, str) or not outputs:
            raise InputError(f"{self._label}: outputs: found {outputs!r}; expected a list of names")
        if not self.outputs:
            return list(dict.fromkeys(outputs))
        for name in outputs:
            if name not in self._output_names:
                from difflib import get_close_matches

                near = get_close_matches(name, self._output_names, n=1)
                known = ", ".join(repr(known) for known in self._output_names)
                raise InputError(
                    f"{self._label}: requested the output {name!r}; the model has {known}",
                    hint=f"did you mean {near[0]!r}?" if near else None,
                )
        return list(dict.fromkeys(outputs))
