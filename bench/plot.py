"""Drawing a file of rows: one panel a configuration, one bar a method."""

from __future__ import annotations

from pathlib import Path

from bench.rows import Row
from engine.errors import ConfigurationError

BAR_INCHES, PANEL_INCHES, WIDTH_INCHES = 0.28, 0.75, 9.0


def draw(rows: list[Row], target: Path) -> None:
    """Draw CPU time relative to each panel's baseline, whiskers from the 20th to the 80th percentile; the suffix names the format.

    Of rows for the same configuration and method the last in the file is drawn. Needs matplotlib (the extra ``viz``).
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigurationError("plot: needs matplotlib; install it with pip install 'nas-engine[viz]'") from None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(rows)
    bars = sum(len(panel) for panel in panels.values())
    with matplotlib.rc_context({"svg.hashsalt": "bench", "font.size": 9}):
        figure = Figure(figsize=(WIDTH_INCHES, bars * BAR_INCHES + len(panels) * PANEL_INCHES), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=[len(panel) + 1 for panel in panels.values()])
        for axis, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
            _panel(axis, title, panel)
        axes[-1, 0].set_xlabel("CPU time relative to the baseline")
        try:
            figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{target}: cannot be drawn ({error}); name a file that ends in .svg or .png") from None


def _panels(rows: list[Row]) -> dict[str, list[Row]]:
    panels: dict[str, dict[str, Row]] = {}
    for row in rows:
        setting = ", ".join(f"{key} {value}" for key, value in row.configuration.items())
        panels.setdefault(f"{row.benchmark} on {row.device}: {setting}", {})[row.method] = row
    return {title: list(panel.values()) for title, panel in panels.items()}


def _panel(axis: object, title: str, panel: list[Row]) -> None:
    ...
