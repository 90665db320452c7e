"""Plots and tables of a result: drawn inside their frame, escaped, limited, whatever the file holds."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runs.charts import ticks
from engine.runs.line_charts import MAX_POINTS, Series, line_chart
from engine.runs.records import RunFiles, read_run
from engine.runs.report import render
from engine.runs.report_content import MAX_ROWS, plots, tables

EVIL = "</style><script>alert(1)</script><b2 onclick='x'>"


def of(**result: Any) -> RunFiles:
    return RunFiles("run", result=result)


def curve(**fields: Any) -> dict[str, Any]:
    series = {"name": "accuracy", "x": [0, 1, 2], "y": [0.2, 0.5, 0.6], "low": [0.1, 0.4, 0.5], "high": [0.3, 0.6, 0.7]}
    return {"title": "Learning", "x_label": "step", "y_label": "accuracy", "series": [series]} | fields


def coordinates(svg: str) -> list[tuple[float, float]]:
    drawn = re.findall(r'<path class="(?:line|band|point)"[^>]* d="([^"]*)"', svg)
    return [(float(x), float(y)) for path in drawn for x, y in re.findall(r"([-0-9.e]+) ([-0-9.e]+)", path)]


def test_a_line_has_its_band_and_labels() -> None:
    html = plots(of(plots=[curve()]))
    assert "<h3>Learning</h3>" in html
    assert html.count('class="band"') == html.count('class="line"') == html.count('class="point"') == 1
    for text in (">step</text>", ">accuracy</text>", 'aria-label="Learning: accuracy against step"'):
        assert text in html
    heights = [y for _, y in coordinates(html)]
    assert max(heights) > min(heights) + 200


def test_a_scatter_has_dots_and_bars() -> None:
    html = plots(of(plots=[curve(kind="scatter")]))
    assert html.count('class="bar"') == html.count('class="point"') == 1
    assert 'class="line"' not in html


def test_a_larger_value_stands_higher_and_further_right() -> None:
    (x0, y0), (x1, y1) = coordinates(line_chart("t", "x", "y", [Series("", [(1.0, 2.0), (3.0, 5.0)])], scatter=True))
    assert x1 > x0
    assert y1 < y0


def test_wide_positive_values_are_drawn_logarithmically() -> None:
    places = coordinates(line_chart("t", "x", "y", [Series("", [(1.0, 1.0), (10.0, 10.0), (1e4, 1e4)])], scatter=True))
    steps = [b[0] - a[0] for a, b in pairwise(places)]
    assert steps[1] == pytest.approx(3 * steps[0], rel=0.01)


def test_a_wide_span_stays_linear_where_that_is_asked() -> None:
    series = [{"name": "a", "x": [1, 10, 1e4], "y": [1, 10, 1e4]}]
    places = coordinates(plots(of(plots=[curve(series=series, kind="scatter", scale="linear")])))
    assert places[2][0] - places[1][0] > 100 * (places[1][0] - places[0][0])


def test_nothing_is_labelled_between_integers() -> None:
    assert ticks(0.96, 2.04, False, whole=True) == [1, 2]
    assert ticks(0.96, 2.04, False) == [1, 1.25, 1.5, 1.75, 2]
    assert ticks(0, 13, False, whole=True) == [0, 5, 10]


def test_intervals_that_do_not_hold_their_point_are_left_out() -> None:
    series = [{"name": "a", "x": [0, 1], "y": [1, 2], "low": [0, 3], "high": [2, 4]}]
    assert 'class="band"' not in plots(of(plots=[curve(series=series)]))


def test_points_without_a_number_are_left_out() -> None:
    series = [{"name": "a", "x": [0, 1, 2, "x"], "y": [1, "nan", None, 4, 5], "low": [0], "high": [2]}]
    html = plots(of(plots=[curve(series=series)]))
    assert {x for x, _ in coordinates(html)} == {403.0}
    assert html.count("h0") == 1


def test_a_plot_without_points_says_so() -> None:
    assert "Nothing to draw" in plots(of(plots=[curve(series=[])]))


def test_a_table_aligns_numbers() -> None:
    rows = [["conv4", 0.93, 111680, "93.3 ± 0.2", None, True], ["res5", 0.943123456, 169648, "94.3 ± 0.2", None, False]]
    item = {
        "title": "Found",
        "columns": ["network", "share", "parameters", "accuracy", "more", "kept"],
        "rows": rows,
        "note": "a note",
    }
    html = tables(of(tables=[item]))
    for text in (
        '<td class="number">111,680</td>',
        '<td class="number">93.3 ± 0.2</td>',
        "0.943123<",
        ">conv4<",
        "yes",
        "a note",
    ):
        assert text in html
    assert html.count('class="number"') == 3 * 4


def test_texts_that_begin_with_a_digit_are_not_numbers() -> None:
    item = {"columns": ["tasks", "share", "points"], "rows": [["5-way 1-shot", "93 %", "± 1.5"], ["20-way", "4 %", "-3e-05"]]}
    html = tables(of(tables=[item]))
    assert html.count('class="number"') == 2 * 3
    assert "<td >5-way 1-shot</td>" in html


def test_short_and_long_rows_fit_the_columns() -> None:
    html = tables(of(tables=[{"columns": ["a", "b"], "rows": [["x"], ["y", "z", "w"], 3]}]))
    assert html.count("<td") == 4
    assert "w" not in re.sub("<[^>]*>", "", html)


def test_sizes_are_limited() -> None:
    many = {"columns": ["a"] * 50, "rows": [[1] * 50] * (MAX_ROWS + 7)}
    html = tables(of(tables=[many] * 25))
    assert "7 more rows" in html
    assert "1 more tables" in html
    long = [{"name": "a", "x": list(range(5000)), "y": list(range(5000))}]
    assert len(coordinates(plots(of(plots=[curve(series=long)])))) == MAX_POINTS
    assert "2 more series" in plots(of(plots=[curve(series=curve()["series"] * 20)]))


def test_hostile_content_is_escaped(tmp_path: Path) -> None:
    series = [{"name": EVIL, "x": [1, EVIL], "y": [2, EVIL]}]
    result = {
        "plots": [curve(title=EVIL, x_label=EVIL, y_label=EVIL, kind=EVIL, series=series)],
        "tables": [{"title": EVIL, "columns": [EVIL, {EVIL: EVIL}], "rows": [[EVIL, [EVIL]]], "note": EVIL}],
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    html = render(read_run(tmp_path))
    assert "<script" not in html
    assert "<b2" not in html
    assert html.count("&lt;script&gt;") >= 9


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["inf", "<b2>", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "rows"]), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["title", "x_label", "series", "name", "x", "y", "low", "high", "kind", "columns", "rows", "note"])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.dictionaries(KEYS, JSON, max_size=6), max_size=3))
def test_no_content_breaks_it(items: list[dict[str, Any]]) -> None:
    nested = [curve() | item for item in items] + [curve(series=[curve()["series"][0] | item for item in items])]
    html = plots(of(plots=nested)) + tables(of(tables=items))
    assert "<b2" not in html


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.floats(), st.floats()), max_size=5), max_size=4),
    st.sampled_from(["line", "scatter"]),
)
def test_charts_stay_inside_their_frame(columns: list[list[tuple[float, float]]], kind: str) -> None:
    series = [{"name": "s", "x": [x for x, _ in rows], "y": [y for _, y in rows]} for rows in columns]
    places = coordinates(plots(of(plots=[curve(series=series, kind=kind)])))
    assert all(0 <= x <= 760 and 0 <= y <= 320 for x, y in places)


def test_every_table_leads_to_the_command_that_made_it() -> None:
    table = {"title": "Accuracy", "columns": ["a"], "rows": [[1]]}
    html = render(of(method="rfs", command=f"python -m engine.train rfs --network {EVIL}", tables=[table, table]))
    assert html.count('href="#command"') == 2
    assert html.count('id="command"') == 1
    assert "<span>engine.train</span> <span>rfs</span>" in html
    assert EVIL not in html
    assert 'href="#command"' not in tables(of(tables=[table]))
