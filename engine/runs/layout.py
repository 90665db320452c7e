"""Where the parts of a cell go: a layered layout (Sugiyama, Tagawa and Toda 1981) of states, edges and the lanes between.

Columns alternate between states and edges. An edge is a box in the column before its target, so two edges never share a
place, however many join the same two states. A state that is used further on gets a lane, one slot in each column
between, so no line ever crosses a box: lines bend only in the gaps between columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from engine.spaces.genotype import CellGenotype

Key = tuple[str | int, ...]
OUTPUT: Key = ("output",)
SWEEPS = 60


@dataclass
class Box:
    """A state, an edge or one piece of a lane: its size and the centre it got, in pixels."""

    width: float
    height: float
    x: float = 0.0
    y: float = 0.0


@dataclass
class Layout:
    """``columns`` from left to right, each from top to bottom; ``links`` join boxes of neighbouring columns."""

    columns: list[list[Key]] = field(default_factory=list)
    links: list[tuple[Key, Key]] = field(default_factory=list)
    boxes: dict[Key, Box] = field(default_factory=dict)
    bounds: list[tuple[float, float]] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


def lay_out(cell: CellGenotype, size: Callable[[Key], tuple[float, float]], spacing: float = 14.0, inputs: int = 2) -> Layout:
    """Return the layout of ``cell``, whose first ``inputs`` states are inputs, with its top left corner at (0, 0).

    Keys are ``("state", s)``, ``("edge", source, target)``, ``("lane", s, column)`` and :data:`OUTPUT`; ``size`` gives the
    width and height of all but lanes. Deterministic; a cell of four nodes takes about five milliseconds.
    """
    layout = Layout()
    for key, column in _join(cell, layout, inputs).items():
        while len(layout.columns) <= column:
            layout.columns.append([])
        layout.columns[column].append(key)
        layout.boxes[key] = Box(0.0, 4.0) if key[0] == "lane" else Box(*size(key))
    _order(layout)
    _place_vertically(layout, spacing)
    _place_horizontally(layout)
    return layout


def _join(cell: CellGenotype, layout: Layout, inputs: int) -> dict[Key, int]:
    """Fill ``layout.links`` and return the column of every box."""
    states = {*range(inputs), *cell.concat, *(s for c in cell.connections for s in (c.source, c.target))}
    depth: dict[int, int] = {}
    for state in sorted(states):
        sources = [depth[c.source] for c in cell.connections if c.target == state]
        depth[state] = 1 + max(sources, default=-1)
    end = 2 * max(depth.values()) + 1
    columns: dict[Key, int] = {("state", s): 2 * depth[s] for s in sorted(states)} | {OUTPUT: end}
    links: dict[tuple[Key, Key], None] = {}

    def connect(source: int, key: Key, column: int) -> None:
        before: Key = ("state", source)
        for between in range(2 * depth[source] + 1, column):
            lane: Key = ("lane", source, between)
            columns[lane] = between
            links[before, lane] = None
            before = lane
        columns[key] = column
        links[before, key] = None

    for target, source in sorted({(c.target, c.source) for c in cell.connections}):
        edge: Key = ("edge", source, target)
        connect(source, edge, 2 * depth[target] - 1)
        links[edge, ("state", target)] = None
    for source in sorted(set(cell.concat)):
        connect(source, OUTPUT, end)
    layout.links = list(links)
    return columns


def _order(layout: Layout) -> None:
    """Sort each column by the mean place of its neighbours, back and forth, and keep the order with the fewest crossings."""
    before, after = _neighbours(layout.links)
    best, fewest = [list(column) for column in layout.columns], _crossings(layout)
    for sweep in range(SWEEPS):
        if fewest == 0:
            break
        neighbours, columns = (before, layout.columns[1:]) if sweep % 2 == 0 else (after, layout.columns[-2::-1])
        place = _places(layout)
        for column in columns:
            wanted = {key: _mean([place[n] for n in neighbours[key]], place[key]) for key in column}
            column.sort(key=wanted.__getitem__)
            place |= {key: float(index) for index, key in enumerate(column)}
        crossings = _crossings(layout)
        if crossings < fewest:
            best, fewest = [list(column) for column in layout.columns], crossings
    layout.columns = best


def _neighbours(links: list[tuple[Key, Key]]) -> tuple[dict[Key, list[Key]], dict[Key, list[Key]]]:
    before: dict[Key, list[Key]] = defaultdict(list)
    after: dict[Key, list[Key]] = defaultdict(list)
    for left, right in links:
        before[right].append(left)
        after[left].append(right)
    return before, after


def _places(layout: Layout) -> dict[Key, float]:
    return {key: float(index) for column in layout.columns for index, key in enumerate(column)}


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _crossings(layout: Layout) -> int:
    place = _places(layout)
    column = {key: index for index, keys in enumerate(layout.columns) for key in keys}
    gaps: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for left, right in layout.links:
        gaps[column[left]].append((place[left], place[right]))
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for gap in gaps.values() for a, b in combinations(gap, 2))


def _place_vertically(layout: Layout, spacing: float) -> None:
    """Pull every box to the weighted mean of its neighbours without touching the boxes above and below; long lanes are stiff."""
    boxes = layout.boxes
    pulls: dict[Key, list[tuple[Key, float]]] = defaultdict(list)
    for left, right in layout.links:
        weight = (1.0, 4.0, 40.0)[(left[0] == "lane") + (right[0] == "lane")]
        pulls[left].append((right, weight))
        pulls[right].append((left, weight))
    for sweep in range(SWEEPS + 1):
        for column in layout.columns if sweep % 2 == 0 else layout.columns[::-1]:
            offsets = [0.0]
            for upper, lower in pairwise(column):
                offsets.append(offsets[-1] + (boxes[upper].height + boxes[lower].height) / 2 + spacing)
            weights = [sum(w for _, w in pulls[key]) or 1.0 for key in column]
            wanted = [sum(boxes[n].y * w for n, w in pulls[key]) / total for key, total in zip(column, weights, strict=True)]
            fitted = _isotonic([y - o for y, o in zip(wanted, offsets, strict=True)], weights)
            for key, y, offset in zip(column, fitted, offsets, strict=True):
                boxes[key].y = y + offset
    top = min(box.y - box.height / 2 for box in boxes.values())
    for box in boxes.values():
        box.y -= top
    layout.height = max(box.y + box.height / 2 for box in boxes.values())


def _isotonic(values: list[float], weights: list[float]) -> list[float]:
    """Return the nondecreasing sequence nearest to ``values`` in weighted squares (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, total, count = pools.pop()
            pool = ((mean * total + pool[0] * pool[1]) / (total + pool[1]), total + pool[1], count + pool[2])
        pools.append(pool)
    return [mean for mean, _, count in pools for _ in range(count)]


def _place_horizontally(layout: Layout) -> None:
    """Give columns their widths and the gaps between them more room where lines climb more."""
    boxes = layout.boxes
    column_of = {key: index for index, keys in enumerate(layout.columns) for key in keys}
    climb = [0.0] * len(layout.columns)
    for left, right in layout.links:
        climb[column_of[left]] = max(climb[column_of[left]], abs(boxes[left].y - boxes[right].y))
    x = 0.0
    for index, column in enumerate(layout.columns):
        width = max(boxes[key].width for key in column)
        for key in column:
            boxes[key].x = x + width / 2
            if key[0] in ("lane", "edge"):
                boxes[key].width = width
        layout.bounds.append((x, x + width))
        layout.width = x + width
        x += width + min(max(26 + 0.3 * climb[index], 34), 90)
