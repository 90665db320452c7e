"""Cells that normalise where they add, against cells that normalise first; and the memory format of their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from engine.learning.bilevel import FlatNetwork
from engine.learning.hypergradient import Step, second_order, weight_gradient
from engine.runs.streams import stream
from engine.spaces import cells
from engine.spaces.darts_supernet import SoftmaxRelaxation, darts_supernet
from engine.spaces.space import DARTS
from engine.spaces.supernet import initialise


class Formats(TorchDispatchMode):
    """Counts the convolutions' gradients whose tensors have channels outermost."""

    def __init__(self) -> None:
        super().__init__()
        self.outermost = self.all = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.all += 1
            self.outermost += any(x.stride(1) != 1 for x in args[:2])
        return func(*args, **(kwargs or {}))


def problem(dtype: torch.dtype) -> tuple[Any, Any, Tensor, Tensor]:
    """Two losses of weights and architecture, and where they are taken; three cells, of which two reduce."""
    network = darts_supernet(DARTS, cells=3, channels=4, outputs=3)
    initialise(network, stream(0, "weights"))
    flat, relaxation = FlatNetwork(network.to(dtype)), SoftmaxRelaxation(DARTS)
    labels = torch.arange(4) % 3

    def loss(index: int) -> Any:
        x = torch.randn(4, 3, 8, 8, generator=stream(0, "images", index), dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        return lambda w, a: F.cross_entropy(flat(w, x, relaxation(a)), labels)

    a = torch.randn(relaxation.shape, generator=stream(0, "alphas"), dtype=dtype)
    return loss(0), loss(1), flat.start, a


def test_normalising_in_the_sum_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    training, validation, w, a = problem(torch.float64)

    def results() -> list[Tensor]:
        step = Step(0.1, 3e-4)
        return [*weight_gradient(training, w, a), second_order(training, validation, w, a, step).gradient]

    fused = results()
    monkeypatch.setattr(cells, "_ends_in_statistics", lambda module: False)
    for found, wanted in zip(fused, results(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_gradients_keep_channels_innermost() -> None:
    """The library is up to ten times slower on the other memory format, which one operator can bring upon all before it."""
    training, _, w, a = problem(torch.float32)
    with Formats() as seen:
        weight_gradient(training, w, a)
    assert seen.all > 500
    assert seen.outermost == 0
