"""What is compared computes the same thing."""

from __future__ import annotations

import pytest
import torch

from bench import layers
from bench.registry import Settings


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", list(layers.cases(Settings(scale="smoke"))), ids=lambda case: str(case.configuration))
def test_methods_agree(case: layers.Case, memory_format: str) -> None:
    calls = case.build(memory_format, 1)
    for _ in range(2):
        found, wanted = calls[layers.OWN](), calls[layers.BASELINE]()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
