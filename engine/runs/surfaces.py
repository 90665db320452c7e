"""Surfaces over a plane as pictures in sixteen shades, such as a loss over two logits.

In result.json they are ``"surfaces": [{"title", "width", "height", "levels": [...], "note"?}]``, each of ``levels`` one
picture, its points row by row from the top left, a hexadecimal digit each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.runs.bitmaps import MAX_SIDE, drawn_groups
from engine.runs.markup import escape
from engine.runs.records import RunFiles, objects

MAX_GROUPS = 24
MAX_PICTURES = 4
LOW, HIGH = (23, 42, 69), (244, 231, 178)  # colours of the lowest and of the highest shade
SCALE = 3  # screen pixels a point
GAP = 6


def to_levels(values: Sequence[float]) -> str:
    """Sixteen equal steps from the least to the greatest value; a flat surface is all zeros."""
    least, greatest = min(values), max(values)
    step = (greatest - least) / 16 or 1.0
    return "".join(f"{min(15, int((value - least) / step)):x}" for value in values)


def svg(group: dict[str, Any]) -> str | None:
    """The pictures of a group side by side; None for what is not of the form above. Reads any JSON."""
    sides = [group.get(name) for name in ("width", "height")]
    pictures = group.get("levels")
    if not isinstance(pictures, list) or not 0 < len(pictures) <= MAX_PICTURES:
        return None
    width, height = (
        side if isinstance(side, int) and not isinstance(side, bool) and 0 < side <= MAX_SIDE else 0 for side in sides
    )
    known = all(isinstance(p, str) and len(p) == width * height and set(p) <= set("0123456789abcdef") for p in pictures)
    if not width or not height or not known:
        return None
    parts = [_picture(levels, width, number * (width + GAP)) for number, levels in enumerate(pictures)]
    across = len(pictures) * (width + GAP) - GAP
    size = f'viewBox="0 0 {across} {height}" width="{SCALE * across}" height="{SCALE * height}" shape-rendering="crispEdges"'
    title = f"<title>{escape(str(group.get('title', '')))}</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}{"".join(parts)}</svg>'


def section(run: RunFiles) -> str:
    """Every group of a result, for the report; what is not of the form above is left out."""
    return drawn_groups(objects(run.result.get("surfaces"))[:MAX_GROUPS], svg)


def _picture(levels: str, width: int, x: int) -> str:
    """One path a shade, in which every run of equal points in a row is a rectangle."""
    paths: dict[str, list[str]] = {}
    for y in range(len(levels) // width):
        row, start = levels[y * width : (y + 1) * width], 0
        while start < width:
            end = start + len(row[start:]) - len(row[start:].lstrip(row[start]))
            paths.setdefault(row[start], []).append(f"M{x + start} {y}h{end - start}v1h-{end - start}z")
            start = end
    return "".join(f'<path fill="{_colour(shade)}" d="{"".join(runs)}"/>' for shade, runs in sorted(paths.items()))


def _colour(shade: str) -> str:
    share = int(shade, 16) / 15
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(LOW, HIGH, strict=True))
