"""The comparison table in GitHub's Markdown, for the summary of a workflow."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from .comparison import HEADINGS, comparison_rows, facts, headline


def comparison_markdown(verdict: Mapping[str, Any]) -> str:
    """Return headline, table and facts of a verdict (the document ``verdict.json``)."""
    name = verdict.get("model") or verdict.get("command") or "search"
    lines = [f"### {escaped(str(name))}: {escaped(headline(verdict))}", ""]
    lines += [_row(HEADINGS), "|:--|--:|--:|--:|"]
    lines += [_row(row.cells) for row in comparison_rows(verdict)]
    lines.append("")
    lines += [f"- {escaped(label)}: {escaped(text)}" for label, text in facts(verdict)]
    if verdict.get("reason"):
        lines.append(f"- reason: {escaped(str(verdict['reason']))}")
    lines += [f"- warning: {escaped(str(warning))}" for warning in verdict.get("warnings") or ()]
    artifacts = verdict.get("artifacts") or ()
    if artifacts:
        lines += ["", _row(("file", "format", "bytes", "sha256")), "|:--|:--|--:|:--|"]
    for entry in artifacts:
        file = str(entry.get("path", "")).replace("\\", "/").rsplit("/", 1)[-1]
        size, digest = f"{entry.get('size_bytes', 0):,}", str(entry.get("sha256", ""))[:16]
        lines.append(_row((file, str(entry.get("format", "")), size, digest)))
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    marked = re.sub(
        r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False)
    )
    # GitHub makes links of bare addresses and mentions; an entity keeps them text.
    return marked.replace("://", "&#58;//").replace("@", "&#64;")


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"
