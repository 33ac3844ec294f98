"""Reads the batches of a split, and says of which one when that fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import IngotError, InputError
from ..frameworks.base import first_line
from .inputter import Inputter


class SplitError(InputError):
    """The data of a split raised something.

    Args:
        split: its name.
        cause: what was raised.
    """

    def __init__(self, split: str, cause: Exception) -> None:
        super().__init__(f"the split {split!r} raised {type(cause).__name__}: {first_line(cause)}")
        self.split = split
        self.cause = cause


def reading(split: str, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a split.

    Raises:
        SplitError: what gives them raised something that is no error of Ingot.
    """
    try:
        yield from batches
    except IngotError:
        raise
    except Exception as error:
        raise SplitError(split, _original(error)) from error


def _original(error: Exception) -> Exception:
    """Return what a worker process of a ``DataLoader`` raised: it comes as text, with traceback."""
    lines = str(error).rstrip().splitlines()
    if len(lines) < 2 or not lines[0].startswith("Caught "):
        return error
    name, _, text = lines[-1].partition(": ")
    # A class of the same name tells as much; its own constructor may take other arguments.
    return type(name, (Exception,), {})(text)


class SplitReader:
    """A split that says which one it is when it cannot be read; else it is as its loader.

    Args:
        loader: gives the batches.
        split: its name.
        limit: how many of the first batches are given; None gives all.
    """

    def __init__(self, loader: Iterable[Any], split: str, limit: int | None = None) -> None:
        self.loader = loader
        self.split = split
        self.limit = limit

    def __iter__(self) -> Iterator[Any]:
        loader = self.loader
        if self.limit is None:
            yield from reading(self.split, loader)
            return
        # An inputter counts how often it was iterated; a first look is not to change that.
        batches = loader.batches(0) if isinstance(loader, Inputter) else loader
        for number, batch in enumerate(reading(self.split, batches), start=1):
            yield batch
            if number >= self.limit:
                return

    def __len__(self) -> int:
        count = len(self.loader)  # type: ignore[arg-type]
        return count if self.limit is None else min(count, self.limit)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)  # a function may ask for loader.dataset
