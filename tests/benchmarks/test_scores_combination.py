from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engine.benchmarks.combination import cross_fitted, halved
from engine.benchmarks.statistics import Interval, spearman, spearman_rows


def rankings(count: int, seed: int, noise: int = 20) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two halves of the truth, and many columns of noise."""
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(2, count))
    columns = {"a": a, "b": b, **{f"noise{i}": generator.normal(size=count) for i in range(noise)}}
    return {name: stats.rankdata(column) for name, column in columns.items()}, a + b


def test_finds_what_belongs_together():
    places, truth = rankings(200, 0)
    found = cross_fitted(places, truth, range(200), seed=1)
    assert found is not None
    assert all({"a", "b"} <= set(half.combination) for half in found.halves)
    assert spearman(found.place, truth) > max(spearman(column, truth) for column in places.values())
    for half in found.halves:
        assert half.judged == pytest.approx(0.95, abs=0.05)


def test_a_choice_among_noise_is_not_rewarded():
    """The best of 1561 combinations of noise looks good where it was chosen, and like noise where it was not."""
    chosen, judged, placed = [], [], []
    for seed in range(12):
        places, truth = rankings(40, seed)
        found = cross_fitted({name: column for name, column in places.items() if "noise" in name}, truth, range(40), seed)
        assert found is not None
        chosen += [half.chosen for half in found.halves]
        judged += [half.judged for half in found.halves]
        placed.append(spearman(found.place, truth))
    assert np.mean(chosen) > 0.5
    assert abs(np.mean(judged)) < 0.15
    assert abs(np.mean(placed)) < 0.15


def test_no_architecture_is_ranked_by_a_choice_it_had_a_part_in():
    places, truth = rankings(60, 3)
    first = halved(range(60), seed=5)
    before = cross_fitted(places, truth, range(60), seed=5)
    changed = np.where(first, truth, truth[::-1])
    after = cross_fitted(places, changed, range(60), seed=5)
    assert before is not None
    assert after is not None
    # the second half's truth decides how the first is ranked, and nothing else of it
    assert np.array_equal(before.place[~first], after.place[~first])


def test_twins_stay_together_and_halves_are_halves():
    groups = [n // 3 for n in range(90)]
    first = halved(groups, seed=2)
    assert all(len({bool(first[i]) for i in range(90) if groups[i] == group}) == 1 for group in set(groups))
    assert first.sum() == 45
    assert np.array_equal(first, halved(groups, seed=2))
    assert not np.array_equal(first, halved(groups, seed=3))


def test_too_little_to_choose_from():
    places, truth = rankings(7, 0)
    assert cross_fitted(places, truth, range(7), seed=0) is None
    places, truth = rankings(10, 0)
    assert cross_fitted({"same": np.ones(10)}, truth, range(10), seed=0) is None
    assert cross_fitted(places, np.ones(10), range(10), seed=0) is None


def test_rows_against_one_column():
    generator = np.random.default_rng(0)
    rows, column = generator.normal(size=(3, 12)), generator.normal(size=12)
    assert spearman_rows(rows, column) == pytest.approx([stats.spearmanr(row, column).statistic for row in rows])


def test_no_correlation_is_a_dash():
    assert Interval(float("nan"), float("nan"), float("nan")).text() == "–"
    assert Interval(0.5, 0.25, 0.75).text() == "0.500 [0.250, 0.750]"
