"""DARTS: the cell whose relaxation learns best (Liu, Simonyan, Yang, ICLR 2019; reference note tetlo-darts, section 1).

Each iteration moves the architecture on a validation batch, then the weights on a training batch. By default the architecture's
gradient sees one step of the weights (second order) through the exact Hessian product; ``faithful`` takes the published quotient
of finite differences instead. Architecture passes form no weight gradients and leave nothing behind in the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.learning.bilevel import Bilevel, FlatNetwork, Sgd
from engine.learning.hypergradient import Hypergradient, Loss, Step, first_order, second_order, weight_gradient
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Batch, Halves
from engine.methods.darts_learner import Learner, run_search
from engine.methods.darts_options import DartsOptions, FamilyOptions
from engine.methods.one_shot import plain_base
from engine.runs.profiling import span
from engine.runs.streams import stream
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
    """One search with one model: its network and its two levels, of any base."""

    def __init__(self, options: FamilyOptions, data: Halves, base: Base | None = None) -> None:
        super().__init__(options, data, base or plain_base(options))
        base = self.base
        model = base.network(outputs=data.classes, channels_in=data.data.images.shape[1])
        initialise(model, stream(options.seed, "weights", *base.address), kaiming=False)
        self.network = FlatNetwork(model.to(options.device))
        w, a = self.network.start, base.start()
        sgd = Sgd(torch.zeros_like(w), options.momentum, options.weight_decay, options.clip, options.nesterov)
        self.state = Bilevel(w, a, sgd, base.optimiser(a))

    def iterate(self, epoch: int, step: int) -> None:
        """An architecture step on a validation batch, and a weight step on a training batch, in the base's order."""
        batch, rate = self.data.training(epoch, step), self.rate(epoch)
        if self.base.weights_first:
            self.move_weights(batch, epoch, step, rate)
        if self.searches(epoch, step):
            with span("architecture step"):
                found = self.hypergradient(batch, epoch, step, rate)
                gradient = self.base.penalised(found.gradient, self.state.a, Pass("architecture", epoch, step))
                self.state.adam.step(self.state.a, gradient)
            self.sums["search_loss"] += found.validation
            self.sums["searched"] += 1
        if not self.base.weights_first:
            self.move_weights(batch, epoch, step, rate)

    def move_weights(self, batch: Batch, epoch: int, step: int, rate: float) -> None:
        """A step of the weights."""
        state = self.state
        with span("weight step"):
            loss, gradient = weight_gradient(self.weight_loss(batch, Pass("weights", epoch, step)), state.w, state.a)
            state.sgd.step(state.w, gradient, rate)
        self.sums["training_loss"] += loss

    def hypergradient(self, batch: Batch, epoch: int, step: int, rate: float) -> Hypergradient:
        """DARTS, Eq. 7, or its first term alone."""
        options, state = self.options, self.state
        seen = self.data.validating(epoch, step)
        validation = self.loss(seen, Pass("architecture", epoch, step, "validation"), self.criterion.validation)
        if not options.second_order:
            return first_order(validation, state.w, state.a)
        training = self.loss(batch, Pass("architecture", epoch, step, "training"))
        virtual = Step(rate, state.sgd.decay, state.sgd.inertia)
        return second_order(training, validation, state.w, state.a, virtual, hessian=options.hessian_mode)

    def loss(self, batch: Batch, where: Pass, criterion: Callable[[Tensor, Tensor], Tensor] | None = None) -> Loss:
        """The loss of a batch as a function of weights and architecture: that of training, unless another is given."""
        measure = criterion or self.criterion.training
        return lambda w, a: measure(self.network(w, batch.images, self.base.mixture(a, where)), batch.labels)

    def weight_loss(self, batch: Batch, where: Pass) -> Loss:
        """What a step of the weights lowers."""
        return self.loss(batch, where)

    def logits(self, images: Tensor, where: Pass) -> Tensor:
        return self.network(self.state.w, images, self.base.mixture(self.state.a, where))

    @property
    def alphas(self) -> Tensor:
        return self.state.a

    def tensors(self) -> dict[str, Tensor]:
        return self.state.tensors()

    def counts(self) -> dict[str, int]:
        return {"adam": self.state.adam.count}

    def restore(self, tensors: dict[str, Tensor], counts: dict[str, int]) -> None:
        self.state.restore(tensors, counts["adam"])
