"""DARTS with what keeps it from collapsing: RobustDARTS, DARTS- and SmoothDARTS, each an option (note tetlo-darts, section 5).

With none of them asked for this is DARTS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.eigenvalue import hessian_product, largest_eigenvalue, stop_epoch
from engine.learning.hypergradient import Loss
from engine.methods.darts import Darts
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Batch, Halves
from engine.methods.darts_learner import Learner, run_search
from engine.methods.robust_options import RobustOptions
from engine.runs.streams import stream
from engine.spaces.darts import with_auxiliary
from engine.spaces.darts_supernet import DartsSupernet
from engine.spaces.genotype import Genotype
from engine.spaces.mixture import Mixture
from engine.spaces.space import Space

if TYPE_CHECKING:
    from engine.runs.run import Run

# SmoothDARTS as released: the first perturbation, and the steps of the adversary.
FIRST_EPSILON, ATTACK_STEPS = 0.03, 7
# Epochs from the newest back to the one that an adaptive search returns to: half a window and delta of stop_epoch.
REACH = 7
# The least weight of an operation that exists, far below what a network notices.
FLOOR = 1e-12


def search(options: RobustOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Search, and return what goes into result.json: the cell, the validation loss and eigenvalue by epoch, the time."""
    return run_search(RobustDarts(options, Halves(options)), run, stop, progress)


def plan(options: RobustOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    stop = "never early" if options.early_stop is None else f"early where the eigenvalue grows by {options.early_stop}"
    return [
        ("ends", f"after {options.epochs} epochs, {stop}"),
        (
            "weight steps",
            f"perturbed: {options.perturb}; drop path {options.drop_path}; auxiliary skip: {options.auxiliary_skip}",
        ),
        ("supernet", f"{options.cells} cells, {options.channels} channels, space {options.space}"),
    ]


class RobustBase(Base):
    """DARTS's softmax with drop path, and with a skip connection that fades."""

    options: RobustOptions

    def supernet(self, space: Space, cells: int, *, outputs: int, channels_in: int) -> DartsSupernet:
        table = space if self.options.auxiliary_skip == "none" else with_auxiliary(space)
        return super().supernet(table, cells, outputs=outputs, channels_in=channels_in)

    def mixture(self, a: Tensor, where: Pass) -> Mixture:
        return self.completed(self.relaxation(a), where)

    def completed(self, mixture: Mixture, where: Pass) -> Mixture:
        """A mixture of the searched operations with what surrounds them."""
        if self.options.auxiliary_skip != "none":
            place = (*mixture.weights.shape[:-1], 1)
            beta = mixture.weights.new_full(place, self.auxiliary_weight(where.epoch))
            alive = torch.cat([mixture.alive, torch.ones(place, dtype=torch.bool)], -1)
            mixture = Mixture(torch.cat([mixture.weights, beta], -1), alive)
        rate = 0.0 if where.phase == "validation" else self.options.drop_path * where.epoch / max(1, self.epochs - 1)
        return self.drawn(mixture, where, drop_path=rate)

    def auxiliary_weight(self, epoch: int) -> float:
        """beta of DARTS-, Eq. 6: from 1 in the first epoch towards 0 after the last."""
        share = epoch / self.epochs
        return 1 - share if self.options.auxiliary_skip == "linear" else (1 + math.cos(math.pi * share)) / 2

    def epsilon(self, epoch: int) -> float:
        """How far an operation's weight may be moved in an epoch."""
        return FIRST_EPSILON + (self.options.epsilon - FIRST_EPSILON) * epoch / self.epochs


class RobustDarts(Darts):
    """A search that looks at the sharpness of its validation loss, and whose weights may learn under a perturbed mixture."""

    options: RobustOptions
    base: RobustBase

    def __init__(self, options: RobustOptions, data: Halves, base: Base | None = None) -> None:
        super().__init__(options, data, base or RobustBase(options))
        self.past: dict[int, dict[str, Tensor]] = {}
        self.past_counts: dict[int, int] = {}
        self.rises = 0

    def weight_loss(self, batch: Batch, where: Pass) -> Loss:
        """The loss of a weight step: of the mixture perturbed within epsilon (SmoothDARTS, Eqs. 3 and 4), if asked for."""
        if self.options.perturb == "none":
            return super().weight_loss(batch, where)
        mixture = self.base.relaxation(self.state.a)
        moved = self.perturbed(mixture, batch, where)
        completed = self.base.completed(Mixture(moved, mixture.alive), where)
        return lambda w, a: self.criterion.training(self.network(w, batch.images, completed), batch.labels)

    def perturbed(self, mixture: Mixture, batch: Batch, where: Pass) -> Tensor:
        """Weights (T, E, O) near those of the mixture: at random, or where the loss of the batch is high."""
        start, epsilon = mixture.weights, self.base.epsilon(where.epoch)
        alive = mixture.alive.to(start.device)
        noise = torch.rand(start.shape, generator=stream(self.options.seed, "perturbation", *where)).to(start)
        moved = simplex(start + epsilon * (2 * noise - 1), alive)
        if self.options.perturb == "random":
            return moved
        for _ in range(ATTACK_STEPS):
            moved.requires_grad_()
            with torch.enable_grad():
                completed = self.base.completed(Mixture(moved, mixture.alive), where)
                loss = self.criterion.training(self.network(self.state.w, batch.images, completed), batch.labels)
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() + 2 * epsilon / ATTACK_STEPS * gradient.sign()
            moved = simplex(start + (moved - start).clamp(-epsilon, epsilon), alive)
        return moved

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        line = super().end_epoch(epoch)
        if not self.options.eigenvalue:
            return line
        self.curve[-1]["eigenvalue"] = line["eigenvalue"] = self.sharpness(epoch)
        self.curve[-1]["cells"] = line["genotype"]
        if self.options.adaptive_decay is not None:
            line["weight_decay"] = self.state.sgd.decay
            self.past[epoch] = {name: tensor.clone() for name, tensor in super().tensors().items()}
            self.past_counts[epoch] = self.state.adam.count
            self._forget(lambda known: epoch - REACH < known <= epoch)
        return line

    def after(self, epoch: int) -> Learner:
        """Go on; or, where the eigenvalue has grown and the weight decay may still rise, go back to the epoch before that with
        the next (RobustDARTS, section 5.3). Epochs that are done again see the same batches."""
        found = self.returns_to()
        if found is None:
            return super().after(epoch)
        self.state.restore(self.past[found], self.past_counts[found])
        self.rises += 1
        self.redone += epoch - found
        self.state.sgd.decay = self.options.decays[self.rises]
        del self.curve[found + 1 :]
        self._forget(lambda known: known <= found)
        return self

    def returns_to(self) -> int | None:
        """The epoch that an adaptive search goes back to now; None where it goes on."""
        if self.options.adaptive_decay is None or self.rises + 1 == len(self.options.decays):
            return None
        return self.sharpened()

    def _forget(self, keep: Callable[[int], bool]) -> None:
        """Drop the ends of epochs that nothing will go back to."""
        self.past = {known: tensors for known, tensors in self.past.items() if keep(known)}
        self.past_counts = {known: count for known, count in self.past_counts.items() if keep(known)}

    def tensors(self) -> dict[str, Tensor]:
        """Those of DARTS, and of the epochs that an adaptive search may go back to."""
        kept = {f"past.{epoch}.{name}": tensor for epoch, found in self.past.items() for name, tensor in found.items()}
        return {**super().tensors(), **kept}

    def counts(self) -> dict[str, int]:
        kept = {f"past.{epoch}": count for epoch, count in self.past_counts.items()}
        return {**super().counts(), "rises": self.rises, "redone": self.redone, **kept}

    def restore(self, tensors: dict[str, Tensor], counts: dict[str, int]) -> None:
        super().restore(tensors, counts)
        self.rises, self.redone = counts["rises"], counts["redone"]
        self.state.sgd.decay = self.options.decays[self.rises]
        kept = {name.removeprefix("past."): count for name, count in counts.items() if name.startswith("past.")}
        self.past_counts = {int(epoch): count for epoch, count in kept.items()}
        names = super().tensors()
        self.past = {epoch: {name: tensors[f"past.{epoch}.{name}"] for name in names} for epoch in self.past_counts}

    def sharpness(self, epoch: int) -> float:
        """The dominant eigenvalue of d2 L_val / d alpha2 on one validation batch."""
        where = Pass("validation", epoch, 0, "eigenvalue")
        loss = self.loss(self.data.validating(epoch, 0, "eigenvalue"), where, self.criterion.validation)
        start = torch.randn(self.state.a.shape, generator=stream(self.options.seed, "lanczos", epoch)).to(self.state.a)
        product = hessian_product(lambda a: loss(self.state.w, a), self.state.a)
        return largest_eigenvalue(product, start, self.options.eigenvalue)

    def sharpened(self) -> int | None:
        """The epoch before the eigenvalue grew; None where it did not, or where that is not asked."""
        if self.options.early_stop is None:
            return None
        return stop_epoch([line["eigenvalue"] for line in self.curve], factor=self.options.early_stop)

    def stop_epoch(self) -> int | None:
        """The epoch whose cell is returned because the search ended early; None where it did not."""
        return self.sharpened() if self.options.adaptive_decay is None else None

    def stops(self) -> bool:
        """With an adaptive decay: whether all epochs are done and none is done again."""
        if self.options.adaptive_decay is not None:
            return len(self.curve) == self.options.all_epochs and self.returns_to() is None
        return self.stop_epoch() is not None

    def genotype(self) -> Genotype:
        found = super().genotype()
        epoch = self.stop_epoch()
        return found if epoch is None else Genotype.from_dict({**found.to_dict(), "cells": self.curve[epoch]["cells"]})

    def result(self) -> dict[str, Any]:
        """The eigenvalues by epoch, and the epoch that an early stop went back to."""
        found = super().result()
        if not self.options.eigenvalue:
            return found
        values = [line["eigenvalue"] for line in self.curve]
        series = [{"name": "dominant eigenvalue", "x": list(range(1, len(values) + 1)), "y": values}]
        plot = {"title": "Sharpness of the validation loss", "x_label": "epoch", "y_label": "eigenvalue", "kind": "line"}
        plots = [*found.get("plots", []), {**plot, "series": series}]
        decay = {} if self.options.adaptive_decay is None else {"weight_decay": self.state.sgd.decay, "epochs_again": self.redone}
        return {**found, "eigenvalues": values, "early_stop_epoch": self.stop_epoch(), **decay, "plots": plots}


def simplex(weights: Tensor, alive: Tensor) -> Tensor:
    """Weights cut to [0, 1] and divided by their sum, of each edge; one whose weights are all cut away keeps its largest.

    What was cut to zero is left :data:`FLOOR`: an operation of weight exactly zero does not exist, so it would have no gradient
    and an adversary could not bring it back.
    """
    cut = torch.where(alive, weights.clamp(0, 1), 0)
    largest = F.one_hot(torch.where(alive, weights, -torch.inf).argmax(-1), weights.shape[-1]).to(weights)
    total = cut.sum(-1, keepdim=True)
    divided = torch.where(total > 0, cut / total.clamp(min=torch.finfo(weights.dtype).tiny), largest)
    return torch.where(alive, divided.clamp(min=FLOOR), 0)
