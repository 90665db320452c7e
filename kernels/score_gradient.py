"""The outer step of a ticket: from products of one task's activations and errors to scores, their mask and the first weights.

v = mu v + g;  s -= alpha v;  m = not s < sigma;  w_0 = m phi                          (reference note meta-ticket, 12.1)
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.masked import as_threshold, masked, pack
from engine.kernels.updates import DTYPES, Rate, check_buffers, on_triton, sgd_

Factors = tuple[Tensor, Tensor]


@torch.no_grad()
def score_gradient(
    weight: Tensor,
    scores: Tensor,
    threshold: Tensor | float,
    query: Factors,
    support: Factors,
    curvature: Factors | None,
    *,
    rate: float,
) -> Tensor:
    """dL/ds of a linear layer, summed over T tasks that adapt S >= 1 steps from one start.

    Args:
        weight, scores: phi and s, (O, I), contiguous; threshold: sigma, 0-dim tensor or float.
        query: left (T, N, O) and right (T, N, I), contiguous as all factors: errors and inputs of which G_q is the product.
        support: left (S, T, N', O) and right (S, T, N', I), of which the G_k are.
        curvature: left (S, T, M, O) and right (S, T, M, I), of which the H_k[m R_{k+1}] are; None is first order.
        rate: a.

    Returns:
        (O, I). Costs T (N + S (N' + M)) O I multiply-adds. On a GPU with Triton one launch that stores nothing but the result;
        elsewhere one task's G_k and R at a time. No gradients: it is one.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape, layout or device.
    """
    _check_factors(weight, scores, query, support, curvature)
    sigma = as_threshold(threshold, scores)
    if on_triton(weight) and weight.dtype == torch.float32 and weight.numel():
        from engine.kernels.triton_score_gradient import launch_score_gradient

        return launch_score_gradient(query, support, curvature, weight, scores, sigma, rate)
    total, crossed = torch.zeros_like(weight), torch.zeros_like(weight)
    steps = len(support[0])
    for task in range(len(query[0])):
        rest = query[0][task].mT @ query[1][task]
        for k in reversed(range(steps)):
            crossed.addcmul_(support[0][k, task].mT @ support[1][k, task], rest)
            if curvature is not None and k:
                rest.addmm_(curvature[0][k, task].mT, curvature[1][k, task], alpha=-rate)
        total.add_(rest)
    if curvature is not None:  # the last product of all tasks is needed as their sum only: one product
        total.addmm_(curvature[0][0].flatten(0, 1).mT, curvature[1][0].flatten(0, 1), alpha=-rate)
    scale = rate if curvature is None else 2 * rate
    return total.mul_(weight).sub_(masked(crossed, scores, sigma), alpha=scale)


def score_gradient_reference(
    weight: Tensor, keep: Tensor, query: Tensor, support: Tensor, curvature: Tensor | None, rate: float
) -> Tensor:
    """The recursion of the note on gradients: weight, keep (O, I), query (T, O, I), the others (S, T, O, I); sum over tasks."""
    adapted = [weight - rate * (keep * support[:k].sum(0)) for k in range(len(support) + 1)]
    if curvature is None:
        return (adapted[-1] * query).sum(0)
    mu, total = keep * query, adapted[-1] * query
    for k in reversed(range(len(support))):
        total = total - rate * support[k] * mu - rate * adapted[k] * curvature[k]
        mu = mu - rate * (keep * curvature[k])
    return total.sum(0)


@torch.no_grad()
def update_scores_(
    scores: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    weight: Tensor,
    threshold: Tensor | float,
    *,
    rate: Rate,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """A layer's outer step: SGD with momentum on its scores in place, then what the next outer step needs of the new mask.

    Args:
        scores, velocity: of any shape, contiguous; updated. gradient: of the same shape.
        weight: phi, of the same shape. threshold: sigma, 0-dim tensor or float. rate: float or 0-dim.

    Returns:
        (bits, w_0): the mask as :func:`engine.kernels.masked.pack` makes it, uint8 (ceil(n / 8),), and m * phi. Reads 4 values a
        weight and writes 3 and a bit: the mask is built here, once an outer step, and not in every forward pass.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, shape, layout, device or range, before anything is written.
    """
    if isinstance(rate, Tensor) and rate.ndim:
        raise ValueError(f"rate: expected a float or a 0-dim tensor, got {tuple(rate.shape)}")
    flat = {"scores": scores, "gradient": gradient, "velocity": velocity, "weight": weight}
    for name, tensor in flat.items():
        if tensor.shape != scores.shape or not tensor.is_contiguous():
            layout = f"{tuple(tensor.shape)}, strides {tensor.stride()}"
            raise ValueError(f"{name}: expected contiguous {tuple(scores.shape)} as scores are, got {layout}")
    states = {"velocity": velocity.view(-1), "weight": weight.view(-1)}
    check_buffers(scores.view(-1), gradient.view(-1), states, rate)
    sigma = as_threshold(threshold, scores)
    if not on_triton(scores):
        sgd_(scores.view(-1), gradient.view(-1), velocity.view(-1), rate=rate, momentum=momentum)
        return pack(~(scores < sigma)), masked(weight, scores, sigma)
    from engine.kernels.triton_updates import launch_update_scores

    found = launch_update_scores(scores, gradient, velocity, weight, sigma, rate, momentum)
    torch.autograd.graph.increment_version([scores, velocity])
    return found


def _check_factors(weight: Tensor, scores: Tensor, query: Factors, support: Factors, curvature: Factors | None) -> None:
    steps, tasks = support[0].shape[:1], query[0].shape[:1]
    named = {"query": (query, tasks), "support": (support, steps + tasks)}
    if curvature is not None:
        named["curvature"] = (curvature, steps + tasks)
    if weight.ndim != 2 or weight.shape != scores.shape:
        raise ValueError(f"scores: expected (O, I) as weight has, got {tuple(scores.shape)}, weight {tuple(weight.shape)}")
    tensors = {"weight": weight, "scores": scores}
    for name, ((left, right), lead) in named.items():
        rows = left.shape[len(lead) : len(lead) + 1]
        wanted = [(*lead, *rows, size) for size in weight.shape]
        if len(rows) != 1 or [tuple(left.shape), tuple(right.shape)] != wanted or (name == "support" and not all(steps)):
            given = f"{tuple(left.shape)} and {tuple(right.shape)}"
            axes = "(T, N, O) and (T, N, I)" if name == "query" else "(S, T, N, O) and (S, T, N, I), S >= 1,"
            raise ValueError(f"{name}: expected {axes} for weight {tuple(weight.shape)} and {tuple(tasks)} tasks, got {given}")
        tensors |= {name: left, f"{name}'s right": right}
    for name, tensor in tensors.items():
        if tensor.dtype != weight.dtype or tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: expected {weight.dtype} as weight is, floating, got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.device != weight.device or not tensor.is_contiguous():
            given = f"{tuple(tensor.shape)}, strides {tensor.stride()}, on {tensor.device}"
            raise ValueError(f"{name}: expected contiguous on {weight.device} as weight is, got {given}")
