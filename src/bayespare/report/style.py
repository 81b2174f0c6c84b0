"""The style sheet of the report: calm in the light and in the dark, narrow or wide."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #1d2329; --soft: #5c6670; --line: #e3e5e8;
  --compact: #0b6e8a; --dense: #8b939c; --second: #b4632a; --band: #f0f1f3; --rest: #e9ebee;
  --warn: #8a5a00; --warn-page: #fff7e3; --warn-line: #ecd9a6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1b1f23; --ink: #e6e9ec; --soft: #9aa4ae; --line: #2d3339;
    --compact: #4fb3d1; --dense: #848d97; --second: #e0955c; --band: #23282d; --rest: #2b3137;
    --warn: #f0c869; --warn-page: #2a2413; --warn-line: #51431c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1120px; padding: 28px 20px 60px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 44px 0 4px; }
h3 { font-size: 14px; margin: 0; font-weight: 600; }
p { margin: 4px 0 10px; max-width: 74ch; }
.soft, .lead { color: var(--soft); }
.lead { margin-bottom: 20px; }
a { color: var(--compact); }
code { font: 0.92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px;
  min-width: 0;
}
.first { display: grid; grid-template-columns: minmax(0, 1fr) 280px; gap: 16px; }
.grid { display: grid; gap: 16px; margin-top: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.pair { display: grid; gap: 0 16px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.pair .grid { grid-template-columns: minmax(0, 1fr); }
.pair section > p { min-height: 4.6em; margin-bottom: 0; }
.wide { overflow-x: auto; margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--soft); text-align: left; }
thead th { font-size: 13px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
td, th { padding: 5px 14px 5px 0; vertical-align: baseline; }
td:last-child, th:last-child { padding-right: 0; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.number { text-align: right; white-space: nowrap; }
.main td:nth-child(3) { font-weight: 600; }
.main small { display: block; font-size: 12px; line-height: 1.2; font-weight: 400; }
tr.chosen > * { font-weight: 600; color: var(--ink); }
td.stretch { width: 50%; min-width: 90px; }
dl { margin: 8px 0 0; display: grid; grid-template-columns: auto 1fr; gap: 4px 14px; }
dt { color: var(--soft); }
dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
dl + h3 { margin-top: 18px; }
.warnings { background: var(--warn-page); border-color: var(--warn-line); }
.warnings ul, .plain { margin: 0; padding-left: 18px; }
.notice { color: var(--warn); }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--soft); }
svg.chart { display: block; width: 100%; max-width: 520px; height: auto; margin-top: 8px; }
.pair svg.chart { max-width: 470px; }
svg.bar { display: block; width: 100%; height: 9px; border-radius: 3px; }
svg text { fill: var(--soft); font-size: 10.5px; font-variant-numeric: tabular-nums; }
svg text.strong { fill: var(--ink); font-weight: 600; }
line.grid { stroke: var(--line); stroke-width: 1; }
line.axis { stroke: var(--dense); stroke-width: 1; }
line.mark { stroke: var(--dense); stroke-width: 1; stroke-dasharray: 3 3; }
line.decision { stroke: var(--ink); stroke-width: 1.5; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.curve.dense { stroke: var(--dense); } .dot.dense { fill: var(--dense); }
.curve.compact { stroke: var(--compact); } .dot.compact { fill: var(--compact); }
.curve.second { stroke: var(--second); } .dot.second { fill: var(--second); }
.curve.faint { stroke: var(--line); stroke-width: 1.5; }
.ring { fill: none; stroke: var(--compact); stroke-width: 1.5; }
rect.kept { fill: var(--compact); } rect.removed { fill: var(--dense); }
rect.rest { fill: var(--rest); } rect.band { fill: var(--band); }
@media (max-width: 760px) {
  body { padding: 20px 14px 40px; }
  h1 { font-size: 20px; }
  .first { grid-template-columns: minmax(0, 1fr); }
  .pair section > p { min-height: 0; }
  .main td, .main th { padding-right: 8px; font-size: 13.5px; }
}
@media print { body { max-width: none; } .card { break-inside: avoid; } }
"""
