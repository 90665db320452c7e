"""LAMANAS's learned losses: networks phi that map logits and labels to a scalar (paper 002; reference note, section 5).

Both read concat(z, y) in R^(K+1), z the logits and y the class index as a number. With ``residual`` the cross-entropy of the
batch is added to a hidden layer. Parameters are one flat vector (P,), everything is differentiable any number of times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.learning.flat import Layout

HIDDEN = 64
LSTM_LAYERS = 5


class LossNetwork(Protocol):
    """A learned loss: ``network(phi, logits, labels)`` is a scalar, the mean over the batch."""

    layout: Layout
    first: str  # the layer that reads logits and label
    residual: bool

    def __call__(self, phi: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (N, K) and labels (N,)."""

    def each(self, part: Mapping[str, Tensor], logits: Tensor, labels: Tensor, gold: Tensor) -> Tensor:
        """The terms (N,) whose mean is the loss, from the layers' parameters by name; ``gold`` is the cross-entropy that the
        residual adds, of the batch () or of each sample (N, 1)."""


class FeedForwardLoss:
    """fc1 (K+1 -> 64), plus the cross-entropy, ELU, fc2 (64 -> 1). 1,473 parameters at K = 20."""

    first = "fc1"

    def __init__(self, classes: int, *, residual: bool) -> None:
        self.residual = residual
        self.layout = Layout(
            (("fc1.weight", (HIDDEN, classes + 1)), ("fc1.bias", (HIDDEN,)), ("fc2.weight", (1, HIDDEN)), ("fc2.bias", (1,)))
        )

    def __call__(self, phi: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return self.each(self.layout.views(phi), logits, labels, F.cross_entropy(logits, labels)).mean()

    def each(self, part: Mapping[str, Tensor], logits: Tensor, labels: Tensor, gold: Tensor) -> Tensor:
        hidden = F.linear(_inputs(logits, labels), part["fc1.weight"], part["fc1.bias"])
        if self.residual:
            hidden = hidden + gold
        return F.linear(F.elu(hidden), part["fc2.weight"], part["fc2.bias"])[:, 0]


class RecurrentLoss:
    """fcz (K+1 -> 64), ELU, five LSTM layers of 64, fc1 (64 -> 32), plus the cross-entropy, ELU, fc2 (32 -> 1).

    The sequence has length one and the batch is the LSTM's; hidden and cell states start as the label's value in every component,
    as published, which saturates the cells: with the residual a random network is close to a monotone function of the
    cross-entropy, rising or falling with its seed (reference note, section 6.5). 169,921 parameters at K = 20.
    """

    first = "fcz"

    def __init__(self, classes: int, *, residual: bool) -> None:
        self.residual = residual
        shapes: list[tuple[str, tuple[int, ...]]] = [("fcz.weight", (HIDDEN, classes + 1)), ("fcz.bias", (HIDDEN,))]
        for layer in range(LSTM_LAYERS):
            shapes += [(f"lstm.weight_{kind}_l{layer}", (4 * HIDDEN, HIDDEN)) for kind in ("ih", "hh")]
            shapes += [(f"lstm.bias_{kind}_l{layer}", (4 * HIDDEN,)) for kind in ("ih", "hh")]
        shapes += [("fc1.weight", (32, HIDDEN)), ("fc1.bias", (32,)), ("fc2.weight", (1, 32)), ("fc2.bias", (1,))]
        self.layout = Layout(tuple(shapes))

    def __call__(self, phi: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return self.each(self.layout.views(phi), logits, labels, F.cross_entropy(logits, labels)).mean()

    def each(self, part: Mapping[str, Tensor], logits: Tensor, labels: Tensor, gold: Tensor) -> Tensor:
        x = F.elu(F.linear(_inputs(logits, labels), part["fcz.weight"], part["fcz.bias"]))
        start = labels.to(logits)[:, None].expand(-1, HIDDEN)
        for layer in range(LSTM_LAYERS):
            weights = [part[f"lstm.{kind}_l{layer}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            gates = F.linear(x, weights[0], weights[2]) + F.linear(start, weights[1], weights[3])
            enter, keep, candidate, leave = gates.chunk(4, 1)
            x = leave.sigmoid() * torch.tanh(keep.sigmoid() * start + enter.sigmoid() * candidate.tanh())
        hidden = F.linear(x, part["fc1.weight"], part["fc1.bias"])
        if self.residual:
            hidden = hidden + gold
        return F.linear(F.elu(hidden), part["fc2.weight"], part["fc2.bias"])[:, 0]


def _inputs(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([logits, labels.to(logits)[:, None]], 1)


def initial(network: LossNetwork, generator: torch.Generator) -> Tensor:
    """Draw phi (P,): fc1 and fc2 orthogonal, everything else U(+-1/sqrt(fan-in)) as PyTorch does.

    So published; the paper claims orthogonal LSTM layers too.
    """
    parts = {}
    fan_in = HIDDEN
    for name, shape in network.layout.shapes:
        part = torch.empty(shape)
        if len(shape) == 2:
            fan_in = shape[1]
        if name in ("fc1.weight", "fc2.weight"):
            nn.init.orthogonal_(part, generator=generator)
        else:
            part.copy_((torch.rand(shape, generator=generator) * 2 - 1) * fan_in**-0.5)
        parts[name] = part
    return network.layout.pack(parts)


def mse_proxy(network: LossNetwork, phi: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """(H(z, y) - L_phi(z, y))^2 (Eq. 7)."""
    return (network(phi, logits, labels) - F.cross_entropy(logits, labels)).square()


def inner_product_proxy(network: LossNetwork, phi: Tensor, logits: Tensor, labels: Tensor, tangent: Tensor) -> Tensor:
    """H - lambda <grad_theta L_phi, grad_theta H> - xi <grad_alpha L_phi, grad_alpha H> (Eq. 8), differentiable to phi.

    phi enters both products through dL_phi/dz alone, so they are <dL_phi/dz, tangent> with the ``tangent`` of
    :func:`descent_tangent`, and no gradient of the classifier has to be differentiated again. ``logits`` (N, K) without a graph.
    """
    z = logits.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(network(phi, z, labels), z, create_graph=True)
    return F.cross_entropy(logits.detach(), labels) - (slope * tangent).sum()


def descent_tangent(logits: Tensor, labels: Tensor, parameters: Sequence[Tensor], rates: Sequence[float]) -> Tensor:
    """J (r grad H): how the logits (N, K) move along the cross-entropy's gradient, each of ``parameters`` at its rate.

    ``logits`` with their graph, whose model must be differentiable twice. Cost: three backward passes.
    """
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), parameters, retain_graph=True)
    probe = torch.zeros_like(logits, requires_grad=True)
    pulled = torch.autograd.grad(logits, parameters, probe, create_graph=True)  # J^T probe, linear in the probe
    product = sum((r * g.detach() * p).sum() for r, g, p in zip(rates, gradients, pulled, strict=True))
    assert isinstance(product, Tensor)
    return torch.autograd.grad(product, probe)[0]


def cosine_to_cross_entropy(network: LossNetwork, phi: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """cos(dL_phi/dz, dH/dz) of a batch: 1 is cross-entropy up to its scale, -1 is its ascent."""
    z = logits.detach().requires_grad_(True)
    learned = torch.autograd.grad(network(phi, z, labels), z)[0]
    gold = torch.autograd.grad(F.cross_entropy(z, labels), z)[0]
    return F.cosine_similarity(learned.flatten(), gold.flatten(), dim=0)


def loss_surface(network: LossNetwork, phi: Tensor, *, side: int = 64, reach: float = 1e4) -> Tensor:
    """The loss over two logits for either label (Figure 3): (2, side, side), [y, i, j] at z = (z_j, z_i) of [-reach, reach]^2.

    The first layer W (64, K+1) is replaced by W V with V (K+1, 3) the first three principal directions of its rows, so that the
    network reads (z1, z2, y); their signs make the largest entry positive. (Of an orthogonal layer, as FNN's before the first
    step, they are any.) Published with 200 points a side, one call each, and a
    random label at every point; here one call for all, and both labels.
    """
    part = {name: value.detach() for name, value in network.layout.views(phi).items()}
    weight = part[f"{network.first}.weight"]
    directions = torch.linalg.svd((weight - weight.mean(0)).double(), full_matrices=False).Vh[:3]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    part[f"{network.first}.weight"] = weight @ (directions * largest.sign()).T.to(weight)
    points = torch.linspace(-reach, reach, side, device=phi.device, dtype=phi.dtype)
    logits = torch.cartesian_prod(points, points).flip(1).repeat(2, 1)
    labels = torch.arange(2, device=phi.device).repeat_interleave(side * side)
    gold = F.cross_entropy(logits, labels, reduction="none")[:, None]
    return network.each(part, logits, labels, gold).view(2, side, side)
