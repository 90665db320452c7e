from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels import gram
from engine.kernels.gram import add_contracted_gram, add_gram, gram_reference, one_blas_pool
from engine.runs.streams import stream


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-gram", address), dtype=dtype)


SIZES = st.integers(1, 4)


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(1, 300), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_add_gram_adds_the_reference(groups: int, rows: int, width: int, dtype: torch.dtype) -> None:
    jacobian, before = noise(groups, rows, width).to(dtype), noise(groups, rows, rows, address=1)
    total = before.clone()
    add_gram(total, jacobian)
    torch.testing.assert_close(total, before + gram_reference(jacobian), rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, SIZES)
def test_contraction_adds_the_gram_matrix_of_the_outer_products(
    groups: int, rows: int, positions: int, outputs: int, inputs: int
) -> None:
    left, right = noise(groups, rows, positions, outputs), noise(groups, rows, positions, inputs, address=1)
    before = noise(groups, rows, rows, address=2)
    total = before.clone()
    add_contracted_gram(total, left, right)
    formed = torch.einsum("grqo,grqi->groi", left, right).flatten(2)
    torch.testing.assert_close(total, before + gram_reference(formed), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [1, 700, 10**9])
def test_blocks_of_columns_change_nothing_but_rounding(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = noise(2, 3, 1000)
    monkeypatch.setattr(gram, "BLOCK_ELEMENTS", block)
    total = torch.zeros(2, 3, 3, dtype=torch.float64)
    add_gram(total, rows)
    torch.testing.assert_close(total, gram_reference(rows), rtol=1e-12, atol=1e-12)


def test_rows_need_not_be_contiguous() -> None:
    rows = noise(50, 2, 4).permute(1, 2, 0)
    total = torch.zeros(2, 4, 4, dtype=torch.float64)
    add_gram(total, rows)
    torch.testing.assert_close(total, gram_reference(rows))


def test_float32_rows_are_accumulated_in_float64() -> None:
    """Two rows that differ in the seventh digit: their distance survives only in float64."""
    base = noise(1, 1, 4096, dtype=torch.float32)
    rows = torch.cat([base, base + 1e-4 * noise(1, 1, 4096, address=1, dtype=torch.float32)], 1)
    total = torch.zeros(1, 2, 2, dtype=torch.float64)
    add_gram(total, rows)
    distance = total[0, 0, 0] + total[0, 1, 1] - 2 * total[0, 0, 1]
    wanted = (rows[0, 0].double() - rows[0, 1].double()).square().sum()
    assert abs(distance / wanted - 1) < 1e-6


@pytest.mark.parametrize(
    ("total", "rows", "message"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), "total: expected float64"),
        (torch.zeros(1, 2, 2, dtype=torch.float64), torch.zeros(1, 3, 3), r"total: expected float64 \(1, 3, 3\)"),
        (torch.zeros(1, 2, 2, dtype=torch.float64), torch.zeros(2, 3), "rows: expected a floating tensor"),
        (torch.zeros(1, 2, 2, dtype=torch.float64), torch.zeros(1, 2, 3, dtype=torch.long), "rows: expected a floating tensor"),
    ],
)
def test_wrong_shapes_and_types_are_named(total: Tensor, rows: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_gram(total, rows)


def test_the_blas_of_numpy_has_as_many_threads_as_torch_and_its_own_afterwards() -> None:
    pools = gram._controller()

    def threads() -> list[int]:
        return [pool["num_threads"] for pool in pools.info() if pool["user_api"] == "blas"]

    before = threads()
    with one_blas_pool():
        assert set(threads()) == {torch.get_num_threads()}
    assert threads() == before
