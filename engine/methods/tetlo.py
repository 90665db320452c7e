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
from engine.learning.ordering import misordered, ordered_quadruples
from engine.learning.transfers import TRANSFERS
from engine.learning.trilevel import TransferLoss, Trilevel, TrilevelGradient, hypergradient
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Batch, Halves
from engine.methods.darts_learner import Learner, run_search
from engine.methods.one_shot import plain_base
from engine.methods.pcdarts import PartialBase
from engine.methods.pdarts import ProgressiveBase
from engine.methods.prdarts import GateBase
from engine.methods.tetlo_alone import Fitted, NoAuxiliary, Transferred
from engine.methods.tetlo_baselines import Together
from engine.methods.tetlo_models import Model, build_models, class_loss
from engine.methods.tetlo_options import TetloOptions
from engine.methods.tetlo_report import agreement, joined, picture, with_neighbours
from engine.methods.tetlo_study import jobs, study
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
    """Search, and return what goes into result.json: the cell, the main model's validation loss by epoch, the time.

    Where the options vary something or ask for several seeds, the result is a table of searches and has no cell.
    """
    if options.is_study:
        return study(options, run, stop, progress)
    data = Halves(options)
    learner = LEARNERS[options.objective](options, data, BASES[options.base](options))
    result = run_search(learner, run, stop, progress)
    if options.neighbours:
        run.write_text("neighbours.svg", picture(data.data, result["neighbours"]["images"]))
    return result


def plan(options: TetloOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    cells = options.stage_cells if options.base == "pdarts" else (options.cells,)
    passes = "about 9 forward and backward passes" if options.trilevel else "that of DARTS"
    depths = ", then ".join(str(count - 1) for count in cells)
    return [
        ("searches", ", ".join(job.folder for job in jobs(options)) if options.is_study else "1"),
        ("base", options.base),
        ("epochs", str(options.all_epochs)),
        ("architecture step", f"{passes}, every {options.interval} weight steps"),
        ("encoders", f"{depths} cells, {options.channels} channels, space {options.space}"),
        ("objective", f"{options.objective}, auxiliary model {options.auxiliary}, transfer {options.transfer}"),
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
            of_main = class_loss(main.model, batches[0], where[0], self.criterion.training)
            loss, gradient = weight_gradient(of_main, main.w, self.a)
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

        def validation(student: Student, reader: str) -> Loss:
            batch = self.data.validating(epoch, step, reader)
            return class_loss(student.model, batch, where(f"{reader} validation"), self.criterion.validation)

        levels = Trilevel(
            class_loss(main.model, training[0], where("main"), self.criterion.training),
            self.features(training[1], where("auxiliary")),
            self.transferred(training[1], places, where("auxiliary")),
            validation(main, "main"),
            validation(auxiliary, "auxiliary"),
            options.gamma,
            through_step=options.base != "darts1st",
            main_counts=options.objective == "tetlo",
        )
        students = (student.state(self.a, rate) for student in (main, auxiliary))
        return hypergradient(levels, *students, hessian=options.hessian_mode, steps=options.unroll)

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
            return self.criterion.training(seen.logits, batch.labels) + options.lam * disagreement

        return loss

    def logits(self, images: Tensor, where: Pass) -> Tensor:
        return self.main.model(self.main.w, self.a, images, where).logits

    def embed(self, images: Tensor, where: Pass) -> Tensor:
        """The main model's features, (B, F)."""
        return self.main.model(self.main.w, self.a, images, where).features

    def validate(self, epoch: int) -> dict[str, float]:
        """Also ``auxiliary_accuracy``, and ``similarity_error``, the share of quadruples ordered by their labels that the main
        model orders otherwise; the quadruples are the same in every epoch."""
        losses, right, taught, wrong, ordered, seen = 0.0, 0, 0, 0, 0, 0
        count = min(self.options.pairs, self.options.batch * (self.options.batch - 1) // 2)
        with torch.no_grad():
            for step, batch in enumerate(self.data.plain_validation()):
                where = Pass("validation", epoch, step)
                main, other = (s.model(s.w, self.a, batch.images, where) for s in (self.main, self.auxiliary))
                quadruples = ordered_quadruples(batch.labels, count, stream(self.options.seed, "validation-pairs", step))
                losses += float(F.cross_entropy(main.logits, batch.labels, reduction="sum"))
                right += int((main.logits.argmax(1) == batch.labels).sum())
                taught += int((other.logits.argmax(1) == batch.labels).sum())
                wrong += int(misordered(main.features, quadruples))
                ordered += int(quadruples.there.sum())
                seen += len(batch.labels)
        found = {"validation_loss": losses / seen, "validation_accuracy": right / seen}
        return {**found, "auxiliary_accuracy": taught / seen, "similarity_error": wrong / max(1, ordered)}

    def result(self) -> dict[str, Any]:
        """The base's, Figure 6's correlation, and the nearest neighbours that were asked for."""
        found = joined(super().result(), agreement(self.curve))
        return with_neighbours(found, self.embed, self.data, self.base, self.options.neighbours)

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


LEARNERS: dict[str, Callable[[TetloOptions, Halves, Base], Learner]] = {
    "tetlo": Tetlo,
    "auxiliary-only": Tetlo,
    "mtl": Together,
    "es": Together,
    "att": Transferred,
    "noaux": NoAuxiliary,
    "fit-auxiliary": Fitted,
    "fit-main": Fitted,
}
