"""P-DARTS's discrete steps against the published procedure, and what is drawn in a pass."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.methods.pdarts_options import PdartsOptions
from engine.runs.streams import stream
from engine.spaces.darts import competing, discretise
from engine.spaces.darts_supernet import DartsSupernet, SoftmaxRelaxation
from engine.spaces.draws import DrawnMixture, Draws
from engine.spaces.progressive import candidates, drop_weakest, limit_skips, restricted
from engine.spaces.space import DARTS

SKIP = DARTS.operations.index("skip_connect")


def strengths(seed: int, alive: list[list[list[bool]]]) -> list[list[list[float]]]:
    a = torch.randn(2, 14, 8, generator=torch.Generator().manual_seed(seed))
    space = restricted(DARTS, alive)
    return SoftmaxRelaxation(space)(a).weights.double().tolist()


def published_final(alive: list[list[bool]], probabilities: list[list[float]], most: int) -> list[tuple[int, int]]:
    """(edge, operation) by the released rule: one operation an edge, two edges a node, the weakest chosen skip struck out."""
    p = copy.deepcopy(probabilities)
    while True:
        best = []
        for row, values in zip(alive, p, strict=True):
            able = [o for o in range(1, 8) if row[o]]
            best.append(max(able, key=lambda o: values[o]))
        chosen, start = [0, 1], 2
        for n in (3, 4, 5):
            ranked = sorted(range(n), key=lambda j: p[start + j][best[start + j]])
            chosen += [start + ranked[-1], start + ranked[-2]]
            start += n
        skips = [e for e in chosen if best[e] == SKIP]
        if len(skips) <= most:
            return sorted((e, best[e]) for e in chosen)
        p[min(skips, key=lambda e: p[e][SKIP])][SKIP] = 0.0


@given(st.integers(0, 10_000), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_final_cells_are_the_published_ones(seed: int, most: int) -> None:
    everything = competing(DARTS)
    alive = drop_weakest(drop_weakest(everything, strengths(seed, everything), 5), strengths(seed + 1, everything), 3)
    assert {sum(row) for kind in alive for row in kind} == {3}
    rows = strengths(seed + 2, alive)
    for e in range(14):  # skips are strong, so that the limit has work to do
        if alive[0][e][SKIP]:
            rows[0][e][SKIP] += 0.5
    found = limit_skips(restricted(DARTS, alive), rows, most)
    edges = [(DARTS.edges.index((c.source, c.target)), DARTS.operations.index(c.operation)) for c in found["normal"].connections]
    assert sorted(edges) == published_final(alive[0], rows[0], most)


def test_weakest_are_dropped_and_the_first_of_equals() -> None:
    everything = competing(DARTS)
    rows = [[[0.1, 0.3, 0.1, 0.1, 0.2, 0.1, 0.05, 0.05]] * 14] * 2
    left = drop_weakest(everything, rows, 5)[0][0]
    assert [o for o, lives in enumerate(left) if lives] == [1, 2, 3, 4, 5]  # 6 and 7 are the weakest, then the first of 0.1
    assert drop_weakest(everything, rows, 20) == everything


def test_candidates_end_without_skips_and_reduction_cells_stay() -> None:
    rows = [[[0.1] * 8 for _ in range(14)] for _ in range(2)]
    for e in range(14):
        rows[0][e][SKIP] = rows[1][e][SKIP] = 0.3 + 0.01 * e
    found = candidates(DARTS, rows)
    assert [most for most, _ in found] == list(range(8, -1, -1))
    counts = [sum(c.operation == "skip_connect" for c in cell["normal"].connections) for _, cell in found]
    assert counts == list(range(8, -1, -1))
    assert {cell["reduction"] for _, cell in found} == {discretise(DARTS, rows)["reduction"]}


def test_skips_without_an_alternative_stay() -> None:
    alive = [[[name in ("none", "skip_connect") for name in DARTS.operations] for _ in range(14)] for _ in range(2)]
    found = limit_skips(restricted(DARTS, alive), strengths(0, alive), 0)
    assert len(found["normal"].connections) == 8


def drawn(mixture: object, *address: int, **rates: float) -> DrawnMixture:
    return DrawnMixture.of(mixture, Draws(lambda purpose, *place: stream(0, purpose, *address, *place), **rates))  # type: ignore[arg-type]


@pytest.mark.parametrize("rates", [{"skip_dropout": 0.5}, {"drop_path": 0.5}])
def test_draws_repeat_by_address_and_average_out(rates: dict[str, float]) -> None:
    model = DartsSupernet(DARTS, cells=3, channels=2, outputs=3)
    relaxation = SoftmaxRelaxation(DARTS)
    mixture, x = relaxation(torch.zeros(relaxation.shape)), torch.randn(4, 3, 8, 8)
    one, again, other = (model(x, drawn(mixture, k, **rates)) for k in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    torch.testing.assert_close(model(x, drawn(mixture, 0)), model(x, mixture))


def test_dropout_scales_what_it_keeps() -> None:
    kept = Draws(lambda *place: stream(0, *place), skip_dropout=0.25)._kept("skip-dropout", (16, 8, 16, 16), 0.25, 0, 0)
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)
    assert kept.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ConfigurationError, match="drop_path"):
        Draws(stream, drop_path=1.0)


def test_only_skips_of_stride_one_are_dropped() -> None:
    """A reduction cell's edges from its inputs are factorised reductions, which have no dropout."""
    model = DartsSupernet(DARTS, cells=2, channels=2, outputs=3)
    relaxation = SoftmaxRelaxation(DARTS)
    lanes = {kind: model._lane(relaxation(torch.zeros(2, 14, 8)), k, 4) for k, kind in enumerate(DARTS.kinds)}
    x = torch.zeros(4, 3, 8, 8)
    draws = Draws(lambda *place: stream(0, *place), skip_dropout=0.5)
    reduction = model._drawn(x, lanes, draws)[1]
    shapes = [tuple(terms["skip_connect"].weight.shape) for terms in reduction.edges]  # type: ignore[union-attr]
    assert shapes[:2] == [(), ()]
    assert shapes[4] == (4, 4, 4, 4)


def test_stages_of_the_published_configuration() -> None:
    options = PdartsOptions()
    assert (options.stage_cells, options.stage_kept, options.stage_dropout) == ((5, 11, 17), (5, 3), (0.0, 0.4, 0.7))
    assert options.all_epochs == 75
