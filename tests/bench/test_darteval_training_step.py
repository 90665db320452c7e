"""Both formulations of a training step compute the same network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from bench import training_step
from bench.plain_cells import PlainNetwork
from bench.registry import BENCHMARKS, Settings
from engine.runs.streams import stream


def test_logits_and_gradients_agree() -> None:
    own = training_step.network(3, 8).double()
    plain = PlainNetwork(copy.deepcopy(own))
    images = torch.randn(4, 3, 16, 16, generator=stream(0, "images"), dtype=torch.float64)
    labels = torch.arange(4)
    found = []
    for model in (own, plain):
        logits = model(images)
        cross_entropy(logits, labels).backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        found.append((logits.detach(), torch.stack(norms).sort().values))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_plain_drop_path_drops() -> None:
    plain = PlainNetwork(training_step.network(3, 8))
    images = torch.randn(8, 3, 16, 16, generator=stream(0, "images"))
    assert not torch.equal(plain(images, 0.5), plain(images))
    plain.eval()
    assert torch.equal(plain(images, 0.5), plain(images))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_steps_run_and_learn(layout: str) -> None:
    for call in training_step.calls(3, 8, 8, layout, 8).values():
        losses = [float(call()) for _ in range(25)]  # type: ignore[arg-type]
        assert losses[-1] < losses[0]


def test_it_is_registered() -> None:
    assert BENCHMARKS["training-step"].module == "bench.training_step"
    assert len(list(training_step.cases(Settings()))) == 2
