"""Rank correlations of scores with accuracies, their intervals, and how far scores of different seeds agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from engine.runs.streams import address_seed
from engine.scoring.proxies.catalogue import Best
from engine.scoring.result import Score

COVERAGE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % percentile interval over bootstrap resamples of the architectures."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        """``0.790 [0.741, 0.832]``; a dash where there is no correlation, because all scores are alike."""
        return "–" if math.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ranks(scores: Sequence[Score], best: Best) -> np.ndarray:
    """Float64 (n,): ranks from 1, the larger the better; ties share their mean rank.

    Scores that are not ``ok`` stand behind all that are, by status and then by value, so that every score has its place.
    """
    keys = [score.rank_key(best) for score in scores]
    order = {key: place for place, key in enumerate(sorted(set(keys), reverse=True))}
    return stats.rankdata([order[key] for key in keys])


def log_rank_sum(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Several rankings (n,) as one: the sum of the logarithms of relative ranks, which a bad rank in any of them pulls down
    (Lee and Ham, AZ-NAS, CVPR 2024).
    """
    return np.sum([np.log(column / len(column)) for column in columns], axis=0)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two columns (n,)."""
    return float(spearman_rows(a[None], b)[0])


def spearman_rows(rows: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each row (R, n) with one column (n,), (R,)."""
    return _rowwise(stats.rankdata(rows, axis=1), stats.rankdata(b)[None])


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b of two columns (n,)."""
    return float(stats.kendalltau(a, b).statistic)


class Bootstrap:
    """Resamples of n architectures, common to all scores, so that differences between scores are paired."""

    def __init__(self, count: int, resamples: int, seed: int) -> None:
        generator = np.random.default_rng(address_seed(seed, "bootstrap", count))
        self.index = generator.integers(count, size=(resamples, count))

    def spearman(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Spearman's correlation in every resample, (R,)."""
        return _rowwise(stats.rankdata(a[self.index], axis=1), stats.rankdata(b[self.index], axis=1))

    def kendall(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Kendall's tau-b in every resample, (R,)."""
        return np.array([kendall(a[rows], b[rows]) for rows in self.index])


def interval(value: float, resampled: np.ndarray) -> Interval:
    """The estimate with the percentiles of its resamples, without those that have none (all scores alike)."""
    usable = resampled[np.isfinite(resampled)]
    if not len(usable):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(usable, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(value, float(low), float(high))


def reliability(by_seed: Sequence[np.ndarray]) -> float | None:
    """Mean Spearman correlation between the rankings of two seeds; None with one seed."""
    pairs = [spearman(a, b) for a, b in combinations(by_seed, 2)]
    return float(np.mean(pairs)) if pairs else None


def mean_ranks(by_seed: Sequence[Sequence[Score]], best: Best) -> tuple[np.ndarray, float | None]:
    """The mean of each architecture's ranks over seeds, and the :func:`reliability` of single seeds."""
    columns = [ranks(scores, best) for scores in by_seed]
    return np.mean(columns, axis=0), reliability(columns)


def differences(values: Mapping[str, float], resampled: Mapping[str, np.ndarray], against: str) -> dict[str, Interval]:
    """How much each correlation exceeds that of ``against``, paired over the resamples."""
    return {
        name: interval(value - values[against], resampled[name] - resampled[against])
        for name, value in values.items()
        if name != against
    }


def _rowwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the rows of two matrices; NaN where a row is constant."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.full(len(a), np.nan), where=scale > 0)
