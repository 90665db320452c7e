"""The baseline of bench/metanas.py computes what the stacked supernet does."""

from __future__ import annotations

import metanas_golden as recipe
import pytest
import torch

from bench.plain_metanas import PlainMetaNAS
from engine.spaces.metanas import Architecture
from engine.spaces.stacked import StackedSupernet


@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_plain_loop_is_the_same_network(threshold: float) -> None:
    model = recipe.golden_supernet(4, 1, 3)
    stacked = StackedSupernet(model)
    architecture = Architecture(threshold=threshold)
    flat = recipe.golden_architecture(architecture)
    plain = PlainMetaNAS(4, 1, 3, threshold, torch.channels_last).double()
    with torch.no_grad():
        for parameter, value in zip(plain.weights(), model.parameters(), strict=True):
            parameter.copy_(value)
        for parameter, value in zip(plain.architecture(), recipe.named_parts(architecture, flat).values(), strict=True):
            parameter.copy_(value)
    x = recipe.ramp((3, 1, 8, 8), 0.37, 0, torch.sin, 1)
    found = stacked(stacked.pack(dict(model.named_parameters())), x, architecture.mixture_weights(flat, 0.1))
    torch.testing.assert_close(plain(x, 0.1), found, rtol=1e-9, atol=1e-12)
