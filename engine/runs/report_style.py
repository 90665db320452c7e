"""The style sheet of the report."""

STYLE = """
:root { color-scheme: light dark; --page: #f3f5f9; --card: #ffffff; --ink: #1f2937; --soft: #5b667a; --rule: #e2e7ef;
  --accent: #2f6fed; --warn: #b45309; --fill: #dbe7ff;
  --p0: #2f6fed; --p1: #0d9488; --p2: #dc6803; --p3: #8b5cf6; --p4: #db2777; --p5: #64748b; }
@media (prefers-color-scheme: dark) { :root { --page: #080c14; --card: #0f1522; --ink: #e6eaf2; --soft: #9aa7bd; --rule: #263148;
  --accent: #7aa5ff; --warn: #f5b04d; --fill: #22365f; --p0: #5b8dff; --p1: #2cb5a6; --p2: #f08c3a;
  --p3: #a78bfa; --p4: #ec5fa3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 16px 56px; }
header { margin: 0 4px 20px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 18px 0 6px; color: var(--soft); font-weight: 600; }
p { margin: 0 0 10px; max-width: 76ch; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 20px; margin: 0 0 16px; }
.soft { color: var(--soft); } .warn { color: var(--warn); fill: var(--warn); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px 20px; margin: 0; }
.facts dt { color: var(--soft); font-size: 13px; }
.facts dd { margin: 0; font-size: 18px; font-weight: 600; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .scroll svg { display: block; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; } tr:last-child > * { border-bottom: 0; }
.number { text-align: right; } table.pairs td { white-space: normal; overflow-wrap: anywhere; } table.pairs th { width: 12em; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 13px; }
pre { margin: 0; overflow-x: auto; } pre.wrap { white-space: pre-wrap; }
pre.wrap span { display: inline-block; max-width: 100%; overflow-wrap: anywhere; }
a.made { color: var(--accent); font-weight: 400; margin-left: 10px; text-decoration: none; }
details { border-top: 1px solid var(--rule); } details[open] { padding-bottom: 12px; }
summary { cursor: pointer; padding: 8px 0; } summary b { margin-right: 8px; }
.meter { display: inline-block; min-width: 92px; padding: 0 8px; border-radius: 4px;
  background: linear-gradient(90deg, var(--fill) var(--share), transparent var(--share)); border: 1px solid var(--rule); }
.stack { display: flex; height: 16px; min-width: 160px; border-radius: 4px; overflow: hidden; background: var(--rule); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; color: var(--soft); margin: 0 0 10px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.chart { width: 100%; min-width: 600px; height: auto; }
.chart text { font-size: 12px; fill: var(--soft); } .chart text.warn { fill: var(--warn); } .chart .grid { stroke: var(--rule); }
.chart .dots { stroke: var(--accent); stroke-width: 5; stroke-linecap: round; opacity: .5; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; } .chart .band { opacity: .16; }
.chart .point { stroke-width: 6.5; stroke-linecap: round; } .chart .bar { stroke-width: 1.5; opacity: .7; }
.chart .axis { font-weight: 600; } h3:first-of-type { margin-top: 0; } .scroll + .soft { margin-top: 8px; }
.chart .reference { stroke: var(--p2); stroke-width: 2.5; }
@media (max-width: 560px) { main { padding: 16px 10px 40px; } section { padding: 14px; } h1 { font-size: 22px; } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""
