"""TETLO: the architecture from which an auxiliary model learns well what the main one has learned (paper 004).

Main and auxiliary model are encoders of one architecture: the stem and all cells but the last of the supernet; their last cells
and heads are their own, everything before is shared (section 4.1). Or the auxiliary model is a fixed network (appendix D). The
main model learns the classes; the auxiliary model learns them too, and to order pairs of images by similarity as the main model
does (Eqs. 1 to 4), or another transfer; the architecture lowers both validation losses (Eq. 12). Shared weights are shared by
value: each model's virtual step moves a copy of its own (note, 6.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.bilevel import Sgd
from engine.learning.hypergradient import Loss, Step, weight_gradient
from engine.learning.transfers import TRANSFERS
from engine.learning.trilevel import TransferLoss, Trilevel, TrilevelGradient, hypergradient
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Batch, Halves
from engine.methods.darts_learner import Learner, run_search
from engine.methods.one_shot import plain_base
from engine.methods.pcdarts import PartialBase
from engine.methods.pdarts import ProgressiveBase
from engine.methods.prdarts import GateBase
from engine.methods.tetlo_models import Model, build_models
from engine.methods.tetlo_options import TetloOptions
from engine.runs.profiling import span
from engine.runs.streams import stream

if TYPE_CHECKING:
    from engine.runs.run import Run

# What each choice of --base brings. darts1st and darts2nd differ in the hypergradient alone.
BASES: dict[str, Callable[[TetloOptions], Base]] = {
    "darts1st": plain_base,
    "darts2nd": plain_base,
    "pdarts": ProgressiveBase,
    "pcdarts": PartialBase,
    "prdarts": GateBase,
}


def search(options: TetloOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Search, and return what goes into result.json: the cell, the main model's validation loss by epoch, the time."""
    return run_search(Tetlo(options, Halves(options)), run, stop, progress)


def plan(options: TetloOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    cells = options.stage_cells if options.base == "pdarts" else (options.cells,)
    depths = ", then ".join(str(count - 1) for count in cells)
    return [
        ("base", options.base),
        ("epochs", str(options.all_epochs)),
        ("architecture step", f"about 9 forward and backward passes, every {options.interval} weight steps"),
        ("encoders", f"{depths} cells, {options.channels} channels, space {options.space}"),
        ("auxiliary model", f"{options.auxiliary}, learns by {options.transfer}"),
    ]


@dataclass
class Student:
    """One of the two models: its weights (P,), and an optimiser of its own."""

    model: Model
    w: Tensor
    sgd: Sgd

    @classmethod
    def of(cls, model: Model, options: TetloOptions) -> Student:
        """At its start."""
        w = model.start
        return cls(model, w, Sgd(torch.zeros_like(w), options.momentum, options.weight_decay, options.clip))

    def state(self, a: Tensor, rate: float) -> tuple[Tensor, Tensor, Step]:
        """Its weights, its architecture and its virtual step."""
        return self.w, self.model.architecture(a), Step(rate, self.sgd.decay, self.sgd.inertia, self.sgd.momentum)


class Tetlo(Learner):
    """One search: two models, one architecture."""

    options: TetloOptions

    def __init__(self, options: TetloOptions, data: Halves, base: Base | None = None) -> None:
        super().__init__(options, data, base or BASES[options.base](options))
        main, auxiliary, self.shared = build_models(options, data, self.base)
        self.main, self.auxiliary = Student.of(main, options), Student.of(auxiliary, options)
        self._share(self.auxiliary, self.main)
        self.knowledge = TRANSFERS[options.transfer]
        self.a = self.base.start()
        self.adam = self.base.optimiser(self.a)

    def _share(self, source: Student, target: Student) -> None:
        target.w[: self.shared] = source.w[: self.shared]

    def iterate(self, epoch: int, step: int) -> None:
        """An architecture step where it is due, and one of both models, in the base's order."""
        rate = self.rate(epoch)
        batches = [self.data.training(epoch, step, reader) for reader in ("main", "auxiliary")]
        places = self.knowledge.draw(self.options.batch, self.options.pairs, stream(self.options.seed, "pairs", epoch, step))
        if self.base.weights_first:
            self.move_weights(epoch, step, batches, places, rate)
        if self.searches(epoch, step):
            with span("architecture step"):
                found = self.hypergradient(epoch, step, batches, places, rate)
                gradient = found.main + found.auxiliary if self.options.auxiliary == "tied" else found.main  # A = M, or no A
                self.adam.step(self.a, self.base.penalised(gradient, self.a, Pass("architecture", epoch, step)))
            self.sums["search_loss"] += found.main_validation
            self.sums["searched"] += 1
        if not self.base.weights_first:
            self.move_weights(epoch, step, batches, places, rate)

    def move_weights(self, epoch: int, step: int, batches: list[Batch], places: Tensor, rate: float) -> None:
        """A step of the main model on L_m, then one of the auxiliary model on O."""
        main, auxiliary = self.main, self.auxiliary
        where = [Pass("weights", epoch, step, reader) for reader in ("main", "auxiliary")]
        with span("weight step"):
            loss, gradient = weight_gradient(self.loss(main, batches[0], where[0]), main.w, self.a)
            main.sgd.step(main.w, gradient, rate)
            self._share(main, auxiliary)
            with torch.no_grad():
                features = self.features(batches[1], where[1])(main.w, self.a)
            transfer = self.transferred(batches[1], places, where[1])
            _, gradient = weight_gradient(lambda w, a: transfer(w, a, features), auxiliary.w, self.a)
            auxiliary.sgd.step(auxiliary.w, gradient, rate)
            self._share(auxiliary, main)
        self.sums["training_loss"] += loss

    def hypergradient(self, epoch: int, step: int, training: list[Batch], places: Tensor, rate: float) -> TrilevelGradient:
        """dP/dM and dP/dA (Eqs. 13 to 21)."""
        options, main, auxiliary = self.options, self.main, self.auxiliary

        def where(batch: str) -> Pass:
            return Pass("architecture", epoch, step, batch)

        levels = Trilevel(
            self.loss(main, training[0], where("main")),
            self.features(training[1], where("auxiliary")),
            self.transferred(training[1], places, where("auxiliary")),
            self.loss(main, self.data.validating(epoch, step, "main"), where("main validation")),
            self.loss(auxiliary, self.data.validating(epoch, step, "auxiliary"), where("auxiliary validation")),
            options.gamma,
            through_step=options.base != "darts1st",
        )
        students = (student.state(self.a, rate) for student in (main, auxiliary))
        return hypergradient(levels, *students, hessian=options.hessian_mode, steps=options.unroll)

    def loss(self, student: Student, batch: Batch, where: Pass) -> Loss:
        """Mean cross-entropy of a model."""
        return lambda w, a: F.cross_entropy(student.model(w, a, batch.images, where).logits, batch.labels)

    def features(self, batch: Batch, where: Pass) -> Loss:
        """What the transfer reads of the main model, (B, F)."""
        return lambda w, a: getattr(self.main.model(w, a, batch.images, where), self.knowledge.reads)

    def transferred(self, batch: Batch, places: Tensor, where: Pass) -> TransferLoss:
        """O, the auxiliary model's training loss (Eq. 6): cross-entropy and lambda times what the transfer says."""
        options = self.options

        def loss(w: Tensor, a: Tensor, features: Tensor) -> Tensor:
            seen = self.auxiliary.model(w, a, batch.images, where)
            own = getattr(seen, self.knowledge.reads)
            disagreement = self.knowledge(features, own, places, mean=options.similarity == "mean")
            return F.cross_entropy(seen.logits, batch.labels) + options.lam * disagreement

        return loss

    def logits(self, images: Tensor, where: Pass) -> Tensor:
        return self.main.model(self.main.w, self.a, images, where).logits

    @property
    def alphas(self) -> Tensor:
        return self.a

    def tensors(self) -> dict[str, Tensor]:
        return {
            "main": self.main.w,
            "main_velocity": self.main.sgd.velocity,
            "auxiliary": self.auxiliary.w,
            "auxiliary_velocity": self.auxiliary.sgd.velocity,
            "alphas": self.a,
            "alphas_first": self.adam.first,
            "alphas_second": self.adam.second,
        }

    def counts(self) -> dict[str, int]:
        return {"adam": self.adam.count}

    def restore(self, tensors: dict[str, Tensor], counts: dict[str, int]) -> None:
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.adam.count = counts["adam"]
