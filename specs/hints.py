"""The nearest known name, for messages about an unknown one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: object, known: Iterable[str]) -> str | None:
    """Return ``did you mean 'framework'?`` for the known name nearest to ``name``, or None."""
    near = get_close_matches(str(name)[:100], list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None
