"""The report of a run: one HTML file from the files of the run directory, without scripts and without the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.errors import ConfigurationError
from engine.runs import bitmaps, surfaces
from engine.runs.drawing import draw_cell
from engine.runs.files import replace_file
from engine.runs.markup import escape
from engine.runs.progress import duration
from engine.runs.records import RunFiles, number, read_run
from engine.runs.report_content import command, plots, tables
from engine.runs.report_rounds import agreement, phases, pruning, scores_by_round
from engine.runs.report_style import STYLE

# A browser then refuses scripts and requests, whatever a hostile file might have slipped past the escaping.
POLICY = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
VIEWPORT = '<meta name="viewport" content="width=device-width, initial-scale=1">'
ELSEWHERE = (
    "genotype",
    "choice_changes",
    "schema",
    "plots",
    "pictures",
    "surfaces",
    "neighbours",
    "variants",
    "validations",
    "tables",
    "tests",
    "scores",
    "published",
    "command",
)  # parts of the result that a section or a table of its own shows
LONG = 60  # characters of a value that is no headline
LABELS = {
    "cpu_seconds": "CPU time",
    "images_per_cpu_second": "Images per CPU second",
    "seconds": "Time",
    "flops": "FLOPs",
    "data": "Data set",
}


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a run directory, from nothing but its files, and return its path.

    Fields that are missing leave their section out, so runs of any method, finished or not, can be reported, and again
    later. :class:`ConfigurationError` if there is no run or the file cannot be written. Takes well under a second.
    """
    path = directory / "report.html"
    replace_file(path, render(read_run(directory)).encode())
    return path


def render(run: RunFiles) -> str:
    """Return the report's HTML."""
    sections = [
        ("Result", _result(run)),
        ("Command", command(run)),
        ("Tables", tables(run)),
        ("Plots", plots(run)),
        ("Pictures", bitmaps.section(run)),
        ("Surfaces", surfaces.section(run)),
        ("Cells", _cells(run)),
        ("How often choices would have changed", agreement(run)),
        ("What was pruned when", pruning(run)),
        ("Scores by round", scores_by_round(run)),
        ("Time by phase", phases(run)),
        ("Configuration", f"<pre>{escape(run.config)}</pre>" if run.config else ""),
        ("Environment", _pairs(run.environment)),
        ("What could not be read", "".join(f'<p class="warn">{escape(problem)}</p>' for problem in run.problems)),
    ]
    body = "\n".join(f"<section>\n<h2>{heading}</h2>\n{content}\n</section>" for heading, content in sections if content)
    title = escape(_title(run))
    head = f'<meta charset="utf-8">\n{POLICY}\n{VIEWPORT}\n<title>{title}</title>\n<style>{STYLE}</style>'
    header = f'<header><h1>{title}</h1><div class="soft">{escape(run.name)}</div></header>'
    page = f"<head>\n{head}\n</head>\n<body>\n<main>\n{header}\n{body}\n</main>\n</body>"
    return f'<!doctype html>\n<html lang="en">\n{page}\n</html>\n'


def _title(run: RunFiles) -> str:
    method, data = run.result.get("method"), run.result.get("data")
    return f"{method or 'Run'} on {data}" if data else str(method or run.name)


def _result(run: RunFiles) -> str:
    if not run.result:
        return '<p class="warn">This run has not finished; the same command with --resume continues it.</p>'
    facts, rest = [], {}
    for name, value in run.result.items():
        if name in ELSEWHERE:
            continue
        if isinstance(value, dict | list) or len(str(value)) > LONG:
            rest[name] = value
        else:
            facts.append(f"<div><dt>{escape(_label(name))}</dt><dd>{escape(_value(name, value))}</dd></div>")
    return f'<dl class="facts">{"".join(facts)}</dl>{_pairs(rest)}'


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize())


def _value(name: str, value: Any) -> str:
    amount = number(value)
    if amount is None or isinstance(value, str):
        return "none" if value is None else str(value)
    if name.endswith("seconds") and 0 <= amount < 1e9:
        return duration(amount)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if name == "seed" else f"{value:,}"


def _cells(run: RunFiles) -> str:
    if run.genotype is None:
        return ""
    parts = []
    for kind, _ in run.genotype.cells:
        try:
            parts.append(f'<div class="scroll">{draw_cell(run.genotype, kind)}</div>')
        except ConfigurationError as error:
            parts.append(f'<p class="warn">{escape(error)}</p>')
    genotype = f"<details><summary>Genotype</summary><pre>{escape(run.genotype.to_json())}</pre></details>"
    return f'<p class="soft">Space: {escape(run.genotype.space)}</p>{"".join(parts)}{genotype}'


def _pairs(values: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)

    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text(value))}</td></tr>" for name, value in values.items())
    return f'<table class="pairs">{rows}</table>' if rows else ""
