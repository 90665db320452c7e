"""Black-and-white pictures, such as the mask of a unit's inputs, as one SVG.

In result.json they are ``"pictures": [{"title", "width", "height", "bits": [...], "note"?}]``, each of ``bits`` one picture, its
pixels row by row from the left, four to a hexadecimal digit, the last digit filled with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from engine.runs.markup import escape
from engine.runs.records import RunFiles, objects

MAX_GROUPS = 8
MAX_PICTURES = 64
MAX_SIDE = 128
COLUMNS = 8
DARK, LIGHT = "#26323c", "#f2efe6"


def to_bits(pixels: Sequence[bool]) -> str:
    """The pixels of one picture as :data:`bits <engine.runs.bitmaps>` hold them."""
    text = "".join("1" if pixel else "0" for pixel in pixels)
    text += "0" * (-len(text) % 4)
    return "".join(f"{int(text[i : i + 4], 2):x}" for i in range(0, len(text), 4))


def svg(group: dict[str, Any]) -> str | None:
    """The pictures side by side, ones light and zeros dark; None for what is not of the form above. Reads any JSON."""
    width, height, pictures = group.get("width"), group.get("height"), group.get("bits")
    sides = [side for side in (width, height) if isinstance(side, int) and not isinstance(side, bool) and 0 < side <= MAX_SIDE]
    if len(sides) < 2 or not isinstance(pictures, list) or not 0 < len(pictures) <= MAX_PICTURES:
        return None
    rows = [_rows(text, *sides) for text in pictures]
    if any(row is None for row in rows):
        return None
    parts = []
    for number, lines in enumerate(rows):
        x, y = number % COLUMNS * (sides[0] + 2), number // COLUMNS * (sides[1] + 2)
        parts.append(f'<rect x="{x}" y="{y}" width="{sides[0]}" height="{sides[1]}" fill="{DARK}"/>')
        parts.append(f'<path fill="{LIGHT}" d="{_path(lines or [], x, y)}"/>')
    across = min(len(rows), COLUMNS) * (sides[0] + 2) - 2
    down = -(-len(rows) // COLUMNS) * (sides[1] + 2) - 2
    size = f'viewBox="0 0 {across} {down}" width="{3 * across}" height="{3 * down}" shape-rendering="crispEdges"'
    title = f"<title>{escape(str(group.get('title', '')))}</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}{"".join(parts)}</svg>'


def section(run: RunFiles) -> str:
    """Every group of pictures of a result, for the report; what is not of the form above is left out."""
    return drawn_groups(objects(run.result.get("pictures"))[:MAX_GROUPS], svg)


def drawn_groups(groups: Iterable[dict[str, Any]], draw: Callable[[dict[str, Any]], str | None]) -> str:
    """Each group under its title and above its note; one that ``draw`` makes nothing of is left out."""
    parts = []
    for group in groups:
        drawn = draw(group)
        if drawn is not None:
            note = f'<p class="soft">{escape(group["note"])}</p>' if isinstance(group.get("note"), str) else ""
            parts.append(f'<h3>{escape(str(group.get("title", "")))}</h3><div class="scroll">{drawn}</div>{note}')
    return "".join(parts)


def _rows(text: Any, width: int, height: int) -> list[str] | None:
    """The pixels of a picture, a text of 0 and 1 for each row."""
    count = width * height
    if not isinstance(text, str) or len(text) != -(-count // 4) or not all(c in "0123456789abcdef" for c in text):
        return None
    pixels = "".join(f"{int(digit, 16):04b}" for digit in text)
    return [pixels[row * width : (row + 1) * width] for row in range(height)]


def _path(rows: Sequence[str], x: int, y: int) -> str:
    """Every run of ones in a row as one rectangle."""
    drawn = []
    for number, row in enumerate(rows):
        start = row.find("1")
        while start >= 0:
            end = row.find("0", start) if "0" in row[start:] else len(row)
            drawn.append(f"M{x + start} {y + number}h{end - start}v1h-{end - start}z")
            start = row.find("1", end)
    return "".join(drawn)
