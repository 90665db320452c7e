"""First-order search: all removals of a round ranked by one second-order pass, the doubtful ones scored exactly.

The drop of log kappa by a removal is estimated by its derivative along the removal's own direction
(:func:`engine.scoring.ablations.removal_slopes`), for all from one pass a repeat (:mod:`engine.scoring.first_order`). Linear
regions are counted for every candidate, a third of the CPU time at the default's size; ``smooth_regions`` estimates them too, by
a surrogate's derivative (:mod:`engine.scoring.smooth_regions`), 70 times faster.

Racing: for each edge the removal that would be pruned and the next are a pair. The pairs whose estimated difference is smallest,
in its standard errors over repeats, are scored exactly, repeat by repeat, until the interval of the exact difference leaves zero
out or the repeats end. Estimates overshoot, because a removal is not a small step: they are shrunk by the slope of exact on
estimated changes that the step's own exact scores show.

``python -m bench.studies.screen`` measures how often this decides as the exact search, beside how often another seed does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch

from engine.methods.estimates import Estimate, estimate_from_json, estimate_to_json, scores_from_json, scores_to_json
from engine.methods.options import NATIVE_LIMIT, PruningOptions
from engine.methods.pruning import Candidate, Decision, Mask, Pruning, Record, State
from engine.methods.scorer import Scorer
from engine.methods.steps import StepWork, score_line
from engine.runs.distribution import ALONE, Ranks
from engine.runs.profiling import step_begins
from engine.scoring.ablations import Address, Slopes, forward_macs, removal_slopes
from engine.scoring.first_order import PASSES
from engine.scoring.result import Score
from engine.spaces.mixture import without
from engine.spaces.space import Space

if TYPE_CHECKING:
    from engine.runs.run import Run
    from engine.runs.signals import Stop

# No estimated change of log kappa is taken for more than this: measured exact ones stay below, derivatives need not.
LARGEST = 1.0
# Estimates are shrunk to no less than this share, so that they keep their order where the exact scores contradict them.
SMALLEST_SHARE = 0.05
# Standard errors that the difference of a pair must be away from zero.
SEPARATED = 2.0
# Forward passes of an exact score: forward, backward, per-sample gradients.
EXACT_PASSES = 3

Place = tuple[Candidate, int]


@dataclass
class Screened:
    """What a step knows: its repeats' estimates; by (candidate, repeat) exact condition numbers, and counts where estimated."""

    candidates: list[Candidate]
    estimates: list[Estimate] = field(default_factory=list)
    exact: dict[Place, Score] = field(default_factory=dict)
    counted: dict[Place, Score] = field(default_factory=dict)

    def share(self) -> float:
        """What exact changes of log kappa are of estimated ones."""
        pairs = [(self.change(c, r), exact) for (c, r) in self.exact if (exact := self.exact_change(c, r)) is not None]
        return _share([(estimate, exact) for estimate, exact in pairs if estimate is not None])

    def region_share(self) -> float:
        """The same of the logarithms of region counts, 1 where none is estimated."""
        pairs = []
        for (candidate, repeat), after in self.counted.items():
            before, estimated = self._region_estimate(candidate, repeat)
            if before.ok and after.ok:
                pairs.append((math.log(estimated.value / before.value), math.log(after.value / before.value)))
        return _share(pairs)

    def change(self, candidate: Candidate, repeat: int) -> float | None:
        """The estimated change of log kappa, at most :data:`LARGEST` either way."""
        found = self.estimates[repeat].changes[self.candidates.index(candidate)]
        return None if found is None else max(-LARGEST, min(LARGEST, found))

    def exact_change(self, candidate: Candidate, repeat: int) -> float | None:
        """The exact change of log kappa; None where a score is not usable."""
        after, before = self.exact[candidate, repeat], self.estimates[repeat].supernet["condition"]
        return math.log(after.value / before.value) if after.ok and before.ok else None

    def records(self) -> list[Record]:
        """For :meth:`~engine.methods.pruning.Pruning.decide`: exact scores where there are, shrunk estimates elsewhere."""
        share, region_share, found = self.share(), self.region_share(), []
        for repeat, estimate in enumerate(self.estimates):
            for candidate in self.candidates:
                ablated = {"condition": self._condition(candidate, repeat, share)}
                if estimate.regions:
                    ablated["regions"] = self._region(candidate, repeat, region_share)
                found.append(Record(candidate, repeat, estimate.supernet, ablated))
        return found

    def _condition(self, candidate: Candidate, repeat: int, share: float) -> Score:
        if (candidate, repeat) in self.exact:
            return self.exact[candidate, repeat]
        before, change = self.estimates[repeat].supernet["condition"], self.change(candidate, repeat)
        if change is None:
            return replace(before)  # unknown: as if nothing changed; a supernet that is not ok is left out anyway
        return Score(before.value * math.exp(share * change), "ok", before.name)

    def _region(self, candidate: Candidate, repeat: int, share: float) -> Score:
        if (candidate, repeat) in self.counted:
            return self.counted[candidate, repeat]
        before, estimated = self._region_estimate(candidate, repeat)
        if share == 1.0 or not (before.ok and estimated.ok):
            return estimated
        return replace(estimated, value=before.value * (estimated.value / before.value) ** share)

    def _region_estimate(self, candidate: Candidate, repeat: int) -> tuple[Score, Score]:
        """The supernet's regions, and what is known of the candidate's without a race."""
        estimate = self.estimates[repeat]
        return estimate.supernet["regions"], estimate.regions[self.candidates.index(candidate)]


def _share(pairs: Sequence[tuple[float, float]]) -> float:
    """Slope of exact changes on estimated ones, a line through zero; 1 where there are none."""
    square = sum(estimate * estimate for estimate, _ in pairs)
    if square == 0:
        return 1.0
    return min(1.0, max(SMALLEST_SHARE, sum(estimate * exact for estimate, exact in pairs) / square))


def screen(
    candidates: list[Candidate],
    work: StepWork,
    pruning: Pruning,
    scorer: Scorer,
    options: PruningOptions,
    run: Run,
    stop: Any,
    bar: Any,
) -> tuple[Decision, list[Record]]:
    """One step of a first-order search, in the place of lines 3-16 of Algorithm 1: what it decides, and by which scores.

    Estimates are checkpointed repeat by repeat, as :meth:`~engine.runs.run.Run.offer` paces them; a race that is interrupted runs
    again.
    """
    first = len(work.estimates)

    def found(number: int) -> dict[str, Any]:
        step_begins()
        return estimate_to_json(estimate(scorer, work.state, candidates, (work.step, first + number)))

    label = f"step {work.step} estimates from {first}"
    for value in run.ranks.deal(label, options.repeats - first, found, stop):
        work.estimates.append(value)
        work.estimated += len(candidates)
        run.offer(work.to_dict, stop)
        bar.advance(len(candidates), step=work.step)
        stop.check()
    screened = Screened(candidates, [estimate_from_json(value) for value in work.estimates])
    decision = race(pruning, scorer, work.state, work.step, screened, options.rescore, run.ranks, stop)
    records = screened.records()
    for record in records:
        estimated = (record.candidate, record.repeat) not in screened.exact
        flags = {"condition_estimated": estimated} | ({"regions_estimated": estimated} if options.smooth_regions else {})
        run.append("scores.jsonl", score_line(scorer.space, work, record) | flags)
    spent, full = passes(screened)
    share = cost_share(scorer.space, work.state.alive, options)
    work.rescored += len(screened.exact)
    work.passes += spent * share
    work.exact_passes += full * share
    work.supernets += len(screened.estimates)
    return decision, records


def estimate(scorer: Scorer, state: State, candidates: Sequence[Candidate], draws: Address) -> Estimate:
    """One repeat of a step: a pure function of its arguments. The scorer's width bounds what is counted at once."""
    alive = torch.tensor(state.alive)
    found = scorer.slopes(alive, draws)
    changes: list[float | None] = [None] * len(candidates)
    if found.gradient is not None:
        changes = list(removal_slopes(found.gradient, alive, candidates))
    supernet, regions = {"condition": found.score}, []
    if scorer.regions is not None and scorer.options.smooth_regions:
        slopes = scorer.region_slopes(alive, draws)
        supernet["regions"] = slopes.score
        regions = _estimated_regions(slopes, alive, candidates)
    elif scorer.regions is not None:
        (supernet["regions"],) = scorer.counts(alive.unsqueeze(0), draws, draws)
        for part in without(alive, list(candidates)).split(scorer.width):
            regions += scorer.counts(part, draws, draws)
    return Estimate(supernet, changes, regions)


def _estimated_regions(slopes: Slopes, alive: torch.Tensor, candidates: Sequence[Candidate]) -> list[Score]:
    """What the smooth surrogate expects of each removal, at most :data:`LARGEST` in the logarithm either way; the supernet's own
    count where there are no derivatives.
    """
    before = slopes.score
    if slopes.gradient is None:
        return [replace(before) for _ in candidates]
    changes = removal_slopes(slopes.gradient, alive, candidates)
    return [Score(before.value * math.exp(max(-LARGEST, min(LARGEST, change))), "ok", before.name) for change in changes]


def exact(scorer: Scorer, state: State, candidate: Candidate, draws: Address) -> dict[str, Score]:
    """The condition number of one removal and, where regions are estimated, their count."""
    removed = without(torch.tensor(state.alive), [candidate])
    found = {"condition": scorer.conditions(removed, draws, draws, draws)[0]}
    if scorer.regions is not None and scorer.options.smooth_regions:
        found["regions"] = scorer.counts(removed, draws, draws)[0]
    return found


def pairs(state: State, decision: Decision) -> list[tuple[Candidate, Candidate]]:
    """Of every edge what was pruned and what comes next in the ranking."""
    order: dict[tuple[int, int], list[Candidate]] = {}
    for row in decision.rows:
        order.setdefault(row.candidate[:2], []).append(row.candidate)
    return [(ranked[0], ranked[1]) for _, ranked in sorted(order.items())]


def separation(values: Sequence[tuple[float | None, float | None]]) -> float:
    """How many standard errors the mean difference of pairs is away from zero; 0 where fewer than two are known."""
    differences = [a - b for a, b in values if a is not None and b is not None]
    if len(differences) < 2:
        return 0.0
    error = stdev(differences) / math.sqrt(len(differences))
    return abs(mean(differences)) / error if error > 0 else math.inf


def nearest(screened: Screened, state: State, decision: Decision, rescore: int) -> list[tuple[Candidate, Candidate]]:
    """The pairs to race, at most ``rescore`` removals in all: those whose estimates are separated least."""

    def distance(pair: tuple[Candidate, Candidate]) -> float:
        first, second = pair
        return separation([(screened.change(first, r), screened.change(second, r)) for r in range(len(screened.estimates))])

    return sorted(pairs(state, decision), key=distance)[: rescore // 2]


def race(
    pruning: Pruning,
    scorer: Scorer,
    state: State,
    step: int,
    screened: Screened,
    rescore: int,
    ranks: Ranks = ALONE,
    stop: Stop | None = None,
) -> Decision:
    """Race the nearest pairs, whatever rank is free scoring them, and decide by what is known then."""
    decision = pruning.decide(state, screened.records())
    racing = nearest(screened, state, decision, rescore)
    for repeat in range(len(screened.estimates)):
        places = [(candidate, repeat) for pair in racing for candidate in pair]

        def score(number: int, places: list[Place] = places) -> dict[str, Any]:
            candidate, repeat = places[number]
            return scores_to_json(exact(scorer, state, candidate, (step, repeat)))

        label = f"step {step} race {repeat}"
        for place, value in zip(places, ranks.deal(label, len(places), score, stop), strict=True):
            scores = scores_from_json(value)
            screened.exact[place] = scores["condition"]
            if "regions" in scores:
                screened.counted[place] = scores["regions"]
        known = {pair: [_exact_pair(screened, pair, r) for r in range(repeat + 1)] for pair in racing}
        racing = [pair for pair in racing if separation(known[pair]) < SEPARATED]
    return pruning.decide(state, screened.records())


def _exact_pair(screened: Screened, pair: tuple[Candidate, Candidate], repeat: int) -> tuple[float | None, float | None]:
    return screened.exact_change(pair[0], repeat), screened.exact_change(pair[1], repeat)


def passes(screened: Screened) -> tuple[int, int]:
    """Forward passes of the step's supernet that the kernels took (regions left out on both sides), and that scoring all removals
    exactly would have taken.
    """
    repeats = len(screened.estimates)
    return repeats * PASSES + EXACT_PASSES * len(screened.exact), repeats * EXACT_PASSES * (1 + len(screened.candidates))


def cost_share(space: Space, alive: Mask, options: PruningOptions) -> float:
    """Multiply-adds of the pruned supernet, as a share of the whole one's."""
    size = options.resolution(NATIVE_LIMIT)
    left = space.genotype([[list(edge) for edge in cell] for cell in alive])
    return forward_macs(space, cells=options.cells, channels=options.channels, size=size, genotype=left) / forward_macs(
        space, cells=options.cells, channels=options.channels, size=size
    )


def screening(work: StepWork) -> dict[str, Any]:
    """What a first-order search estimated and scored exactly, and the forward passes of the whole supernet that its rounds took;
    ``exact`` is what they would have taken without estimates.
    """
    return {
        "estimated": work.estimated,
        "rescored": work.rescored,
        "forward_passes": round(work.passes, 2),
        "exact": round(work.exact_passes, 2),
    }
