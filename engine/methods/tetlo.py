"""TETLO: the architecture from which an auxiliary model learns well what the main one has learned (paper 004).

Main and auxiliary model are encoders of one architecture: the stem and all cells but the last of the supernet; their last cells
and heads are their own, everything before is shared (section 4.1). The main model learns the classes; the auxiliary model learns
them too, and to order pairs of images by similarity as the main model does (Eqs. 1 to 4); the architecture lowers both
validation losses (Eq. 12). Shared weights are shared by value: each model's virtual step moves a copy of its own (note, 6.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.bilevel import FlatNetwork, Sgd
from engine.learning.hypergradient import Loss, Step, weight_gradient
from engine.learning.similarity import draw_quadruples, quadruple_similarity
from engine.learning.trilevel import TransferLoss, Trilevel, TrilevelGradient, hypergradient
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Batch, Halves
from engine.methods.darts_learner import Learner, run_search
from engine.methods.pcdarts import PartialBase
from engine.methods.pdarts import ProgressiveBase
from engine.methods.prdarts import GateBase
from engine.methods.tetlo_options import TetloOptions
from engine.runs.profiling import span
from engine.runs.streams import stream
from engine.spaces.supernet import initialise

if TYPE_CHECKING:
    from engine.runs.run import Run

# What each choice of --base brings. darts1st and darts2nd differ in the hypergradient alone.
BASES: dict[str, Callable[[TetloOptions], Base]] = {
    "darts1st": Base,
    "darts2nd": Base,
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
    ]


@dataclass
class Student:
    """One of the two models: weights (P,), of which those in front are kept equal in both, and an optimiser of its own."""

    w: Tensor
    sgd: Sgd

    def step(self, rate: float) -> Step:
        """Its virtual step."""
        return Step(rate, self.sgd.decay, self.sgd.inertia)


class Tetlo(Learner):
    """One search: two models, one architecture."""

    options: TetloOptions

    def __init__(self, options: TetloOptions, data: Halves, base: Base | None = None) -> None:
        super().__init__(options, data, base or BASES[options.base](options))
        base = self.base
        encoder = base.encoder(outputs=data.classes, channels_in=data.data.images.shape[1])
        initialise(encoder, stream(options.seed, "weights", *base.address), kaiming=False)
        auxiliary = FlatNetwork(encoder.to(options.device)).start
        own = tuple(f"supernet.{part}." for part in (f"cells.{base.cells - 2}", "tail_norm", "classifier"))
        self.shared = sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith(own))
        initialise(encoder, stream(options.seed, "weights", "main", *base.address), kaiming=False)
        self.network = FlatNetwork(encoder)
        self.main, self.auxiliary = self._student(self.network.start), self._student(auxiliary)
        self._share(self.auxiliary, self.main)
        self.a = base.start()
        self.adam = base.optimiser(self.a)

    def _student(self, w: Tensor) -> Student:
        options = self.options
        return Student(w, Sgd(torch.zeros_like(w), options.momentum, options.weight_decay, options.clip))

    def _share(self, source: Student, target: Student) -> None:
        target.w[: self.shared] = source.w[: self.shared]

    def iterate(self, epoch: int, step: int) -> None:
        """An architecture step where it is due, and one of both models, in the base's order."""
        rate = self.rate(epoch)
        batches = [self.data.training(epoch, step, reader) for reader in ("main", "auxiliary")]
        quadruples = draw_quadruples(self.options.batch, self.options.pairs, stream(self.options.seed, "pairs", epoch, step))
        if self.base.weights_first:
            self.move_weights(epoch, step, batches, quadruples, rate)
        if self.searches(epoch, step):
            with span("architecture step"):
                found = self.hypergradient(epoch, step, batches, quadruples, rate)
                gradient = found.main + found.auxiliary  # A = M
                self.adam.step(self.a, self.base.penalised(gradient, self.a, Pass("architecture", epoch, step)))
            self.sums["search_loss"] += found.main_validation
            self.sums["searched"] += 1
        if not self.base.weights_first:
            self.move_weights(epoch, step, batches, quadruples, rate)

    def move_weights(self, epoch: int, step: int, batches: list[Batch], quadruples: Tensor, rate: float) -> None:
        """A step of the main model on L_m, then one of the auxiliary model on O."""
        where = [Pass("weights", epoch, step, reader) for reader in ("main", "auxiliary")]
        with span("weight step"):
            loss, gradient = weight_gradient(self.loss(batches[0], where[0]), self.main.w, self.a)
            self.main.sgd.step(self.main.w, gradient, rate)
            self._share(self.main, self.auxiliary)
            with torch.no_grad():
                features = self.features(batches[1], where[1])(self.main.w, self.a)
            transfer = self.transfer(batches[1], quadruples, where[1])
            _, gradient = weight_gradient(lambda w, a: transfer(w, a, features), self.auxiliary.w, self.a)
            self.auxiliary.sgd.step(self.auxiliary.w, gradient, rate)
            self._share(self.auxiliary, self.main)
        self.sums["training_loss"] += loss

    def hypergradient(self, epoch: int, step: int, training: list[Batch], quadruples: Tensor, rate: float) -> TrilevelGradient:
        """dP/dM and dP/dA (Eqs. 13 to 21)."""
        options = self.options

        def where(batch: str) -> Pass:
            return Pass("architecture", epoch, step, batch)

        levels = Trilevel(
            self.loss(training[0], where("main")),
            self.features(training[1], where("auxiliary")),
            self.transfer(training[1], quadruples, where("auxiliary")),
            self.loss(self.data.validating(epoch, step, "main"), where("main validation")),
            self.loss(self.data.validating(epoch, step, "auxiliary"), where("auxiliary validation")),
            options.gamma,
            through_step=options.base != "darts1st",
        )
        students = ((s.w, self.a, s.step(rate)) for s in (self.main, self.auxiliary))
        return hypergradient(levels, *students, hessian=options.hessian_mode)

    def loss(self, batch: Batch, where: Pass) -> Loss:
        """Mean cross-entropy of either model."""
        return lambda w, a: F.cross_entropy(self.network(w, batch.images, self.base.mixture(a, where))[1], batch.labels)

    def features(self, batch: Batch, where: Pass) -> Loss:
        """The encoder's features of a batch, (B, F)."""
        return lambda w, a: self.network(w, batch.images, self.base.mixture(a, where))[0]

    def transfer(self, batch: Batch, quadruples: Tensor, where: Pass) -> TransferLoss:
        """O, the auxiliary model's training loss (Eq. 6): cross-entropy and lambda times the similarities' disagreement."""
        options = self.options

        def loss(w: Tensor, a: Tensor, features: Tensor) -> Tensor:
            own, logits = self.network(w, batch.images, self.base.mixture(a, where))
            disagreement = quadruple_similarity(features, own, quadruples, mean=options.similarity == "mean")
            return F.cross_entropy(logits, batch.labels) + options.lam * disagreement

        return loss

    def logits(self, images: Tensor, where: Pass) -> Tensor:
        return self.network(self.main.w, images, self.base.mixture(self.a, where))[1]

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
