"""Line and scatter charts of named series as inline SVG, coloured by the report's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.runs.charts import LARGEST, Scale, ticks
from engine.runs.markup import escape

WIDTH, HEIGHT = 760.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 16.0, 30.0, 46.0
COLOURS = 6
MAX_POINTS = 1000
MARKED = 40  # a line of at most so many points shows them
SPAN = 100.0  # positive values that span more than this factor are drawn logarithmically
DASHES = ("", "7 4", "2 4")


@dataclass(frozen=True)
class Series:
    """Points ``(x, y)`` and, where there are intervals, ``(low, high)`` of each; all within :data:`LARGEST` of zero."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Axis:
    """From values to positions on the page: ``at`` of a value, and the values that are labelled."""

    at: Scale
    ticks: list[float]


def line_chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], *, scatter: bool = False, linear: bool = False
) -> str:
    """Return a legend and a chart of all series, or nothing where no series has a point.

    Lines join the points in their order and intervals are a band around them; ``scatter=True`` draws dots, and intervals as bars.
    The y axis, and the x axis of a scatter, is logarithmic where all values are positive and span more than a factor of 100,
    unless ``linear``. Of a series at most 1000 points are drawn, evenly chosen, the last among them.
    """
    shown = [_thinned(item) for item in series if item.points]
    if not shown:
        return ""
    xs = [x for item in shown for x, _ in item.points]
    ys = [y for item in shown for _, y in item.points] + [v for item in shown for pair in item.intervals for v in pair]
    x = _axis(xs, LEFT, WIDTH - RIGHT, may_be_logarithmic=scatter and not linear)
    y = _axis(ys, HEIGHT - BOTTOM, TOP, may_be_logarithmic=not linear)
    draw = _scatter if scatter else _line
    marks = "".join(draw(index, item, x.at, y.at) for index, item in enumerate(shown))
    label = escape(f"{title}: {y_label} against {x_label}")
    size = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" height="{HEIGHT:g}"'
    frame = _frame(x, y, x_label, y_label)
    svg = f'<div class="scroll"><svg class="chart" {size} role="img" aria-label="{label}">{frame}{marks}</svg></div>'
    return _legend(shown) + svg


def _thinned(item: Series) -> Series:
    count = len(item.points)
    if count <= MAX_POINTS:
        return item
    chosen = [round(i * (count - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]
    return Series(item.name, [item.points[i] for i in chosen], [item.intervals[i] for i in chosen] if item.intervals else ())


def _axis(values: Iterable[float], start: float, end: float, *, may_be_logarithmic: bool) -> Axis:
    values = list(values)
    low, high = min(values), max(values)
    logarithmic = may_be_logarithmic and low > 1 / LARGEST and high / low > SPAN
    scale = math.log10 if logarithmic else float
    bottom, top = scale(low), scale(high)
    pad = 0.04 * (top - bottom)
    if pad <= 1e-12 * max(abs(bottom), abs(top)):  # one value only: room on both sides
        pad = 0.5 * abs(top) or 1.0
    bottom, top = bottom - pad, top + pad

    def at(value: float) -> float:
        return start + (scale(value) - bottom) / (top - bottom) * (end - start)

    return Axis(at, ticks(bottom, top, logarithmic, whole=all(value == int(value) for value in values)))


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> str:
    lines = "".join(f"M{LEFT} {y.at(v):.1f}H{WIDTH - RIGHT}" for v in y.ticks)
    lines += "".join(f"M{x.at(v):.1f} {HEIGHT - BOTTOM}v5" for v in x.ticks)
    texts = [f'<text x="{LEFT - 8}" y="{y.at(v) + 4:.1f}" text-anchor="end">{v:.4g}</text>' for v in y.ticks]
    texts += [f'<text x="{x.at(v):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{v:.6g}</text>' for v in x.ticks]
    texts.append(f'<text x="{LEFT - 8}" y="16" class="axis">{escape(y_label)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    texts.append(f'<text x="{middle:g}" y="{HEIGHT - 8}" class="axis" text-anchor="middle">{escape(x_label)}</text>')
    return f'<path class="grid" d="{lines}"/>{"".join(texts)}'


def _line(index: int, item: Series, x: Scale, y: Scale) -> str:
    places = [(x(a), y(b)) for a, b in item.points]
    parts = []
    if item.intervals:
        upper = [f"{a:.1f} {y(high):.1f}" for (a, _), (_, high) in zip(places, item.intervals, strict=True)]
        lower = [f"{a:.1f} {y(low):.1f}" for (a, _), (low, _) in zip(places, item.intervals, strict=True)]
        parts.append(f'<path class="band" style="fill:{_colour(index)}" d="M{"L".join([*upper, *reversed(lower)])}Z"/>')
    dash = DASHES[index // COLOURS % len(DASHES)]
    style = f"stroke:{_colour(index)}" + (f";stroke-dasharray:{dash}" if dash else "")
    parts.append(f'<path class="line" style="{style}" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in places)}"/>')
    if len(places) <= MARKED:
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in places)
        parts.append(f'<path class="point" style="stroke:{_colour(index)}" d="{dots}"/>')
    return "".join(parts)


def _scatter(index: int, item: Series, x: Scale, y: Scale) -> str:
    places = [(x(a), y(b)) for a, b in item.points]
    colour = _colour(index)
    parts = []
    if item.intervals:
        bars = "".join(f"M{a:.1f} {y(low):.1f}V{y(high):.1f}" for (a, _), (low, high) in zip(places, item.intervals, strict=True))
        parts.append(f'<path class="bar" style="stroke:{colour}" d="{bars}"/>')
    dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in places)
    parts.append(f'<path class="point" style="stroke:{colour}" d="{dots}"/>')
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    if len(series) == 1 and not series[0].name:
        return ""
    names = [f'<span><i style="background:{_colour(k)}"></i>{escape(item.name)}</span>' for k, item in enumerate(series)]
    return f'<p class="legend">{"".join(names)}</p>'


def _colour(index: int) -> str:
    return f"var(--p{index % COLOURS})"
