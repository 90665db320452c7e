"""Nothing of a watched forward pass outlives the call: graphs hold hooks that hold the watcher, a circle no collector sees."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from engine.scoring.capture import Capture
from engine.scoring.kernels import ntk


def watchers() -> int:
    gc.collect()
    return sum(isinstance(item, Capture) for item in gc.get_objects())


class Broken(nn.Sequential):
    def forward(self, x):
        super().forward(x)
        raise KeyError("broken")


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_no_watcher_is_left(outputs, chunk):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    before = watchers()
    for _ in range(3):
        ntk(model, torch.randn(6, 1, 4, 4), outputs, chunk=chunk)
    assert watchers() == before


def test_no_watcher_is_left_by_a_forward_pass_that_fails():
    before = watchers()
    with pytest.raises(KeyError):
        ntk(Broken(nn.Linear(3, 2)), torch.randn(4, 3))
    assert watchers() == before
