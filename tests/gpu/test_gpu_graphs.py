"""What waits for nothing can be captured as a CUDA graph, and its replay computes what the step did.

Not yet run on a device; on the CPU tests/test_runtime_syncs.py looks for reads by the host in the same steps.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.hypergradient import architecture_gradient, weight_gradient
from engine.learning.inner import SGD, adapt
from engine.runs.streams import stream

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(0, "test-graphs", address)).cuda()


def replayed(step: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What the step computes, and what its graph does."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            wanted = step().clone()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    found.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return wanted, found


def predict(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.relu(x @ params["a"]) @ params["b"]


def test_an_inner_step() -> None:
    params, x = {"a": noise(8, 16), "b": noise(16, 4, address=1)}, noise(12, 8, address=2)
    labels = torch.arange(12, device="cuda") % 4

    def step() -> Tensor:
        return adapt(lambda p, _: F.cross_entropy(predict(p, x), labels), params, None, 2, SGD({"a": 0.1, "b": 0.1})).params["a"]

    torch.testing.assert_close(*replayed(step))


@pytest.mark.parametrize("gradient", [weight_gradient, architecture_gradient])
def test_gradients_of_a_bilevel_step(gradient: Callable[..., tuple[Tensor, Tensor]]) -> None:
    w, a, x = noise(8 * 4), noise(4, address=1), noise(12, 8, address=2)
    labels = torch.arange(12, device="cuda") % 4

    def loss(w: Tensor, a: Tensor) -> Tensor:
        return F.cross_entropy(x @ w.view(8, 4) * a.softmax(0), labels)

    torch.testing.assert_close(*replayed(lambda: gradient(loss, w, a)[1]))
