from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine.kernels import sample_gradient
from engine.kernels.depthwise import frozen_depthwise
from engine.kernels.sample_gradient import (
    ConvGeometry,
    choose,
    conv_sample_gradient,
    conv_sample_gradient_reference,
    linear_sample_gradient,
    unfold,
)
from engine.runs.streams import stream

CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-sample-gradient", address), dtype=dtype)


DIMENSIONS = st.integers(1, 3)


@st.composite
def geometries(draw: st.DrawFn, dimensions: st.SearchStrategy[int] = DIMENSIONS) -> tuple[ConvGeometry, tuple[int, ...]]:
    """A convolution and an input size that it accepts."""
    count = draw(dimensions)
    groups = draw(st.integers(1, 3))
    outputs = groups * draw(st.integers(1, 2))
    sizes = [draw(st.tuples(*[st.integers(*limits)] * count)) for limits in ((1, 3), (1, 2), (0, 3), (1, 2))]
    kernel, stride, padding, dilation = sizes
    space = tuple(draw(st.integers(1, 6)) for _ in range(count))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(s + 2 * p >= r for s, p, r in zip(space, padding, reach, strict=True)))
    weight = (outputs, draw(st.integers(1, 2)), *kernel)
    return ConvGeometry(weight, stride, padding, dilation, groups), space


def problem(
    geometry: ConvGeometry, space: tuple[int, ...], samples: int, count: int, channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    x = noise(samples, geometry.weight_shape[1] * geometry.groups, *space)
    weight = torch.zeros(geometry.weight_shape, dtype=x.dtype)
    convolve = CONVOLUTIONS[len(space)]
    shape = convolve(x, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups).shape[1:]
    cotangent = noise(samples, count, *shape, address=1)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        cotangent = cotangent.movedim(2, -1).contiguous().movedim(-1, 2)
    return x, cotangent


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_the_reference_is_the_definition() -> None:
    geometry = ConvGeometry((4, 2, 3, 2), (2, 1), (1, 0), (1, 2), 2)
    x, cotangent = problem(geometry, (6, 5), 2, 2)
    weight = noise(*geometry.weight_shape, address=2).requires_grad_()
    found = conv_sample_gradient_reference(x, cotangent, geometry)
    for n in range(2):
        y = torch.conv2d(x[n : n + 1], weight, None, geometry.stride, geometry.padding, geometry.dilation, 2)[0]
        for k in range(2):
            close(found[n, k], torch.autograd.grad((y * cotangent[n, k]).sum(), weight, retain_graph=True)[0].flatten())


@settings(max_examples=60, deadline=None)
@given(geometries(), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_the_chosen_formulation_equals_the_reference(
    case: tuple[ConvGeometry, tuple[int, ...]], samples: int, count: int, channels_last: bool
) -> None:
    geometry, space = case
    x, cotangent = problem(geometry, space, samples, count, channels_last)
    close(conv_sample_gradient(x, cotangent, geometry), conv_sample_gradient_reference(x, cotangent, geometry))


FORMULATIONS: dict[str, Callable[[Tensor, Tensor, ConvGeometry], Tensor]] = {
    "matrix": lambda x, c, g: sample_gradient._matrix(x, c, g, True),
    "correlate": sample_gradient._correlate,
    "shift": sample_gradient._shift,
    "grouped": sample_gradient._grouped,
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@settings(max_examples=40, deadline=None)
@given(case=geometries(st.just(2)), samples=st.integers(1, 3), count=st.integers(1, 3), channels_last=st.booleans())
def test_every_formulation_equals_the_reference_where_it_applies(
    formulation: str, case: tuple[ConvGeometry, tuple[int, ...]], samples: int, count: int, channels_last: bool
) -> None:
    geometry, space = case
    groups = geometry.groups
    if formulation in ("correlate", "shift"):
        geometry = ConvGeometry((groups, 1, *geometry.kernel), geometry.stride, geometry.padding, geometry.dilation, groups)
    elif formulation == "matrix":
        geometry = ConvGeometry(geometry.weight_shape, geometry.stride, geometry.padding, geometry.dilation, 1)
    x, cotangent = problem(geometry, space, samples, count, channels_last)
    close(FORMULATIONS[formulation](x, cotangent, geometry), conv_sample_gradient_reference(x, cotangent, geometry))


def test_unordered_gradients_are_the_same_elements_for_every_sample() -> None:
    geometry = ConvGeometry((3, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    x, cotangent = problem(geometry, (4, 4), 3, 2)
    assert choose(cotangent.shape, geometry) == "matrix"
    ordered = conv_sample_gradient(x, cotangent, geometry).flatten(0, 1)
    unordered = conv_sample_gradient(x, cotangent, geometry, ordered=False).flatten(0, 1)
    assert not torch.equal(ordered, unordered)
    close(unordered @ unordered.mT, ordered @ ordered.mT)


def test_large_float32_products_equal_the_reference() -> None:
    """Products above the size from which another library multiplies."""
    geometry = ConvGeometry((256, 320, 1, 1), (1, 1), (0, 0), (1, 1), 1)
    x, cotangent = (t.float() for t in problem(geometry, (8, 8), 2, 1))
    assert 256 * 320 * 64 >= 5_000_000
    found, wanted = conv_sample_gradient(x, cotangent, geometry), conv_sample_gradient_reference(x, cotangent, geometry)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@given(geometries(st.just(2)), st.booleans())
@settings(max_examples=30, deadline=None)
def test_unfolded_windows_times_weights_are_the_convolution(
    case: tuple[ConvGeometry, tuple[int, ...]], channels_last: bool
) -> None:
    geometry, space = case
    dense = ConvGeometry(geometry.weight_shape, geometry.stride, geometry.padding, geometry.dilation, 1)
    x, _ = problem(dense, space, 2, 1, channels_last)
    weight = noise(*dense.weight_shape, address=2)
    wanted = torch.conv2d(x, weight, None, dense.stride, dense.padding, dense.dilation)
    close((unfold(x, dense) @ weight.permute(2, 3, 1, 0).flatten(0, 2)).mT, wanted.flatten(2))


def test_choices_are_a_function_of_shapes() -> None:
    pointwise, narrow = (
        ConvGeometry((4, 4, 1, 1), (2, 2), (0, 0), (1, 1), 1),
        ConvGeometry((4, 4, 1, 5), (1, 1), (0, 2), (1, 1), 1),
    )
    depthwise, line = ConvGeometry((4, 1, 3, 3), (1, 1), (1, 1), (1, 1), 4), ConvGeometry((4, 1, 3), (1,), (1,), (1,), 4)
    assert choose(torch.Size((2, 1, 4, 32, 32)), pointwise) == "matrix"
    assert choose(torch.Size((2, 1, 4, 32, 32)), narrow) == "grouped"
    assert choose(torch.Size((2, 1, 4, 8, 8)), narrow) == "matrix"
    assert choose(torch.Size((2, 1, 4, 8, 8)), depthwise) == "correlate"
    assert choose(torch.Size((2, 1, 4, 8)), line) == "grouped"
    assert choose(torch.Size((2, 1, 4, 32, 32)), narrow, torch.float64) == "matrix"
    assert choose(torch.Size((2, 1, 4, 8, 8)), depthwise, torch.float64) == "shift"


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_linear_gradients_are_sums_of_outer_products(samples: int, positions: int, count: int, outputs: int, inputs: int) -> None:
    x, cotangent = noise(samples, positions, inputs), noise(samples, count, positions, outputs, address=1)
    close(linear_sample_gradient(x, cotangent), torch.einsum("nkqo,nqi->nkoi", cotangent, x).flatten(2))


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 3),
    st.integers(0, 4),
    st.booleans(),
)
def test_frozen_depthwise_has_the_librarys_value_and_input_gradient(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: int, padding: int, channels_last: bool
) -> None:
    pads = tuple(min(padding, dilation * (k - 1)) for k in kernel)
    x = noise(2, 3, 9, 8)
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    weight = noise(3, 1, *kernel, address=1)
    y, wanted = (
        frozen_depthwise(x, weight, stride, pads, (dilation, dilation)),
        F.conv2d(x, weight, None, stride, pads, dilation, 3),
    )  # type: ignore[arg-type]
    close(y, wanted)
    cotangent = noise(*y.shape, address=2)
    close(*(torch.autograd.grad(value, x, cotangent)[0] for value in (y, wanted)))
