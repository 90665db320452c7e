"""The outer gradient of an MLP written out for a batch of tasks: no automatic differentiation, no per-task copy of shared work.

What makes it fast (reference note meta-ticket, section 12): before the first step all tasks have the same weights, so that pass
is one product over all tasks' samples; the gradient of a task's weight has rank N, so without a mask an adapted weight is
never formed, x W_k^T = x W_0^T - a sum_j (x a_j^T) d_j; the second order is one analytic Hessian-vector product a step, whose sum
over tasks is again one product. A masked weight w = m phi moves by m times its gradient, which is not of low rank: there the
adapted weights are formed, one a task.

With G_k the support gradient with respect to w at step k, omega_S the query gradient, and a the inner rate,

    omega_k = omega_{k+1} - H_k [a m omega_{k+1}],    dL/dphi = m omega_0,    dL/ds = phi omega_0 - 2 a m sum_k G_k omega_{k+1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.learning.mlp_passes import (
    Map,
    Product,
    Saved,
    State,
    Tangent,
    Workspace,
    backward,
    forward,
    hessian_product,
    losses,
)
from engine.learning.tasks import Task
from engine.runs.profiling import span


@dataclass(frozen=True)
class Dense:
    """One layer: a linear map with BatchNorm and ReLU behind it, or the classifier.

    Args:
        weight: (O, I), already masked: w = m phi.
        rate: inner rate of all its parameters; 0 freezes them.
        learned: whether the outer gradient of the weight is formed.
        mask: (O, I), 0 or 1 in the dtype of the weight; None where nothing is masked.
        gain, shift: (O,), the affine of BatchNorm; None in the classifier.
        bias: (O,) of the classifier. A bias in front of BatchNorm has no effect and is left out.
        eps: of BatchNorm.
    """

    weight: Tensor
    rate: float
    learned: bool = True
    mask: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-3


class LayerGradient(NamedTuple):
    """One layer's outer gradient, summed over tasks.

    ``weight`` (O, I) is omega_0, with respect to w; None where the layer is not learned. ``product`` (O, I) is what the mask's
    further uses in the inner loop add to the score gradient, phi omega_0 + product; None where no masked weight moved.
    ``gain``, ``shift`` and ``bias`` (O,) are those of the vectors that the layer has.
    """

    weight: Tensor | None
    product: Tensor | None
    gain: Tensor | None
    shift: Tensor | None
    bias: Tensor | None


class Result(NamedTuple):
    """``layers``: the gradients, which may lie in the workspace; ``losses`` (T,) and ``outputs`` (T, N, K) of the queries."""

    layers: list[LayerGradient]
    losses: Tensor
    outputs: Tensor


def meta_gradient(
    layers: Sequence[Dense], tasks: Task, steps: int, *, first_order: bool = False, workspace: Workspace | None = None
) -> Result:
    """Outer gradient over T tasks, summed; exact for any number of inner steps.

    Args:
        layers: hidden layers, then the classifier.
        tasks: inputs (T, N, ...), flattened; labels (T, N).
        steps: inner steps S.
        first_order: inner gradients are constants.
        workspace: memory that calls share; one call at a time.

    For S = 1 a layer without mask costs three quarters (the first: two thirds) of the products of double automatic
    differentiation, on all tasks' samples at once; with a mask 13/12 (the first: 7/6) of them, and 3 T O I numbers are held,
    2 T O I more for every further step.
    """
    memory = Workspace() if workspace is None else workspace
    eps = layers[0].eps
    wanted = [number for number, layer in enumerate(layers) if layer.rate or layer.learned]
    moving = any(layer.rate for layer in layers)
    states, trail = _learn(layers, tasks, steps, memory)
    saved, outputs = forward(states, tasks.query_x.flatten(2), eps)
    backward(states, saved, outputs, tasks.query_y, min(wanted))
    adjoints = [_Adjoint(layer, saved[n], memory, n) for n, layer in enumerate(layers)]
    while trail:
        states, saved, probabilities, gradients = trail.pop()
        last = not trail
        tangents = [adjoint.tangent(own, first_order, last) for adjoint, own in zip(adjoints, gradients, strict=True)]
        if not first_order and moving:
            products = hessian_product(states, saved, probabilities, tangents, min(wanted))
            for adjoint, product in zip(adjoints, products, strict=True):
                adjoint.subtract(product)
    return Result([adjoint.total() for adjoint in adjoints], losses(outputs, tasks.query_y), outputs)


def query_outputs(
    layers: Sequence[Dense], tasks: Task, steps: int, *, alone: bool = False, workspace: Workspace | None = None
) -> Tensor:
    """Outputs (T, N, K) of the queries after the supports were learned; nothing is differentiated.

    ``alone`` takes all statistics of BatchNorm from the support of the task, so that no query sees another, instead of from its
    queries. Costs a forward and a backward pass a step and the forward pass of the queries; holds 2 S T O I numbers of a layer
    with a mask.
    """
    states, _ = _learn(layers, tasks, steps, Workspace() if workspace is None else workspace)
    support, query = tasks.support_x.flatten(2), tasks.query_x.flatten(2)
    if not alone:
        return forward(states, query, layers[0].eps)[1]
    count = support.shape[1]
    return forward(states, torch.cat([support, query], 1), layers[0].eps, leading=count)[1][:, count:]


Trail = list[tuple[list[State], list[Saved], Tensor, list[Tensor | None]]]


def _learn(layers: Sequence[Dense], tasks: Task, steps: int, memory: Workspace) -> tuple[list[State], Trail]:
    """The layers of every task after its inner loop, and what each step leaves for the way back."""
    states = [_start(layer) for layer in layers]
    floor = min((number for number, layer in enumerate(layers) if layer.rate), default=len(layers))
    support, trail = tasks.support_x.flatten(2), []
    for step in range(steps):
        with span("inner step"):
            saved, logits = forward(states, support, layers[0].eps)
            probabilities = backward(states, saved, logits, tasks.support_y, floor)
            gradients = [_own_gradient(layer, saved[n], memory, (n, step)) for n, layer in enumerate(layers)]
            trail.append((states, saved, probabilities, gradients))
            states = [_step(layer, states[n], saved[n], gradients[n], memory, (n, step)) for n, layer in enumerate(layers)]
    return states, trail


def _start(layer: Dense) -> State:
    def row(vector: Tensor | None) -> Tensor | None:
        return None if vector is None else vector[None, None]

    return State(Map(layer.weight), row(layer.gain), row(layer.shift), row(layer.bias))


def _own_gradient(layer: Dense, saved: Saved, memory: Workspace, key: tuple[int, int]) -> Tensor | None:
    """G_k of every task, (T, O, I), where a mask makes it needed."""
    return memory.products(*saved.factors, "gradient", *key) if layer.mask is not None and layer.rate else None


def _step(layer: Dense, state: State, saved: Saved, gradient: Tensor | None, memory: Workspace, key: tuple[int, int]) -> State:
    """One step of gradient descent."""
    if not layer.rate:
        return state
    if gradient is not None and layer.mask is not None:
        before = state.weight.own if state.weight.own is not None else layer.weight
        after = memory.matrices(gradient.shape, gradient, "weight", *key)
        weight = Map(own=torch.addcmul(before, layer.mask, gradient, value=-layer.rate, out=after))
    else:
        d, a = saved.factors
        weight = Map(state.weight.shared, [*state.weight.factors, (d * -layer.rate, a)])

    def moved(vector: Tensor | None, gradient: Tensor | None) -> Tensor | None:
        return None if vector is None or gradient is None else vector - layer.rate * gradient

    return State(weight, moved(state.gain, saved.dgain), moved(state.shift, saved.dshift), moved(state.bias, saved.dbias))


class _Adjoint:
    """omega of one layer: one matrix a task where masks need it, else low-rank terms; and its vectors."""

    def __init__(self, layer: Dense, query: Saved, memory: Workspace, number: int) -> None:
        self.layer = layer
        self.gain, self.shift, self.bias = query.dgain, query.dshift, query.dbias
        self.own: Tensor | None = None
        self.terms = [] if query.dz is None else [query.factors]
        self.product: Tensor | None = None
        self.summed: Tensor | None = None
        self._memory, self._number = memory, number
        if layer.mask is not None and layer.rate:
            self.own = memory.products(*query.factors, "omega", number)
            self.terms = []

    def tangent(self, gradient: Tensor | None, first_order: bool, last: bool) -> Tangent:
        """a m omega_{k+1}, the direction of the Hessian's product; adds G_k's part to the score gradient.

        At the last product omega is summed over the tasks, and its matrices become the direction's.
        """
        rate = self.layer.rate
        if not rate:
            return Tangent(Map())
        if self.own is not None and gradient is not None:
            weight = Map(own=self._direction(gradient, 1 if first_order else 2, last), scale=rate)
        else:
            weight = Map(None, [(d * rate, a) for d, a in self.terms])

        def scaled(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else vector * rate

        return Tangent(weight, scaled(self.gain), scaled(self.shift), scaled(self.bias))

    def _direction(self, gradient: Tensor, uses: int, last: bool) -> Tensor:
        """m omega; takes ``uses`` a G_k m omega from the product."""
        assert self.own is not None
        assert self.layer.mask is not None
        if last:
            self.summed = torch.sum(self.own, 0, out=self._total("omega"))
            masked, self.own = self.own.mul_(self.layer.mask), None
        else:
            buffer = self._memory.matrices(self.own.shape, self.own, "direction", self._number)
            masked = torch.mul(self.own, self.layer.mask, out=buffer)
        if self.layer.learned:
            if self.product is None:
                self.product = self._total("product").zero_()
            for own, direction in zip(gradient, masked, strict=True):
                self.product.addcmul_(own, direction, value=-uses * self.layer.rate)
        return masked

    def _total(self, role: str) -> Tensor:
        weight = self.layer.weight
        return self._memory.matrices(weight.shape, weight, f"{role} total", self._number)

    def subtract(self, product: Product) -> None:
        """omega_k = omega_{k+1} - H_k [...]."""
        for d, a in product.weight:
            if self.own is None:
                self.terms.append((-d, a))
            else:
                self.own.baddbmm_(d.mT, a, alpha=-1)
        self.gain, self.shift, self.bias = (
            None if mine is None or other is None else mine - other
            for mine, other in ((self.gain, product.gain), (self.shift, product.shift), (self.bias, product.bias))
        )

    def total(self) -> LayerGradient:
        """Sums over tasks."""
        weight = None
        if self.layer.learned:
            weight = self.summed if self.own is None else self.own.sum(0)
            if self.terms:
                d, a = (_rows([term[side] for term in self.terms]) for side in (0, 1))
                weight = d.mT @ a if weight is None else weight.addmm_(d.mT, a)
        vectors = (None if v is None else v.sum((0, 1)) for v in (self.gain, self.shift, self.bias))
        return LayerGradient(weight, self.product, *vectors)


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """(T, N, C) tensors as rows of one matrix."""
    return parts[0].flatten(0, 1) if len(parts) == 1 else torch.cat([part.flatten(0, 1) for part in parts])
