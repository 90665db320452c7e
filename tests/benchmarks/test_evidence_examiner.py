"""Architectures scored together and one by one."""

from __future__ import annotations

import math

import pytest
import torch

from engine.benchmarks.evidence import blocks
from engine.benchmarks.examiner import Examiner
from engine.benchmarks.options import EvidenceOptions
from engine.scoring.proxies.architectures import BATCHED
from engine.spaces.nas_bench_201 import NAS_BENCH_201, parse, reached

# All convolutions, a usual one, one with convolutions that nothing feeds, one of pools only, and a disconnected one.
CELLS = [
    (3, 3, 3, 3, 3, 3),
    (2, 1, 4, 0, 3, 2),
    (0, 1, 3, 2, 3, 4),
    (4, 4, 4, 4, 4, 4),
    (3, 2, 1, 0, 0, 0),
]


@pytest.fixture(scope="module")
def examiner(tmp_path_factory) -> Examiner:
    table = tmp_path_factory.mktemp("table") / "table.npz"
    table.touch()
    options = EvidenceOptions(
        data="digits", size=8, cells=3, channels=4, batch=5, tasks=1, benchmark=str(table), device="cpu", architectures_at_once=5
    )
    options.validate()
    return Examiner(options)


def test_together_is_one_by_one(examiner):
    together = examiner.scores(CELLS, repeat=1)
    for cell, (found, seconds) in zip(CELLS, together, strict=True):
        ((alone, _),) = examiner.scores([cell], repeat=1)
        assert list(found) == list(examiner.options.chosen())
        assert seconds.keys() == {"plain", "kernels"}
        for name, score in alone.items():
            assert found[name].status == score.status, (cell, name)
            if math.isfinite(score.value):
                # log-determinants and smallest eigenvalues lose what the largest eigenvalues round away
                assert found[name].value == pytest.approx(score.value, rel=2e-3, abs=1e-4), (cell, name)


def test_patterns_are_exactly_those_of_one_by_one(examiner):
    for cell, (found, _) in zip(CELLS, examiner.scores(CELLS, repeat=0), strict=True):
        ((alone, _),) = examiner.scores([cell], repeat=0)
        assert found["naswot"].value == pytest.approx(alone["naswot"].value, abs=1e-6), cell
        assert (found["swap"], found["regions"]) == (alone["swap"], alone["regions"]), cell


def test_architectures_share_their_weights(examiner):
    first, second = (examiner._network(cell, 0, "batchnorm") for cell in (CELLS[0], CELLS[2]))
    weights = dict(first.named_parameters())
    common = [name for name in dict(second.named_parameters()) if name in weights]
    assert "cells.0.edges.4.nor_conv_3x3.0.weight" in common
    assert all(torch.equal(weights[name], p) for name, p in second.named_parameters() if name in common)
    other = dict(examiner._network(CELLS[0], 1, "batchnorm").named_parameters())
    assert not torch.equal(other["stem.weight"], weights["stem.weight"])


def test_what_a_batch_cannot_give_comes_from_single_networks(examiner):
    assert set(examiner.options.chosen()) - BATCHED == {"grasp", "zen", "params", "flops", "depth"}


def test_reached_leaves_out_what_nothing_feeds():
    assert reached((0, 1, 3, 2, 3, 4)) == (0, 1, 0, 2, 0, 4)
    assert reached((0, 0, 3, 0, 3, 3)) == (0, 0, 0, 0, 0, 0)
    text = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|avg_pool_3x3~2|"
    assert reached(parse(text))[5] == NAS_BENCH_201.operations.index("none")


def test_blocks_cover_every_repeat(examiner):
    found = blocks(12, examiner.options)
    assert [(part.repeat, len(part.places), part.first) for part in found] == [
        (0, 5, 0),
        (0, 5, 5),
        (0, 2, 10),
        (1, 5, 12),
        (1, 5, 17),
        (1, 2, 22),
    ]
