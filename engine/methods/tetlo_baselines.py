"""What TETLO is compared with: searches of two levels over the same models (paper 004, appendices N, O and V; note, 6.8).

All learn one vector of weights w' by virtual steps of a training loss and descend on a validation loss at w'(a) as second-order
DARTS does, or with ``--base darts1st`` at w. They differ in the two losses:

- ``mtl`` (Eq. 24): L_m + L_a + lambda times the transfer between the current models; L_m + gamma L_a.
- ``es`` (Eq. 25): L_m + L_a of two heads on one encoder; L_m + gamma L_a.
- ``att``: an auxiliary model of the initial architecture learns both halves; its encoder is where the main model begins, whose
  search is the base's own, L_m on both levels.
- ``noaux`` (appendix N): L_m; L_m and lambda times the ordering loss of labelled quadruples, which the paper leaves undefined.
- ``fit-auxiliary`` (Eq. 22): L_a and lambda times the ordering loss of a collection, partly swapped; L_a.
- ``fit-main`` (Eq. 23): L_m; the ordering loss of the collection.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from engine.learning.bilevel import Bilevel, Sgd
from engine.learning.hypergradient import Hypergradient, Loss, Step, first_order, weight_gradient
from engine.learning.transfers import TRANSFERS
from engine.learning.virtual import unrolled_order
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Halves
from engine.methods.darts_learner import Learner
from engine.methods.tetlo_models import build_models, class_loss
from engine.methods.tetlo_options import TetloOptions
from engine.methods.tetlo_report import with_neighbours
from engine.runs.profiling import span
from engine.runs.streams import stream


class TwoLevels(Learner):
    """A search whose inner level learns one vector of weights, the main model's in front."""

    options: TetloOptions

    def __init__(self, options: TetloOptions, data: Halves, base: Base) -> None:
        super().__init__(options, data, base)
        self.model, self.other, self.shared = build_models(options, data, base)
        w, a = self.start(), base.start()
        sgd = Sgd(torch.zeros_like(w), options.momentum, options.weight_decay, options.clip)
        self.state = Bilevel(w, a, sgd, base.optimiser(a))

    def start(self) -> Tensor:
        """The weights to start from."""
        return self.model.start

    @abstractmethod
    def training(self, epoch: int, step: int, phase: str) -> Loss:
        """What the weights lower, in a real step or in the virtual one of an architecture step."""

    @abstractmethod
    def validating(self, epoch: int, step: int) -> Loss:
        """What the architecture lowers at the moved weights."""

    def iterate(self, epoch: int, step: int) -> None:
        """An architecture step where it is due, and a step of the weights, in the base's order."""
        if self.base.weights_first:
            self.move_weights(epoch, step)
        if self.searches(epoch, step):
            with span("architecture step"):
                found = self.hypergradient(epoch, step)
                a = self.state.a
                self.state.adam.step(a, self.base.penalised(found.gradient, a, Pass("architecture", epoch, step)))
            self.sums["search_loss"] += found.validation
            self.sums["searched"] += 1
        if not self.base.weights_first:
            self.move_weights(epoch, step)

    def move_weights(self, epoch: int, step: int) -> None:
        """A step of the weights."""
        state = self.state
        with span("weight step"):
            loss, gradient = weight_gradient(self.training(epoch, step, "weights"), state.w, state.a)
            state.sgd.step(state.w, gradient, self.rate(epoch))
        self.sums["training_loss"] += loss

    def hypergradient(self, epoch: int, step: int) -> Hypergradient:
        """DARTS, Eq. 7, through ``--unroll`` steps, or its first term alone."""
        options, state = self.options, self.state
        validation = self.validating(epoch, step)
        if options.base == "darts1st":
            return first_order(validation, state.w, state.a)
        virtual = Step(self.rate(epoch), options.weight_decay, state.sgd.inertia, options.momentum)
        training = self.training(epoch, step, "architecture")
        return unrolled_order(training, validation, state.w, state.a, virtual, options.unroll, hessian=options.hessian_mode)

    def main_training(self, epoch: int, step: int, phase: str) -> Loss:
        """L_m on D_m^tr."""
        return class_loss(self.model, self.data.training(epoch, step), Pass(phase, epoch, step), self.criterion.training)

    def main_validation(self, epoch: int, step: int) -> Loss:
        """L_m on D_m^val."""
        where = Pass("architecture", epoch, step, "validation")
        return class_loss(self.model, self.data.validating(epoch, step), where, self.criterion.validation)

    def logits(self, images: Tensor, where: Pass) -> Tensor:
        return self.model(self.state.w[: len(self.model.start)], self.state.a, images, where).logits

    def embed(self, images: Tensor, where: Pass) -> Tensor:
        """The main model's features, (B, F)."""
        return self.model(self.state.w[: len(self.model.start)], self.state.a, images, where).features

    def result(self) -> dict[str, Any]:
        """The base's, and the nearest neighbours that were asked for."""
        return with_neighbours(super().result(), self.embed, self.data, self.base, self.options.neighbours)

    @property
    def alphas(self) -> Tensor:
        return self.state.a

    def tensors(self) -> dict[str, Tensor]:
        return self.state.tensors()

    def counts(self) -> dict[str, int]:
        return {"adam": self.state.adam.count}

    def restore(self, tensors: dict[str, Tensor], counts: dict[str, int]) -> None:
        self.state.restore(tensors, counts["adam"])


class Together(TwoLevels):
    """``mtl`` and ``es``: both models learn at once; what they share is one set of weights, moved by both losses."""

    def start(self) -> Tensor:
        return torch.cat([self.model.start, self.other.start[self.shared :]])

    def halves(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of the main and of the auxiliary model."""
        own = len(self.model.start)
        return w[:own], torch.cat([w[: self.shared], w[own:]])

    def training(self, epoch: int, step: int, phase: str) -> Loss:
        options = self.options
        main = self.main_training(epoch, step, phase)
        batch, where = self.data.training(epoch, step, "auxiliary"), Pass(phase, epoch, step, "auxiliary")
        knowledge = TRANSFERS[options.transfer]
        places = knowledge.draw(options.batch, options.pairs, stream(options.seed, "pairs", epoch, step))

        def loss(w: Tensor, a: Tensor) -> Tensor:
            w_m, w_a = self.halves(w)
            own = self.other(w_a, a, batch.images, where)
            total = main(w_m, a) + self.criterion.training(own.logits, batch.labels)
            if options.objective == "es":
                return total
            seen = self.model(w_m, a, batch.images, where)
            taught, learned = (getattr(half, knowledge.reads) for half in (seen, own))
            return total + options.lam * knowledge(taught, learned, places, mean=options.similarity == "mean")

        return loss

    def validating(self, epoch: int, step: int) -> Loss:
        main = self.main_validation(epoch, step)
        where = Pass("architecture", epoch, step, "auxiliary validation")
        other = class_loss(self.other, self.data.validating(epoch, step, "auxiliary"), where, self.criterion.validation)

        def loss(w: Tensor, a: Tensor) -> Tensor:
            w_m, w_a = self.halves(w)
            return main(w_m, a) + self.options.gamma * other(w_a, a)

        return loss
