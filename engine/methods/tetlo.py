"""TETLO: the architecture from which an auxiliary model learns well what the main one has learned (paper 004).

Main and auxiliary model are encoders of one architecture: the stem and all cells but the last of the supernet; their last cells
and heads are their own, everything before is shared (section 4.1). The main model learns the classes; the auxiliary model learns
them too, and to order pairs of images by similarity as the main model does (Eqs. 1 to 4); the architecture lowers both
validation losses (Eq. 12). Shared weights are shared by value: each model's virtual step moves a copy of its own (note, 6.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.bilevel import Adam, FlatNetwork, Sgd
from engine.learning.hypergradient import Loss, Step, weight_gradient
from engine.learning.similarity import draw_quadruples, quadruple_similarity
from engine.learning.trilevel import TransferLoss, Trilevel, TrilevelGradient, hypergradient
from engine.methods.darts_data import Batch, Halves
from engine.methods.darts_learner import Learner, run_search
from engine.methods.darts_options import TetloOptions
from engine.runs.streams import stream
from engine.spaces.darts_supernet import darts_encoder
from engine.spaces.supernet import initialise

if TYPE_CHECKING:
    from engine.runs.run import Run


def search(options: TetloOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Search, and return what goes into result.json: the cell, the main model's validation loss by epoch, the time."""
    return run_search(Tetlo(options, Halves(options)), run, stop, progress)


def plan(options: TetloOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    return [
        ("epochs", str(options.epochs)),
        ("architecture step", f"about 9 forward and backward passes, every {options.interval} weight steps"),
        ("encoders", f"{options.cells - 1} cells, {options.channels} channels, space {options.space}"),
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

    def __init__(self, options: TetloOptions, data: Halves) -> None:
        super().__init__(options, data)
        encoder = darts_encoder(
            self.space,
            cells=options.cells - 1,
            of=options.cells,
            channels=options.channels,
            outputs=data.classes,
            channels_in=data.data.images.shape[1],
        )
        initialise(encoder, stream(options.seed, "weights"), kaiming=False)
        auxiliary = FlatNetwork(encoder.to(options.device)).start
        own = (f"supernet.cells.{options.cells - 2}.", "supernet.classifier.")
        self.shared = sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith(own))
        initialise(encoder, stream(options.seed, "weights", "main"), kaiming=False)
        self.network = FlatNetwork(encoder)
        self.main, self.auxiliary = self._student(self.network.start), self._student(auxiliary)
        self._share(self.auxiliary, self.main)
        self.a = self.initial_alphas()
        zeros = torch.zeros_like(self.a)
        self.adam = Adam(zeros, zeros.clone(), rate=options.alpha_rate, decay=options.alpha_decay)

    def _student(self, w: Tensor) -> Student:
        options = self.options
        return Student(w, Sgd(torch.zeros_like(w), options.momentum, options.weight_decay, options.clip))

    def _share(self, source: Student, target: Student) -> None:
        target.w[: self.shared] = source.w[: self.shared]

    def iterate(self, epoch: int, step: int) -> None:
        """An architecture step where it is due, then one of the main model on L_m and one of the auxiliary model on O."""
        rate = self.rate(epoch)
        batches = [self.data.training(epoch, step, reader) for reader in ("main", "auxiliary")]
        quadruples = draw_quadruples(self.options.batch, self.options.pairs, stream(self.options.seed, "pairs", epoch, step))
        if self.searches(epoch, step):
            found = self.hypergradient(epoch, step, batches, quadruples, rate)
            self.adam.step(self.a, found.main + found.auxiliary)  # A = M
            self.sums["search_loss"] += float(found.main_validation)
            self.sums["searched"] += 1
        loss, gradient = weight_gradient(self.loss(batches[0]), self.main.w, self.a)
        self.main.sgd.step(self.main.w, gradient, rate)
        self._share(self.main, self.auxiliary)
        with torch.no_grad():
            features = self.features(batches[1])(self.main.w, self.a)
        transfer = self.transfer(batches[1], quadruples)
        _, gradient = weight_gradient(lambda w, a: transfer(w, a, features), self.auxiliary.w, self.a)
        self.auxiliary.sgd.step(self.auxiliary.w, gradient, rate)
        self._share(self.auxiliary, self.main)
        self.sums["training_loss"] += float(loss)

    def hypergradient(self, epoch: int, step: int, training: list[Batch], quadruples: Tensor, rate: float) -> TrilevelGradient:
        """dP/dM and dP/dA (Eqs. 13 to 21)."""
        options = self.options
        levels = Trilevel(
            self.loss(training[0]),
            self.features(training[1]),
            self.transfer(training[1], quadruples),
            self.loss(self.data.validating(epoch, step, "main")),
            self.loss(self.data.validating(epoch, step, "auxiliary")),
            options.gamma,
            through_step=options.base == "darts2nd",
        )
        main, auxiliary = ((s.w, self.a, s.step(rate)) for s in (self.main, self.auxiliary))
        return hypergradient(levels, main, auxiliary, hessian=options.hessian_mode)

    def loss(self, batch: Batch) -> Loss:
        """Mean cross-entropy of either model."""
        return lambda w, a: F.cross_entropy(self.network(w, batch.images, self.relaxation(a))[1], batch.labels)

    def features(self, batch: Batch) -> Loss:
        """The encoder's features of a batch, (B, F)."""
        return lambda w, a: self.network(w, batch.images, self.relaxation(a))[0]

    def transfer(self, batch: Batch, quadruples: Tensor) -> TransferLoss:
        """O, the auxiliary model's training loss (Eq. 6): cross-entropy and lambda times the similarities' disagreement."""
        options = self.options

        def loss(w: Tensor, a: Tensor, features: Tensor) -> Tensor:
            own, logits = self.network(w, batch.images, self.relaxation(a))
            disagreement = quadruple_similarity(features, own, quadruples, mean=options.similarity == "mean")
            return F.cross_entropy(logits, batch.labels) + options.lam * disagreement

        return loss

    def logits(self, images: Tensor) -> Tensor:
        return self.network(self.main.w, images, self.relaxation(self.a))[1]

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
