"""Quadruple relative similarities: does an auxiliary model order pairs of images as the main model does (paper 004, Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import ConfigurationError


def draw_quadruples(images: int, pairs: int, generator: torch.Generator) -> Tensor:
    """``pairs`` quadruples (x, y, z, w) of indices into a batch, (4, pairs), with x != y and z != w, uniformly.

    A batch that has fewer than ``pairs`` different pairs is a :class:`ConfigurationError`.
    """
    check_pairs(images, pairs)
    first = torch.randint(images, (2, pairs), generator=generator)
    # The partner is drawn among the others: skip the first one's own place.
    second = torch.randint(images - 1, (2, pairs), generator=generator)
    second += second >= first
    return torch.stack([first[0], second[0], first[1], second[1]])


def check_pairs(images: int, pairs: int) -> None:
    """Raise a :class:`ConfigurationError` unless a batch has that many different pairs."""
    if images * (images - 1) // 2 < pairs:
        raise ConfigurationError(
            f"--batch: {images} images make {images * (images - 1) // 2} pairs, fewer than {pairs}; take more images or --pairs"
        )


def quadruple_similarity(main: Tensor, auxiliary: Tensor, quadruples: Tensor, *, mean: bool = False) -> Tensor:
    """sum over (x, y, z, w) of relu(-(c_m(x,y) - c_m(z,w)) (c_a(x,y) - c_a(z,w))) with c the cosine of two features (Eq. 3).

    ``main`` and ``auxiliary`` are features (B, F) of the same images, ``quadruples`` (4, K). Zero where both order all pairs
    alike; each term is at most 4. ``mean`` divides by K. One B x B product and K gathers a model.
    """
    products = _differences(main, quadruples) * _differences(auxiliary, quadruples)
    terms = F.relu(-products)
    return terms.mean() if mean else terms.sum()


def _differences(features: Tensor, quadruples: Tensor) -> Tensor:
    """c(x, y) - c(z, w), (K,)."""
    normal = F.normalize(features, dim=1)
    cosines = normal @ normal.T
    x, y, z, w = quadruples
    return cosines[x, y] - cosines[z, w]
