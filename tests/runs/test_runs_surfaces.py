"""Surfaces in the report: shades of values, and nothing that is not of the form."""

from __future__ import annotations

from typing import Any

import pytest

from engine.runs.surfaces import svg, to_levels


def test_levels_are_sixteen_equal_steps() -> None:
    assert to_levels([0, 1, 15.9, 16, 8]) == "01ff8"
    assert to_levels([3, 3]) == "00"


def test_draws_every_point_once() -> None:
    drawn = svg({"title": "a <b>", "width": 3, "height": 2, "levels": ["00f0f0"]})
    assert drawn is not None
    assert "&lt;b&gt;" in drawn
    assert drawn.count("<path") == 2
    runs = [piece for piece in drawn.split('"') if piece.startswith("M")]
    assert sorted(".".join(runs).replace("z", "").split("M")[1:]) == sorted(
        ["0 0h2v1h-2", "0 1h1v1h-1", "2 1h1v1h-1.", "2 0h1v1h-1", "1 1h1v1h-1"]
    )


@pytest.mark.parametrize(
    "change",
    [{"width": 0}, {"width": 10**9}, {"height": True}, {"levels": []}, {"levels": ["0g0000"]}, {"levels": ["0"]}, {"levels": 3}],
)
def test_leaves_out_what_is_not_of_the_form(change: dict[str, Any]) -> None:
    assert svg({"title": "", "width": 3, "height": 2, "levels": ["000000"], **change}) is None
