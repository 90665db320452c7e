"""Quadruples of images whose order is known from their classes: two of one class are more alike than two of different ones.

They judge what a model takes for similar, and train one by it (paper 004, Eqs. 22 and 23, Figures 2 and 6).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.learning.similarity import check_pairs, differences


class Ordered(NamedTuple):
    """Quadruples (4, K) with (x, y) more alike than (z, w), and which of them are there (K,)."""

    places: Tensor
    there: Tensor


def ordered_quadruples(labels: Tensor, count: int, generator: torch.Generator) -> Ordered:
    """Up to ``count`` quadruples of a batch with these labels (B,): pairs of one class beside pairs of two classes.

    Both kinds of pairs are drawn without replacement, so there are no more quadruples than a batch has pairs of either kind; the
    rest are marked as not there. Nothing is read by the host. Fewer than ``count`` pairs in all are a
    :class:`ConfigurationError`.
    """
    images = len(labels)
    check_pairs(images, count)
    keys = torch.rand(images, images, generator=generator).to(labels.device)
    same = labels[:, None] == labels
    first = torch.ones_like(same).triu(1)
    alike, apart = (keys.masked_fill(~chosen, -1).flatten().topk(count) for chosen in (first & same, first & ~same))
    x, z = alike.indices // images, apart.indices // images
    places = torch.stack([x, alike.indices % images, z, apart.indices % images])
    return Ordered(places, (alike.values >= 0) & (apart.values >= 0))


def ordering_loss(features: Tensor, ordered: Ordered, *, mean: bool = False) -> Tensor:
    """sum of relu(-(c(x,y) - c(z,w))) over quadruples, c being the cosine of two of the features (B, F); zero without any."""
    terms = F.relu(-differences(features, ordered.places)) * ordered.there
    return terms.sum() / ordered.there.sum().clamp(min=1) if mean else terms.sum()


def misordered(features: Tensor, ordered: Ordered) -> Tensor:
    """How many quadruples the features (B, F) order wrongly or not at all, a scalar."""
    return ((differences(features, ordered.places) <= 0) & ordered.there).sum()


def collect_quadruples(labels: Tensor, count: int, swapped: float, generator: torch.Generator) -> Tensor:
    """``count`` ordered quadruples of images with these labels (N,) on the host, (4, count), of which a share is swapped.

    x is uniform among the images whose class has another, y among the others of its class, z among all, and w among those of
    other classes (appendix O); swapping makes (z, w) the pair that is called more alike. Labels without two of a class, or of one
    class only, are a :class:`ConfigurationError`.
    """
    order = labels.argsort(stable=True)
    _, number, sizes = torch.unique(labels[order], return_inverse=True, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    several = (sizes[number] > 1).nonzero()[:, 0]  # ranks of images in that order
    if not len(several) or len(sizes) < 2:
        raise ConfigurationError("--objective: quadruples need two images of a class and a second class")

    def draw(most: Tensor) -> Tensor:
        """Uniform whole numbers below each of ``most``."""
        return (torch.rand(len(most), generator=generator, dtype=torch.float64) * most).long()

    x = several[draw(torch.full((count,), len(several)))]
    y = starts[number[x]] + draw(sizes[number[x]] - 1)
    y += y >= x
    z = draw(torch.full((count,), len(order)))
    w = draw(len(order) - sizes[number[z]])
    w += torch.where(w >= starts[number[z]], sizes[number[z]], 0)
    found = order[torch.stack([x, y, z, w])]
    chosen = torch.randperm(count, generator=generator)[: round(swapped * count)]
    found[:, chosen] = found[[2, 3, 0, 1]][:, chosen]
    return found
