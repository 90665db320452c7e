"""Cells as standalone SVG, readable on light and dark pages, in any viewer and without any other program."""

from __future__ import annotations

import unicodedata
from collections import defaultdict

from engine.errors import ConfigurationError
from engine.runs.layout import OUTPUT, Box, Key, Layout, lay_out
from engine.runs.markup import escape
from engine.spaces.genotype import Genotype
from engine.spaces.space import SPACES

MAX_STATES, MAX_CONNECTIONS = 64, 500
MARGIN, HEADING = 20.0, 34.0
CHARACTER, ROW, LONGEST = 7.5, 26.0, 34
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"

LABEL = f'fill="#1f2937" font-family="{MONO}" font-size="12.4"'
STATE_NAME = 'fill="#1f2937" font-size="15" text-anchor="middle"'
FAMILY_MARK = 'stroke-width="5" stroke-linecap="round"'

# Light colours are plain attributes, which every viewer understands; the style sheet holds only the dark ones.
DARK = """<style>@media (prefers-color-scheme: dark) {
.cell-page { fill: #0f1522 } .cell-ink { fill: #e6eaf2 } .cell-soft { fill: #9aa7bd }
.cell-line { stroke: #5b6b86 } .cell-head { fill: #5b6b86 } .cell-rule { stroke: #2e3a50 }
.cell-box { fill: #182135; stroke: #2e3a50 } .cell-state { fill: #24304a; stroke: #7b8cab }
}</style>"""

FAMILIES = (
    (("none", "zero"), "#94a3b8"),
    (("skip", "identity"), "#64748b"),
    (("max_pool",), "#dc6803"),
    (("avg_pool", "pool"), "#eab308"),
    (("sep",), "#2f6fed"),
    (("dil",), "#8b5cf6"),
)
OTHER_FAMILY = "#0d9488"


def draw_cell(genotype: Genotype, kind: str) -> str:
    """Return the SVG of cell ``kind`` of ``genotype``: inputs c_{k-2} and c_{k-1}, nodes from 0, output c_k (the concatenation).
    Where the cells of a space have one input it is c_{k-1}.

    Each edge is a box that lists its operations, coloured by family. Raises :class:`ConfigurationError` for a kind that the
    genotype does not have and for cells of more than 64 states or 500 connections. Some ten milliseconds.
    """
    try:
        cell = genotype[kind]
    except KeyError:
        raise ConfigurationError(f"the genotype has no {kind!r} cell, only {[name for name, _ in genotype.cells]}") from None
    states = {*cell.concat, *(s for c in cell.connections for s in (c.source, c.target))}
    if len(states) > MAX_STATES or len(cell.connections) > MAX_CONNECTIONS:
        limits = f"{MAX_STATES} states or {MAX_CONNECTIONS} connections"
        raise ConfigurationError(f"the {kind!r} cell is too large to draw (over {limits})")
    inputs = input_count(genotype.space)
    operations: dict[Key, list[str]] = defaultdict(list)
    for connection in cell.connections:
        operations["edge", connection.source, connection.target].append(connection.operation)

    def size(key: Key) -> tuple[float, float]:
        if key[0] != "edge":
            return (52.0 if key == OUTPUT or key in _input_names(inputs) else 36.0), 36.0
        labels = operations[key]
        return 30 + CHARACTER * max(_columns(_shorten(label)) for label in labels), ROW * len(labels)

    layout = lay_out(cell, size, inputs=inputs)
    parts = [_lines(layout)]
    parts += [_edge(layout, key, operations[key]) for key in layout.boxes if key[0] == "edge"]
    parts += [_state(layout, key, inputs) for key in layout.boxes if key[0] in ("state", "output")]
    return _page(layout, kind, parts)


def input_count(space: str) -> int:
    """How many inputs the cells of a space have; two where the space is not a registered one."""
    return SPACES[space].inputs if space in SPACES else 2


def _page(layout: Layout, kind: str, parts: list[str]) -> str:
    width = max(layout.width, 12 * CHARACTER + CHARACTER * _columns(kind)) + 2 * MARGIN
    height = layout.height + 2 * MARGIN + HEADING
    label = escape(f"{kind} cell")
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    heading = f'<text class="cell-soft" x="{MARGIN:g}" y="30" fill="#5b667a" font-size="14" font-weight="600">{label}</text>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}" font-family="{SANS}">',
            DARK,
            f'<rect class="cell-page" width="{width:.0f}" height="{height:.0f}" rx="12" fill="#ffffff"/>',
            heading,
            f'<g transform="translate({MARGIN:g} {MARGIN + HEADING:g})">',
            *parts,
            "</g>\n</svg>\n",
        ]
    )


def _lines(layout: Layout) -> str:
    """Draw each link as one curve in the gap between its columns, straight through the columns themselves."""
    column_of = {key: index for index, keys in enumerate(layout.columns) for key in keys}
    curves, heads = [], {}
    for left, right in layout.links:
        a, b = layout.boxes[left], layout.boxes[right]
        start, end = layout.bounds[column_of[left]][1], layout.bounds[column_of[right]][0]
        middle = (start + end) / 2
        tip = b.x + b.width / 2 if right[0] == "lane" else b.x - b.width / 2
        bend = f"C{middle:.1f} {a.y:.1f} {middle:.1f} {b.y:.1f} {end:.1f} {b.y:.1f}"
        curves.append(f"M{a.x + a.width / 2:.1f} {a.y:.1f}H{start:.1f}{bend}H{tip:.1f}")
        if right[0] in ("state", "output"):
            heads[right] = f"M{tip:.1f} {b.y:.1f}l-9 -4.5v9z"
    path = f'<path class="cell-line" fill="none" stroke="#9aa6b8" stroke-width="1.6" d="{"".join(curves)}"/>'
    return f'{path}\n<path class="cell-head" fill="#9aa6b8" d="{"".join(heads.values())}"/>'


def _edge(layout: Layout, key: Key, labels: list[str]) -> str:
    box = layout.boxes[key]
    left, top = box.x - box.width / 2, box.y - box.height / 2
    parts = [f'<rect class="cell-box" {_rectangle(box)} rx="7" fill="#f6f8fb" stroke="#d5dce6"/>']
    for row, label in enumerate(labels):
        y = top + ROW * row
        if row:
            parts.append(f'<path class="cell-rule" stroke="#d5dce6" d="M{left:.1f} {y:.1f}h{box.width:.1f}"/>')
        parts.append(f'<path stroke="{_colour(label)}" {FAMILY_MARK} d="M{left + 9.5:.1f} {y + 8.5:.1f}v{ROW - 17:g}"/>')
        text = f"<title>{escape(label)}</title>{escape(_shorten(label))}"
        parts.append(f'<text class="cell-ink" x="{left + 19:.1f}" y="{y + 17.3:.1f}" {LABEL}>{text}</text>')
    return "\n".join(parts)


def _input_names(inputs: int) -> dict[Key, str]:
    """Which cell before this one each input is the output of."""
    return {("state", state): f"k−{inputs - state}" for state in range(inputs)}


def _state(layout: Layout, key: Key, inputs: int) -> str:
    box = layout.boxes[key]
    below = (_input_names(inputs) | {OUTPUT: "k"}).get(key)
    name = f'c<tspan dy="3.5" font-size="10.5">{below}</tspan>' if below else str(int(key[1]) - inputs)
    text = f'<text class="cell-ink" x="{box.x:.1f}" y="{box.y + 5:.1f}" {STATE_NAME}>{name}</text>'
    return f'<rect class="cell-state" {_rectangle(box)} rx="18" fill="#e8eef8" stroke="#6b7a94" stroke-width="1.4"/>\n{text}'


def _rectangle(box: Box) -> str:
    corner = f'x="{box.x - box.width / 2:.1f}" y="{box.y - box.height / 2:.1f}"'
    return f'{corner} width="{box.width:.1f}" height="{box.height:.1f}"'


def _colour(operation: str) -> str:
    name = operation.lower()
    return next((colour for names, colour in FAMILIES if name.startswith(names)), OTHER_FAMILY)


def _shorten(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def _columns(text: str) -> int:
    """Return the width of ``text`` in columns of a fixed-width font: East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
