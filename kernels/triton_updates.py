"""Updates of flat buffers in Triton: see :mod:`engine.kernels.updates` and :mod:`engine.kernels.score_gradient`.

One program updates BLOCK neighbouring values; nothing is summed across programs, so repeated runs give the same bits. A rate is a
number, or is read at task r + parameter c with the strides of its broadcast form.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.updates import AdamRule, Rate

BLOCK = 1024
WARPS = 4


@triton.jit
def _rate(rate_ptr, rate, i, here, row, rate_task, rate_parameter, RATE: tl.constexpr):
    """RATE: ``"number"``, ``"one"`` (a 0-dim tensor) or ``"each"``."""
    if RATE == "number":
        return rate
    elif RATE == "one":
        return tl.load(rate_ptr).to(tl.float32)
    else:
        place = i // row * rate_task + i % row * rate_parameter
        return tl.load(rate_ptr + place, mask=here, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["size", "row", "rate_task", "rate_parameter"])
def sgd_kernel(
    parameters_ptr,
    gradient_ptr,
    velocity_ptr,
    rate_ptr,
    rate,
    momentum,
    decay,
    size,
    row,
    rate_task,
    rate_parameter,
    RATE: tl.constexpr,
    MOMENTUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = i < size
    parameters = tl.load(parameters_ptr + i, mask=here, other=0.0).to(tl.float32)
    step = tl.load(gradient_ptr + i, mask=here, other=0.0).to(tl.float32) + decay * parameters
    if MOMENTUM:
        step += momentum * tl.load(velocity_ptr + i, mask=here, other=0.0).to(tl.float32)
        tl.store(velocity_ptr + i, step, mask=here)
    alpha = _rate(rate_ptr, rate, i, here, row, rate_task, rate_parameter, RATE)
    tl.store(parameters_ptr + i, parameters - alpha * step, mask=here)


@triton.jit(do_not_specialize=["size", "row", "rate_task", "rate_parameter"])
def adam_kernel(
    parameters_ptr,
    gradient_ptr,
    first_ptr,
    second_ptr,
    rate_ptr,
    scale_ptr,
    floor_ptr,
    rate,
    scale,
    floor,
    b1,
    c1,
    b2,
    c2,
    decay,
    size,
    row,
    rate_task,
    rate_parameter,
    RATE: tl.constexpr,
    COUNTED: tl.constexpr,
    DECOUPLED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """c1 = 1 - b1 and c2 = 1 - b2 are rounded once, on the host; COUNTED: the step is counted on the device."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = i < size
    if COUNTED:
        scale = tl.load(scale_ptr)
        floor = tl.load(floor_ptr)
    alpha = _rate(rate_ptr, rate, i, here, row, rate_task, rate_parameter, RATE)
    parameters = tl.load(parameters_ptr + i, mask=here, other=0.0).to(tl.float32)
    gradient = tl.load(gradient_ptr + i, mask=here, other=0.0).to(tl.float32)
    if DECOUPLED:
        parameters -= alpha * decay * parameters
    else:
        gradient += decay * parameters
    first = b1 * tl.load(first_ptr + i, mask=here, other=0.0).to(tl.float32) + c1 * gradient
    second = b2 * tl.load(second_ptr + i, mask=here, other=0.0).to(tl.float32) + c2 * gradient * gradient
    tl.store(first_ptr + i, first, mask=here)
    tl.store(second_ptr + i, second, mask=here)
    step = tl.div_rn(first, tl.sqrt_rn(second) + floor)
    tl.store(parameters_ptr + i, parameters - alpha * scale * step, mask=here)


@triton.jit(do_not_specialize=["size", "tasks", "rate_parameter"])
def reptile_kernel(meta_ptr, adapted_ptr, rate_ptr, rate, size, tasks, rate_parameter, RATE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = i < size
    meta = tl.load(meta_ptr + i, mask=here, other=0.0).to(tl.float32)
    moved = tl.zeros([BLOCK], tl.float32)
    for task in range(0, tasks):
        moved += tl.load(adapted_ptr + task * size.to(tl.int64) + i, mask=here, other=0.0).to(tl.float32) - meta
    alpha = _rate(rate_ptr, rate, i, here, size, 0, rate_parameter, RATE)
    tl.store(meta_ptr + i, meta + alpha * (moved / tasks), mask=here)


@triton.jit(do_not_specialize=["size"])
def update_scores_kernel(
    scores_ptr,
    gradient_ptr,
    velocity_ptr,
    weight_ptr,
    threshold_ptr,
    rate_ptr,
    bits_ptr,
    first_ptr,
    rate,
    momentum,
    size,
    RATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program stores BLOCK / 8 bytes of the mask."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = i < size
    velocity = momentum * tl.load(velocity_ptr + i, mask=here, other=0.0).to(tl.float32)
    velocity += tl.load(gradient_ptr + i, mask=here, other=0.0).to(tl.float32)
    tl.store(velocity_ptr + i, velocity, mask=here)
    alpha = _rate(rate_ptr, rate, i, here, size, 0, 0, RATE)
    scores = tl.load(scores_ptr + i, mask=here, other=0.0).to(tl.float32) - alpha * velocity
    # As stored: the mask is to be that of the scores which anyone will read.
    scores = scores.to(scores_ptr.dtype.element_ty)
    tl.store(scores_ptr + i, scores, mask=here)
    pruned = scores.to(tl.float32) < tl.load(threshold_ptr).to(tl.float32)
    weight = tl.load(weight_ptr + i, mask=here, other=0.0)
    tl.store(first_ptr + i, tl.where(pruned, 0.0, weight.to(tl.float32)), mask=here)
    bits = tl.reshape(tl.where(pruned | (i >= size), 0, 1), [BLOCK // 8, 8]) << tl.arange(0, 8)[None, :]
    j = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    tl.store(bits_ptr + j, tl.sum(bits, 1).to(tl.uint8), mask=j < (size + 7) // 8)


def rate_arguments(rate: Rate, like: Tensor) -> dict[str, Any]:
    """How the kernels read a rate for ``like``, (P,) or (T, P): a number, or a tensor and the strides along T and P."""
    if not isinstance(rate, Tensor):
        return {"rate_ptr": like, "rate": rate, "rate_task": 0, "rate_parameter": 0, "RATE": "number"}
    if rate.numel() == 1:
        return {"rate_ptr": rate, "rate": 0.0, "rate_task": 0, "rate_parameter": 0, "RATE": "one"}
    *task, parameter = rate.expand_as(like).stride()
    return {"rate_ptr": rate, "rate": 0.0, "rate_task": sum(task), "rate_parameter": parameter, "RATE": "each"}


def launch_sgd(
    parameters: Tensor, gradient: Tensor, velocity: Tensor | None, rate: Rate, momentum: float, decay: float, block: int = BLOCK
) -> None:
    """Run the kernel on checked arguments."""
    size = parameters.numel()
    if not size:
        return
    with torch.cuda.device_of(parameters):
        sgd_kernel[(triton.cdiv(size, block),)](
            parameters,
            gradient,
            parameters if velocity is None else velocity,
            momentum=momentum,
            decay=decay,
            size=size,
            row=parameters.shape[-1],
            **rate_arguments(rate, parameters),
            MOMENTUM=velocity is not None,
            BLOCK=block,
            num_warps=WARPS,
        )


def launch_adam(
    parameters: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: int | Tensor,
    rate: Rate,
    rule: AdamRule,
    block: int = BLOCK,
) -> None:
    """Run the kernel on checked arguments."""
    size = parameters.numel()
    if not size:
        return
    scale, floor = rule.corrections(step)
    counted = isinstance(scale, Tensor) and isinstance(floor, Tensor)
    with torch.cuda.device_of(parameters):
        adam_kernel[(triton.cdiv(size, block),)](
            parameters,
            gradient,
            first,
            second,
            scale_ptr=scale.float() if isinstance(scale, Tensor) else parameters,
            floor_ptr=floor.float() if isinstance(floor, Tensor) else parameters,
            scale=0.0 if counted else scale,
            floor=0.0 if counted else floor,
            b1=rule.betas[0],
            c1=1 - rule.betas[0],
            b2=rule.betas[1],
            c2=1 - rule.betas[1],
            decay=rule.weight_decay,
            size=size,
            row=parameters.shape[-1],
            **rate_arguments(rate, parameters),
            COUNTED=counted,
            DECOUPLED=rule.decoupled,
            BLOCK=block,
            num_warps=WARPS,
        )


def launch_reptile(meta: Tensor, adapted: Tensor, rate: Rate, block: int = BLOCK) -> None:
    """Run the kernel on checked arguments."""
    size = meta.numel()
    if not size:
        return
    how = rate_arguments(rate, meta)
    del how["rate_task"]
    with torch.cuda.device_of(meta):
        reptile_kernel[(triton.cdiv(size, block),)](
            meta, adapted, size=size, tasks=len(adapted), **how, BLOCK=block, num_warps=WARPS
        )


def launch_update_scores(
    scores: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    weight: Tensor,
    threshold: Tensor,
    rate: Rate,
    momentum: float,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Run the kernel on checked arguments; ``block`` is a multiple of 8."""
    size = scores.numel()
    bits = torch.empty(triton.cdiv(size, 8), dtype=torch.uint8, device=scores.device)
    first = torch.empty_like(weight)
    if not size:
        return bits, first
    how = rate_arguments(rate, scores)
    with torch.cuda.device_of(scores):
        update_scores_kernel[(triton.cdiv(size, block),)](
            scores,
            gradient,
            velocity,
            weight,
            threshold,
            bits_ptr=bits,
            first_ptr=first,
            rate_ptr=how["rate_ptr"],
            rate=how["rate"],
            momentum=momentum,
            size=size,
            RATE=how["RATE"],
            BLOCK=block,
            num_warps=WARPS,
        )
    return bits, first
