"""Quadruples ordered by their classes, and the loss that asks for that order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.learning.ordering import Ordered, collect_quadruples, misordered, ordered_quadruples, ordering_loss


@given(st.lists(st.integers(0, 4), min_size=5, max_size=12), st.integers(1, 10), st.integers(0, 99))
def test_quadruples_of_a_batch_follow_its_labels(labels: list[int], count: int, seed: int) -> None:
    given = torch.tensor(labels)
    found = ordered_quadruples(given, count, torch.Generator().manual_seed(seed))
    x, y, z, w = given[found.places][:, found.there]
    assert bool((x == y).all())
    assert bool((z != w).all())
    pairs = len(labels) * (len(labels) - 1) // 2
    alike = sum(labels.count(c) * (labels.count(c) - 1) // 2 for c in set(labels))
    assert int(found.there.sum()) == min(count, alike, pairs - alike)
    distinct = {tuple(sorted(pair)) for pair in found.places[:2, found.there].T.tolist()}
    assert len(distinct) == int(found.there.sum())


def test_loss_counts_wrong_orders_only() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    right = torch.tensor([[0], [1], [0], [2]])
    wrong = right[[2, 3, 0, 1]]
    there = torch.ones(2, dtype=torch.bool)
    both = Ordered(torch.cat([right, wrong], 1), there)
    assert float(ordering_loss(features, both)) == 1
    assert float(ordering_loss(features, both, mean=True)) == 0.5
    assert int(misordered(features, both)) == 1
    none = Ordered(both.places, ~there)
    assert (
        float(ordering_loss(features, none))
        == float(ordering_loss(features, none, mean=True))
        == int(misordered(features, none))
        == 0
    )


@given(st.lists(st.integers(0, 3), min_size=4, max_size=15), st.integers(1, 30), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_collection_is_swapped_by_its_share(labels: list[int], count: int, swapped: float) -> None:
    given = torch.tensor(labels)
    if len(set(labels)) < 2 or len(set(labels)) == len(labels):
        with pytest.raises(ConfigurationError, match="two images of a class"):
            collect_quadruples(given, count, swapped, torch.Generator())
        return
    places = collect_quadruples(given, count, swapped, torch.Generator().manual_seed(count))
    assert places.shape == (4, count)
    assert bool((places[0] != places[1]).all() and (places[2] != places[3]).all())
    x, y, z, w = given[places]
    assert bool(((x == y) ^ (z == w)).all())
    assert int((z == w).sum()) == round(swapped * count)


def test_collection_reaches_every_image_evenly() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 2])
    x, y, z, w = collect_quadruples(labels, 40_000, 0.0, torch.Generator().manual_seed(1))
    assert set(x.tolist()) == {0, 1, 2, 3, 4}
    counts = torch.bincount(y[x == 0], minlength=6)
    assert counts[2] + counts[4] == counts.sum()
    assert abs(int(counts[2]) - int(counts[4])) < 400
    others = torch.bincount(w[z == 5], minlength=6)
    assert int(others[:5].min()) > 0.9 * int(others[:5].max())
    assert others[5] == 0
