"""Depthwise convolutions with the library's values, and gradients made of faster ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradgradcheck
from torch.func import grad, vmap
from torch.nn import functional as F

from engine.kernels import depthwise as module
from engine.kernels.depthwise import depthwise
from engine.runs.streams import stream

SIZES = st.integers(1, 9)


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-mixed-edge-depthwise", address), dtype=torch.float64)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(0, 3), st.integers(1, 4), SIZES, SIZES),
    st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 5), (4, 4), (3, 7)]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([(1, 1), (2, 2), (3, 3), (1, 2)]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_values_and_gradients_are_the_librarys(
    shape: tuple[int, int, int, int],
    kernel: tuple[int, int],
    dilation: int,
    stride: tuple[int, int],
    share: float,
    layout: torch.memory_format,
) -> None:
    padding = tuple(int(share * dilation * (k - 1)) for k in kernel)
    if any(n + 2 * p < dilation * (k - 1) + 1 for n, p, k in zip(shape[2:], padding, kernel, strict=True)):
        return
    x = noise(*shape).contiguous(memory_format=layout).requires_grad_()
    weight = noise(shape[1], 1, *kernel, address=1).requires_grad_()
    found = depthwise(x, weight, stride, padding, (dilation, dilation))  # type: ignore[arg-type]
    wanted = F.conv2d(x, weight, None, stride, padding, dilation, shape[1])  # type: ignore[arg-type]
    assert torch.allclose(found, wanted)
    cotangent = noise(*wanted.shape, address=2)
    for ours, theirs in zip(*(torch.autograd.grad(y, (x, weight), cotangent) for y in (found, wanted)), strict=True):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (2, 2), (2, 1)])
def test_second_gradients(stride: int, dilation: int) -> None:
    x, weight = noise(2, 2, 5, 4).requires_grad_(), noise(2, 1, 3, 3, address=1).requires_grad_()
    assert gradgradcheck(lambda x, w: depthwise(x, w, (stride,) * 2, (dilation,) * 2, (dilation,) * 2), (x, weight))


def test_transforms() -> None:
    x, weight = noise(3, 2, 2, 5, 5), noise(2, 1, 5, 5, address=1)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return depthwise(x, weight, padding=(2, 2)).pow(3).sum()

    found = vmap(grad(loss), (None, 0))(weight, x)
    leaf = weight.clone().requires_grad_()
    assert torch.allclose(found, torch.stack([torch.autograd.grad(loss(leaf, one), leaf)[0] for one in x]))


def test_only_what_is_needed_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = noise(2, 2, 5, 5).requires_grad_(), noise(2, 1, 5, 5, address=1).requires_grad_()
    monkeypatch.setattr(module, "weight_gradient", None)
    assert torch.autograd.grad(depthwise(x, weight.detach(), padding=(2, 2)).sum(), x)[0].shape == x.shape
    monkeypatch.undo()
    monkeypatch.setattr(module, "input_gradient", None)
    assert torch.autograd.grad(depthwise(x.detach(), weight, padding=(2, 2)).sum(), weight)[0].shape == weight.shape


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"weight: expected \(C, 1, kh, kw\)"):
        depthwise(noise(1, 2, 3, 3), noise(3, 1, 3, 3))
    with pytest.raises(ValueError, match="padding: expected at most"):
        depthwise(noise(1, 2, 3, 3), noise(2, 1, 3, 3), padding=(3, 3))
