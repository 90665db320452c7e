"""``python -m bench.trace RUN --svg FILE``: draw the trace that ``--profile-steps`` left in a run directory.

Ranges lie inside each other from the run downwards, the outermost torch operators below them, all on one scale of milliseconds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.cli import run_command
from engine.errors import ConfigurationError
from engine.runs.markup import escape
from engine.runs.profiling import TRACE_NAME

MAX_BYTES = 512 * 2**20
WIDTH, ROW, MARGIN, AXIS = 1200, 24, 12, 26
LETTER = 6.6  # widest letters of the font, in pixels
SMALLEST = 2.0  # pixels; operators narrower than that are drawn together
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#6a9f9a", "#c9a52c", "#9c755f", "#e15759", "#8a6fc0", "#d37295")
OPERATORS = "#9d9591"
# libkineto spells a range "kernel" as it does a category of its own, "Kernel"; ranges are in lower case.
RANGE = "user_annotation"


@dataclass(frozen=True)
class Bar:
    """One range or operator: microseconds from the trace's begin, and how many ranges it lies in."""

    name: str
    start: float
    end: float
    depth: int


def main(argv: Sequence[str]) -> int:
    """Draw one trace."""
    parser = argparse.ArgumentParser(prog="python -m bench.trace", description="Draw the trace of a profiled run.")
    parser.add_argument("run", type=Path, help="run directory of a command with --profile-steps")
    parser.add_argument("--svg", type=Path, required=True, metavar="FILE")
    chosen = parser.parse_args(argv)
    events = read(chosen.run / TRACE_NAME)
    chosen.svg.write_text(draw(bars(events, RANGE), bars(events, "cpu_op")), "utf-8")
    return 0


def read(path: Path) -> list[dict[str, Any]]:
    """The complete events of a trace."""
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_BYTES + 1)
        found = [event for event in json.loads(data[:MAX_BYTES])["traceEvents"] if event.get("ph") == "X"]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigurationError(f"{path}: holds no trace; run the command with --profile-steps 1") from None
    if not any(event.get("cat") == RANGE for event in found):
        raise ConfigurationError(f"{path}: holds no ranges; run the command with --profile-steps 1")
    return [{**event, "name": event["name"].lower()} if event.get("cat") == RANGE else event for event in found]


def bars(events: Iterable[dict[str, Any]], category: str) -> list[Bar]:
    """The events of a category in the order of their begin, with their depth among themselves."""
    chosen = [(event["ts"], -event["dur"], event["name"]) for event in events if event.get("cat") == category]
    found: list[Bar] = []
    open_ends: list[float] = []
    for start, minus, name in sorted(chosen):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        found.append(Bar(name, start, start - minus, len(open_ends)))
        open_ends.append(start - minus)
    return found


def draw(ranges: list[Bar], operators: list[Bar]) -> str:
    """The picture as SVG."""
    first = min(bar.start for bar in ranges)
    length = max(bar.end for bar in ranges) - first
    scale = (WIDTH - 2 * MARGIN) / length
    colours = dict(zip(dict.fromkeys(bar.name for bar in ranges), COLOURS * 99, strict=False))
    deepest = max(bar.depth for bar in ranges) + 1
    rows = [
        _box(bar.name, (bar.start - first) * scale, (bar.end - bar.start) * scale, bar.depth, colours[bar.name]) for bar in ranges
    ]
    outermost = [bar for bar in operators if not bar.depth]
    rows += [
        _box(name, (start - first) * scale, width * scale, deepest, OPERATORS) for name, start, width in _joined(outermost, scale)
    ]
    height = AXIS + (deepest + 2) * ROW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">'
    ground = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    legend = _legend({**colours, "torch operators": OPERATORS}, height - 6)
    return "\n".join([head, ground, *_axis(length, scale, height - ROW), *rows, *legend, "</svg>"]) + "\n"


def _joined(operators: list[Bar], scale: float) -> Iterable[tuple[str, float, float]]:
    """Name, begin and length of what is drawn: wide operators alone, neighbours that are too narrow together."""
    group: list[Bar] = []

    def flush() -> Iterable[tuple[str, float, float]]:
        if group:
            yield f"{len(group)} operators", group[0].start, group[-1].end - group[0].start
            group.clear()

    for bar in operators:
        if (bar.end - bar.start) * scale >= SMALLEST:
            yield from flush()
            yield bar.name, bar.start, bar.end - bar.start
            continue
        if group and (bar.start - group[-1].end) * scale >= SMALLEST:
            yield from flush()
        group.append(bar)
    yield from flush()


def _box(name: str, left: float, width: float, depth: int, colour: str) -> str:
    x, y = MARGIN + left, AXIS + depth * ROW
    fits = width > LETTER * len(name) + 6
    label = f'<text x="{x + 4:.1f}" y="{y + 16}" fill="#ffffff">{escape(name)}</text>' if fits else ""
    box = f'<rect x="{x:.1f}" y="{y}" width="{max(width, 0.2):.1f}" height="{ROW - 2}" fill="{colour}"/>'
    return f"<g><title>{escape(name)}</title>{box}{label}</g>"


def _legend(colours: dict[str, str], y: int) -> Iterable[str]:
    x = float(MARGIN)
    for name, colour in colours.items():
        yield f'<rect x="{x:.1f}" y="{y - 10}" width="11" height="11" fill="{colour}"/>'
        yield f'<text x="{x + 16:.1f}" y="{y}" fill="#333333">{escape(name)}</text>'
        x += 34 + LETTER * len(name)


def _axis(length: float, scale: float, height: int) -> Iterable[str]:
    """Lines at round numbers of milliseconds, ten or fewer."""
    step = next(s for power in range(-3, 9) for s in (10.0**power, 2 * 10.0**power, 5 * 10.0**power) if length / 1e3 / s <= 10)
    for k in range(int(length / 1e3 / step) + 1):
        x = MARGIN + k * step * 1e3 * scale
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{height}" stroke="#dddddd"/>'
        if x < WIDTH - 60:
            yield f'<text x="{x + 3:.1f}" y="14" fill="#555555">{k * step:g} ms</text>'


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
