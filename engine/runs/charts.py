"""Charts as inline SVG for the report, coloured by its style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.runs.markup import escape

WIDTH, HEIGHT = 760.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 12.0, 24.0, 34.0
MAX_DOTS = 500
LARGEST = 1e100

Scale = Callable[[float], float]


@dataclass
class Column:
    """The scores of one round: of its candidates, of its supernet in each repeat, and how many candidates had no usable score.

    Usable scores lie within :data:`LARGEST` of zero.
    """

    label: str
    values: list[float] = field(default_factory=list)
    references: dict[str, float] = field(default_factory=dict)
    unusable: int = 0


def strip_chart(title: str, columns: list[Column]) -> str:
    """Return a chart with a column of dots a round and a bar for each supernet value; logarithmic where values span a decade.

    At most 500 dots a column are drawn, evenly chosen; scores without a usable value are counted at the top.
    """
    values = [v for column in columns for v in (*column.values, *column.references.values())]
    if not values:
        return ""
    low, high = min(values), max(values)
    logarithmic = low > 1 / LARGEST and high / low > 10
    scale = math.log10 if logarithmic else float
    bottom, top = scale(low), scale(high)
    pad = 0.06 * (top - bottom) or 0.5 * abs(top) or 1.0
    bottom, top = bottom - pad, top + pad

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (scale(value) - bottom) / (top - bottom) * (HEIGHT - BOTTOM - TOP)

    parts = [_axis(ticks(bottom, top, logarithmic), y)]
    step = (WIDTH - LEFT - RIGHT) / len(columns)
    for index, column in enumerate(columns):
        parts.append(_column(column, LEFT + step * (index + 0.5), min(0.36 * step, 44), y))
    label = escape(f"{title} by round")
    size = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" height="{HEIGHT:g}"'
    return f'<div class="scroll"><svg class="chart" {size} role="img" aria-label="{label}">{"".join(parts)}</svg></div>'


def _axis(values: list[float], y: Scale) -> str:
    lines = "".join(f"M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" for tick in values)
    texts = "".join(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>' for tick in values)
    return f'<path class="grid" d="{lines}"/>{texts}'


def _column(column: Column, x: float, half: float, y: Scale) -> str:
    stride = max(1, math.ceil(len(column.values) / MAX_DOTS))
    values = column.values[::stride]
    # Golden-ratio steps spread neighbours sideways without drawing random numbers.
    dots = "".join(f"M{x + half * (2 * (i * 0.618034 % 1) - 1):.1f} {y(v):.1f}h0" for i, v in enumerate(values))
    bars = "".join(f"M{x - half - 4:.1f} {y(v):.1f}h{2 * half + 8:.1f}" for v in column.references.values())
    texts = f'<text x="{x:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(column.label)}</text>'
    if column.unusable:
        texts += f'<text class="warn" x="{x:.1f}" y="14" text-anchor="middle">{column.unusable} not ok</text>'
    return f'<path class="dots" d="{dots}"/><path class="reference" d="{bars}"/>{texts}'


def ticks(bottom: float, top: float, logarithmic: bool, *, whole: bool = False) -> list[float]:
    """Round values between the ends of an axis to label, about five; of a logarithmic axis the ends are exponents of ten.

    ``whole`` says that the values are integers, between which nothing is labelled.
    """
    if logarithmic:
        steps = (1, 2, 5) if top - bottom < 2.5 else (1,)
        exponents = range(math.floor(bottom), math.ceil(top) + 1)
        return [s * 10.0**e for e in exponents for s in steps if bottom <= math.log10(s * 10.0**e) <= top]
    raw = max((top - bottom) / 5, 1.0 if whole else 0.0)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    rounds = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(s * magnitude for s in rounds if s * magnitude >= raw * 0.999)
    return [step * k for k in range(math.ceil(bottom / step), math.floor(top / step) + 1)]
