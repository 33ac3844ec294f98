"""A search as one HTML page that needs no network: verdict, charts, trials, settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .charts import bits_chart, channels_chart, css_class, curves_chart, trials_chart
from .comparison import HEADINGS, comparison_rows, facts, headline
from .numbers import NONE, count, duration, metric, milliseconds, operations, plain, times
from .page import fact_table, figure, page, section, table
from .search import Search, Trial, read_search
from .svg import clean


def search_report(records: Sequence[Mapping[str, Any]], verdict: Mapping[str, Any] | None) -> str:
    """Return the page of a search that ended, was interrupted, or is going on.

    Args:
        records: of its journal, in their order.
        verdict: the document ``verdict.json``; None when there is none yet. A journal that has one
            needs no other.
    """
    search = read_search(records, verdict)
    return page(_title(search), _parts(search))


def _title(search: Search) -> str:
    model = search.run.get("model") or search.verdict.get("model")
    command = search.run.get("command") or search.verdict.get("command") or "search"
    return f"{command} {model}" if model else str(command)


def _parts(search: Search) -> Iterable[str]:
    yield _header(search)
    for warning in search.verdict.get("warnings") or ():
        yield f'<p class="warning">{clean(str(warning))}</p>'
    yield section("Comparison", _comparison(search))
    yield section("Trials", _trials_figure(search))
    yield section("Channels kept", channels_chart(search.channels_kept()))
    yield section("Bits of each layer", bits_chart(search.layers))
    yield section("Training", figure(curves_chart(search)))
    yield section("All trials", _trials_table(search))
    yield section("Layers", _layers_table(search.layers))
    yield section("The search", fact_table(_search_facts(search)))
    yield section("Files", _files(search.verdict.get("artifacts")))
    yield section("Files of the reference", _files(search.verdict.get("reference_artifacts")))
    yield section("Settings", fact_table(_pairs(search.run.get("settings"))))
    versions = search.verdict.get("versions") or search.run.get("versions")
    yield section("Versions", fact_table(_pairs(versions)))


def _header(search: Search) -> str:
    verdict = search.verdict
    if verdict:
        word, line = str(verdict.get("verdict") or ""), headline(verdict)
        _, _, line = line.partition(": ")
    else:
        word, line = "unfinished", f"{len(search.trials)} trials so far, no verdict yet"
        best = search.best()
        if best is not None:
            line += f"; the best: {_gain(search, best)}, drop {plain(best.drop)}"
    reason = verdict.get("reason")
    extra = f'<p class="sub">{clean(str(reason))}</p>' if reason and str(reason) != line else ""
    kind = word if word in ("met", "missed", "interrupted") else "unfinished"
    return (
        f'<header class="{kind}">\n<p class="word">{clean(word)}</p>\n'
        f"<h1>{clean(line)}</h1>\n<p>{clean(_title(search))}</p>\n{extra}</header>"
    )


def _comparison(search: Search) -> str:
    shown = dict(search.verdict) or {"reference": search.measured, "eval_key": search.key}
    rows = [
        [
            ("", clean(row.label)),
            ("num", clean(row.reference)),
            ("num", clean(row.optimized)),
            ("num gain", clean(row.enhancement)),
        ]
        for row in comparison_rows(shown)
    ]
    if not shown.get("optimized"):
        rows = [row[:2] for row in rows]
    heads = HEADINGS[: len(rows[0])] if rows else ()
    return table(heads, rows, "wraps", row_heads=True) if rows else ""


def _trials_figure(search: Search) -> str:
    drawn = trials_chart(search)
    unmeasured = sum(
        trial.value is None or trial.cost(search.measure) is None for trial in search.trials
    )
    note = ""
    if unmeasured:
        said = "1 trial was" if unmeasured == 1 else f"{unmeasured} trials were"
        note = f'<p class="note">{said} not measured far enough to be drawn.</p>'
    return figure(drawn) + note if drawn else note


def _gain(search: Search, trial: Trial) -> str:
    base, cost = search.reference_cost, trial.cost(search.measure)
    return times(base / cost) if base and cost else NONE


def _trials_table(search: Search) -> str:
    best = search.best()
    has_latency = any(trial.latency_ms is not None for trial in search.trials)
    in_bytes = any(trial.size_bytes is not None for trial in search.trials)
    heads = ["trial", "from", "status"]
    heads += ["bytes", "ratio", "bits"] if in_bytes else ["parameters", "ratio", "complexity"]
    heads += ["latency"] if has_latency else []
    heads += [search.key or "metric", "drop", "95%", "epochs", "time"]
    has_reason = any(trial.reason for trial in search.trials)
    heads += ["reason"] if has_reason else []
    rows, marked = [], []
    for number, trial in enumerate(search.trials):
        status = f'<span class="status {css_class(trial.status)}">{clean(trial.status)}</span>'
        row = [("", clean(trial.name)), ("", clean(trial.parent or "reference")), ("", status)]
        values = [count(trial.parameters), _gain(search, trial), operations(trial.macs)]
        if in_bytes:
            values = [count(trial.size_bytes), _gain(search, trial), plain(trial.bits)]
        values += [milliseconds(trial.latency_ms)] if has_latency else []
        between = NONE
        if trial.interval is not None:
            between = f"{metric(trial.interval[0])} to {metric(trial.interval[1])}"
        values += [metric(trial.value), metric(trial.drop), between]
        values += [plain(trial.epochs), duration(trial.seconds)]
        row += [("num", value) for value in values]
        rows.append([*row, ("reason", clean(trial.reason))] if has_reason else row)
        if best is not None and trial.name == best.name:
            marked.append(number)
    if not rows:
        return '<p class="note">There is no trial.</p>'
    return table(heads, rows, "tall", marked)


def _layers_table(layers: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            ("num", clean(str(layer.get("index", "")))),
            ("", clean(str(layer.get("name", "")))),
            ("", clean(str(layer.get("op", "")))),
            ("num", "×".join(str(size) for size in layer.get("shape") or ())),
            ("num", plain(layer.get("weight_bits"))),
            ("num", plain(layer.get("activation_bits"))),
            ("num", plain(layer.get("weight_snr_db"))),
            ("num", plain(layer.get("output_snr_db"))),
            ("reason", clean(str(layer.get("reason") or ""))),
        ]
        for layer in layers
    ]
    heads = ["index", "layer", "operator", "shape", "weight bits", "activation bits"]
    heads += ["weights, dB", "output, dB", "reason"]
    if not rows:
        return ""
    note = (
        '<p class="note">Signal to noise: of the rounded weights, and of the output with this layer'
        " alone quantized, where it was measured. More is better.</p>"
    )
    return table(heads, rows, "tall") + note


def _search_facts(search: Search) -> list[tuple[str, str]]:
    if search.verdict:
        found = facts(search.verdict)
        folder = search.verdict.get("run_dir")
        phases = search.verdict.get("phases") or {}
        if phases:
            said = ", ".join(f"{name} {duration(value)}" for name, value in phases.items())
            found.append(("time by phase", said))
        return [*found, ("run", str(folder))] if folder else found
    if not search.run:
        return []
    return [
        ("target", str(search.run.get("target", "–"))),
        ("metric", search.key or "–"),
        ("permitted drop", plain(search.delta)),
        ("seed", str(search.run.get("seed", "–"))),
    ]


def _pairs(values: Any) -> list[tuple[str, str]]:
    if not isinstance(values, Mapping):
        return []
    return [
        (str(name), value if isinstance(value, str) else json.dumps(value, default=str))
        for name, value in values.items()
    ]


def _files(artifacts: Any) -> str:
    rows = []
    for entry in artifacts or ():
        metrics = entry.get("metrics") or {}
        path = str(entry.get("path", ""))
        name = path.replace("\\", "/").rsplit("/", 1)[-1]
        measured = ", ".join(f"{key} {metric(value)}" for key, value in metrics.items())
        rows.append(
            [
                ("", f'<code title="{clean(path)}">{clean(name)}</code>'),
                ("", clean(str(entry.get("format", "")))),
                ("num", count(entry.get("size_bytes"))),
                ("", clean(measured)),
                ("", f"<code>{clean(str(entry.get('sha256', ''))[:16])}</code>"),
            ]
        )
    return table(("file", "format", "bytes", "measured", "sha256"), rows) if rows else ""
