"""Baselines and experiments of TETLO in which one model learns at a time; see :mod:`engine.methods.tetlo_baselines`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.learning.bilevel import warmed_cosine
from engine.learning.hypergradient import Loss, weight_gradient
from engine.learning.ordering import Ordered, collect_quadruples, ordered_quadruples, ordering_loss
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Halves
from engine.methods.darts_learner import Learner
from engine.methods.tetlo_baselines import TwoLevels
from engine.methods.tetlo_models import class_loss
from engine.methods.tetlo_options import TetloOptions
from engine.runs.profiling import span
from engine.runs.streams import stream


class NoAuxiliary(TwoLevels):
    """``noaux``: the main model alone; its validation loss also asks that images of one class are the more alike ones."""

    def training(self, epoch: int, step: int, phase: str) -> Loss:
        return self.main_training(epoch, step, phase)

    def validating(self, epoch: int, step: int) -> Loss:
        options, batch = self.options, self.data.validating(epoch, step)
        where = Pass("architecture", epoch, step, "validation")
        ordered = ordered_quadruples(batch.labels, options.pairs, stream(options.seed, "ordered-pairs", epoch, step))

        def loss(w: Tensor, a: Tensor) -> Tensor:
            seen = self.model(w, a, batch.images, where)
            similar = ordering_loss(seen.features, ordered, mean=options.similarity == "mean")
            return self.criterion.validation(seen.logits, batch.labels) + options.lam * similar

        return loss


class Fitted(TwoLevels):
    """``fit-auxiliary`` and ``fit-main``: one model and a collection of quadruples, some of them swapped (Figure 2).

    The collection is of the half whose level fits it: the training half for Eq. 22, the validation half for Eq. 23. A step takes
    a quarter as many quadruples as a batch has images, so that their images make one.
    """

    def __init__(self, options: TetloOptions, data: Halves, base: Base) -> None:
        super().__init__(options, data, base)
        self.half = data.train if options.objective == "fit-auxiliary" else data.validation
        drawn = stream(options.seed, "collection")
        self.collection = collect_quadruples(data.labels.cpu()[self.half], options.quadruples, options.swapped, drawn)

    def training(self, epoch: int, step: int, phase: str) -> Loss:
        main = self.main_training(epoch, step, phase)
        if self.options.objective == "fit-main":
            return main
        ordering = self.ordering(Pass(phase, epoch, step, "collection"))
        return lambda w, a: main(w, a) + self.options.lam * ordering(w, a)

    def validating(self, epoch: int, step: int) -> Loss:
        if self.options.objective == "fit-main":
            return self.ordering(Pass("architecture", epoch, step, "collection"))
        return self.main_validation(epoch, step)

    def ordering(self, where: Pass) -> Loss:
        """How far the model is from some of the collection's orders."""
        count, address = self.options.batch // 4, (where.epoch, where.step)
        drawn = torch.randperm(self.options.quadruples, generator=stream(self.options.seed, "collection-batch", *address))
        chosen = self.half[self.collection[:, drawn[:count]].flatten()]
        images = self.data.taken(chosen, "collection-augment", *address).images
        ordered = Ordered(torch.arange(4 * count).view(4, count), torch.ones(count, dtype=torch.bool, device=images.device))

        def loss(w: Tensor, a: Tensor) -> Tensor:
            features = self.model(w, a, images, where).features
            return ordering_loss(features, ordered, mean=self.options.similarity == "mean")

        return loss


class Transferred(TwoLevels):
    """``att``: in each network an auxiliary model learns both halves first, then its encoder becomes the main model's.

    The auxiliary model is of the architecture that the search begins with, so that its weights fit; the main model has a head of
    its own. A step of this pre-training lowers the mean of the losses on a batch of either half. Its epochs come before those of
    the base, and before those of each stage of P-DARTS.
    """

    def start(self) -> Tensor:
        return self.other.start.clone()

    def place(self, epoch: int) -> int:
        """The epoch as the base counts it; of pre-training below the base's first."""
        stage, within = divmod(epoch, self.options.pretraining_epochs + self.options.epochs)
        return stage * self.options.epochs + within - self.options.pretraining_epochs

    def iterate(self, epoch: int, step: int) -> None:
        place = self.place(epoch)
        if place < self.base.first_epoch:
            self.pretrain(epoch, step, place - self.base.first_epoch + self.options.pretraining_epochs)
        else:
            super().iterate(place, step)

    def pretrain(self, epoch: int, step: int, done: int) -> None:
        """A step of the auxiliary model's weights, ``done`` epochs after its first."""
        options, state = self.options, self.state

        def where(half: str) -> Pass:
            return Pass(f"pretraining {done}", self.base.first_epoch, step, half)

        batches = self.data.training(epoch, step, "pretraining"), self.data.validating(epoch, step, "pretraining")
        first, second = (
            class_loss(self.model, batch, where(half), self.criterion.training)
            for batch, half in zip(batches, ("training", "validation"), strict=True)
        )
        rate = warmed_cosine(options.weight_rate, options.weight_rate_end, done, options.pretraining_epochs)
        with span("weight step"):
            loss, gradient = weight_gradient(lambda w, a: (first(w, a) + second(w, a)) / 2, state.w, state.a)
            state.sgd.step(state.w, gradient, rate)
        self.sums["training_loss"] += loss

    def training(self, epoch: int, step: int, phase: str) -> Loss:
        return self.main_training(epoch, step, phase)

    def validating(self, epoch: int, step: int) -> Loss:
        return self.main_validation(epoch, step)

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        place = self.place(epoch)
        line = super().end_epoch(max(place, self.base.first_epoch))
        found = {"epoch": epoch, "pretraining": place < self.base.first_epoch}
        self.curve[-1].update(found)
        return {**line, **found}

    def after(self, epoch: int) -> Learner:
        place = self.place(epoch)
        if place >= self.base.first_epoch:
            return super().after(place)
        if place + 1 == self.base.first_epoch:
            self.state.w[self.shared :] = self.model.start[self.shared :]
            self.state.sgd.velocity.zero_()
        return self
