"""LAMANAS: MetaNAS with a meta-learned loss (paper 002; reference note, sections 5 and 6).

Algorithm 2 (``reptile``): every task is learned with the loss network phi, then phi takes one step on a proxy (Eq. 7 or 8), and
Reptile moves theta, alpha and phi. The paper's line for phi descends the learned loss itself, which is unbounded below; the
proxy of its text is taken. Algorithm 1 (``maml``): the gradient of the query cross-entropy flows through the inner steps to all
three.

Because a random recurrent loss with the residual is cross-entropy up to its sign, every meta-update reports the cosine between
both losses' gradients: run several seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.updates import AdamRule, adam_, reptile_
from engine.learning.architecture_task import Learned, Supports, TaskModel, TaskRule
from engine.learning.learned_loss import (
    FeedForwardLoss,
    LossNetwork,
    RecurrentLoss,
    cosine_to_cross_entropy,
    descent_tangent,
    initial,
    inner_product_proxy,
    loss_surface,
    mse_proxy,
)
from engine.learning.shared_tasks import TaskSharing
from engine.learning.unrolled import meta_gradient
from engine.methods.lamanas_options import LamanasOptions
from engine.methods.metanas import MetaTraining, plan, run_variants
from engine.methods.metanas_networks import Learner, with_extractor
from engine.methods.metanas_tasks import rules
from engine.runs.parts import Saved
from engine.runs.streams import stream
from engine.runs.surfaces import to_levels
from engine.spaces.network import load_weights
from engine.spaces.resnet18 import ResNet18Extractor
from engine.spaces.supernet import initialise

if TYPE_CHECKING:
    from engine.data import ImageSet
    from engine.runs.run import Run

__all__ = ["plan", "search"]


def search(options: LamanasOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Meta-train, then learn the test tasks; see :func:`engine.methods.metanas.search`."""
    return run_variants(options, LossTraining, run, stop, progress)


class LossTraining(MetaTraining):
    """:class:`~engine.methods.metanas.MetaTraining` with the loss network phi (P,) among the meta-parameters."""

    options: LamanasOptions

    def __init__(self, options: LamanasOptions, data: ImageSet, sharing: TaskSharing | None = None) -> None:
        super().__init__(options, data, sharing)
        self.network: LossNetwork | None = None
        self.phi = torch.zeros(0)
        self.cosines: list[float] = []
        self.surfaces: list[dict[str, Any]] = []
        if options.loss == "cross-entropy":
            return
        kind = FeedForwardLoss if options.loss == "fnn" else RecurrentLoss
        self.network = kind(options.ways, residual=options.residual)
        self.phi = initial(self.network, stream(options.seed, "loss")).to(options.device)
        self.adapting.loss = self.testing.loss = self._learned

    def build(self) -> Learner:
        """The network of MetaNAS, behind the first layers of ResNet-18 where the options ask for them."""
        learner, options = super().build(), self.options
        if options.extractor == "none":
            return learner
        extractor = ResNet18Extractor(self.data.images.shape[1])
        initialise(extractor, stream(options.seed, "extractor"), kaiming=False)
        if options.extractor_weights:
            load_weights(extractor.layers, options.extractor_weights, others=True)
        return with_extractor(learner, extractor)

    def _learned(self, logits: Tensor, labels: Tensor) -> Tensor:
        assert self.network is not None
        return self.network(self.phi, logits, labels)

    def update(self, epoch: int) -> dict[str, Any]:
        line, often = super().update(epoch), self.options.surface_every
        if self.network is None:
            return line
        if often and (epoch + 1) % often == 0:
            self.surfaces.append(_surface(self.network, self.phi, epoch + 1))
        return {**line, "cosine": self.cosines[-1]}

    def _adopt(self, found: Learned, given: Supports, rule: TaskRule, share: float) -> None:
        """The Reptile updates of theta and alpha, and of phi after its step on the proxy (Algorithm 2)."""
        network, options = self.network, self.options
        if network is not None:
            stepped = []
            cosines = []
            for task in range(len(found.weights)):
                x, y = given.batch(task, rule.steps, "weights")  # a draw of its own
                phi, logits = self._stepped(network, found.weights[task], found.alphas[task], x, y, rule)
                stepped.append(phi)
                cosines.append(cosine_to_cross_entropy(network, self.phi, logits, y))
            self.cosines.append(float(torch.stack(cosines).mean()))
            if not options.faithful:  # the code's filter of parameter names finds none of phi (reference note, 6.3)
                reptile_(self.phi, torch.stack(stepped), options.loss_meta_rate * share)
        super()._adopt(found, given, rule, share)

    def _stepped(
        self, network: LossNetwork, weights: Tensor, alphas: Tensor, x: Tensor, y: Tensor, rule: TaskRule
    ) -> tuple[Tensor, Tensor]:
        """phi after one Adam step from fresh moments on the proxy at a task's end, and the logits there (without a graph)."""
        phi = self.phi.detach().clone().requires_grad_(True)
        temperature = rule.temperature(rule.steps)
        # As in TaskLearner: at the end of a task most of the supernet weighs nothing.
        alive = self.learner.train.active(alphas, temperature) if alphas.device.type == "cpu" else None
        if self.options.proxy == "mse":
            with torch.no_grad():
                logits = self.learner.train(weights, alphas, x, temperature, alive=alive)
            value = mse_proxy(network, phi, logits, y)
        else:
            weights, alphas = (t.detach().requires_grad_(True) for t in (weights, alphas))
            logits = self._twice_differentiable()(weights, alphas, x, temperature, alive=alive)
            tangent = descent_tangent(logits, y, (weights, alphas), (self.options.rate, self.options.architecture_rate))
            logits = logits.detach()
            value = inner_product_proxy(network, phi, logits, y, tangent)
        (gradient,) = torch.autograd.grad(value, phi)
        phi = phi.detach()
        first, second = torch.zeros_like(phi), torch.zeros_like(phi)
        adam_(phi, gradient, first, second, 1, rate=self.options.loss_rate, rule=AdamRule((0.0, 0.999)))
        return phi, logits

    def _twice_differentiable(self) -> TaskModel:
        network = self.learner.reference
        assert network is not None, "validate() asks for --network search"
        return network

    def _descend(self, start: tuple[Tensor, Tensor], given: Any, queries: Any, rule: TaskRule, share: float) -> float:
        """Algorithm 1: SGD on the query cross-entropy through the inner steps, in theta, alpha and phi."""
        if self.network is None:
            return super()._descend(start, given, queries, rule, share)
        phi = self.phi.detach().requires_grad_(True)
        network = self.network
        gradients, loss = meta_gradient(
            self.learner.train, start, given, queries, rule, others=[phi], loss=lambda z, y: network(phi, z, y)
        )
        x, y = given.batch(0, 0, "weights")
        with torch.no_grad():
            logits = self.learner.train(*start, x, rule.temperature(0))
        self.cosines.append(float(cosine_to_cross_entropy(network, self.phi, logits, y)))
        self._move(gradients[0], gradients[1], rule, share)
        self.phi = self.phi - self.options.loss_meta_rate * share * gradients[2]
        return float(loss)

    def also_tested(self, found: Learned, given: Supports, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """The losses of the queries: cross-entropy, and the learned one with or without its step at the task's end."""
        losses = {"cross_entropy": float(F.cross_entropy(logits, labels))}
        if self.network is None:
            return losses
        phi = self.phi
        if self.options.loss_at_test == "step":
            _, rule = rules(self.options)
            x, y = given.batch(0, rule.steps, "weights")
            phi, _ = self._stepped(self.network, found.weights[0], found.alphas[0], x, y, rule)
        return {**losses, "learned_loss": float(self.network(phi, logits, labels))}

    def snapshot(self) -> Saved:
        state, tensors = super().snapshot()
        return {**state, "cosines": self.cosines, "surfaces": self.surfaces}, tensors | (
            {"loss": self.phi} if len(self.phi) else {}
        )

    def restore(self, saved: Saved) -> None:
        super().restore(saved)
        state, tensors = saved
        self.cosines, self.surfaces = state["cosines"], state["surfaces"]
        self.phi = tensors.get("loss", self.phi).to(self.options.device)

    def result(self) -> dict[str, Any]:
        """The outcome of :class:`~engine.methods.metanas.MetaTraining` with the course of the cosine."""
        result, cosines = {**super().result(), **self._extractor()}, self.cosines
        if self.network is None:
            return result
        series = [{"name": "cosine", "x": list(range(1, len(cosines) + 1)), "y": cosines}]
        title = "Learned loss against cross-entropy: cosine of their gradients"
        plot = {"title": title, "x_label": "meta-updates", "y_label": "cosine", "series": series, "kind": "line"}
        sizes = {"loss_parameters": len(self.phi), "cosine_first": cosines[0], "cosine_last": cosines[-1]}
        return {**result, **sizes, "plots": [*result["plots"], plot], "surfaces": self.surfaces}

    def _extractor(self) -> dict[str, Any]:
        """What images go through first, and where its weights came from."""
        if self.learner.extractor is None:
            return {}
        source = self.options.extractor_weights
        origin = f"first layers from {source}, its own two convolutions drawn at random" if source else "drawn at random"
        return {"extractor": f"ResNet-18, {origin}", "extractor_parameters": self.learner.extractor_parameters}


def _surface(network: LossNetwork, phi: Tensor, updates: int) -> dict[str, Any]:
    """Figure 3 after so many meta-updates, for the report."""
    found = loss_surface(network, phi)
    least, greatest = float(found.min()), float(found.max())
    note = f"Label 0 and label 1, from {least:.3g} (dark) to {greatest:.3g}; both logits from -10,000 to 10,000, z2 upwards."
    return {
        "title": f"Learned loss over two logits after {updates} meta-updates",
        "width": found.shape[2],
        "height": found.shape[1],
        "levels": _shades(found.flip(1)),
        "note": note,
    }


def _shades(surfaces: Tensor) -> list[str]:
    """Both surfaces (2, H, W) on one scale of shades."""
    text = to_levels(surfaces.flatten().tolist())
    return [text[: len(text) // 2], text[len(text) // 2 :]]
