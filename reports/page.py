"""The parts that every report is made of: the page, sections, figures, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .style import STYLE
from .svg import clean

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="ingot">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

Cell = tuple[str, str]
"""Class and markup of a cell."""


def page(title: str, body: Iterable[str]) -> str:
    """Return a page that needs no network.

    Args:
        title: of the window.
        body: markup; what is empty is left out.
    """
    parts = "\n".join(part for part in body if part)
    return _PAGE.format(title=clean(f"{title}: ingot"), style=STYLE, body=parts)


def section(title: str, content: str) -> str:
    """Return a section with a heading; empty without content."""
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def figure(drawing: str) -> str:
    """Return a drawing in its frame; empty without one."""
    if not drawing:
        return ""
    # What follows the drawing is a legend or a note, which must not scroll with it.
    svg, end, rest = drawing.partition("</svg>")
    return f"<figure>{svg}{end}</figure>{rest}"


def fact_table(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values; empty without any."""
    rows = [f"<tr><th>{clean(name)}</th><td>{clean(value)}</td></tr>" for name, value in pairs]
    if not rows:
        return ""
    return f'<div class="scroll"><table class="facts"><tbody>{"".join(rows)}</tbody></table></div>'


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    kind: str = "",
    marked: Sequence[int] = (),
    *,
    row_heads: bool = False,
) -> str:
    """Return a table that scrolls by itself where it is wider than the screen."""
    aligned = [cell[0] for cell in rows[0]]
    top = "".join(
        f'<th class="{"num" if "num" in css else ""}">{clean(head)}</th>'
        for head, css in zip(heads, aligned, strict=True)
    )
    lines = []
    for number, row in enumerate(rows):
        cells = []
        for place, (css, markup) in enumerate(row):
            tag = "th" if row_heads and place == 0 else "td"
            cells.append(
                f'<{tag} class="{css}">{markup}</{tag}>' if css else f"<{tag}>{markup}</{tag}>"
            )
        css = ' class="best"' if number in marked else ""
        lines.append(f"<tr{css}>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll {kind}"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
