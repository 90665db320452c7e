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


def draw_triples(images: int, triples: int, generator: torch.Generator) -> Tensor:
    """``triples`` triples (x, y, z) of different indices into a batch of at least three, (3, triples), uniformly."""
    x = torch.randint(images, (triples,), generator=generator)
    y = torch.randint(images - 1, (triples,), generator=generator)
    z = torch.randint(images - 2, (triples,), generator=generator)
    # Each is drawn among the others: skip the places that are taken, the lower one first.
    y += y >= x
    low, high = torch.minimum(x, y), torch.maximum(x, y)
    z += z >= low
    z += z >= high
    return torch.stack([x, y, z])


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
    terms = quadruple_terms(main, auxiliary, quadruples)
    return terms.mean() if mean else terms.sum()


def quadruple_terms(main: Tensor, auxiliary: Tensor, quadruples: Tensor) -> Tensor:
    """The terms (K,) of :func:`quadruple_similarity`."""
    return F.relu(-(differences(main, quadruples) * differences(auxiliary, quadruples)))


def differences(features: Tensor, quadruples: Tensor) -> Tensor:
    """c(x, y) - c(z, w) of quadruples (4, K) -> (K,)."""
    c = cosines(features)
    x, y, z, w = quadruples
    return c[x, y] - c[z, w]


def cosines(features: Tensor) -> Tensor:
    """c, the cosines of all pairs of features (B, F) -> (B, B)."""
    normal = F.normalize(features, dim=1)
    return normal @ normal.T
