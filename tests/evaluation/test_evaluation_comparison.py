"""What a comparison concludes from runs whose accuracies are known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engine.evaluation.comparison import Trained, comparison, paired_difference


def trained(method: str, seed: int, accuracy: float, *, interval: float = 0.01, searched: bool = True) -> Trained:
    test = {"kind": "5-way 1-shot", "accuracies": [{"classifier": "logistic", "mean": accuracy, "interval": interval}]}
    train = {
        "tests": [test],
        "parameters": 1000 + seed,
        "flops": 50,
        "steps": 7,
        "cpu_seconds": 2.5,
        "command": f"train {method} {seed}",
    }
    search = {"cpu_seconds": 10.0, "evaluations": 30} if searched else {}
    return Trained(method, seed, f"out/{method}-{seed}/train", search, train)


def table(runs: list[Trained], title: str) -> dict[str, Any]:
    return next(item for item in comparison(runs)["tables"] if item["title"].startswith(title))


RUNS = [trained("a", k, value) for k, value in enumerate((0.80, 0.82, 0.84))]
RUNS += [trained("b", k, value, searched=False) for k, value in enumerate((0.70, 0.725, 0.735))]
RUNS += [trained("c", k, value) for k, value in enumerate((0.79, 0.80, 0.87))]


def test_a_paired_interval_is_students() -> None:
    found = paired_difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    assert found.value == pytest.approx(2.0)
    assert found.interval == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert not found.supported
    assert paired_difference([3.0], [1.0]).interval is None
    assert not paired_difference([3.0], [1.0]).supported


def test_means_and_both_spreads() -> None:
    rows = table(RUNS, "Few-shot accuracy")["rows"]
    assert rows[0] == ["a", 3, f"82.00 ± {math.sqrt(3) / 3:.2f}, sd 2.00"]
    assert table(RUNS[:1], "Few-shot accuracy")["rows"] == [["a", 1, "80.00 ± 1.00"]]


def test_only_what_the_intervals_hold_is_supported() -> None:
    rows = {row[0]: row[2:] for row in table(RUNS, "Which differences")["rows"]}
    assert rows["a − b"] == ["+10.00", "± 1.24", "supported"]
    assert rows["a − c"][0] == "+0.00"
    assert rows["a − c"][2] == "not supported"
    assert table([RUNS[0], RUNS[3]], "Which differences")["rows"][0][3:] == ["one run each", "not supported"]


def test_costs_are_among_the_columns() -> None:
    rows = table(RUNS, "Cost")["rows"]
    assert rows[0] == ["a", 1001, 50, 7, 2.5, 10.0, 30.0]
    assert rows[1] == ["b", 1001, 50, 7, 2.5, 0, 0]


def test_every_run_names_its_command_and_is_plotted() -> None:
    rows = table(RUNS, "Runs")["rows"]
    assert [row[:3] for row in rows[:2]] == [["a", 0, "80.00"], ["a", 1, "82.00"]]
    assert rows[0][-1] == "train a 0"
    (plot,) = comparison(RUNS)["plots"]
    assert [series["name"] for series in plot["series"]] == ["a", "b", "c"]
    assert plot["series"][0]["x"] == [1000, 1001, 1002]
    assert plot["series"][0]["low"] == pytest.approx([79, 81, 83])


def test_random_cells_of_a_seed_count_as_one_in_differences_and_as_many_in_spread() -> None:
    drawn = [trained("random", 0, 0.6), trained("random", 0, 0.8), trained("random", 1, 0.75)]
    deeper = [trained("random@8", 0, 0.5), trained("random@8", 1, 0.7)]
    runs = [*drawn, trained("a", 0, 0.75), trained("a", 1, 0.79), *deeper]
    difference = table(runs, "Which differences")["rows"][0]
    assert (difference[0], difference[2]) == ("random − a", "-4.50")  # 70 and 75 against 75 and 79
    assert table(runs, "Random cells")["rows"] == [
        ["random", "5-way 1-shot", 3, "71.67", "10.41", "60.00", "80.00", "a 2/3"],
        ["random@8", "5-way 1-shot", 2, "60.00", "14.14", "50.00", "70.00", "a 2/2"],
    ]
    assert not [item for item in comparison(RUNS)["tables"] if item["title"] == "Random cells"]
