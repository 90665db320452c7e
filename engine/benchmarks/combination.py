"""Several scores as one: which to combine is chosen on one half of the architectures and judged on the other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from engine.benchmarks.statistics import log_rank_sum, spearman, spearman_rows
from engine.runs.streams import address_seed

MOST = 3
"""Scores in a combination, at most."""
FEWEST_ARCHITECTURES = 8


@dataclass(frozen=True)
class Half:
    """One half: the combination chosen on it, its Spearman correlation there (flattered by the choice), and on the other half."""

    combination: tuple[str, ...]
    chosen: float
    judged: float


@dataclass(frozen=True)
class CrossFitted:
    """``place`` float64 (n,): each architecture's relative rank, the larger the better, within its half and by the combination
    that was chosen on the other one.
    """

    place: np.ndarray
    halves: tuple[Half, Half]


def cross_fitted(
    places: Mapping[str, np.ndarray], truth: np.ndarray, groups: Sequence[Hashable], seed: int
) -> CrossFitted | None:
    """Choose the best combination of up to :data:`MOST` rankings on each half, and rank the other half by it.

    ``places`` holds rankings (n,) by name, the larger the better, and ``truth`` (n,) what they should order. Architectures of one
    of the ``groups`` (n,) stay in one half, so that a twin does not tell what was to be found. The halves are drawn by ``seed``.
    None where there are fewer than :data:`FEWEST_ARCHITECTURES` architectures, or a half is ordered by no score.

    Cost: one ranking of a half for each of the combinations, 4,525 of 30 scores.
    """
    if len(truth) < FEWEST_ARCHITECTURES:
        return None
    first = halved(groups, seed)
    of_first, of_second = _best(places, truth, first), _best(places, truth, ~first)
    if of_first is None or of_second is None:
        return None
    place = np.empty(len(truth))
    halves = []
    for (names, value), rows in ((of_first, ~first), (of_second, first)):
        combined = log_rank_sum([places[name] for name in names])[rows]
        place[rows] = stats.rankdata(combined) / rows.sum()
        halves.append(Half(names, value, spearman(combined, truth[rows])))
    return CrossFitted(place, (halves[0], halves[1]))


def halved(groups: Sequence[Hashable], seed: int) -> np.ndarray:
    """Bool (n,): which architectures are in the first half; every group is in one of them, half of the groups in each."""
    distinct = list(dict.fromkeys(groups))
    order = np.random.default_rng(address_seed(seed, "halves", len(distinct))).permutation(len(distinct))
    first = {distinct[place] for place in order[: len(distinct) // 2]}
    return np.array([group in first for group in groups])


def _best(places: Mapping[str, np.ndarray], truth: np.ndarray, rows: np.ndarray) -> tuple[tuple[str, ...], float] | None:
    """The combination that orders these rows best, the first and smallest of equals, and its correlation."""
    logarithms = {name: log_rank_sum([place])[rows] for name, place in places.items() if np.ptp(place[rows]) > 0}
    if not logarithms or np.ptp(truth[rows]) == 0:
        return None
    found = [names for size in range(1, MOST + 1) for names in combinations(logarithms, size)]
    values = spearman_rows(np.array([np.sum([logarithms[name] for name in names], axis=0) for names in found]), truth[rows])
    best = int(np.nanargmax(values))
    return found[best], float(values[best])
