"""The analytic score gradient in Triton: see :mod:`engine.kernels.score_gradient` for the function that is computed.

A program makes one tile of the gradient: it goes over tasks and steps, forms that tile of each gradient from its factors in
registers and drops it, so that no gradient of a single task is ever stored.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.triton_masked import Tile, precision, rank_tile


@triton.jit(do_not_specialize=["tasks", "steps", "query_rows", "support_rows", "curvature_rows", "rate"])
def score_gradient_kernel(
    query_left_ptr,
    query_right_ptr,
    support_left_ptr,
    support_right_ptr,
    curvature_left_ptr,
    curvature_right_ptr,
    weight_ptr,
    scores_ptr,
    threshold_ptr,
    out_ptr,
    tasks,
    steps,
    query_rows,
    support_rows,
    curvature_rows,
    outputs,
    inputs,
    rate,
    SECOND_ORDER: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """out (outputs, inputs), from contiguous float32 factors (T, rows, .) of the query and (S, T, rows, .) of the steps."""
    tiles_i = tl.cdiv(inputs, BLOCK_I)
    o = (tl.program_id(0) // tiles_i * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    i = (tl.program_id(0) % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)).to(tl.int64)
    total = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    crossed = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    long = tl.full([], 0, tl.int64)
    for t in range(0, tasks):
        first = (long + t) * query_rows
        rest = rank_tile(
            query_left_ptr + first * outputs, query_right_ptr + first * inputs, query_rows, outputs, inputs, o, i,
            outputs, 1, inputs, 1, tl.zeros([BLOCK_O, BLOCK_I], tl.float32), PRECISION, True, BLOCK_N,
        )  # fmt: skip
        for back in range(0, steps):
            step = (long + steps - 1 - back) * tasks + t
            first = step * support_rows
            gradient = rank_tile(
                support_left_ptr + first * outputs, support_right_ptr + first * inputs, support_rows, outputs, inputs, o, i,
                outputs, 1, inputs, 1, tl.zeros([BLOCK_O, BLOCK_I], tl.float32), PRECISION, True, BLOCK_N,
            )  # fmt: skip
            crossed += gradient * rest
            if SECOND_ORDER:
                first = step * curvature_rows
                bent = rank_tile(
                    curvature_left_ptr + first * outputs, curvature_right_ptr + first * inputs, curvature_rows, outputs, inputs,
                    o, i, outputs, 1, inputs, 1, tl.zeros([BLOCK_O, BLOCK_I], tl.float32), PRECISION, True, BLOCK_N,
                )  # fmt: skip
                rest -= rate * bent
        total += rest
    here = (o < outputs)[:, None] & (i < inputs)[None, :]
    place = o[:, None] * inputs + i[None, :]
    scores = tl.load(scores_ptr + place, mask=here, other=0.0).to(tl.float32)
    crossed = tl.where(scores < tl.load(threshold_ptr).to(tl.float32), 0.0, crossed)
    if SECOND_ORDER:
        crossed *= 2
    weight = tl.load(weight_ptr + place, mask=here, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, weight * total - rate * crossed, mask=here)


TILE = Tile(16, 32, 32)


def launch_score_gradient(
    query: tuple[Tensor, Tensor],
    support: tuple[Tensor, Tensor],
    curvature: tuple[Tensor, Tensor] | None,
    weight: Tensor,
    scores: Tensor,
    threshold: Tensor,
    rate: float,
) -> Tensor:
    """Run the kernel on checked arguments, all contiguous float32."""
    (outputs, inputs), tile = weight.shape, TILE
    bent = support if curvature is None else curvature
    out = torch.empty_like(scores)
    with torch.cuda.device_of(weight):
        score_gradient_kernel[(triton.cdiv(outputs, tile.outputs) * triton.cdiv(inputs, tile.inputs),)](
            *query,
            *support,
            *bent,
            weight,
            scores,
            threshold,
            out,
            len(query[0]),
            len(support[0]),
            *(left.shape[-2] for left in (query[0], support[0], bent[0])),
            outputs,
            inputs,
            rate,
            SECOND_ORDER=curvature is not None,
            PRECISION=precision(),
            BLOCK_N=tile.rows,
            BLOCK_O=tile.outputs,
            BLOCK_I=tile.inputs,
            num_warps=tile.warps,
        )
    return out
