"""The plots and tables that a command put into result.json, checked and drawn.

``plots`` is a list of ``{"title", "x_label", "y_label", "series": [...], "kind"?, "scale"?}``, a series being
``{"name", "x", "y", "low"?, "high"?}`` with lists of numbers, ``kind`` "line" or "scatter", and ``scale`` "linear" where a wide
span shall not make an axis logarithmic; ``tables`` is a list of
``{"title", "columns", "rows", "note"?}`` with a list for each row. What does not fit is left out, never an error.
"""

from __future__ import annotations

import json
import re
from typing import Any

from engine.runs.charts import LARGEST
from engine.runs.line_charts import Series, line_chart
from engine.runs.markup import escape
from engine.runs.records import RunFiles, number, objects

MAX_ITEMS = 24  # plots, and tables
MAX_SERIES = 18
MAX_ROWS = 500
MAX_COLUMNS = 30
MAX_TEXT = 200

_NUMERIC = re.compile(r"([-+−±] ?)?\d[\d.,]*(e[-+]?\d+)?( ?%)?( ± .*)?$|–$")  # and not "5-way 1-shot"


def command(run: RunFiles) -> str:
    """The command that repeats the run, where the result names it."""
    text = run.result.get("command")
    if not isinstance(text, str):
        return ""
    words = " ".join(f"<span>{escape(word)}</span>" for word in text.split(" "))  # no line ends behind a hyphen
    return f'<pre id="command" class="wrap">{words}</pre>'


def plots(run: RunFiles) -> str:
    """Draw every plot of the result."""
    items = objects(run.result.get("plots"))
    parts = [_plot(item) for item in items[:MAX_ITEMS]]
    return "".join(parts) + _left_out(len(items) - MAX_ITEMS, "plots")


def tables(run: RunFiles) -> str:
    """Set every table of the result."""
    items = objects(run.result.get("tables"))
    link = ' <a class="made" href="#command">how it was made</a>' if command(run) else ""
    parts = [_table(item, link) for item in items[:MAX_ITEMS]]
    return "".join(parts) + _left_out(len(items) - MAX_ITEMS, "tables")


def _plot(item: dict[str, Any]) -> str:
    title, x_label, y_label = (_text(item.get(name, "")) for name in ("title", "x_label", "y_label"))
    series = [_series(part) for part in objects(item.get("series"))]
    style = {"scatter": item.get("kind") == "scatter", "linear": item.get("scale") == "linear"}
    chart = line_chart(title, x_label, y_label, series[:MAX_SERIES], **style)
    if not chart:
        return f'<h3>{escape(title)}</h3><p class="soft">Nothing to draw.</p>'
    return f"<h3>{escape(title)}</h3>{chart}{_left_out(len(series) - MAX_SERIES, 'series')}"


def _series(part: dict[str, Any]) -> Series:
    """The points that can be drawn; intervals are kept where every such point has one that holds it."""
    columns = [_numbers(part.get(name)) for name in ("x", "y", "low", "high")]
    rows = list(zip(columns[0], columns[1], strict=False))
    kept = [i for i, (x, y) in enumerate(rows) if x is not None and y is not None]
    points = [(x, y) for x, y in rows if x is not None and y is not None]
    low, high = ([column[i] if i < len(column) else None for i in kept] for column in columns[2:])
    pairs = [(a, b) for a, b, (_, y) in zip(low, high, points, strict=True) if a is not None and b is not None and a <= y <= b]
    return Series(_text(part.get("name", "")), points, pairs if len(pairs) == len(points) else ())


def _numbers(values: Any) -> list[float | None]:
    return [_usable(value) for value in values] if isinstance(values, list) else []


def _usable(value: Any) -> float | None:
    found = number(value)
    if found is None or not abs(found) <= LARGEST:
        return None
    return found if abs(found) >= 1 / LARGEST else 0.0


def _table(item: dict[str, Any], link: str) -> str:
    columns = [_text(name) for name in _items(item.get("columns"))[:MAX_COLUMNS]]
    rows = [row for row in _items(item.get("rows")) if isinstance(row, list)]
    texts = [[_cell(value) for value in row[: len(columns)]] for row in rows[:MAX_ROWS]]
    texts = [row + [""] * (len(columns) - len(row)) for row in texts]
    right = [all(_NUMERIC.match(row[c]) for row in texts if row[c]) for c in range(len(columns))]
    align = ['class="number"' if is_right else "" for is_right in right]
    head = "".join(f"<th {a}>{escape(name)}</th>" for a, name in zip(align, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td {a}>{escape(t)}</td>" for a, t in zip(align, row, strict=True)) + "</tr>" for row in texts
    )
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    note = f'<p class="soft">{escape(_text(item["note"], 2000))}</p>' if isinstance(item.get("note"), str) else ""
    return f"<h3>{escape(_text(item.get('title', '')))}{link}</h3>{table}{note}{_left_out(len(rows) - MAX_ROWS, 'rows')}"


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) < LARGEST else _text(value)


def _text(value: Any, limit: int = MAX_TEXT) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _left_out(count: int, what: str) -> str:
    return f'<p class="warn">{count} more {what} are in result.json.</p>' if count > 0 else ""
