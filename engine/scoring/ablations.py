"""Scoring many architectures of one supernet at once: the ablations of a pruning round.

All architectures share the supernet's weights and differ only in their mixtures, so G of them run as one batch of G*N samples,
each group of N with its own mixture; kernels are block-diagonal and never compare groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.runs.streams import stream
from engine.scoring.condition import PUBLISHED_NAN, condition_number, published_condition
from engine.scoring.first_order import slope
from engine.scoring.kernels import gram
from engine.scoring.regions import linear_regions
from engine.scoring.result import Score
from engine.scoring.smooth_regions import smooth_regions
from engine.spaces.cost import count
from engine.spaces.genotype import Genotype
from engine.spaces.mixture import Mixture, uniform
from engine.spaces.space import Space
from engine.spaces.supernet import Supernet, initialise

Address = tuple[int | str, ...]

# Tensors of a state's size that forward and backward keep for every operation of an edge (measured on the few-shot supernet: 2.8
# at 8x8 and 2.9 at 28x28, its growth in peak memory per architecture over its summed state sizes).
TENSORS_PER_OPERATION = 3


@dataclass(frozen=True)
class KernelPair:
    """Theta of all weights and the part of it that the head's weight contributes, each float64 (G, N, N)."""

    theta: Tensor
    nngp: Tensor


class KernelScorer:
    """Condition numbers of kernels of architectures, on one supernet that is built once and re-drawn by address.

    Args:
        space, cells, channels, outputs, channels_in: the supernet (GroupNorm, so samples stay independent).
        seed: seed of every draw.
        condition: turns a :class:`KernelPair` into the kernels whose condition numbers count, (G, R, R).
        kaiming: the initialisation, see :func:`engine.spaces.supernet.initialise`.
        published: condition numbers with the special values of the published code, negative ones and all, see
            :func:`engine.scoring.condition.published_condition`; where Theta is the head's part alone (every gradient of the body
            is zero), the number is 100000 too.
    """

    def __init__(
        self,
        space: Space,
        *,
        cells: int,
        channels: int,
        outputs: int,
        channels_in: int,
        seed: int,
        condition: Callable[[KernelPair], Tensor],
        kaiming: bool = True,
        published: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.seed, self.condition, self.kaiming, self.published = seed, condition, kaiming, published
        model = Supernet(space, cells=cells, channels=channels, outputs=outputs, channels_in=channels_in)
        self.model = model.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._drawn: tuple[Address, Address] | None = None

    def draw(self, weights: Address, head: Address) -> None:
        """Give the supernet the weights of these addresses; drawing what it has costs nothing."""
        if self._drawn == (weights, head):
            return
        if self._drawn is None or self._drawn[0] != weights:
            initialise(self.model, stream(self.seed, "weights", *weights), kaiming=self.kaiming)
        initialise(self.model.classifier, stream(self.seed, "head", *head))
        self._drawn = (weights, head)

    def kernels(self, alive: Tensor, images: Tensor) -> KernelPair:
        """Kernels of the architectures ``alive`` (G, T, E, O) on the same ``images`` (N, C, H, W)."""
        weight = self.model.classifier.weight
        groups = len(alive)
        mixture = uniform(alive, dtype=weight.dtype, device=weight.device)
        x = images.to(weight.device, weight.dtype).repeat(groups, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        parts = gram(self.model, (x, mixture), _part, groups=groups)
        body, head = (part if groups > 1 else part.unsqueeze(0) for part in (parts["body"], parts["head"]))
        return KernelPair(body + head, head)

    def slopes(self, alive: Tensor, images: Tensor) -> Slopes:
        """Log condition number of one architecture ``alive`` (T, E, O) and its derivatives by all operation weights at once."""
        head = self.model.classifier.weight
        weights = uniform(alive, dtype=head.dtype, device=head.device).weights.requires_grad_()
        x = images.to(head.device, head.dtype).contiguous(memory_format=torch.channels_last)
        found = slope(self.model, lambda: self.model(x, Mixture(weights, alive)), weights, _part, self._log_condition)
        (score,) = self.scores(_pair_of(found.kernels))
        gradient = found.gradient.double().cpu()
        return Slopes(score, gradient if score.ok and bool(gradient.isfinite().all()) else None)

    def _log_condition(self, parts: Mapping[str, Tensor]) -> Tensor:
        eigenvalues = torch.linalg.eigvalsh(self.condition(_pair_of(parts)))[0]
        return eigenvalues[-1].log() - eigenvalues[0].log()

    def scores(self, pair: KernelPair) -> list[Score]:
        """Condition number of each architecture's kernel."""
        kernels = self.condition(pair).cpu()
        if self.published:
            dead = [torch.allclose(theta, nngp) for theta, nngp in zip(pair.theta, pair.nngp, strict=True)]
            numbers = published_condition(kernels)
            return [replace(score, value=PUBLISHED_NAN) if zero else score for score, zero in zip(numbers, dead, strict=True)]
        found = condition_number(kernels)
        return found if isinstance(found, list) else [found]


@dataclass(frozen=True)
class Slopes:
    """A score and the derivatives of its logarithm by the operation weights, float64 (T, E, O) on the host.

    None where the number is not ``ok`` or a derivative is not finite.
    """

    score: Score
    gradient: Tensor | None


def removal_slopes(gradient: Tensor, alive: Tensor, candidates: Sequence[tuple[int, int, int]]) -> list[float]:
    """First-order change by each removal (kind, edge, operation), from the ``gradient`` by the weights (T, E, O).

    A removal takes one of the k operations of an edge from 1/k to 0 and the others from 1/k to 1/(k-1): its direction gives
    (mean of the edge's derivatives - the operation's own) / (k - 1). An edge's only operation goes from 1 to 0.
    """
    count = alive.sum(-1)
    mean = torch.where(alive, gradient, 0.0).sum(-1) / count.clamp(min=1)
    found = []
    for kind, edge, operation in candidates:
        own, others = float(gradient[kind, edge, operation]), int(count[kind, edge]) - 1
        found.append((float(mean[kind, edge]) - own) / others if others else -own)
    return found


def _pair_of(parts: Mapping[str, Tensor]) -> KernelPair:
    return KernelPair((parts["body"] + parts["head"]).unsqueeze(0), parts["head"].unsqueeze(0))


def _part(name: str, parameter: nn.Parameter) -> str | None:
    """The published score counts the weights of convolutions and of the head, no bias; the supernet's norms have none."""
    if name == "classifier.weight":
        return "head"
    return None if name == "classifier.bias" else "body"


class RegionScorer:
    """Linear regions of architectures in the thin network of the published score (reference note, section 5).

    One channel, two cells (one of each kind), no stem, batch statistics. ``batches`` are drawn by the caller.
    """

    def __init__(self, space: Space, *, seed: int, kaiming: bool = True, device: str = "cpu") -> None:
        self.seed, self.kaiming = seed, kaiming
        self.model = Supernet(space, cells=2, channels=1, outputs=1, channels_in=1, norm="batchstat", stem=False).to(device)

    def draw(self, weights: Address) -> None:
        """Give the thin network the weights of this address."""
        initialise(self.model, stream(self.seed, "region-weights", *weights), kaiming=self.kaiming)

    def scores(self, alive: Tensor, batches: list[Tensor]) -> list[Score]:
        """Distinct activation patterns of each architecture ``alive`` (G, T, E, O) over all ``batches``, each (n, 1, k, k)."""
        groups = len(alive)
        device = self.model.classifier.weight.device
        mixture = uniform(alive, device=device)
        repeated = [batch.to(device).repeat(groups, 1, 1, 1) for batch in batches]
        found = linear_regions(self.model, repeated, groups=groups, forward=lambda model, x: model(x, mixture))
        return found if isinstance(found, list) else [found]

    def slopes(self, alive: Tensor, batches: list[Tensor]) -> Slopes:
        """Linear regions of one architecture ``alive`` (T, E, O), and the derivatives of the logarithm of their smooth surrogate
        (:func:`engine.scoring.smooth_regions.smooth_regions`) by all operation weights at once.
        """
        (score,) = self.scores(alive.unsqueeze(0), batches)
        device = self.model.classifier.weight.device
        weights = uniform(alive, device=device).weights.requires_grad_()
        with torch.enable_grad():
            surrogate = smooth_regions(lambda x: self.model(x, Mixture(weights, alive)), [batch.to(device) for batch in batches])
            (gradient,) = torch.autograd.grad(surrogate.log(), weights)
        gradient = gradient.double().cpu()
        return Slopes(score, gradient if score.ok and bool(gradient.isfinite().all()) else None)


def bytes_per_architecture(space: Space, *, cells: int, channels: int, size: int, samples: int, itemsize: int) -> int:
    """Memory that one architecture of a scored batch takes, by formula, so that a width can be chosen before anything runs.

    Every live operation of every edge keeps about :data:`TENSORS_PER_OPERATION` tensors of its cell's state size for the
    backward pass.
    """
    live = {kind: sum(sum(row) for row in rows) for kind, rows in zip(space.kinds, space.alive(), strict=True)}
    elements, side = 0, size
    for plan in space.layout(cells, channels):
        side = -(-side // 2) if plan.reduces else side
        elements += live[plan.kind] * plan.channels * side * side
    return TENSORS_PER_OPERATION * elements * samples * itemsize


def forward_macs(space: Space, *, cells: int, channels: int, size: int, genotype: Genotype | None = None) -> int:
    """Multiply-adds of one image through the full supernet, or through what a ``genotype`` leaves of it."""
    left = space.genotype(space.alive()) if genotype is None else genotype
    return count(left, channels=channels, cells=cells, size=size, classes=2, norm="groupnorm16", tail=True, space=space).macs
