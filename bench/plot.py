"""Drawing a file of rows: one panel a configuration, one bar a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.rows import Row
from engine.errors import ConfigurationError

WIDTH_INCHES, PANEL_INCHES, BAR_INCHES = 9.0, 0.75, 0.3
BAR, WHISKER, LINE = "#4878a8", "#222222", "#999999"


def draw(rows: list[Row], target: Path) -> None:
    """Draw CPU time relative to each panel's baseline, with whiskers from the 20th to the 80th percentile.

    The suffix of ``target`` names the format. Of rows for the same configuration and method the last one is drawn. Needs
    matplotlib (the extra ``viz``).
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigurationError("plot: needs matplotlib; install it with pip install 'nas-engine[viz]'") from None
    panels = _panels(rows)
    bars = sum(len(panel) for panel in panels.values())
    with matplotlib.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(WIDTH_INCHES, bars * BAR_INCHES + len(panels) * PANEL_INCHES), layout="constrained")
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=[len(panel) + 1 for panel in panels.values()])
        for axis, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
            _panel(axis, title, panel)
        axes[-1, 0].set_xlabel("CPU time relative to the baseline")
        try:
            figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no format of that name"
            raise ConfigurationError(f"{target}: cannot be drawn ({reason}); name a file that ends in .svg or .png") from None


def _panels(rows: list[Row]) -> dict[str, list[Row]]:
    panels: dict[str, dict[str, Row]] = {}
    for row in rows:
        setting = ", ".join(f"{key} {value}" for key, value in row.configuration.items())
        panels.setdefault(f"{row.benchmark}, {row.device}: {setting}", {})[row.method] = row
    return {title: list(panel.values()) for title, panel in panels.items()}


def _panel(axis: Any, title: str, panel: list[Row]) -> None:
    middles = [row.ratio.median for row in panel]
    whiskers = [[row.ratio.median - row.ratio.p20 for row in panel], [row.ratio.p80 - row.ratio.median for row in panel]]
    bars = axis.barh([row.method for row in panel], middles, xerr=whiskers, color=BAR, ecolor=WHISKER, height=0.7)
    axis.bar_label(bars, [_label(row) for row in panel], padding=6)
    axis.axvline(1, color=LINE, linewidth=0.8, zorder=0)
    axis.invert_yaxis()
    axis.margins(x=0.35)
    axis.set_xlim(left=0)
    axis.set_title(title, loc="left", x=-0.2, fontsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)


def _label(row: Row) -> str:
    memory = "" if row.peak_bytes is None else f", {row.peak_bytes / 1e6:.0f} MB"
    return f"{row.ratio.median:.2f}x, {row.cpu_s.median * 1e3:.3g} ms{memory}"
