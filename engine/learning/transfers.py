"""What an auxiliary model may take over from the main one: TETLO's quadruples and the transfers it is compared with (paper 004).

Each compares what two models make of the same images, term by term: an image, a pair, a triple or a quadruple of them. Both
halves are differentiable, because the main model's architecture is reached through its half: targets are soft and never
detached, where a hard sign or an argmax label would leave that gradient zero (appendices P and V; reference note tetlo-darts,
section 6.8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.similarity import cosines, draw_quadruples, draw_triples, quadruple_terms

# SimCLR's, for cosines that become the odds of two images being similar; the paper names none.
TEMPERATURE = 0.5

# (main model's (B, F), auxiliary model's (B, F), places (members, K)) -> terms (K,)
Terms = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Transfer:
    """``reads`` says what of an encoder is compared, ``members`` how many images a term is about."""

    reads: Literal["features", "logits"]
    members: int
    terms: Terms

    def draw(self, images: int, count: int, generator: torch.Generator) -> Tensor:
        """Places in a batch, (members, K): ``count`` drawn tuples of different images, or every image alone."""
        if self.members == 1:
            return torch.arange(images)[None]
        if self.members == 3:
            return draw_triples(images, count, generator)
        return draw_quadruples(images, count, generator)[: self.members]

    def __call__(self, main: Tensor, auxiliary: Tensor, places: Tensor, *, mean: bool = False) -> Tensor:
        """The sum of the terms, or with ``mean`` their mean; a scalar."""
        terms = self.terms(main, auxiliary, places)
        return terms.mean() if mean else terms.sum()


def triple_terms(main: Tensor, auxiliary: Tensor, triples: Tensor) -> Tensor:
    """TS: relu(-(c_m(x,y) - c_m(x,z)) (c_a(x,y) - c_a(x,z))) of triples (3, K), the third order of Eq. 3.

    The paper names a hinge on the sign of the main model's difference, with a margin it does not give (You et al. 2017, Eq. 6);
    the difference itself keeps the gradient that a sign has not.
    """
    x, y, z = triples

    def difference(features: Tensor) -> Tensor:
        c = cosines(features)
        return c[x, y] - c[x, z]

    return F.relu(-difference(main) * difference(auxiliary))


def pair_terms(main: Tensor, auxiliary: Tensor, pairs: Tensor) -> Tensor:
    """PS: cross-entropy of the chances s = sigmoid(c / temperature) that the images of pairs (2, K) are similar,
    -(s_m log s_a + (1 - s_m) log(1 - s_a)), with the temperature 0.5."""
    x, y = pairs
    wanted = torch.sigmoid(cosines(main)[x, y] / TEMPERATURE)
    own = cosines(auxiliary)[x, y] / TEMPERATURE
    return -(wanted * F.logsigmoid(own) + (1 - wanted) * F.logsigmoid(-own))


def label_terms(main: Tensor, auxiliary: Tensor, images: Tensor) -> Tensor:
    """PL: KL(p_m || p_a) of the classes' probabilities of each image (Zhang et al. 2018, Eq. 3), from logits (B, K)."""
    wanted, own = (F.log_softmax(logits, 1) for logits in (main, auxiliary))
    return (wanted.exp() * (wanted - own)).sum(1)


def embedding_terms(main: Tensor, auxiliary: Tensor, images: Tensor) -> Tensor:
    """RegEmbed: |f_a(x) - f_m(x)|^2 of each image (Romero et al. 2014, without its regressor: features of one width)."""
    return (auxiliary - main).square().sum(1)


TRANSFERS: dict[str, Transfer] = {
    "qrs": Transfer("features", 4, quadruple_terms),
    "ts": Transfer("features", 3, triple_terms),
    "ps": Transfer("features", 2, pair_terms),
    "pl": Transfer("logits", 1, label_terms),
    "regembed": Transfer("features", 1, embedding_terms),
}
