"""The options of LAMANAS. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, Literal, Self

from engine.errors import ConfigurationError
from engine.methods.metanas_options import MetaNASOptions

PROXIES = ("mse", "inner-product")

# Reference note, section 5.
_PUBLISHED = {
    "data": "omniglot",
    "ways": 20,
    "shots": 5,
    "train_shots": 15,
    "meta_epochs": 200,
    "meta_schedule": "constant",
    "meta_batch": 10,
    "batch": 20,
    "channels": 28,
    "rate": 5e-3,
    "architecture_rate": 5e-3,
    "t_min": 0.05,
    "drop_path": 0.2,
    "test_steps": 50,
    "test_architecture_steps": 50,
    "eval_tasks": 125,
    "loss_meta_rate": 0.001,
}

LAMANAS_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"meta_epochs": 40, "meta_batch": 4, "channels": 8, "eval_tasks": 20},
    "published": _PUBLISHED,
    "table1": {**_PUBLISHED, "loss": "every"},
    "table1-small": {
        "loss": "every",
        "data": "omniglot",
        "channels": 8,
        "size": 14,
        "meta_epochs": 60,
        "meta_batch": 1,
        "train_shots": 5,
        "queries": 15,
        "eval_tasks": 20,
        "validation_tasks": 0,
    },
}


@dataclass(frozen=True)
class LamanasOptions(MetaNASOptions):
    """LAMANAS: MetaNAS whose tasks are learned with a loss network that is meta-learned too.

    --meta-learner reptile is the paper's Algorithm 2, maml its Algorithm 1. --faithful is the published code, in which the loss
    network stays as it was drawn, besides what --faithful is for metanas.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = LAMANAS_PRESETS

    warm_up: int = 0
    """Meta-updates at the start that leave the architecture alone."""
    loss: Literal["fnn", "lstm", "cross-entropy", "every"] = "fnn"
    """What tasks are learned with: a feed-forward or a recurrent loss network, or plain cross-entropy (Table 1's baseline); every
    is the nine variants of Table 1 one after the other, with and without --residual, by either --proxy."""
    residual: bool = True
    """Add the batch's cross-entropy to a hidden layer of the loss network."""
    proxy: Literal["mse", "inner-product"] = "inner-product"
    """What the loss network is to do: equal the cross-entropy (Eq. 7), or have gradients that descend it (Eq. 8)."""
    loss_rate: float = 0.01
    """Adam's learning rate of the loss network, one step a task."""
    loss_meta_rate: float = 1.0
    """Meta learning rate of the loss network; 0.001 is published, which moves it by 1e-5 a meta-update."""
    loss_at_test: Literal["fixed", "step"] = "fixed"
    """In a test task the loss network stays (paper), or takes its step after the last inner step (code), which only the reported
    loss of the queries can show."""
    extractor: Literal["none", "resnet18"] = "none"
    """What images go through before the network: nothing, or the first layers of a ResNet-18, which are learned too and make a
    step some thirty times slower; the paper finds that they hurt."""
    extractor_weights: str = ""
    """A safetensors file of a ResNet-18 under torchvision's names, for the extractor to start from; otherwise it is drawn at
    random."""
    surface_every: int = 20
    """Meta-updates between two drawings of the learned loss over two logits (Figure 3) in the report; 0 is never."""

    @property
    def label(self) -> str:
        """What tells a single run from the other variants, its seed aside: named as in Table 1."""
        if self.loss == "cross-entropy":
            return super().label if self.network != "search" else "MetaNAS" + self._strategy
        proxy = {"mse": "MSE", "inner-product": "IP"}[self.proxy]
        return f"{self.loss.upper()}{' + residual' if self.residual else ''}, {proxy}{self._strategy}"

    def variants(self) -> list[Self]:
        """With --loss every those of Table 1, the baseline first, a seed after the other."""
        if self.loss != "every":
            return super().variants()
        networks = product(("fnn", "lstm"), (True, False), PROXIES)
        rows: list[dict[str, Any]] = [
            {"loss": "cross-entropy"},
            *({"loss": n, "residual": r, "proxy": p} for n, r, p in networks),
        ]
        seeds = [replace(self, repeats=1, seed=self.seed + k) for k in range(self.repeats)]
        return [variant for single in seeds for row in rows for variant in replace(single, **row).variants()]

    def validate(self) -> None:
        super().validate()
        self._at_least(0, "loss_rate", "loss_meta_rate", "surface_every")
        if self.network == "compare" or self.single_task:
            raise ConfigurationError("--network compare and --single-task: these are experiments of metanas, not of lamanas")
        if self.extractor_weights and self.extractor == "none":
            raise ConfigurationError("--extractor-weights: these are for --extractor resnet18")
        if self.loss == "every" and (self.network != "search" or self.sparse == "every"):
            raise ConfigurationError("--loss every is Table 1: it takes --network search and one strategy for --sparse")
        if self.meta_learner == "fomaml":
            raise ConfigurationError("--meta-learner: fomaml gives the loss network no gradient; use reptile or maml")
        if not self.searches and self.proxy == "inner-product" and self.loss != "cross-entropy":
            raise ConfigurationError("--proxy: inner-product is for --network search; use mse")
