"""The charts of a search, as inline SVG: trials, channels, training curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .numbers import count, finite, metric, plain, times
from .search import MEASURES, STATUSES, Search, Trial
from .svg import Frame, Scale, clean, element, scale_over, text

_WORST_SHOWN = 8
"""Trials that drop by more than so many times delta are put at the edge, or they would press all
that matters into a line."""
_MOST_GROUPS = 80
_WIDE_RANGE = 20


def css_class(status: str) -> str:
    """Return the class of a status: one of a fixed set, whatever the journal holds."""
    return "s-" + (status.replace(" ", "-") if status in STATUSES else "other")


def trials_chart(search: Search) -> str:
    """Return size (or latency) against the metric; empty when nothing was measured."""
    placed = [
        (trial, cost, trial.value)
        for trial in search.trials
        if (cost := trial.cost(search.measure)) is not None and trial.value is not None
    ]
    base = (search.reference_cost, search.reference_value)
    result = _result(search)
    costs = [cost for _, cost, _ in placed] + [point[0] for point in (base, result) if point[0]]
    values = _values_shown(search, [value for _, _, value in placed])
    if not costs or not values:
        return ""
    frame = Frame(height=380)
    is_wide = min(costs) > 0 and max(costs) / min(costs) > _WIDE_RANGE
    x = scale_over(costs, *frame.x, log=is_wide)
    y = scale_over(values, *frame.y)
    name = MEASURES[search.measure]
    parts = [frame.axes(x, y, (name, search.key), (_cost_tick, plain))]
    parts += _limit_line(search, frame, y)
    parts += [_point(search, trial, x(cost), y, value) for trial, cost, value in placed]
    if base[0] is not None and base[1] is not None:
        title = f"reference: {name} {plain(base[0])}, {search.key} {plain(base[1])}"
        parts.append(mark("reference", x(base[0]), y(base[1]), title))
    if result[0] is not None and result[1] is not None:
        title = f"result: {name} {plain(result[0])}, {search.key} {plain(result[1])}"
        parts.append(mark("result", x(result[0]), y(result[1]), title))
    label = f"{len(placed)} trials: {name} against {search.key}"
    return frame.drawing(label, *parts) + _legend(search, [trial for trial, _, _ in placed])


def _result(search: Search) -> tuple[float | None, float | None]:
    found = search.verdict.get("optimized") or {}
    cost = finite(found.get(search.measure))
    return cost, finite((found.get("metrics") or {}).get(search.key))


def _values_shown(search: Search, values: Sequence[float]) -> list[float]:
    base, result = search.reference_value, _result(search)[1]
    fixed = [value for value in (base, search.limit, result) if value is not None]
    if base is None or not search.delta:
        return [*fixed, *values]
    near = [value for value in values if abs(value - base) <= _WORST_SHOWN * search.delta]
    return [*fixed, *(near or values)]


def _limit_line(search: Search, frame: Frame, y: Scale) -> list[str]:
    if search.limit is None:
        return []
    left, right = frame.x
    place = y(search.limit)
    said = f"permitted drop {plain(search.delta)}"
    return [
        element("line", x1=left, x2=right, y1=place, y2=place, class_="limit"),
        text(said, right - 4, place - 6, "limit-label", text_anchor="end"),
    ]


def _point(search: Search, trial: Trial, x: float, y: Scale, value: float) -> str:
    title = [f"trial {trial.name}: {trial.status}", f"{search.key} {metric(value)}"]
    if trial.drop is not None:
        title.append(f"drop {plain(trial.drop)}")
    if trial.parameters is not None:
        title.append(f"{count(trial.parameters)} parameters")
    if trial.size_bytes is not None:
        title.append(f"{count(trial.size_bytes)} bytes")
    if trial.bits is not None:
        title.append(f"{plain(trial.bits)} bits a weight")
    if trial.latency_ms is not None:
        title.append(f"{plain(trial.latency_ms)} ms")
    base, cost = search.reference_cost, trial.cost(search.measure)
    if base and cost:
        title.append(f"{times(base / cost)} {_GAINED[search.measure]}")
    if trial.reason:
        title.append(trial.reason)
    is_outside = not y.low <= value <= y.high
    if is_outside:
        title.append("beyond the axis")
    return mark(css_class(trial.status), x, y(value), ", ".join(title), is_outside)


_GAINED = {"latency_ms": "faster", "size_bytes": "smaller", "parameters": "fewer"}

_PATHS = {
    "reference": "M0-8 8 0 0 8-8 0Z",
    "result": "M0-9 2.6-3.2 9-2.8 4.1 1.4 5.7 7.5 0 4.1-5.7 7.5-4.1 1.4-9-2.8-2.6-3.2Z",
    "s-accepted": "M-5 0A5 5 0 1 0 5 0 5 5 0 1 0-5 0Z",
    "s-missed": "M-4.5-4.5 4.5 4.5M-4.5 4.5 4.5-4.5",
    "s-rejected-early": "M0 5-5-4 5-4Z",
    "s-slower": "M-4.5-4.5H4.5V4.5H-4.5Z",
    "s-larger": "M-4.5 4.5H4.5L0-4.5Z",
    "s-failed": "M-6 0H6M0-6V6",
    "s-other": "M0-5 5 0 0 5-5 0Z",
}
"""Status is told by form, too: not everybody tells the colours apart."""


def mark(kind: str, x: float, y: float, title: str = "", faint: bool = False) -> str:
    """Return a mark of a kind; its title is shown where the pointer rests on it."""
    titled = [element("title", clean(title))] if title else []
    classes = f"mark {kind} outside" if faint else f"mark {kind}"
    place = f"translate({x:.1f} {y:.1f})"
    return element("g", *titled, element("path", d=_PATHS[kind]), transform=place, class_=classes)


def _legend(search: Search, trials: Sequence[Trial]) -> str:
    entries = [("reference", "reference")]
    if search.verdict.get("optimized"):
        entries.append(("result", "result"))
    for status in dict.fromkeys(trial.status for trial in trials):
        number = sum(trial.status == status for trial in trials)
        entries.append((css_class(status), f"{status} ({number})"))
    items = "".join(
        element(
            "span",
            element("svg", mark(kind, 10, 10), viewBox="0 0 20 20", aria_hidden="true"),
            clean(name),
        )
        for kind, name in entries
    )
    return element("p", items, class_="legend")


def _cost_tick(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def channels_chart(groups: Sequence[tuple[str, float, float]]) -> str:
    """Return a bar for each group: how many of its channels are left.

    These are boxes of HTML, not SVG: names of layers are long, and wrap on a phone.
    """
    rows = []
    for name, kept, channels in groups[:_MOST_GROUPS]:
        share = 100 * min(max(kept / channels, 0.0), 1.0)
        said = f"{kept:g} of {channels:g}"
        bar = element("span", class_="bar", style=f"width:{share:.1f}%")
        rows.append(
            element("span", clean(name), class_="name")
            + element("span", bar.replace("/>", "></span>"), class_="bar-all")
            + element("span", clean(said), class_="kept")
        )
    more = len(groups) - len(rows)
    note = element("p", f"and {more} more groups", class_="note") if more else ""
    return element("div", *rows, class_="groups") + note if rows else ""


def curves_chart(search: Search) -> str:
    """Return loss by epoch, a line for each trial; empty when nothing was trained."""
    trained = [trial for trial in search.trials if any(loss is not None for loss in trial.losses)]
    losses = [loss for trial in trained for loss in trial.losses if loss is not None]
    if not losses:
        return ""
    frame = Frame(height=300)
    longest = max(len(trial.losses) for trial in trained)
    is_wide = min(losses) > 0 and max(losses) / min(losses) > _WIDE_RANGE
    x = Scale(0.5 if longest == 1 else 1, max(longest, 1.5), *frame.x)
    y = scale_over(losses, *frame.y, log=is_wide)
    parts = [frame.axes(x, y, ("epoch", "loss"), (_epoch_tick, plain))]
    parts += [_curve(trial, x, y) for trial in trained]
    return frame.drawing(f"loss by epoch of {len(trained)} trials", *parts)


def _epoch_tick(value: float) -> str:
    return f"{value:.0f}" if abs(value - round(value)) < 1e-6 else ""


def _curve(trial: Trial, x: Scale, y: Callable[[float], float]) -> str:
    """Return the line of a trial, broken where a loss is no number."""
    title = f"trial {trial.name}: {trial.status}, losses {', '.join(map(plain, trial.losses))}"
    parts, points = [element("title", clean(title))], []
    for number, loss in enumerate([*trial.losses, None], 1):
        if loss is not None:
            points.append((x(number), y(loss)))
            continue
        if len(points) == 1:
            parts.append(element("circle", cx=points[0][0], cy=points[0][1], r=2.5))
        elif points:
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            parts.append(element("polyline", points=line))
        points = []
    return element("g", *parts, class_=f"curve {css_class(trial.status)}")


def bits_chart(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return a bar for each layer of a quantization: the bits of its weights."""
    rows = []
    for layer in layers[:_MOST_GROUPS]:
        bits = finite(layer.get("weight_bits")) or 32
        said = f"{bits:g} bits" + (", activations 8" if layer.get("activation_bits") == 8 else "")
        bar = element("span", class_="bar", style=f"width:{100 * bits / 32:.1f}%")
        rows.append(
            element("span", clean(str(layer.get("name", ""))), class_="name")
            + element("span", bar.replace("/>", "></span>"), class_="bar-all")
            + element("span", clean(said), class_="kept")
        )
    more = len(layers) - len(rows)
    note = element("p", f"and {more} more layers", class_="note") if more else ""
    return element("div", *rows, class_="groups") + note if rows else ""
