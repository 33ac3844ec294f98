"""Dependency files for Make: what a command read, so that it runs again when that changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError

# What GNU Make 4 gives a meaning in each place. It has no escape for the rest, or one that it
# takes away in one place only; tests/test_reports.py tries such names on the real thing.
_IN_TARGETS = " #:%"
_IN_SOURCES = " #:|*?["
_IN_RULES = " #:%*?["
_NOWHERE = re.compile(r"[;\x00-\x1f\x7f]|[ \\)]$")
_NOT_IN_TARGETS = re.compile(r"[*?]|&$")
_NOT_IN_SOURCES = re.compile(r"\\(?=.*[*?\[])|[*?\[](?=.*\\)")


def depfile(targets: Sequence[Path], sources: Sequence[Path]) -> str:
    """Return a rule in Make's syntax: the targets are made from the sources.

    Each source is a target without a recipe, too (as with ``-MP`` of compilers), so that one that
    was removed or renamed is no error: the targets are made anew.

    Args:
        targets: as the Makefile names them.
        sources: the files that were read.

    Raises:
        UsageError: a name that Make cannot say: with a control character or ``;``; with a blank,
            backslash or ``)`` at its end; of a target, with ``*`` or ``?``, or ``&`` at its end;
            of a source, with a backslash beside ``*``, ``?`` or ``[``.
    """
    made = [str(path) for path in targets]
    read = [name for name in dict.fromkeys(map(str, sources)) if name not in made]
    for name in made:
        _refuse(name, _NOWHERE, _NOT_IN_TARGETS)
    for name in read:
        _refuse(name, _NOWHERE, _NOT_IN_SOURCES)
    left = " ".join(_escaped(name, _IN_TARGETS) for name in made)
    right = [_escaped(name, _IN_SOURCES) for name in read]
    rules = [" \\\n  ".join([f"{left}:", *right])]
    rules += [f"{_escaped(name, _IN_RULES)}:" for name in read if not name.endswith("&")]
    return "\n\n".join(rules) + "\n"


def _escaped(name: str, special: str) -> str:
    # Backslashes are ordinary, but for those before a character that is escaped with one.
    pattern = rf"(\\*)([{re.escape(special)}])"
    escaped = re.sub(pattern, lambda found: found[1] * 2 + "\\" + found[2], name)
    # "a=b: c" would be an assignment; inside of a call Make looks for none.
    return escaped.replace("$", "$$").replace("=", "$(or =)")


def _refuse(name: str, *patterns: re.Pattern[str]) -> None:
    for pattern in patterns:
        found = pattern.search(name)
        if found is not None:
            raise UsageError(
                f"--depfile: {name!r}: found {found[0]!r}; expected a name that Make can say",
                hint="rename the file, or leave --depfile out",
            )
