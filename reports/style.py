"""The style sheet of a report: light and dark, wide and narrow, paper."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfb; --panel: #ffffff; --ink: #1d2127; --soft: #5b6470; --rule: #d9dde3;
  --grid: #e8ebef; --bar: #2f6fb2; --bar-all: #e3e8ee; --good: #1a7f4b; --bad: #b3372f;
  --warn: #94620a; --accepted: #1a7f4b; --missed: #b3372f; --rejected: #7a828d;
  --slower: #94620a; --failed: #8b3fa8; --limit: #b3372f; --reference: #1d2127; --result: #2f6fb2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --panel: #1b1f25; --ink: #e6e9ed; --soft: #9aa4b1; --rule: #343b45;
    --grid: #272d35; --bar: #6aa9e9; --bar-all: #2a313a; --good: #58c48a; --bad: #f0837a;
    --warn: #e0aa4f; --accepted: #58c48a; --missed: #f0837a; --rejected: #9aa4b1;
    --slower: #e0aa4f; --failed: #cf93e6; --limit: #f0837a; --reference: #e6e9ed;
    --result: #6aa9e9;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
header { border-left: 6px solid var(--soft); padding: .1rem 0 .1rem 1rem; margin-bottom: 1.5rem; }
header.met { border-color: var(--good); }
header.missed { border-color: var(--bad); }
header.interrupted { border-color: var(--warn); }
.word { font-weight: 700; text-transform: uppercase; letter-spacing: .06em; font-size: .85rem; }
.met .word { color: var(--good); } .missed .word { color: var(--bad); }
.interrupted .word { color: var(--warn); }
h1 { font-size: 1.45rem; line-height: 1.25; margin: .1rem 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; }
.note, .sub { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
.warning { border-left: 4px solid var(--warn); padding-left: .7rem; margin: .4rem 0;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px;
  background: var(--panel); }
.scroll.tall { max-height: 36rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; position: sticky; top: 0;
  background: var(--panel); }
.num { text-align: right; white-space: nowrap; }
.gain { font-weight: 600; }
tbody th { font-weight: 600; white-space: nowrap; }
.facts th { width: 1%; color: var(--soft); }
.facts td { overflow-wrap: anywhere; }
td.reason { min-width: 12rem; }
tr.best { background: color-mix(in srgb, var(--result) 12%, transparent); }
code { font: .9em ui-monospace, Menlo, Consolas, monospace; }
.status { white-space: nowrap; font-weight: 600; }
figure { margin: 0; border: 1px solid var(--rule); border-radius: 6px; background: var(--panel);
  padding: .6rem; }
figure > svg { display: block; width: 100%; max-width: 54rem; margin: 0 auto; height: auto; }
.tick, .label, .limit-label { font-size: 12px; fill: var(--soft); }
.limit-label { fill: var(--limit); }
.grid { stroke: var(--grid); } .axis { stroke: var(--rule); }
.limit { stroke: var(--limit); stroke-width: 1.5; stroke-dasharray: 6 4; }
.mark { stroke: currentColor; stroke-width: 2; fill: none; }
.mark.outside { opacity: .45; }
.mark.s-accepted, .mark.s-rejected-early, .mark.s-other { fill: currentColor; stroke-width: 0; }
.mark.reference, .mark.result { fill: currentColor; stroke: var(--panel); stroke-width: 1; }
.reference { color: var(--reference); } .result { color: var(--result); }
.s-accepted { color: var(--accepted); } .s-missed { color: var(--missed); }
.s-rejected-early, .s-other { color: var(--rejected); }
.s-slower, .s-larger { color: var(--slower); } .s-failed { color: var(--failed); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .5rem 0 0;
  font-size: .88rem; color: var(--soft); }
.legend span { display: inline-flex; align-items: center; gap: .35rem; }
.legend svg { width: 20px; height: 20px; flex: none; }
.groups { display: grid; grid-template-columns: minmax(6rem, auto) minmax(8rem, 1fr) auto;
  gap: .3rem .8rem; align-items: center; font-size: .9rem; padding: .8rem;
  border: 1px solid var(--rule); border-radius: 6px; background: var(--panel); }
.groups .name { text-align: right; overflow-wrap: anywhere; }
.groups .kept { color: var(--soft); white-space: nowrap; font-variant-numeric: tabular-nums; }
.bar-all { background: var(--bar-all); border-radius: 2px; height: .9rem; }
.bar { display: block; background: var(--bar); border-radius: 2px; height: 100%; }
.curve polyline { fill: none; stroke: currentColor; stroke-width: 1.6; opacity: .75; }
.curve circle { fill: currentColor; }
.curve:hover polyline { stroke-width: 3.5; opacity: 1; }
@media (max-width: 40rem) {
  main { padding: 1rem .7rem 3rem; }
  h1 { font-size: 1.2rem; }
  th, td { padding: .3rem .45rem; }
  table { font-size: .85rem; }
  .wraps table { font-size: .78rem; }
  .wraps th, .wraps td { padding: .3rem; }
  .wraps .num, .wraps tbody th { white-space: normal; }
  .tick, .label, .limit-label { font-size: 20px; }
  figure .mark path { transform: scale(1.5); }
  figure { padding: .2rem; }
}
@media print { .scroll.tall { max-height: none; } figure, tr { break-inside: avoid; } }
"""
