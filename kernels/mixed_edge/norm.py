"""The arithmetic of normalised, weighted sums on planes' moments: (U, C) numbers, never whole tensors.

A plane is a channel of one of U units: a sample, or all samples that share statistics. With y a term's values, m and
r = 1/sqrt(var + eps) its statistics, z = (y - m) r, weight c and cotangents g_e of the targets e,

    S_e = sum_t c_et z_t = sum_t (c_et r_t) y_t - sum_t c_et r_t m_t
    dL/dc_et = sum g_e z_t                                                     (per channel; a mixture's gradient sums it further)
    dL/dy_t = sum_e (c_et r_t) g_e - r_t mean(sum_e c_et g_e) - r_t mean(sum_e c_et g_e z_t) z_t

with means over what shares statistics. So a forward needs the moments of the terms' planes, a backward the sums of g_e and
g_e z_t over each plane, and both then read every tensor once more with one factor a plane. The same sums give the mixture's
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """A normalisation without scale and shift of its own.

    ``"batch"``: each channel by its statistics over ``groups`` equal parts of the batch, one after the other (the tasks or
    architectures that lie behind one another). ``"group"``: each sample by its statistics over ``groups`` equal parts of the
    channels. ``"none"``: the identity. Variances are biased.
    """

    kind: Literal["batch", "group", "none"] = "batch"
    groups: int = 1
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.kind not in ("batch", "group", "none"):
            raise ValueError(f"norm: expected kind 'batch', 'group' or 'none', got {self.kind!r}")
        if self.groups < 1 or not self.eps >= 0:
            raise ValueError(f"norm: expected groups >= 1 and eps >= 0, got groups={self.groups}, eps={self.eps}")


def shared_mean(planes: Tensor, norm: Norm) -> Tensor:
    """(..., U, C) -> the mean over the planes that share statistics, at each of them."""
    axis = -2 if norm.kind == "batch" else -1
    share = planes.shape[axis] // norm.groups
    if share == 1:
        return planes
    parts = planes.unflatten(axis, (norm.groups, share))
    return parts.mean(axis, keepdim=True).expand_as(parts).flatten(axis - 1, axis)


def statistics(mean: Tensor, variance: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each plane, (T, U, C) -> the mean and 1/sqrt(var + eps) that it is normalised with."""
    centre = shared_mean(mean, norm)
    spread = variance if centre is mean else shared_mean(variance + (mean - centre).square(), norm)
    return centre, (spread + norm.eps).rsqrt()


def per_unit(rows: Tensor, units: int) -> Tensor:
    """(R, ..., C), one row for U/R consecutive units -> (..., U, C)."""
    planes = rows.movedim(0, -2)
    if len(rows) == 1:
        return planes.expand(*planes.shape[:-2], units, planes.shape[-1])
    return planes.repeat_interleave(units // len(rows), -2)


def per_row(planes: Tensor, rows: int) -> Tensor:
    """The transpose of :func:`per_unit`: (..., U, C) -> (R, ..., C)."""
    return planes.unflatten(-2, (rows, planes.shape[-2] // rows)).sum(-2).movedim(-2, 0)


def folded(weights: Tensor, alive: Tensor, offset: Tensor | None, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (E, T, U, C) and constants (E, U, C) of the sums S_e.

    ``weights`` (E, T, U, C) and ``alive`` (E, T, U, 1) say which terms a target takes, ``offset`` (E, U, C) what is added to it.
    """
    scale = torch.where(alive, weights * rstd, 0)
    shift = -torch.where(alive, scale * mean, 0).sum(1)
    return scale, shift if offset is None else shift + offset


def cotangent_factors(
    weights: Tensor, alive: Tensor, rstd: Tensor, totals: Tensor, products: Tensor, norm: Norm
) -> tuple[Tensor, Tensor, Tensor]:
    """What dL/dy_t is made of: factors (E, T, U, C) of g_e, slopes (T, U, C) of z_t and constants (T, U, C).

    ``totals`` (E, U, C) and ``products`` (E, T, U, C) are the planes' means of g_e and g_e z_t.
    """
    weights = torch.where(alive, weights, 0)
    direct = torch.where(alive, weights * rstd, 0)
    if norm.kind == "none":
        nothing = torch.zeros_like(rstd)
        return direct, nothing, nothing
    constant = -rstd * shared_mean((weights * totals.unsqueeze(1)).sum(0), norm)
    slope = -rstd * shared_mean((weights * products).sum(0), norm)
    taken = alive.any(0)
    return direct, torch.where(taken, slope, 0), torch.where(taken, constant, 0)


class SecondFactors(NamedTuple):
    """What the gradients of a gradient are made of, each (T, U, C); see :func:`second_factors`."""

    u: Tensor
    z: Tensor
    constant: Tensor
    z_of_term: Tensor
    g_of_term: Tensor
    u_of_term: Tensor
    constant_of_term: Tensor
    weights: Tensor


def second_factors(
    weights: Tensor,
    alive: Tensor,
    rstd: Tensor,
    totals: Tensor,
    products: Tensor,
    means: tuple[Tensor, Tensor, Tensor],
    direct: Tensor,
    norm: Norm,
) -> SecondFactors:
    """The gradients of sum_t <u_t, dL/dy_t> + <a_t, dL/dc_t> for g, y_t and c_t.

    With J h = r (h - mean h - z mean(h z)), the symmetric Jacobian of z, and h = c g it is <u, J h> + a <g, z>, and

        d/dg = c J u + a z                                     = sum_t (u, z and constant)
        d/dc = mean(g J u)                                     = weights
        d/dy = a J g + r^2 (z (3 mean(h z) mean(u z) + mean h mean u - mean(h u)) + mean h mean(u z) + mean u mean(h z)
                            - mean(u z) h - mean(h z) u)       = z, g, u and constant of the term

    Args:
        weights, rstd, products, direct: c, r, the planes' means of g z, and a, (T, U, C); alive: (T, U, 1).
        totals: the planes' means of g, (U, C).
        means: the planes' means of u, u z and g u, (T, U, C) each.
    """
    c, a = torch.where(alive, weights, 0), torch.where(alive, direct, 0)
    u1, uz, gu = means
    if norm.kind == "none":
        nothing = torch.zeros_like(c)
        return SecondFactors(c, a, nothing, nothing, a, nothing, nothing, gu)

    def mean(planes: Tensor) -> Tensor:
        return shared_mean(planes, norm)

    h1, hz, hu, v1, vz = mean(c * totals), mean(c * products), mean(c * gu), mean(u1), mean(uz)
    r, square = rstd, rstd * rstd
    return SecondFactors(
        u=c * r,
        z=a - c * r * vz,
        constant=-c * r * v1,
        z_of_term=square * (3 * hz * vz + h1 * v1 - hu) - r * mean(a * products),
        g_of_term=a * r - square * vz * c,
        u_of_term=-square * hz,
        constant_of_term=square * (h1 * vz + v1 * hz) - r * mean(a * totals),
        weights=torch.where(alive, r * (gu - v1 * totals - vz * products), 0),
    )
