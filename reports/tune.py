"""A search of hyper-parameters as one HTML page: history, parameters against the metric, trials."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .charts import mark
from .numbers import count, duration, finite, metric, plain
from .page import Cell, fact_table, figure, page, section, table
from .svg import Frame, Scale, clean, element, scale_over

_MARKS = {"complete": "s-accepted", "pruned": "s-rejected-early", "failed": "s-failed"}
"""Kind of the mark of a state; of any other, that of a search's ``other``."""
_WIDE_RANGE = 20
_STATES = ("complete", "pruned", "timeout", "failed", "interrupted", "running")

Trial = Mapping[str, Any]


def tune_report(document: Mapping[str, Any], fixed: Mapping[str, Any]) -> str:
    """Return the page of a search of hyper-parameters, ended or not.

    Args:
        document: ``tune.json``.
        fixed: keys and values that every trial had.
    """
    return page(f"tune {document['name']}", _parts(document, fixed))


def _parts(document: Mapping[str, Any], fixed: Mapping[str, Any]) -> Iterable[str]:
    trials: Sequence[Trial] = document["trials"]
    key = str(document.get("eval_key") or "metric")
    best = document.get("best")
    yield _header(document, key)
    if best is not None:
        yield section("Best parameters", fact_table(_pairs(best["params"])))
    yield section("History", figure(history_chart(document)) + _legend(trials))
    yield section("Training", figure(curves_chart(trials, key)))
    for name in sorted({name for trial in trials for name in trial["params"]}):
        yield section(clean(name), figure(parameter_chart(trials, name, key)))
    yield section("All trials", _trials_table(trials, key, best))
    yield section("The search", fact_table(_facts(document)))
    yield section("Fixed", fact_table(_pairs(fixed)))


def _header(document: Mapping[str, Any], key: str) -> str:
    done, wanted = document["finished"], document["wanted"]
    best = document.get("best")
    line = "no trial is complete" if best is None else f"best {key} {metric(best['value'])}"
    if best is not None:
        line += f", trial {best['trial']}"
    is_done = done >= wanted or document["stopped_by"] == "exhausted"
    word, kind = ("done", "met") if is_done and best is not None else ("unfinished", "unfinished")
    return (
        f'<header class="{kind}">\n<p class="word">{word}</p>\n<h1>{clean(line)}</h1>\n'
        f"<p>{clean(document['name'])}: {count(done)} of {count(wanted)} trials have ended</p>\n"
        "</header>"
    )


def history_chart(document: Mapping[str, Any]) -> str:
    """Return the metric of each trial by number, and the best so far as a line."""
    key, trials = str(document.get("eval_key") or "metric"), document["trials"]
    placed = [(trial, value) for trial in trials if (value := finite(trial["value"])) is not None]
    if not placed:
        return ""
    frame = Frame(height=320)
    x = scale_over([float(trial["trial"]) for trial, _ in placed], *frame.x)
    y = scale_over([value for _, value in placed], *frame.y)
    parts = [frame.axes(x, y, ("trial", key), (_whole, plain))]
    better = max if document["higher_is_better"] else min
    points: list[str] = []
    best: float | None = None
    for trial, value in placed:
        if trial["state"] != "complete":
            continue
        if best is not None:
            points.append(f"{x(trial['trial']):.1f},{y(best):.1f}")
        best = value if best is None else better(best, value)
        points.append(f"{x(trial['trial']):.1f},{y(best):.1f}")
    line = element("polyline", points=" ".join(points))
    parts.append(element("g", element("title", "the best so far"), line, class_="curve result"))
    parts += [_point(trial, x(trial["trial"]), y(value), key) for trial, value in placed]
    return frame.drawing(f"{key} of {len(placed)} trials", *parts)


def curves_chart(trials: Sequence[Trial], key: str) -> str:
    """Return the metric by epoch, a line for each trial; empty when there are no two epochs."""
    curves = []
    for trial in trials:
        pairs = ((int(epoch), finite(value)) for epoch, value in trial["values"].items())
        found = sorted((epoch, value) for epoch, value in pairs if value is not None)
        curves.append((trial, found))
    epochs = [epoch for _, found in curves for epoch, _ in found]
    if not epochs or max(epochs) == min(epochs):
        return ""
    frame = Frame(height=320)
    x = Scale(min(epochs), max(epochs), *frame.x)
    y = scale_over([value for _, found in curves for _, value in found], *frame.y)
    parts = [frame.axes(x, y, ("epoch", key), (_whole, plain))]
    for trial, found in curves:
        if not found:
            continue
        points = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in found)
        drawn = element("polyline", points=points)
        if len(found) == 1:
            drawn = element("circle", cx=x(found[0][0]), cy=y(found[0][1]), r=2.5)
        title = element("title", clean(_said(trial, key)))
        parts.append(element("g", title, drawn, class_=f"curve {_kind(trial)}"))
    return frame.drawing(f"{key} by epoch of {len(curves)} trials", *parts)


def parameter_chart(trials: Sequence[Trial], name: str, key: str) -> str:
    """Return the metric against one parameter: a number on an axis, a choice in columns."""
    placed = [
        (trial, trial["params"][name], value)
        for trial in trials
        if name in trial["params"] and (value := finite(trial["value"])) is not None
    ]
    if not placed:
        return ""
    frame = Frame(height=260)
    y = scale_over([value for _, _, value in placed], *frame.y)
    numbers = [finite(found) for _, found, _ in placed]
    shown = plain
    if all(number is not None for number in numbers):
        at = [number for number in numbers if number is not None]
        is_wide = min(at) > 0 and max(at) / min(at) > _WIDE_RANGE
        x = scale_over(at, *frame.x, log=is_wide)
    else:
        texts = [_text(found) for _, found, _ in placed]
        columns = sorted(set(texts))
        at = [float(columns.index(text)) for text in texts]
        x = Scale(-0.5, len(columns) - 0.5, *frame.x)

        def shown(value: Any) -> str:
            place = round(value)
            is_column = abs(value - place) < 1e-6 and 0 <= place < len(columns)
            return columns[place][:24] if is_column else ""

    parts = [frame.axes(x, y, (name, key), (shown, plain))]
    for (trial, _, value), place in zip(placed, at, strict=True):
        parts.append(_point(trial, x(place), y(value), key))
    return frame.drawing(f"{key} against {name}", *parts)


def _point(trial: Trial, x: float, y: float, key: str) -> str:
    return mark(_kind(trial), x, y, _said(trial, key))


def _kind(trial: Trial) -> str:
    return _MARKS.get(str(trial["state"]), "s-other")


def _said(trial: Trial, key: str) -> str:
    said = [f"trial {trial['trial']}: {trial['state']}", f"{key} {metric(trial['value'])}"]
    said += [f"{name} {_text(value)}" for name, value in trial["params"].items()]
    return ", ".join(said)


def _legend(trials: Sequence[Trial]) -> str:
    items = []
    for state in _STATES:
        number = sum(trial["state"] == state for trial in trials)
        if number:
            kind = _MARKS.get(state, "s-other")
            drawn = element("svg", mark(kind, 10, 10), viewBox="0 0 20 20", aria_hidden="true")
            items.append(element("span", drawn, clean(f"{state} ({number})")))
    return element("p", *items, class_="legend") if items else ""


def _trials_table(trials: Sequence[Trial], key: str, best: Trial | None) -> str:
    names = sorted({name for trial in trials for name in trial["params"]})
    has_reason = any(trial.get("reason") for trial in trials)
    heads = ["trial", "state", key, "epochs", "time", *names, *(["reason"] if has_reason else [])]
    rows: list[list[Cell]] = []
    marked = []
    for place, trial in enumerate(trials):
        state = f'<span class="status {_kind(trial)}">{clean(str(trial["state"]))}</span>'
        row: list[Cell] = [
            ("num", count(trial["trial"])),
            ("", state),
            ("num", metric(trial["value"])),
            ("num", count(trial.get("epochs"))),
            ("num", duration(trial.get("seconds"))),
        ]
        row += [("num", clean(_text(trial["params"].get(name)))) for name in names]
        rows.append([*row, ("reason", clean(str(trial.get("reason") or "")))][: len(heads)])
        if best is not None and trial["trial"] == best["trial"]:
            marked.append(place)
    return table(heads, rows, "tall", marked) if rows else ""


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("metric", f"{document.get('eval_key')}, {_direction(document)}"),
        ("stopped by", str(document["stopped_by"])),
        ("seed", str(document["seed"])),
        ("folder", str(document["run_dir"])),
        ("best spec", str(document.get("best_spec") or "none")),
    ]


def _direction(document: Mapping[str, Any]) -> str:
    return "higher is better" if document["higher_is_better"] else "lower is better"


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return plain(value) if finite(value) is not None else json.dumps(value)


def _whole(value: float) -> str:
    return f"{value:.0f}" if value >= 0 and abs(value - round(value)) < 1e-6 else ""
