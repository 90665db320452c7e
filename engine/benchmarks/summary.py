"""What a table of scores and accuracies says: correlations with intervals, differences that are paired, tables and plots."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.benchmarks.combination import MOST, CrossFitted, cross_fitted
from engine.benchmarks.options import EvidenceOptions
from engine.benchmarks.published import COLUMNS, Published
from engine.benchmarks.statistics import (
    Bootstrap,
    Interval,
    differences,
    interval,
    kendall,
    mean_ranks,
    ranks,
    spearman,
)
from engine.scoring.proxies.catalogue import PROXIES, Best
from engine.scoring.result import Score

COMBINED = "combined"
PLOTS = 6


@dataclass(frozen=True)
class Verdict:
    """One score: correlations with accuracy over all architectures and without those at chance, and how far it can be trusted.

    ``over`` are the differences of its Spearman correlation to parameters' and FLOPs'. ``unusable`` counts evaluations whose
    status is not ok; they rank last.
    """

    name: str
    spearman: Interval
    kendall: Interval
    without_chance: Interval
    over: Mapping[str, Interval]
    reliability: float | None
    unusable: int


@dataclass(frozen=True)
class Judgement:
    """All verdicts, best first, and the differences to published scores (own minus published) on rows where these are finite."""

    verdicts: tuple[Verdict, ...]
    published: Mapping[str, tuple[Interval, Interval]]
    chance: int
    combination: CrossFitted | None
    plots: tuple[dict[str, Any], ...]

    def tables(self) -> list[dict[str, Any]]:
        """For the report."""
        columns = ["Score", "Spearman", "Kendall", f"Spearman without {self.chance} at chance", "over params", "over flops"]
        rows = [[v.name, *_interval_texts(v), _shown(v.reliability), v.unusable] for v in self.verdicts]
        found = [
            {
                "title": "Rank correlation with test accuracy",
                "columns": [*columns, "Between seeds", "Not ok"],
                "rows": rows,
                "note": "95 % bootstrap intervals over architectures; differences are paired.",
            }
        ]
        if self.combination is not None:
            halves = self.combination.halves
            found.append(
                {
                    "title": f"The combined score: up to {MOST} scores, chosen on one half and judged on the other",
                    "columns": ["Scores", "Spearman where chosen", "Spearman on the other half"],
                    "rows": [[", ".join(half.combination), _shown(half.chosen), _shown(half.judged)] for half in halves],
                    "note": "Sums of the logarithms of relative ranks. Architectures of one function stay in one half.",
                }
            )
        if self.published:
            found.append(
                {
                    "title": "Against published scores of the same architectures",
                    "columns": ["Score", "Published Spearman", "Own minus published"],
                    "rows": [[name, theirs.text(), more.text()] for name, (theirs, more) in self.published.items()],
                    "note": "Rows with a published score that is not finite are left out on both sides.",
                }
            )
        return found

    def lines(self) -> list[str]:
        """The tables as text."""
        found = []
        for table in self.tables():
            rows = [table["columns"], *([str(value) for value in row] for row in table["rows"])]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            found += [table["title"], *("  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip() for row in rows)]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "at_chance": self.chance,
            "scores": {v.name: _verdict_dict(v) for v in self.verdicts},
            "published": {
                name: {"spearman": _triple(theirs), "own_minus_published": _triple(more)}
                for name, (theirs, more) in self.published.items()
            },
            "tables": self.tables(),
            "plots": list(self.plots),
        }


def judge(
    options: EvidenceOptions,
    names: Sequence[str],
    scores: Mapping[str, Sequence[Sequence[Score]]],
    accuracy: Sequence[float],
    chance: float,
    published: Published | None,
    groups: Sequence[Hashable],
) -> Judgement:
    """Correlate every score (by name, repeat and architecture) with the accuracies, in percent.

    An architecture's place is the mean of its ranks over repeats. ``chance`` is the accuracy up to which it counts as guessing.
    Architectures of one of ``groups`` are twins. :data:`COMBINED` is cross-fitted (:mod:`engine.benchmarks.combination`), so that
    no architecture is ranked by a choice that it had a part in.
    """
    truth = np.array(accuracy)
    found = {name: mean_ranks(scores[name], PROXIES[name].best) for name in names}
    places = {name: place for name, (place, _) in found.items()}
    combination = cross_fitted(places, truth, groups, options.seed)
    if combination is not None:
        places[COMBINED] = combination.place
    usable = truth > chance
    boot, kept = (Bootstrap(int(count), options.resamples, options.seed) for count in (len(truth), usable.sum()))
    values = {name: spearman(place, truth) for name, place in places.items()}
    resampled = {name: boot.spearman(place, truth) for name, place in places.items()}
    over = {base: differences(values, resampled, base) for base in ("params", "flops")}
    verdicts = [
        Verdict(
            name,
            interval(values[name], resampled[name]),
            interval(kendall(place, truth), boot.kendall(place, truth)),
            interval(spearman(place[usable], truth[usable]), kept.spearman(place[usable], truth[usable])),
            {base: rows[name] for base, rows in over.items() if name in rows},
            found[name][1] if name in found else None,
            sum(not score.ok for column in scores.get(name, ()) for score in column),
        )
        for name, place in places.items()
    ]
    # A score that is the same for all architectures has no correlation, and stands last.
    verdicts.sort(key=lambda v: -np.inf if np.isnan(v.spearman.value) else v.spearman.value, reverse=True)
    compared = compare(options, places, truth, published) if published is not None else {}
    plots = tuple(_plot(v, scores[v.name][0], truth, options.target) for v in verdicts if v.name in scores)[:PLOTS]
    return Judgement(tuple(verdicts), compared, int((~usable).sum()), combination, plots)


def compare(
    options: EvidenceOptions, places: Mapping[str, np.ndarray], truth: np.ndarray, published: Published
) -> dict[str, tuple[Interval, Interval]]:
    """By proxy, the published column's Spearman correlation and how much the own one exceeds it, on common finite rows."""
    found = {}
    for name, column in COLUMNS.items():
        if name not in places or column not in published.columns:
            continue
        found[name] = _paired(options, published.columns[column], places[name], truth)
    if COMBINED in places and "nwot" in published.columns:
        found[f"{COMBINED} against nwot"] = _paired(options, published.columns["nwot"], places[COMBINED], truth)
    return found


def _paired(options: EvidenceOptions, theirs: np.ndarray, own: np.ndarray, truth: np.ndarray) -> tuple[Interval, Interval]:
    rows = np.isfinite(theirs)
    boot = Bootstrap(int(rows.sum()), options.resamples, options.seed)
    pair, truth = {"published": theirs[rows], "own": own[rows]}, truth[rows]
    values = {name: spearman(column, truth) for name, column in pair.items()}
    resampled = {name: boot.spearman(column, truth) for name, column in pair.items()}
    return interval(values["published"], resampled["published"]), differences(values, resampled, "published")["own"]


def _plot(verdict: Verdict, scores: Sequence[Score], truth: np.ndarray, target: str) -> dict[str, Any]:
    """Ranks, not values: they span orders of magnitude, and some are infinite."""
    best: Best = PROXIES[verdict.name].best
    return {
        "title": f"{verdict.name}: Spearman {verdict.spearman.text()}",
        "x_label": "rank of the score",
        "y_label": f"test accuracy on {target} (percent)",
        "series": [{"name": verdict.name, "x": ranks(scores, best).tolist(), "y": truth.tolist()}],
        "kind": "scatter",
        "scale": "linear",
    }


def _interval_texts(verdict: Verdict) -> list[str]:
    shown = [found.text() for found in (verdict.spearman, verdict.kendall, verdict.without_chance)]
    return [*shown, *(verdict.over[base].text() if base in verdict.over else "–" for base in ("params", "flops"))]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _verdict_dict(verdict: Verdict) -> dict[str, Any]:
    return {
        "spearman": _triple(verdict.spearman),
        "kendall": _triple(verdict.kendall),
        "spearman_without_chance": _triple(verdict.without_chance),
        **{f"over_{base}": _triple(more) for base, more in verdict.over.items()},
        "reliability": verdict.reliability,
        "not_ok": verdict.unusable,
    }


def _triple(found: Interval) -> list[float]:
    return [round(found.value, 5), round(found.low, 5), round(found.high, 5)]
