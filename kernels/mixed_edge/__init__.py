"""The mixed edge group of a cell: everything that reads one source state, and the weighted sums that make the next one.

A source state x (B, C, H, W) is read by the operations of all its outgoing edges. Two operators serve them:

* :func:`mixed_edge` reads x once for the maximum and average pool, the skip connection and the rectifier with every depthwise
  filter of every edge. The parameter-free operations exist once however many edges take them; each edge e gets the sum

      S_e = w_e,max norm(max(x)) + w_e,average norm(average(x)) + w_e,skip x,

  and the depthwise outputs ("taps") go on to their pointwise convolutions.
* :func:`mixed_sum` adds the outputs of those, each normalised and weighted, to a target: S = total + sum_t w_t norm(y_t).

A normalisation enters a sum as one factor and one constant a plane (:mod:`.norm`), so no normalised and no weighted tensor is
stored, and the backward's reduction over g norm(y), which the normalisation needs anyway, is the mixture's gradient too. Pools
are computed again in the backward instead of being kept. Which gradients are formed is what autograd asks for: a mixture that
needs one beside filters that do not is an architecture-only pass, and forms no weight gradient. Mixtures may have a row for every
B/R samples. A weight of exactly zero means that the operation does not exist there: it is not computed where no row takes it,
nothing of it (NaN either) reaches a sum, and its weight's gradient is zero; straight-through weights (hard - soft.detach() +
soft) therefore cost what the chosen operations cost.

Faces: :mod:`.reference` (plain, any transform and order); :mod:`.group` and :mod:`.weighted_sum` for the CPU; :mod:`.device` with
Triton kernels for CUDA tensors of float32, bfloat16 and float16, compiled for sm_80 and sm_90 and run in Triton's interpreter,
never yet on a GPU; :mod:`.edge_operators` and :mod:`.sum_operators`, which register those. Each is an ``autograd.Function`` that
steps aside where a transform of torch is at work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.mixed_edge.arguments import check_edge, check_sum, factors
from engine.kernels.mixed_edge.group import OPERATIONS, SKIP, group_on_cpu
from engine.kernels.mixed_edge.norm import Norm
from engine.kernels.mixed_edge.reference import Setting, group_reference, sum_reference
from engine.kernels.mixed_edge.weighted_sum import sum_on_cpu
from engine.kernels.transforms import is_transformed

__all__ = ["OPERATIONS", "Norm", "mixed_edge", "mixed_sum"]


def mixed_edge(
    x: Tensor,
    mixture: Tensor,
    filters: Sequence[Tensor] = (),
    dilations: Sequence[int] = (),
    *,
    norm: Norm,
    stride: int = 1,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    parts: int = 1,
    passing: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Evaluate everything that reads one source state.

    Args:
        x: the state (B, C, H, W), in any memory format; ReLU is applied for the filters only.
        mixture: weights (E, 3) of :data:`OPERATIONS` (max, average, skip) on the E outgoing edges, or (R, E, 3) with a row for
            B/R consecutive samples. With stride 2 there is no skip connection: its weights are ignored.
        filters: D depthwise weights (C, 1, kh, kw) of odd sizes, all edges' behind one another.
        dilations: one for each filter; padding keeps the resolution (at stride 1).
        norm: normalises the pools. Where its groups are parts of the batch, R must divide them.
        stride: 1 or 2, of all operations.
        scale, shift: (E, 2, C), what the normalised pools are multiplied with and moved by.
        parts: K of PC-DARTS. With K above 1 the state is (B, K C, H, W), operations see its first C channels, and the others pass
            by (with stride 2 through a 2x2 maximum), weighted by ``passing``: (E,) or (R, E). What operations make of channel c
            is channel K c of a sum, and channel i C + c of the state channel K c + i, where a shuffle of both would put them.

    Returns:
        The E sums and the D taps, each (B, C, ceil(H / stride), ceil(W / stride)), sums with K C channels. Gradients of every
        order; those of second order, under torch.func, forward mode and torch.compile, are the plain formulation's.

    On the CPU one pass a pool and direction, two for its moments, E for its sums; the backward computes the pools again and takes
    E + 1 reductions and E + 2 passes for each. Half precisions are computed in float32, and rounded once. Many taps outgrow a
    CPU's caches before they are read: a forward pass without gradients is faster there with each
    :func:`engine.kernels.depthwise.depthwise` next to its pointwise convolution and no ``filters`` here.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape or device.
    """
    check_edge(x, mixture, filters, dilations, norm, stride, scale, shift, parts, passing)
    rows = mixture if mixture.dim() == 3 else mixture.unsqueeze(0)
    if stride > 1:
        rows = torch.cat([rows[..., :SKIP], torch.zeros_like(rows[..., SKIP:])], -1)
    alive, scaled, offset = factors(
        rows,
        None if scale is None else F.pad(scale, (0, 0, 0, 1), value=1),
        None if shift is None else F.pad(shift, (0, 0, 0, 1)),
        x.shape[1] // parts,
    )
    if passing is not None:
        passing = passing.expand(len(rows), -1) if passing.dim() == 1 else passing
    setting = Setting(norm, stride, tuple(dilations), parts)
    formula = _formula(x, group_on_cpu, "edge_operators.group_on_device", group_reference)
    outputs = formula(setting, alive, x, scaled, offset, passing, *filters)
    edges = rows.shape[1]
    return list(outputs[:edges]), list(outputs[edges:])


def mixed_sum(
    terms: Sequence[Tensor],
    weights: Tensor,
    total: Tensor | None = None,
    *,
    norm: Norm,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    parts: int = 1,
) -> Tensor:
    """Add normalised and weighted terms: total + sum_t w_t (scale_t norm(y_t) + shift_t).

    Args:
        terms: T tensors (B, C, H, W) of one shape, in any memory format.
        weights: (T,), or (R, T) with a row for B/R consecutive samples.
        total: what they are added to; None for zero. It is left alone.
        norm: normalises every term. Where its groups are parts of the batch, R must divide them.
        scale, shift: (T, C).
        parts: K of PC-DARTS: with K above 1 total and sum have K C channels, and the terms go to every K-th.

    Returns:
        (B, K C, H, W). Gradients of every order: on the CPU the second is closed too and keeps only what the first keeps. From
        the third on (on a GPU from the second on), under torch.func, forward mode and torch.compile they are the plain
        formulation's.

    On the CPU one pass a term for its moments and one for the sum; the backward takes a product, its reduction and two passes a
    term, and its own gradient three reductions and seven passes. Half precisions are computed in float32, and rounded once.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape or device.
    """
    check_sum(terms, weights, total, norm, scale, shift, parts)
    rows = weights if weights.dim() == 2 else weights.unsqueeze(0)
    alive, scaled, offset = factors(rows, scale, shift, terms[0].shape[1])
    formula = _formula(terms[0], sum_on_cpu, "sum_operators.sum_on_device", sum_reference)
    return formula(norm, alive, scaled, offset, total, *terms, parts=parts)


def _formula(x: Tensor, on_cpu: Callable[..., Any], on_device: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """The formulation for where x lies; the kernels are for CUDA tensors of at most float32, and need Triton."""
    if is_transformed() or x.numel() == 0:
        return plain
    if x.device.type == "cpu":
        return on_cpu
    if x.device.type != "cuda" or x.dtype == torch.float64 or find_spec("triton") is None:
        return plain
    module, name = on_device.split(".")
    return getattr(import_module(f"engine.kernels.mixed_edge.{module}"), name)
