"""DARTS: the cell whose relaxation learns best (Liu, Simonyan, Yang, ICLR 2019; reference note tetlo-darts, section 1).

Each iteration moves the architecture on a validation batch, then the weights on a training batch. By default the architecture's
gradient sees one step of the weights (second order) through the exact Hessian product; ``faithful`` takes the published quotient
of finite differences instead. Architecture passes form no weight gradients and leave nothing behind in the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.bilevel import Adam, Bilevel, FlatNetwork, Sgd
from engine.learning.hypergradient import Hypergradient, Loss, Step, first_order, second_order, weight_gradient
from engine.methods.darts_data import Batch, Halves
from engine.methods.darts_learner import Learner, run_search
from engine.methods.darts_options import DartsOptions
from engine.runs.streams import stream
from engine.spaces.darts_supernet import darts_supernet
from engine.spaces.supernet import initialise

if TYPE_CHECKING:
    from engine.runs.run import Run


def search(options: DartsOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Search, and return what goes into result.json: the cell, the validation loss by epoch, the time."""
    return run_search(Darts(options, Halves(options)), run, stop, progress)


def plan(options: DartsOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    passes = {"first": "1 forward and backward pass", "second": "4 forward and backward passes, or what they cost"}
    return [
        ("epochs", str(options.epochs)),
        ("architecture step", f"{options.order} order: {passes[options.order]}, every {options.interval} weight steps"),
        ("supernet", f"{options.cells} cells, {options.channels} channels, space {options.space}"),
    ]


class Darts(Learner):
    """One search: its network and its two levels."""

    options: DartsOptions

    def __init__(self, options: DartsOptions, data: Halves) -> None:
        super().__init__(options, data)
        channels_in = data.data.images.shape[1]
        shape = {"cells": options.cells, "channels": options.channels, "channels_in": channels_in}
        model = darts_supernet(self.space, outputs=data.classes, **shape)
        initialise(model, stream(options.seed, "weights"), kaiming=False)
        self.network = FlatNetwork(model.to(options.device))
        w, a = self.network.start, self.initial_alphas()
        sgd = Sgd(torch.zeros_like(w), options.momentum, options.weight_decay, options.clip)
        adam = Adam(torch.zeros_like(a), torch.zeros_like(a), rate=options.alpha_rate, decay=options.alpha_decay)
        self.state = Bilevel(w, a, sgd, adam)

    def iterate(self, epoch: int, step: int) -> None:
        """An architecture step on a validation batch, then a weight step on a training batch."""
        state, rate = self.state, self.rate(epoch)
        batch = self.data.training(epoch, step)
        if self.searches(epoch, step):
            found = self.hypergradient(batch, self.data.validating(epoch, step), rate)
            state.adam.step(state.a, found.gradient)
            self.sums["search_loss"] += float(found.validation)
            self.sums["searched"] += 1
        loss, gradient = weight_gradient(self.loss(batch), state.w, state.a)
        state.sgd.step(state.w, gradient, rate)
        self.sums["training_loss"] += float(loss)

    def hypergradient(self, training: Batch, validation: Batch, rate: float) -> Hypergradient:
        """DARTS, Eq. 7, or its first term alone."""
        options, state = self.options, self.state
        if options.order == "first":
            return first_order(self.loss(validation), state.w, state.a)
        step = Step(rate, options.weight_decay, state.sgd.inertia)
        return second_order(self.loss(training), self.loss(validation), state.w, state.a, step, hessian=options.hessian_mode)

    def loss(self, batch: Batch) -> Loss:
        """Mean cross-entropy of a batch as a function of weights and architecture."""
        return lambda w, a: F.cross_entropy(self.network(w, batch.images, self.relaxation(a)), batch.labels)

    def logits(self, images: Tensor) -> Tensor:
        return self.network(self.state.w, images, self.relaxation(self.state.a))

    @property
    def alphas(self) -> Tensor:
        return self.state.a

    def tensors(self) -> dict[str, Tensor]:
        return self.state.tensors()

    def counts(self) -> dict[str, int]:
        return {"adam": self.state.adam.count}

    def restore(self, tensors: dict[str, Tensor], counts: dict[str, int]) -> None:
        self.state.restore(tensors, counts["adam"])
