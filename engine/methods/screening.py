"""First-order search: all removals of a round ranked by one second-order pass, the doubtful ones scored exactly.

The drop of log kappa by a removal is estimated by its derivative along the removal's own direction
(:func:`engine.scoring.ablations.removal_slopes`), for every candidate from one pass a repeat
(:mod:`engine.scoring.first_order`). Linear regions are counted exactly for every candidate, without a smooth surrogate: a count
takes 1/5000 of the multiply-adds of an exact kernel score at the published size, and 1/200 at the default's, where it is then a
third of a screened search's CPU time.

Racing: for each edge the removal that would be pruned and the one that comes next are a pair. The pairs whose estimated
difference is smallest, in its standard errors over repeats, are scored exactly, repeat by repeat, until the interval of the exact
difference leaves zero out or the repeats end. Estimates overshoot, because a removal is not a small step: they are shrunk by the
slope of exact on estimated changes that the step's own exact scores show.

``python -m bench.studies.screen`` measures how often this decides as the exact search does, beside how often two exact searches
with different seeds do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from engine.methods.options import NATIVE_LIMIT, PruningOptions
from engine.methods.pruning import Candidate, Decision, Mask, Pruning, Record, State
from engine.methods.scorer import Scorer
from engine.methods.steps import StepWork, score_line
from engine.runs.distribution import ALONE, Ranks
from engine.runs.profiling import step_begins
from engine.scoring.ablations import Address, forward_macs, removal_slopes
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


class Estimate(NamedTuple):
    """One repeat: the supernet's scores, and each candidate's estimated change of log kappa (None: unknown) and regions."""

    supernet: dict[str, Score]
    changes: list[float | None]
    regions: list[Score]


@dataclass
class Screened:
    """What a step knows: the estimates of its repeats, and exact condition numbers by (candidate, repeat)."""

    candidates: list[Candidate]
    estimates: list[Estimate] = field(default_factory=list)
    exact: dict[Place, Score] = field(default_factory=dict)

    def share(self) -> float:
        """What exact changes are of estimated ones: a line through zero, 1 where nothing has been scored exactly."""
        pairs = [(self.change(c, r), exact) for (c, r) in self.exact if (exact := self.exact_change(c, r)) is not None]
        known = [(estimate, exact) for estimate, exact in pairs if estimate is not None]
        square = sum(estimate * estimate for estimate, _ in known)
        if square == 0:
            return 1.0
        return min(1.0, max(SMALLEST_SHARE, sum(estimate * exact for estimate, exact in known) / square))

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
        share, found = self.share(), []
        for repeat, estimate in enumerate(self.estimates):
            for place, candidate in enumerate(self.candidates):
                ablated = {"condition": self._condition(candidate, repeat, share)}
                if estimate.regions:
                    ablated["regions"] = estimate.regions[place]
                found.append(Record(candidate, repeat, estimate.supernet, ablated))
        return found

    def _condition(self, candidate: Candidate, repeat: int, share: float) -> Score:
        if (candidate, repeat) in self.exact:
            return self.exact[candidate, repeat]
        before, change = self.estimates[repeat].supernet["condition"], self.change(candidate, repeat)
        if change is None:
            return replace(before)  # unknown: as if nothing changed; a supernet that is not ok is left out anyway
        return Score(before.value * math.exp(share * change), "ok", before.name)


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
        run.append("scores.jsonl", {**score_line(scorer.space, work, record), "condition_estimated": estimated})
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
    if scorer.regions is not None:
        (supernet["regions"],) = scorer.counts(alive.unsqueeze(0), draws, draws)
        for part in without(alive, list(candidates)).split(scorer.width):
            regions += scorer.counts(part, draws, draws)
    return Estimate(supernet, changes, regions)


def exact(scorer: Scorer, state: State, candidate: Candidate, draws: Address) -> Score:
    """The condition number of one removal."""
    return scorer.conditions(without(torch.tensor(state.alive), [candidate]), draws, draws, draws)[0]


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

        def score(number: int, places: list[Place] = places) -> list[Any]:
            candidate, repeat = places[number]
            found = exact(scorer, state, candidate, (step, repeat))
            return [repr(found.value), found.status, found.name]

        label = f"step {step} race {repeat}"
        for place, (value, status, name) in zip(places, ranks.deal(label, len(places), score, stop), strict=True):
            screened.exact[place] = Score(float(value), status, name)
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


def estimate_to_json(found: Estimate) -> dict[str, Any]:
    """Plain JSON types, floats exact; :func:`estimate_from_json` reads them back."""
    return {
        "supernet": {name: [repr(s.value), s.status, s.name] for name, s in found.supernet.items()},
        "changes": [None if change is None else repr(change) for change in found.changes],
        "regions": [[repr(s.value), s.status, s.name] for s in found.regions],
    }


def estimate_from_json(value: Mapping[str, Any]) -> Estimate:
    """Read :func:`estimate_to_json`'s form."""
    scores = {name: Score(float(text), status, label) for name, (text, status, label) in value["supernet"].items()}
    regions = [Score(float(text), status, label) for text, status, label in value["regions"]]
    return Estimate(scores, [None if text is None else float(text) for text in value["changes"]], regions)


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
