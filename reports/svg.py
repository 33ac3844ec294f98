"""Elements and axes of inline SVG: all that the charts of a report need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape


def element(name: str, *children: str, **attributes: str | float) -> str:
    """Return an element; children are markup, attributes are escaped (``class_`` is ``class``)."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{clean(_text(value))}"'
        for key, value in attributes.items()
    )
    inner = "".join(children)
    return f"<{name}{written}>{inner}</{name}>" if inner else f"<{name}{written}/>"


def text(content: str, x: float, y: float, class_: str = "", **attributes: str | float) -> str:
    """Return a text element, its content escaped."""
    return element("text", clean(content), x=x, y=y, class_=class_, **attributes)


def clean(content: str) -> str:
    """Return text as markup; control characters, which XML has none of, are shown as a mark."""
    line = content.replace("\n", " ").replace("\t", " ")
    return escape("".join(c if c.isprintable() else "\ufffd" for c in line))


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Scale:
    """Maps values to places on an axis.

    Attributes:
        low: value at ``start``.
        high: value at ``end``; larger than ``low``.
        start: place in the drawing.
        end: place in the drawing; y grows downwards, so it may be less than ``start``.
        log: logarithmic; ``low`` is positive then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value; what lies outside of the axis is put at its end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Return up to about so many round values on the axis."""
        if self.log:
            return _log_ticks(self.low, self.high, most)
        step = _round_step((self.high - self.low) / max(most, 1))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def scale_over(
    values: Sequence[float], start: float, end: float, *, log: bool = False, pad: float = 0.06
) -> Scale:
    """Return a scale that holds all values, with some room at both ends."""
    low, high = min(values), max(values)
    log = log and low > 0
    if log:
        room = (high / low) ** pad if high > low else 1.5
        return Scale(low / room, high * room, start, end, log=True)
    room = (high - low) * pad or abs(high) * 0.05 or 1.0
    return Scale(low - room, high + room, start, end)


def _round_step(step: float) -> float:
    size = 10.0 ** math.floor(math.log10(step))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= step * 0.999)


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= max(most, 2):
            found = inside
    return found


@dataclass(frozen=True)
class Frame:
    """The place of a plot in its drawing, in user units of the SVG."""

    width: float = 640
    height: float = 360
    left: float = 88
    right: float = 16
    top: float = 14
    bottom: float = 46

    @property
    def x(self) -> tuple[float, float]:
        """Left and right end of the plot."""
        return self.left, self.width - self.right

    @property
    def y(self) -> tuple[float, float]:
        """Lower and upper end of the plot."""
        return self.height - self.bottom, self.top

    def drawing(self, label: str, *children: str) -> str:
        """Return the whole SVG; screen readers get the label."""
        box = f"0 0 {_text(self.width)} {_text(self.height)}"
        return element("svg", *children, viewBox=box, role="img", aria_label=label)

    def axes(
        self,
        x: Scale,
        y: Scale,
        titles: tuple[str, str],
        shown: tuple[Callable[[float], str], Callable[[float], str]],
    ) -> str:
        """Return grid, ticks and titles."""
        (left, right), (bottom, top) = self.x, self.y
        parts = []
        for tick in y.ticks(6):
            parts.append(element("line", x1=left, x2=right, y1=y(tick), y2=y(tick), class_="grid"))
            parts.append(text(shown[1](tick), left - 8, y(tick) + 4, "tick", text_anchor="end"))
        for tick in x.ticks(6):
            if not shown[0](tick):
                continue
            parts.append(element("line", x1=x(tick), x2=x(tick), y1=bottom, y2=top, class_="grid"))
            parts.append(text(shown[0](tick), x(tick), bottom + 17, "tick", text_anchor="middle"))
        parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        middle = (left + right) / 2
        parts.append(text(titles[0], middle, self.height - 8, "label", text_anchor="middle"))
        place = (bottom + top) / 2
        turned = f"rotate(-90 20 {place:.1f})"
        parts.append(text(titles[1], 20, place, "label", text_anchor="middle", transform=turned))
        return "".join(parts)
