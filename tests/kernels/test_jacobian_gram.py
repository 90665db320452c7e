from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from engine.kernels import jacobian_gram as module
from engine.kernels.gram import contracts, gram_reference
from engine.kernels.jacobian_gram import (
    add_jacobian_gram,
    cut_tiles,
    depthwise_windows,
    jacobian_gram_reference,
    pair_count,
)
from engine.kernels.sample_gradient import ConvGeometry, conv_sample_gradient_reference, unfold
from engine.runs.streams import stream

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
SIZES = st.integers(1, 4)


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-jacobian-gram", address), dtype=torch.float64).to(dtype)


def gram(left: Tensor, right: Tensor, **options: Any) -> Tensor:
    total = torch.zeros(left.shape[0], left.shape[1], left.shape[1], dtype=torch.float64)
    add_jacobian_gram(total, left, right, **options)
    return total


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, st.sampled_from([1, 2, 40]), SIZES, st.integers(1, 40), st.sampled_from(list(TOLERANCE)))
def test_dense_gram_is_the_references(
    groups: int, shared: int, repeat: int, positions: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    left = noise(groups, shared * repeat, positions, outputs, dtype=dtype)
    right = noise(groups, shared, positions, inputs, address=1, dtype=dtype)
    before = noise(groups, shared * repeat, shared * repeat, address=2)
    total = before.clone()
    add_jacobian_gram(total, left, right)
    wanted = jacobian_gram_reference(left, right)
    assert float((total - before - wanted).norm() / wanted.norm()) < max(TOLERANCE[dtype], 1e-12)


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.integers(1, 3), st.tuples(SIZES, SIZES, SIZES), st.tuples(SIZES, SIZES), st.sampled_from(list(TOLERANCE)))
def test_depthwise_gram_is_the_references(
    groups: int, shared: int, repeat: int, image: tuple[int, int, int], taps: tuple[int, int], dtype: torch.dtype
) -> None:
    left = noise(groups, shared * repeat, *image, dtype=dtype)
    right = noise(groups, shared, *image, *taps, address=1, dtype=dtype)
    wanted = jacobian_gram_reference(left, right)
    assert error(gram(left, right), wanted) < TOLERANCE[dtype]
    flat = gram(left.flatten(2, 3), right.flatten(2, 3).flatten(4))
    assert error(flat, wanted) < TOLERANCE[dtype]


CONVOLUTIONS = [
    ConvGeometry((5, 4, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ConvGeometry((5, 4, 1, 5), (1, 2), (0, 2), (1, 1), 1),
    ConvGeometry((4, 1, 3, 3), (1, 1), (1, 1), (1, 1), 4),
    ConvGeometry((4, 1, 3, 5), (2, 1), (2, 4), (2, 2), 4),
    ConvGeometry((4, 1, 3, 3), (2, 2), (0, 0), (1, 1), 4),
]


@pytest.mark.parametrize("geometry", CONVOLUTIONS, ids=lambda g: f"{g.weight_shape}")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_have_the_gram_matrix_of_autograds_gradients(geometry: ConvGeometry, layout: torch.memory_format) -> None:
    x = noise(6, 4, 9, 8).contiguous(memory_format=layout)
    weight = noise(*geometry.weight_shape, address=1)
    y = torch.conv2d(x, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    cotangent = noise(*y.shape, address=2).contiguous(memory_format=layout)
    wanted = gram_reference(conv_sample_gradient_reference(x, cotangent.unsqueeze(1), geometry).reshape(2, 3, -1))
    if geometry.depthwise:
        left, right = cotangent.permute(0, 2, 3, 1), depthwise_windows(x, geometry)
    else:
        left, right = cotangent.flatten(2).mT, unfold(x, geometry)
    found = gram(left.unflatten(0, (2, 3)), right.unflatten(0, (2, 3)))
    assert error(found, wanted) < 1e-13


def test_windows_of_an_unpadded_input_are_a_view() -> None:
    x = noise(2, 4, 9, 8)
    assert depthwise_windows(x, CONVOLUTIONS[-1]).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("formed", [True, False])
def test_condition_number_of_an_ill_conditioned_kernel_survives_float32_factors(formed: bool) -> None:
    """Samples that differ by 2e-4 around a common one: a float32 sum loses the smallest eigenvalue, a float64 one does not."""
    positions, width = (128, 24) if formed else (1, 512)
    assert contracts(8, positions, width, width) is not formed
    left = noise(1, 1, positions, width) + 2e-4 * noise(1, 8, positions, width, address=1)
    right = noise(1, 1, positions, width, address=2).expand(1, 8, -1, -1) + 2e-4 * noise(1, 8, positions, width, address=3)
    left, right = left.float(), right.float()
    wanted = torch.linalg.eigvalsh(jacobian_gram_reference(left, right))[0]
    assert wanted[-1] / wanted[0] >= 1e6
    found = torch.linalg.eigvalsh(gram(left, right))[0]
    assert abs(found[0] / wanted[0] - 1) < 1e-4
    assert abs((found[-1] / found[0]) / (wanted[-1] / wanted[0]) - 1) < 1e-4
    rows = torch.einsum("grqo,grqi->groi", left, right).flatten(2)
    single = torch.linalg.eigvalsh((rows @ rows.mT).double())[0]
    assert abs(single[0] / wanted[0] - 1) > 1e-3


def test_blocks_of_outputs_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = noise(2, 3, 50, 7), noise(2, 3, 50, 5, address=1)
    assert not contracts(3, 50, 7, 5)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 2 * 3 * 5 * 2)
    assert error(gram(left, right), jacobian_gram_reference(left, right)) < 1e-13


@pytest.mark.parametrize("tf32", [True, False])
def test_precision_does_not_follow_or_change_torchs_own_setting(tf32: bool) -> None:
    before = torch.get_float32_matmul_precision()
    left, right = noise(1, 3, 50, 7, dtype=torch.float32), noise(1, 3, 50, 5, address=1, dtype=torch.float32)
    assert error(gram(left, right, float32_precision="tf32" if tf32 else "ieee"), jacobian_gram_reference(left, right)) < 1e-6
    assert torch.get_float32_matmul_precision() == before


def test_strides_do_not_matter() -> None:
    left, right = noise(7, 50, 3, 2).permute(3, 2, 1, 0), noise(2, 5, 3, 50, address=1).permute(0, 2, 3, 1)[:, :, :, ::2]
    assert error(gram(left, right), jacobian_gram_reference(left, right)) < 1e-13


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((0, 3, 2, 4), (0, 3, 2, 5)),
        ((2, 0, 2, 4), (2, 0, 2, 5)),
        ((2, 3, 0, 4), (2, 3, 0, 5)),
        ((2, 3, 2, 0), (2, 3, 2, 5)),
        ((2, 3, 2, 4), (2, 3, 2, 0)),
        ((2, 0, 2, 4), (2, 0, 2, 4, 9)),
        ((2, 3, 0, 4), (2, 3, 0, 4, 9)),
        ((2, 3, 2, 4), (2, 3, 2, 4, 0)),
        ((2, 3, 2, 2, 0), (2, 3, 2, 2, 0, 3, 3)),
    ],
)
def test_nothing_adds_nothing(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    before = noise(left[0], left[1], left[1])
    total = before.clone()
    add_jacobian_gram(total, torch.zeros(left), torch.zeros(right))
    assert torch.equal(total, before)


@pytest.mark.parametrize("mapped", [(0, None), (None, 2), (1, 0)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_vmap_equals_a_loop(mapped: tuple[int | None, int | None], depthwise: bool) -> None:
    left = noise(*((2, 6, 5, 3, 4) if depthwise else (2, 6, 20, 4)))
    right = noise(*((2, 3, 5, 3, 4, 3, 1) if depthwise else (2, 3, 20, 5)), address=1)
    operator = module._depthwise if depthwise else lambda a, b: module._dense(a, b, "ieee")
    scales = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    many = [
        t if axis is None else torch.stack([t * s for s in scales], axis) for t, axis in zip((left, right), mapped, strict=True)
    ]
    powers = scales**2 if None in mapped else scales**4
    assert error(vmap(operator, mapped)(*many), torch.stack([operator(left, right) * p for p in powers])) < 1e-13


def test_registrations_hold() -> None:
    left, right = noise(2, 6, 20, 7), noise(2, 3, 20, 9, address=1)
    torch.library.opcheck(module._dense, (left, right, "ieee"))
    torch.library.opcheck(module._depthwise, (noise(2, 6, 5, 4, 7), noise(2, 3, 5, 4, 7, 3, 3, address=1)))
    compiled = torch.compile(gram, fullgraph=True, backend="eager")
    assert torch.equal(compiled(left, right), gram(left, right))


def test_asking_for_a_derivative_raises() -> None:
    left, right = noise(1, 2, 3, 4), noise(1, 2, 3, 5, address=1)
    for ask in (
        lambda: grad(lambda a: gram(a, right).sum())(left),
        lambda: jvp(lambda a: gram(a, right), (left,), (left,)),
        lambda: gram(left, right.clone().requires_grad_()),
    ):
        with pytest.raises(ValueError, match="has no derivative here"):
            ask()
    with torch.no_grad():
        assert error(gram(left.clone().requires_grad_(), right), jacobian_gram_reference(left, right)) < 1e-13


LEFT, RIGHT, TOTAL = torch.zeros(1, 4, 3, 5), torch.zeros(1, 4, 3, 6), torch.zeros(1, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("total", "left", "right", "kind", "message"),
    [
        (TOTAL.float(), LEFT, RIGHT, TypeError, "total: expected torch.float64, got torch.float32"),
        (TOTAL[:, :3], LEFT, RIGHT, ValueError, r"total: expected \(1, 4, 4\) for left \(1, 4, 3, 5\), got \(1, 3, 4\)"),
        (TOTAL, LEFT.long(), RIGHT.long(), TypeError, r"left: expected torch.float32, .*, got torch.int64 \(1, 4, 3, 5\)"),
        (TOTAL, LEFT, RIGHT.double(), TypeError, "right: expected torch.float32 as left is, got torch.float64"),
        (TOTAL, LEFT, RIGHT[0], ValueError, r"right: expected 4 axes .* left \(1, 4, 3, 5\) and right \(4, 3, 6\)"),
        (TOTAL, LEFT, RIGHT[:, :3], ValueError, "right: expected rows .* that divide left's"),
        (TOTAL, LEFT, RIGHT[:, :0], ValueError, "right: expected rows .* that divide left's"),
        (TOTAL, LEFT, RIGHT[:, :, :2], ValueError, "right: expected left's groups, positions"),
        (TOTAL, LEFT, torch.zeros(2, 4, 3, 6), ValueError, "right: expected left's groups"),
        (TOTAL, LEFT, torch.zeros(1, 4, 3, 6, 9), ValueError, r"right: expected .* \(depthwise\) channels"),
        (TOTAL, LEFT, RIGHT.to("meta"), ValueError, r"right: expected on cpu as total is, got \(1, 4, 3, 6\) on meta"),
        (TOTAL, LEFT.to_sparse(), RIGHT, ValueError, "left: expected a strided tensor, got torch.sparse_coo"),
    ],
)
def test_wrong_arguments_are_named(total: Tensor, left: Tensor, right: Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        add_jacobian_gram(total, left, right)


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ValueError, match="float32_precision: expected 'ieee' or 'tf32', got 'bf16'"):
        add_jacobian_gram(TOTAL.clone(), LEFT, RIGHT, float32_precision="bf16")  # type: ignore[arg-type]


@given(st.integers(1, 200), st.sampled_from([16, 32, 64]))
def test_every_two_samples_meet_in_a_pair(samples: int, rows: int) -> None:
    half = rows // 2
    blocks = max(2, -(-samples // half))
    assert pair_count(samples, rows) == sum(1 for high in range(blocks) for low in range(high))


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_tiles_are_cut_into_splits_that_cover_them(tiles: int, programs: int) -> None:
    splits, per_split = cut_tiles(tiles, programs)
    assert (splits - 1) * per_split < tiles <= splits * per_split
    assert splits * programs < module.TARGET_PROGRAMS + programs


def test_the_head_of_a_network_is_contracted() -> None:
    """ANIL's kernel: one position, as many rows as samples and outputs; equal to autograd's gradients of the linear layer."""
    head, x = nn.Linear(40, 5, bias=False).double(), noise(4, 40)
    rows = torch.stack([torch.autograd.grad(head(x[n])[k], head.weight)[0].flatten() for n in range(4) for k in range(5)])
    cotangents = torch.eye(5, dtype=torch.float64).repeat(4, 1).view(1, 20, 1, 5)
    assert contracts(20, 1, 5, 40)
    assert error(gram(cotangents, x.view(1, 4, 1, 40)), gram_reference(rows[None])) < 1e-13


def test_importing_needs_neither_triton_nor_cupy() -> None:
    check = "import sys, engine.kernels.jacobian_gram as m; assert not {'triton', 'cupy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
