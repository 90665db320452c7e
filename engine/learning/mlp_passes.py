"""The passes of an MLP over T tasks at once: forward, backward, and the tangent of both that a Hessian-vector product is.

Every hidden layer is z = a W^T, h = (z - mean) r with r = 1 / sqrt(var + eps) over the N samples of the task, y = gain h + shift,
ReLU; the last is z = a W^T + bias. The loss of a task is the mean cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Factors = list[tuple[Tensor, Tensor]]


class Workspace:
    """Matrices of one call that the next call takes over: fresh pages cost a CPU more than the products written into them."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str | int, ...], Tensor] = {}

    def products(self, d: Tensor, a: Tensor, *key: str | int) -> Tensor:
        """d^T a of every task, (T, O, I), in the memory of this key; valid until the key is used again."""
        return torch.bmm(d.mT, a, out=self.matrices((d.shape[0], d.shape[2], a.shape[2]), d, *key))

    def matrices(self, shape: tuple[int, ...], like: Tensor, *key: str | int) -> Tensor:
        """The memory of this key as a tensor of ``shape``, with whatever it held."""
        found = self._buffers.get(key)
        if found is None or found.shape != shape or found.dtype != like.dtype or found.device != like.device:
            found = self._buffers[key] = like.new_empty(shape)
        return found


@dataclass
class Map:
    """A linear map a task: a shared matrix plus low-rank terms d^T a, or ``scale`` times one matrix a task."""

    shared: Tensor | None = None
    factors: Factors = field(default_factory=list)
    own: Tensor | None = None
    scale: float = 1.0

    def __bool__(self) -> bool:
        return self.shared is not None or self.own is not None or bool(self.factors)

    def out(self, x: Tensor) -> Tensor:
        """(T, N, I) -> (T, N, O)."""
        if self.own is not None:
            return torch.bmm(self._scaled(x), self.own.mT)
        return self._sum(x, None if self.shared is None else self.shared.mT, [(a, d) for d, a in self.factors])

    def back(self, d: Tensor) -> Tensor:
        """(T, N, O) -> (T, N, I)."""
        if self.own is not None:
            return torch.bmm(self._scaled(d), self.own)
        return self._sum(d, self.shared, self.factors)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    def _sum(self, x: Tensor, shared: Tensor | None, factors: Factors) -> Tensor:
        total = None if shared is None else (x.flatten(0, 1) @ shared).unflatten(0, x.shape[:2])
        for left, right in factors:
            gram = torch.bmm(x, left.mT)
            total = torch.bmm(gram, right) if total is None else torch.baddbmm(total, gram, right)
        assert total is not None
        return total


@dataclass
class State:
    """A layer's parameters at one inner step; vectors are (T, 1, O), or (1, 1, O) where all tasks still have the same."""

    weight: Map
    gain: Tensor | None
    shift: Tensor | None
    bias: Tensor | None

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        """Gain and shift of a hidden layer."""
        assert self.gain is not None
        assert self.shift is not None
        return self.gain, self.shift


@dataclass
class Saved:
    """What a pass leaves in a layer.

    Input ``a``; in hidden layers normalised ``h``, ``r`` and the output ``y`` behind the ReLU; from the backward pass the
    gradients ``dy`` in front of the ReLU and ``dz``, e with dz = gain r e, and those of the vectors (None below the floor and
    where there is no such vector).
    """

    a: Tensor
    h: Tensor = field(init=False)
    r: Tensor = field(init=False)
    y: Tensor = field(init=False)
    dy: Tensor = field(init=False)
    e: Tensor = field(init=False)
    dz: Tensor | None = None
    dgain: Tensor | None = None
    dshift: Tensor | None = None
    dbias: Tensor | None = None

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(d, a) of the gradient of the weight, d^T a."""
        assert self.dz is not None
        return self.dz, self.a


@dataclass
class Tangent:
    """A direction in one layer's parameters: an empty map and None where nothing moves."""

    weight: Map
    gain: Tensor | None = None
    shift: Tensor | None = None
    bias: Tensor | None = None


@dataclass
class Product:
    """One layer's part of a Hessian-vector product: low-rank terms of the weight, and the vectors (T, 1, O)."""

    weight: Factors
    gain: Tensor | None = None
    shift: Tensor | None = None
    bias: Tensor | None = None


def forward(states: Sequence[State], x: Tensor, eps: float, *, leading: int | None = None) -> tuple[list[Saved], Tensor]:
    """The saved layers and the logits (T, N, K) of inputs (T, N, I); statistics are those of the ``leading`` samples, or all."""
    saved = []
    for state in states[:-1]:
        own = Saved(x)
        z = state.weight.out(x)
        z = z.sub_(z[:, :leading].mean(1, keepdim=True))
        own.r = z[:, :leading].square().mean(1, keepdim=True).add_(eps).rsqrt_()
        own.h = z.mul_(own.r)
        gain, shift = state.affine
        own.y = x = torch.addcmul(shift, own.h, gain).relu_()
        saved.append(own)
    saved.append(Saved(x))
    logits = states[-1].weight.out(x)
    return saved, logits + states[-1].bias if states[-1].bias is not None else logits


def _through_relu_(grad: Tensor, y: Tensor) -> Tensor:
    """``grad``, in place, where the ReLU's output ``y`` is above 0, else 0: one pass, where a product with bools makes a copy."""
    return torch.ops.aten.threshold_backward.grad_input(grad, y, 0.0, grad_input=grad)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each task, (T,)."""
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)


def backward(states: Sequence[State], saved: list[Saved], logits: Tensor, labels: Tensor, floor: int) -> Tensor:
    """Put the gradients of the loss into ``saved``, down to layer ``floor``; returns the probabilities (T, N, K)."""
    count = logits.shape[1]
    probabilities = logits.softmax(-1)
    index = labels.unsqueeze(-1)
    saved[-1].dz = dz = probabilities.scatter_add(-1, index, probabilities.new_full((1, 1, 1), -1.0).expand(index.shape)) / count
    saved[-1].dbias = dz.sum(1, keepdim=True)
    for layer in range(len(saved) - 2, floor - 1, -1):
        own, state = saved[layer], states[layer]
        own.dy = dy = _through_relu_(states[layer + 1].weight.back(dz), own.y)
        own.dshift, own.dgain = dy.sum(1, keepdim=True), (dy * own.h).sum(1, keepdim=True)
        own.e = torch.addcmul(dy - own.dshift / count, own.h, own.dgain, value=-1 / count)
        own.dz = dz = own.e * (own.r * state.affine[0])
    return probabilities


def hessian_product(
    states: Sequence[State], saved: list[Saved], probabilities: Tensor, tangents: Sequence[Tangent], floor: int
) -> list[Product]:
    """Tangent of the gradient along ``tangents``, layer by layer; layers below ``floor`` are left empty.

    One forward and one backward pass of tangents: twice their products, and no graph.
    """
    inputs, normalised, sigmas, moved = _tangent_forward(states, saved, tangents)
    count = probabilities.shape[1]
    products = [Product([]) for _ in saved]
    ddz = probabilities * (moved - (probabilities * moved).sum(-1, keepdim=True)) / count
    for layer in range(len(saved) - 1, floor - 1, -1):
        own, found = saved[layer], products[layer]
        if layer == len(saved) - 1:
            found.bias = ddz.sum(1, keepdim=True)
        else:
            above = tangents[layer + 1].weight
            dda = states[layer + 1].weight.back(ddz)
            if above:
                dda = dda.add_(above.back(saved[layer + 1].factors[0]))
            ddz = _tangent_backward(states[layer], own, tangents[layer], normalised[layer], sigmas[layer], dda, found)
        found.weight.append((ddz, own.a))
        if (da := inputs[layer]) is not None:
            found.weight.append((own.factors[0], da))
    return products


def _tangent_forward(
    states: Sequence[State], saved: list[Saved], tangents: Sequence[Tangent]
) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None], Tensor]:
    """Tangents of each layer's input, of h and of log r (None where zero), and of the logits."""
    da: Tensor | None = None
    inputs: list[Tensor | None] = []
    normalised: list[Tensor | None] = []
    sigmas: list[Tensor | None] = []
    for state, own, tangent in zip(states[:-1], saved[:-1], tangents[:-1], strict=True):
        inputs.append(da)
        dz, dh, du = _tangent_map(state, own, tangent, da), None, None
        if dz is not None:
            dz = dz - dz.mean(1, keepdim=True)
            u = (own.h * dz).mean(1, keepdim=True)
            dh, du = torch.addcmul(dz, own.h, u, value=-1).mul_(own.r), u.mul_(own.r).neg_()
        normalised.append(dh)
        sigmas.append(du)
        dy = None if dh is None else dh * state.affine[0]
        if tangent.gain is not None and tangent.shift is not None:
            affine = torch.addcmul(tangent.shift, own.h, tangent.gain)
            dy = affine if dy is None else dy.add_(affine)
        da = None if dy is None else _through_relu_(dy, own.y)
    inputs.append(da)
    logits = _tangent_map(states[-1], saved[-1], tangents[-1], da)
    if tangents[-1].bias is not None:
        logits = tangents[-1].bias if logits is None else logits + tangents[-1].bias
    assert logits is not None  # something moves, else there is no product to form
    return inputs, normalised, sigmas, logits.expand(*saved[-1].a.shape[:2], -1)


def _tangent_map(state: State, own: Saved, tangent: Tangent, da: Tensor | None) -> Tensor | None:
    """Tangent of a W^T: da W^T + a dW^T."""
    dz = None if da is None else state.weight.out(da)
    if not tangent.weight:
        return dz
    step = tangent.weight.out(own.a)
    return step if dz is None else dz.add_(step)


def _tangent_backward(
    state: State, own: Saved, tangent: Tangent, dh: Tensor | None, du: Tensor | None, dda: Tensor, found: Product
) -> Tensor:
    """Tangent of dz of a hidden layer from that of da; puts those of the vectors into ``found``."""
    (gain, _), count = state.affine, own.h.shape[1]
    ddy = _through_relu_(dda, own.y)
    found.shift = ddy.sum(1, keepdim=True)
    dgain = ddy * own.h
    if dh is not None:
        dgain.addcmul_(own.dy, dh)
    found.gain = dgain.sum(1, keepdim=True)
    de = torch.addcmul(ddy - found.shift / count, own.h, found.gain, value=-1 / count)
    scale = tangent.gain
    if dh is not None and du is not None and own.dgain is not None:
        de.addcmul_(dh, own.dgain, value=-1 / count)
        scale = gain * du if scale is None else torch.addcmul(scale, gain, du)
    ddz = de.mul_(gain)
    if scale is not None:
        ddz.addcmul_(own.e, scale)
    return ddz.mul_(own.r)
