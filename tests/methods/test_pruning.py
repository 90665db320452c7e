from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError, NumericalError
from engine.methods.pruning import Candidate, Decision, Mask, Pruning, Record, Stage, State, agreement
from engine.runs.streams import address_seed
from engine.scoring.result import Score

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metantk.json").read_text())
CELL = ((0, 1), (2, 3, 4), (5, 6, 7, 8))
FEWSHOT = (CELL, CELL)
FULL = [[[False] + [True] * 7 for _ in range(9)] for _ in range(2)]  # operation 0 is "none"
BAD = Score(math.inf, "singular")


def golden_u(index: int, source: int) -> float:
    """The recipe's integer hash."""
    h = ((index + 1) * 2654435761 + (source + 1) * 2246822519) % 2**32
    h ^= h >> 16
    h = h * 2246822507 % 2**32
    h ^= h >> 13
    h = h * 3266489909 % 2**32
    return ((h ^ h >> 16) + 0.5) / 2**32


def golden_records(candidates: list[Candidate], alive: Mask, round_: int, stage: Stage) -> list[Record]:
    def value(candidate: Candidate, repeat: int, kind: int) -> float:
        cell, edge, op = candidate
        return 2 * golden_u(0, 3000000 + ((((round_ * 2 + cell) * 9 + edge) * 8 + op) * 3 + repeat) * 2 + kind) - 1

    return [
        Record(
            candidate,
            repeat,
            {"condition": Score(50.0), "regions": Score(2000.0)},
            {
                "condition": Score(50 * (1 - 0.3 * value(candidate, repeat, 0))),
                "regions": Score(math.floor(2000 * (1 - 0.02 * value(candidate, repeat, 1)) + 0.5)),
            },
        )
        for candidate in candidates
        for repeat in range(3)
    ]


def records(
    values: dict[Candidate, Sequence[tuple[float | Score, float | Score]]],
    supernet: Sequence[tuple[float | Score, float | Score]] | None = None,
) -> list[Record]:
    """Records from (condition, regions) of each repeat; the supernet has (100, 1000) unless given."""

    def scores(pair: tuple[float | Score, float | Score]) -> dict[str, Score]:
        return {name: v if isinstance(v, Score) else Score(v) for name, v in zip(("condition", "regions"), pair, strict=True)}

    return [
        Record(c, r, scores(supernet[r] if supernet else (100.0, 1000.0)), scores(pair))
        for c, pairs in values.items()
        for r, pair in enumerate(pairs)
    ]


def one_edge(operations: int) -> tuple[Pruning, State, list[Candidate]]:
    rule = Pruning(nodes=(((0,),),))
    state = rule.start([[[True] * operations]])
    return rule, state, rule.candidates(state)


def test_hash_matches_the_recipe() -> None:
    assert [golden_u(i, 7) for i in range(4)] == GOLDEN["check"]["hash_u(4,7)"]


def test_golden_pruning_trace() -> None:
    golden, calls = GOLDEN["ranking"], [0] * 7

    def score(candidates: list[Candidate], alive: Mask, round_: int, stage: Stage) -> list[Record]:
        calls[round_] += len(candidates)
        return golden_records(candidates, alive, round_, stage)

    rule = Pruning(FEWSHOT, faithful=True)
    decisions = list(rule.run(rule.start(FULL), score))
    rounds = [[list(c) for c in d.pruned] for d in decisions if d.stage == "operations"]
    assert rounds == golden["pruned_per_round"]
    assert [list(c) for d in decisions if d.stage == "edges" for c in d.pruned] == golden["pruned_group_stage"]
    final = [[[o for o, live in enumerate(edge) if live] for edge in cell] for cell in decisions[-1].state.alive]
    assert final == golden["final_ops_per_edge"]
    # Published: three repeats, and the supernet scored anew beside each candidate.
    assert [[6 * n, 6 * n] for n in calls] == golden["evals_per_round"]
    assert rule.plan(FULL) == calls
    assert 6 * sum(calls) == golden["evals_total"]["cond"] == golden["evals_total"]["lr"]


def test_each_stage_shows_the_mask_it_started_from() -> None:
    rule = Pruning(FEWSHOT)
    decisions = list(rule.run(rule.start(FULL), golden_records))
    last_round = [d for d in decisions if d.stage == "operations"][-1].state
    for decision in decisions:
        assert decision.state.origin == (last_round.alive if decision.stage == "edges" else decision.state.alive)
    assert [(d.round, d.state.group) for d in decisions[6:]] == [(6, 1), (6, 2), (6, 3), (6, 4)]


def test_ranks_are_dense_over_rounded_drops() -> None:
    rule, state, (a, b, c, d) = one_edge(4)
    scored = records({a: [(90.0, 900.0)], b: [(90.01, 1000.0)], c: [(80.0, 990.0)], d: [(110.0, 1000.2)]})
    rows = {row.candidate: row for row in rule.decide(state, scored).rows}
    assert [rows[x].ranks["condition"] for x in (a, b, c, d)] == [1, 1, 0, 2]
    assert [rows[x].ranks["regions"] for x in (a, b, c, d)] == [2, 0, 1, 0]
    assert [rows[x].total for x in (a, b, c, d)] == [3, 1, 1, 2]
    assert rows[c].drops == {"condition": pytest.approx(0.2), "regions": pytest.approx(0.01)}


def test_ties_in_the_sum_go_to_the_larger_condition_drop_then_to_enumeration() -> None:
    rule, state, (a, b, c) = one_edge(3)
    scored = records({a: [(100.0, 1000.0)], b: [(90.0, 900.0)], c: [(90.0, 900.0)]})
    assert [row.candidate for row in rule.decide(state, scored).rows] == [b, c, a]
    assert rule.decide(state, scored).pruned == (b,)


def test_faithful_ties_are_successive_ranks_unless_exactly_equal() -> None:
    rule, state, (a, b, c) = one_edge(3)
    faithful = Pruning(rule.nodes, faithful=True)
    # The means 0.1231.. and 0.1233.. share three significant digits; a comes first, though its drop is the smaller one.
    drops = {a: (0.123, 0.123, 0.123), b: (0.123, 0.123, 0.124), c: (0.05, 0.05, 0.05)}
    scored = records({k: [(100 * (1 - v), 1000.0) for v in values] for k, values in drops.items()})
    rows = {row.candidate: row.ranks["condition"] for row in faithful.decide(state, scored).rows}
    assert rows == {a: 0, b: 1, c: 2}
    assert rule.decide(state, scored).rows[0].candidate == b
    same = records({k: [(90.0, 1000.0)] * 3 for k in (a, b, c)})
    assert {row.ranks["condition"] for row in faithful.decide(state, same).rows} == {0}


def test_the_order_of_repeats_matters_only_where_it_did_in_the_published_code() -> None:
    rule, state, (a, b) = one_edge(2)
    faithful = Pruning(rule.nodes, faithful=True)
    # Added from left to right, .1 + .2 + .3 is larger than .3 + .2 + .1.
    scored = records({a: [(70.0, 1000.0), (80.0, 1000.0), (90.0, 1000.0)], b: [(90.0, 1000.0), (80.0, 1000.0), (70.0, 1000.0)]})
    for pruning, ranks in ((rule, [0, 0]), (faithful, [0, 1])):
        rows = pruning.decide(state, scored).rows
        assert [row.candidate for row in rows] == [a, b]
        assert [row.ranks["condition"] for row in rows] == ranks


@pytest.mark.parametrize(
    ("bad", "faithful"), [(BAD, False), (BAD, True), (Score(math.nan, "nonfinite"), False), (Score(1.0, "clamped"), False)]
)
def test_a_removal_that_breaks_a_score_is_pruned_last(bad: Score, faithful: bool) -> None:
    rule = Pruning((((0,),),), faithful=faithful)
    state = rule.start([[[True] * 4]])
    a, b, c, d = rule.candidates(state)
    # b would be the first to go by its regions, and by its condition in the other repeat.
    scored = records(
        {a: [(150.0, 900.0)] * 2, b: [(1.0, 1100.0), (bad, 1100.0)], c: [(150.0, 800.0)] * 2, d: [(150.0, 700.0)] * 2}
    )
    decision = rule.decide(state, scored)
    assert decision.rows[-1].candidate == b
    assert decision.rows[-1].drops["condition"] == -math.inf
    assert decision.rows[-1].ranks["condition"] == max(row.ranks["condition"] for row in decision.rows)
    assert decision.pruned == (a,)


@pytest.mark.parametrize(("value", "winner"), [(-1e8, "second"), (100000.0, "first")])
def test_faithful_takes_the_published_numbers_of_broken_scores(value: float, winner: str) -> None:
    """A condition number that rounding made negative is the largest drop of all and wins; NaN's 100000 loses."""
    paired, state, candidates = one_edge(2)
    broken = Score(value, "singular" if value < 0 else "nonfinite")
    scored = records({candidates[0]: [(150.0, 900.0)], candidates[1]: [(broken, 900.0)]})
    faithful = Pruning(paired.nodes, faithful=True).decide(state, scored)
    assert faithful.pruned == (candidates[("first", "second").index(winner)],)
    assert paired.decide(state, scored).pruned == (candidates[0],), "a sound ranking is not impressed"


def test_a_repeat_without_a_good_supernet_is_left_out() -> None:
    rule, state, (a, b) = one_edge(2)
    scored = records({a: [(90.0, 1000.0), (1.0, 1.0)], b: [(95.0, 1000.0), (1.0, 1.0)]}, [(100.0, 1000.0), (BAD, 1000.0)])
    decision = rule.decide(state, scored)
    assert decision.rows[0].drops["condition"] == pytest.approx(0.1)
    assert decision.agreement == (1.0,)
    for useless in (BAD, 0.0):
        with pytest.raises(NumericalError, match=r"condition and regions"):
            rule.decide(state, records({a: [(1.0, 1.0)], b: [(1.0, 1.0)]}, [(useless, 1.0)]))


def test_agreement_is_the_share_of_repeats_with_the_same_choice() -> None:
    rule, state, (a, b) = one_edge(2)
    scored = records({a: [(50.0, 1000.0), (101.0, 1000.0), (99.0, 1000.0)], b: [(100.0, 1000.0)] * 3})
    decision = rule.decide(state, scored)
    assert decision.pruned == (a,)
    assert decision.agreement == (pytest.approx(2 / 3),)
    assert agreement([a, b], [[a], [a, b]]) == (1.0, 0.5)
    assert agreement([a], []) == (0.0,)


@pytest.mark.parametrize("metrics", [("condition",), ("regions",)])
def test_one_metric_alone(metrics: tuple[str, ...]) -> None:
    rule = Pruning((((0,),),), metrics=metrics)
    state = rule.start([[[True] * 2]])
    a, b = rule.candidates(state)
    scored = [Record(c, 0, {metrics[0]: Score(10.0)}, {metrics[0]: Score(v)}) for c, v in ((a, 9.0), (b, 11.0))]
    assert rule.decide(state, scored).pruned == ((a,) if metrics == ("condition",) else (b,))


def test_wrong_records_are_refused() -> None:
    rule, state, (a, b) = one_edge(2)
    good = records({a: [(1.0, 1.0)] * 2, b: [(1.0, 1.0)] * 2})
    for wrong in ([], good[:2], good[:-1], [*good, good[0]], records({a: [(1.0, 1.0)], Candidate(0, 0, 5): [(1.0, 1.0)]})):
        with pytest.raises(ValueError, match=r"^records: "):
            rule.decide(state, wrong)
    with pytest.raises(ValueError, match=r"^state: "):
        rule.decide(rule.decide(state, good).state, [])


@st.composite
def spaces(draw: st.DrawFn) -> tuple[tuple[tuple[tuple[int, ...], ...], ...], list[list[list[bool]]]]:
    nodes, masks = [], []
    for _ in range(draw(st.integers(1, 2))):
        widths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        starts = [sum(widths[:i]) for i in range(len(widths))]
        nodes.append(tuple(tuple(range(s, s + w)) for s, w in zip(starts, widths, strict=True)))
        masks.append([draw(st.lists(st.booleans(), min_size=1, max_size=4)) for _ in range(sum(widths))])
    return tuple(nodes), masks


def hashed(seed: int) -> Callable[[list[Candidate], Mask, int, Stage], list[Record]]:
    """Scores by address, with a few that are not ok."""

    def draw(*address: int | str) -> Score:
        value = address_seed(seed, "score", *address) % 97
        return BAD if value == 0 else Score(float(value))

    def score(candidates: list[Candidate], alive: Mask, round_: int, stage: Stage) -> list[Record]:
        supernet = {"condition": Score(50.0), "regions": Score(40.0)}
        return [
            Record(c, r, supernet, {name: draw(name, round_, stage, r, *c) for name in supernet})
            for c in reversed(candidates)
            for r in range(2)
        ]

    return score


@settings(max_examples=50)
@given(spaces(), st.integers(1, 3), st.integers(0, 10), st.booleans(), st.data())
def test_any_space_ends_with_one_operation_an_edge_and_resumes_anywhere(
    space: tuple[Any, list[list[list[bool]]]], final_edges: int, seed: int, faithful: bool, data: st.DataObject
) -> None:
    nodes, masks = space
    rule = Pruning(nodes, final_edges, faithful=faithful)
    asked: dict[tuple[int, Stage], int] = {}

    def score(candidates: list[Candidate], alive: Mask, round_: int, stage: Stage) -> list[Record]:
        assert all(alive[c][e][o] for c, e, o in candidates)
        asked[round_, stage] = asked.get((round_, stage), 0) + len(candidates)
        return hashed(seed)(candidates, alive, round_, stage)

    start = rule.start(masks)
    decisions: list[Decision] = list(rule.run(start, score))
    final = (decisions[-1].state if decisions else start).alive
    for before, cell, table in zip(masks, final, nodes, strict=True):
        for node in table:
            live = sum(any(before[e]) for e in node)
            assert sum(sum(cell[e]) for e in node) == min(live, final_edges)
            assert all(sum(cell[e]) <= 1 for e in node)
    assert [n for n in rule.plan(masks) if n] == list(asked.values())
    assert all(0 <= share <= 1 for decision in decisions for share in decision.agreement)
    if decisions:
        at = data.draw(st.integers(0, len(decisions) - 1))
        restored = rule.restore(json.loads(json.dumps(decisions[at].state.to_dict())))
        assert restored == decisions[at].state
        assert list(rule.run(restored, hashed(seed))) == decisions[at + 1 :]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["alive", "origin", "round", "group"]), inner),
    max_leaves=8,
)


@given(json_values | st.fixed_dictionaries(dict.fromkeys(("alive", "origin", "round", "group"), json_values)))
def test_damaged_states_are_configuration_errors(value: Any) -> None:
    rule = Pruning((((0,),),))
    try:
        state = rule.restore(value)
    except ConfigurationError:
        return
    assert rule.restore(json.loads(json.dumps(state.to_dict()))) == state


def test_wrong_rules_and_masks_are_configuration_errors() -> None:
    nodes = (((0, 1),),)
    for options in ({"metrics": ()}, {"metrics": ("speed",)}, {"metrics": ("regions", "regions")}):
        with pytest.raises(ConfigurationError, match=r"^metrics: "):
            Pruning(nodes, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"^final_edges: "):
        Pruning(nodes, final_edges=0)
    for faithful, precision in ((False, -1), (True, 0)):
        with pytest.raises(ConfigurationError, match=r"^precision: "):
            Pruning(nodes, precision=precision, faithful=faithful)
    for mask in ([[[True]]], [], [[[True], [1]]], [[[True], 3]]):
        with pytest.raises(ConfigurationError, match=r"^mask: "):
            Pruning(nodes).start(mask)  # type: ignore[arg-type]
    late = {"alive": [[[True], [True]]], "origin": [[[True], [True]]], "round": 0, "group": 1}
    with pytest.raises(ConfigurationError, match=r"group 1 does not exist"):
        Pruning(nodes).restore(late)


def test_pruning_does_not_import_torch() -> None:
    code = "import sys, engine.methods.pruning; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
