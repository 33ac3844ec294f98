"""Durations on the command line: ``90``, ``15m``, ``2h``."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, or a number with a unit."""

    name = "TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhd]?)", str(value).strip())
        if match is None:
            self.fail(f"found {value!r}; expected seconds, or 15m, 2h", param, ctx)
        return float(match.group(1)) * _UNITS[match.group(2)]
