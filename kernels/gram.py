"""Gram matrices accumulated in float64.

A float32 Gram matrix loses the smallest eigenvalue of a kernel long before float32 gradients do (at a condition number of
1e6 its relative error is 1e-3, with float64 accumulation 2e-7), so products and sums are taken in float64.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

# Columns are widened to float64 a block at a time, so that the wide copy stays in a core's cache instead of going to memory.
BLOCK_ELEMENTS = 128 * 1024

# One float64 multiply-add of a Gram matrix costs about as much as this many float32 ones of a gradient (measured, one AVX-512
# thread: 27 against 100 GFLOP/s).
FLOAT64_COST = 4


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def one_blas_pool() -> AbstractContextManager[object]:
    """Give numpy's BLAS as many threads as torch has, within a ``with`` block.

    Numpy brings a BLAS of its own, which would otherwise take every core whatever torch was told, and two pools on one machine
    spin against each other (seen: 18 ms instead of 0.1 ms a product). Enter it once around many :func:`add_gram`.
    """
    return _controller().limit(limits=torch.get_num_threads(), user_api="blas")


def contracts(rows: int, positions: int, outputs: int, inputs: int) -> bool:
    """Whether contracting the factors (R, Q, O) and (R, Q, I) of R gradients takes fewer operations than forming them first."""
    formed = rows * outputs * inputs * (positions + FLOAT64_COST * rows / 2)
    return FLOAT64_COST * (rows * positions) ** 2 * (outputs + inputs) <= formed


def gram_reference(rows: Tensor) -> Tensor:
    """(G, R, P) -> (G, R, R) float64: every inner product of the rows of a group."""
    wide = rows.double()
    return wide @ wide.mT


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add the Gram matrix of ``rows`` to ``total``, in place.

    Args:
        total: (G, R, R) float64, the running sum.
        rows: (G, R, P) of any floating dtype; G groups that are not compared with each other.

    Costs G*R*(R+1)/2*P float64 multiply-adds on the CPU (numpy recognises ``A @ A.T`` and calls BLAS syrk, which measures 1.6
    times faster than a general product at R = 30) and no memory beyond one block of columns.
    """
    _check(total, rows)
    groups, count, width = rows.shape
    if rows.device.type != "cpu":
        total += gram_reference(rows)
        return
    block = max(64, BLOCK_ELEMENTS // max(1, groups * count))
    out = total.numpy()
    for start in range(0, width, block):
        wide = rows[:, :, start : start + block].double().numpy()
        out += np.matmul(wide, wide.transpose(0, 2, 1))


def add_contracted_gram(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the Gram matrix of the outer products ``G_r = left_r^T right_r`` without forming them.

    Args:
        total: (G, R, R) float64, the running sum.
        left: (G, R, Q, O), right: (G, R, Q, I): Q positions, over which G_r sums outer products.

    Uses <G_r, G_s> = sum over positions of <left_rq, left_sp> <right_rq, right_sp>: R^2 Q^2 (O + I) float64 multiply-adds against
    R Q O I float32 and R^2 O I float64 ones for forming them; cheaper when there are few positions.
    """
    groups, count, positions, _ = left.shape
    product = _pairs(left)
    product *= _pairs(right)
    total += product.view(groups, count, positions, count, positions).sum((2, 4))


def _pairs(factor: Tensor) -> Tensor:
    flat = factor.flatten(1, 2).double()
    return flat @ flat.mT


def _check(total: Tensor, rows: Tensor) -> None:
    if rows.dim() != 3 or not rows.is_floating_point():
        raise ValueError(f"rows: expected a floating tensor (G, R, P), got {rows.dtype} {tuple(rows.shape)}")
    expected = (rows.shape[0], rows.shape[1], rows.shape[1])
    if total.dtype != torch.float64 or tuple(total.shape) != expected:
        raise ValueError(f"total: expected float64 {expected}, got {total.dtype} {tuple(total.shape)}")
