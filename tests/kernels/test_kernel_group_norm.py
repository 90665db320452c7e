from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine.kernels import group_norm
from engine.kernels.group_norm import frozen_group_norm
from engine.runs.streams import stream


def noise(*shape: int, address: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=stream(0, "test-group-norm", address), dtype=torch.float64)
    return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(2, 5))
def test_value_and_gradient_are_the_librarys(samples: int, groups: int, share: int, height: int, width: int) -> None:
    x = (3 + noise(samples, groups * share, height, width)).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_norm, "FEWEST_POSITIONS", 0)
        found = frozen_group_norm(x, groups, 1e-3)
    wanted = F.group_norm(x, groups, eps=1e-3)
    assert torch.equal(found, wanted)
    cotangent = noise(*x.shape, address=1)
    gradients = [torch.autograd.grad(y, x, cotangent)[0] for y in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_the_own_gradient_is_taken_for_large_channels_last_tensors_only() -> None:
    own = "FrozenGroupNormBackward"
    large, small = noise(2, 4, 9, 9).requires_grad_(), noise(2, 4, 8, 8).requires_grad_()
    planar = large.detach().contiguous().requires_grad_()
    line = noise(2, 4, 99).requires_grad_()
    names = [type(frozen_group_norm(x, 2, 1e-5).grad_fn).__name__ for x in (large, small, planar, line)]
    assert [name == own for name in names] == [True, False, False, False]


def test_a_gradient_in_another_layout_is_handled() -> None:
    x = noise(2, 4, 9, 9).requires_grad_()
    cotangent = noise(2, 4, 9, 9, address=1).contiguous()
    found, wanted = (torch.autograd.grad(y, x, cotangent)[0] for y in (frozen_group_norm(x, 2, 1e-5), F.group_norm(x, 2)))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
