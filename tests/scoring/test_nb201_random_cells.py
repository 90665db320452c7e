from __future__ import annotations

import math
from itertools import islice

import numpy as np
import torch

from engine.benchmarks.options import SETS
from engine.scoring.proxies.catalogue import PROXIES
from engine.scoring.proxies.scores import LabelledBatch, scores
from engine.scoring.result import STATUSES
from engine.spaces.nas_bench_201 import canonical, every_cell, is_disconnected, to_genotype
from engine.spaces.network import build_network


def tiny(cell) -> dict:
    torch.manual_seed(0)
    net = build_network(to_genotype(cell), channels=2, classes=2, cells=2, tail=True)
    x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return scores(net, LabelledBatch(x, torch.tensor([0, 1, 0, 1])), SETS["cheap"])


def test_ten_thousand_random_cells_have_a_place_in_every_ranking():
    """Cells that compute the same function score alike, so only one of each needs a network; of these, all that are degenerate
    (nothing, or nothing with weights, reaches the output) and every hundred and fiftieth other are run.
    """
    drawn = np.random.default_rng(0).integers(5, size=(10_000, 6)).tolist()
    functions = {canonical(cell): tuple(cell) for cell in drawn}
    assert 2000 < len(functions) <= 5044
    bare = [cell for key, cell in functions.items() if len(key) == 1]
    others = [cell for key, cell in functions.items() if len(key) > 1]
    for cell in [*bare, *islice(others, 0, None, 150)]:
        found = tiny(cell)
        for name, value in found.items():
            assert value.status in STATUSES
            assert value.rank_key(PROXIES[name].best) < (len(STATUSES), math.inf)
        gone = {name for name, value in found.items() if value.status == "singular"}
        if is_disconnected(cell):
            assert gone >= {
                "naswot",
                "swap",
                "regions",
                "grad_norm",
                "snip",
                "fisher",
                "grasp",
                "jacov",
                "epe_nas",
                "synflow",
                "zen",
            }


def test_same_function_same_statuses():
    groups: dict = {}
    for cell in islice(every_cell(), 0, None, 97):
        groups.setdefault(canonical(cell), []).append(cell)
    for cells in [group for group in groups.values() if len(group) > 1][:3]:
        first, *rest = [{name: value.status for name, value in tiny(cell).items()} for cell in cells[:3]]
        assert all(statuses == first for statuses in rest)
