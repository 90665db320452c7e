from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from engine.benchmarks.published import load_published
from engine.benchmarks.statistics import (
    Bootstrap,
    differences,
    interval,
    kendall,
    log_rank_sum,
    mean_ranks,
    ranks,
    reliability,
    spearman,
)
from engine.errors import ConfigurationError
from engine.scoring.result import Score

columns = st.lists(st.integers(-3, 3), min_size=3, max_size=12)


@given(columns, st.randoms())
def test_correlations_are_scipys(a, random):
    b = list(a)
    random.shuffle(b)
    if len(set(a)) > 1:
        assert spearman(np.array(a), np.array(b)) == pytest.approx(stats.spearmanr(a, b).statistic)
        assert kendall(np.array(a), np.array(b)) == pytest.approx(stats.kendalltau(a, b).statistic)
    else:
        assert math.isnan(spearman(np.array(a), np.array(b)))


def test_ranks_put_what_is_not_ok_last():
    scores = [Score(3.0), Score(math.nan, "nonfinite"), Score(1.0), Score(math.inf, "singular"), Score(3.0)]
    assert ranks(scores, "largest").tolist() == [4.5, 1.0, 3.0, 2.0, 4.5]
    assert ranks(scores, "smallest").tolist() == [3.5, 1.0, 5.0, 2.0, 3.5]


def test_resamples_are_common_and_by_seed():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 40))
    boot = Bootstrap(40, 50, seed=3)
    assert np.array_equal(boot.index, Bootstrap(40, 50, seed=3).index)
    assert not np.array_equal(boot.index, Bootstrap(40, 50, seed=4).index)
    found = boot.spearman(a, b)
    for row, value in zip(boot.index[:5], found[:5], strict=True):
        assert value == pytest.approx(stats.spearmanr(a[row], b[row]).statistic)
    assert boot.kendall(a, b)[0] == pytest.approx(stats.kendalltau(a[boot.index[0]], b[boot.index[0]]).statistic)


def test_intervals_cover():
    """Of 100 samples with a true correlation of 0.6 most intervals hold it."""
    generator = np.random.default_rng(1)
    true = 6 / math.pi * math.asin(0.6 / 2)
    held = 0
    for seed in range(100):
        x = generator.normal(size=(2, 60))
        a, b = x[0], 0.6 * x[0] + 0.8 * x[1]
        found = interval(spearman(a, b), Bootstrap(60, 200, seed).spearman(a, b))
        held += found.low <= true <= found.high
    assert 86 <= held <= 100


def test_paired_differences():
    truth = np.arange(30.0)
    columns = {"good": truth + 0.1, "noise": np.random.default_rng(2).normal(size=30)}
    boot = Bootstrap(30, 200, seed=0)
    values = {name: spearman(column, truth) for name, column in columns.items()}
    more = differences(values, {name: boot.spearman(column, truth) for name, column in columns.items()}, "noise")["good"]
    assert more.value == pytest.approx(1 - values["noise"])
    assert more.low > 0


def test_constant_scores_have_no_interval():
    assert math.isnan(interval(math.nan, np.full(5, np.nan)).low)


def test_reliability_and_mean_ranks():
    first, second = ([Score(float(v)) for v in values] for values in ((1, 2, 3), (1, 3, 2)))
    mean, agreement = mean_ranks([first, second], "largest")
    assert mean.tolist() == [1.0, 2.5, 2.5]
    assert agreement == pytest.approx(0.5)
    assert reliability([np.arange(3.0)]) is None


def test_log_rank_sum_needs_all_to_be_good():
    even, torn = log_rank_sum([np.array([2.0, 1.0, 3.0, 4.0]), np.array([2.0, 3.0, 1.0, 4.0])])[[0, 1]]
    assert even > torn


def archive(path, **changes):
    content = {
        "official_index": np.array([5, 7], dtype=np.int32),
        "zc_names": np.array(["nwot", "params"]),
        "zc_index_cifar10": np.array([7]),
        "zc_scores_cifar10": np.array([[np.inf, 1.0]]),
    } | changes
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return path


CODES = np.array([[0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 0, 1]], dtype=np.uint8)


def test_published_scores(tmp_path):
    found = load_published(archive(tmp_path / "t.npz"), CODES, "cifar10")
    assert found.cells == ((1, 2, 3, 4, 0, 1),)
    assert found.columns["nwot"].tolist() == [math.inf]
    assert found.columns["params"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("t.csv", {}, "read from an npz"),
        ("t.npz", {"zc_names": None}, "no array zc_names"),
        ("t.npz", {"zc_index_cifar10": np.array([6])}, "that the table lacks"),
        ("t.npz", {"zc_scores_cifar10": np.array([[1.0]])}, "must hold a number for each"),
        ("t.npz", {"official_index": np.array([7])}, "must hold a number for each"),
    ],
)
def test_published_scores_that_do_not_fit(tmp_path, name, changes, message):
    path = tmp_path / name
    with path.open("wb") as file:
        archive(file, **changes)
    with pytest.raises(ConfigurationError, match=message):
        load_published(path, CODES, "cifar10")
