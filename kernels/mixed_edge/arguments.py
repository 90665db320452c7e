"""From public arguments to factors a channel, and what is wrong with bad ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels.mixed_edge.norm import Norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_edge(
    x: Tensor,
    mixture: Tensor,
    filters: Sequence[Tensor],
    dilations: Sequence[int],
    norm: Norm,
    stride: int,
    scale: Tensor | None,
    shift: Tensor | None,
    parts: int,
    passing: Tensor | None,
) -> None:
    """Raise what :func:`engine.kernels.mixed_edge.mixed_edge` promises."""
    _check_image("x", x)
    _check_parts(x, mixture, parts, passing)
    channels = x.shape[1] // parts
    _check_rows("mixture", mixture, (None, 3), x, norm, channels)
    if stride not in (1, 2):
        raise ValueError(f"stride: expected 1 or 2, got {stride}")
    if len(filters) != len(dilations) or any(d < 1 for d in dilations):
        raise ValueError(f"dilations: expected a positive one for each of the {len(filters)} filters, got {tuple(dilations)}")
    for j, weight in enumerate(filters):
        _check_beside(f"filters[{j}]", weight, x)
        odd = weight.dim() == 4 and all(size % 2 for size in weight.shape[2:])
        if not odd or weight.shape[:2] != (channels, 1):
            raise ValueError(f"filters[{j}]: expected ({channels}, 1, kh, kw), both odd, got {tuple(weight.shape)}")
        if weight.dtype != x.dtype:
            raise TypeError(f"filters[{j}]: expected {x.dtype} as x is, got {weight.dtype} {tuple(weight.shape)}")
    _check_affine(scale, shift, (mixture.shape[-2], 2, channels), x)


def _check_parts(x: Tensor, mixture: Tensor, parts: int, passing: Tensor | None) -> None:
    if parts < 1 or x.shape[1] % parts:
        raise ValueError(f"parts: expected a positive divisor of the {x.shape[1]} channels of x, got {parts}")
    if (passing is None) != (parts == 1):
        raise ValueError(
            f"passing: expected weights exactly where parts is above 1, got parts={parts} and {type(passing).__name__}"
        )
    if passing is not None:
        _check_beside("passing", passing, x)
        if not passing.dtype.is_floating_point:
            raise TypeError(f"passing: expected a floating-point dtype, got {passing.dtype} {tuple(passing.shape)}")
        wanted = mixture.shape[:-1]
        if tuple(passing.shape) not in (tuple(wanted), tuple(wanted[-1:])):
            raise ValueError(
                f"passing: expected {tuple(wanted[-1:])} or {tuple(wanted)} as mixture has, got {tuple(passing.shape)}"
            )


def check_sum(
    terms: Sequence[Tensor],
    weights: Tensor,
    total: Tensor | None,
    norm: Norm,
    scale: Tensor | None,
    shift: Tensor | None,
    parts: int,
) -> None:
    """Raise what :func:`engine.kernels.mixed_edge.mixed_sum` promises."""
    if not terms:
        raise ValueError("terms: expected at least one")
    for t, term in enumerate(terms):
        _check_image(f"terms[{t}]", term)
        _check_alike(f"terms[{t}]", term, terms[0], "the first term")
    if total is not None:
        batch, channels, *size = terms[0].shape
        _check_alike("total", total, terms[0], "the terms", (batch, parts * channels, *size))
    if parts < 1:
        raise ValueError(f"parts: expected at least 1, got {parts}")
    _check_rows("weights", weights, (len(terms),), terms[0], norm, terms[0].shape[1])
    _check_affine(scale, shift, (len(terms), terms[0].shape[1]), terms[0])


def factors(weights: Tensor, scale: Tensor | None, shift: Tensor | None, channels: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Which terms exist, (R, ..., T), the factors (R, ..., T, C) and the sum of the shifts (R, ..., C)."""
    alive = (weights != 0).detach()
    weights = torch.where(alive, weights, 0).unsqueeze(-1)
    scaled = weights.expand(*weights.shape[:-1], channels) if scale is None else weights * scale
    return alive, scaled, None if shift is None else (weights * shift).sum(-2)


def _check_image(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: expected {', '.join(str(d) for d in DTYPES)}, got {x.dtype} {tuple(x.shape)}")
    if x.dim() != 4:
        raise ValueError(f"{name}: expected (B, C, H, W), got {tuple(x.shape)}")


def _check_alike(name: str, tensor: Tensor, like: Tensor, what: str, shape: tuple[int, ...] | None = None) -> None:
    wanted = tuple(like.shape) if shape is None else shape
    if tensor.shape != wanted:
        raise ValueError(f"{name}: expected {wanted} as {what}, got {tuple(tensor.shape)}")
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} as {what}, got {tensor.dtype} {tuple(tensor.shape)}")
    _check_beside(name, tensor, like)


def _check_beside(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected on {like.device}, got {tuple(tensor.shape)} on {tensor.device}")


def _check_rows(name: str, weights: Tensor, ends: tuple[int | None, ...], x: Tensor, norm: Norm, channels: int) -> None:
    _check_beside(name, weights, x)
    if not weights.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating-point dtype, got {weights.dtype} {tuple(weights.shape)}")
    rank = weights.dim() - len(ends)
    fits = all(end in (None, size) for end, size in zip(ends, weights.shape[rank:], strict=True)) if rank in (0, 1) else False
    if not fits:
        wanted = ", ".join("E" if end is None else str(end) for end in ends)
        raise ValueError(f"{name}: expected ({wanted}) or (R, {wanted}), got {tuple(weights.shape)}")
    rows, samples = (weights.shape[0] if rank else 1), x.shape[0]
    if rows < 1 or samples % rows:
        raise ValueError(f"{name}: expected rows that divide the {samples} samples, got {tuple(weights.shape)}")
    if norm.kind == "batch" and (samples % norm.groups or norm.groups % rows):
        raise ValueError(
            f"norm: expected groups of samples that divide the batch of {samples} and lie within the {rows} rows of "
            f"{name}, got {norm.groups}"
        )
    if norm.kind == "group" and channels % norm.groups:
        raise ValueError(f"norm: expected groups that divide the {channels} channels, got {norm.groups}")


def _check_affine(scale: Tensor | None, shift: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    for name, tensor in (("scale", scale), ("shift", shift)):
        if tensor is not None:
            _check_beside(name, tensor, x)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name}: expected {shape}, got {tuple(tensor.shape)}")
