"""The options that make DARTS robust: RobustDARTS, DARTS- and SmoothDARTS (note tetlo-darts, section 5). No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from engine.errors import ConfigurationError
from engine.methods.darts_options import DARTS_PRESETS, SMALL, DartsOptions

DECAY_FACTOR = 3.0  # of RobustDARTS's adaptive regularisation
_S4 = {"data": "cifar10", "cells": 8, "channels": 16, "size": 32, "space": "darts-s4"}

ROBUST_PRESETS: dict[str, dict[str, Any]] = {
    "default": {**DARTS_PRESETS["default"], "auxiliary_skip": "linear"},
    "drop-path": {**_S4, "drop_path": 0.2},
    "l2": {**_S4, "weight_decay": 81e-4},
    "early-stop": {**_S4, "eigenvalue": 20, "early_stop": 1.3},
    "ada": {**_S4, "eigenvalue": 20, "early_stop": 1.3, "adaptive_decay": 0.0243},
    "darts-minus": {**_S4, "space": "darts", "order": "first", "auxiliary_skip": "linear"},
    "sdarts-rs": {**_S4, "order": "first", "perturb": "random"},
    "sdarts-adv": {**_S4, "order": "first", "perturb": "adversarial"},
    "small": {**SMALL, "data": "cifar10", "auxiliary_skip": "linear"},
}


@dataclass(frozen=True)
class RobustOptions(DartsOptions):
    """DARTS with what keeps it from collapsing (paper 004, Table 1's baselines). --faithful is --hessian finite-difference."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = ROBUST_PRESETS

    drop_path: float = 0.0
    """Chance of an edge to be dropped for a sample in the last epoch, on a line from 0 in the first; 0.2 is RobustDARTS's."""
    auxiliary_skip: Literal["none", "linear", "cosine"] = "none"
    """A skip connection beside the operations of every edge (DARTS-), whose weight falls from 1 to 0 in this form."""
    perturb: Literal["none", "random", "adversarial"] = "none"
    """What weight steps do to the mixture (SmoothDARTS): nothing, uniform noise, or seven steps against the loss."""
    epsilon: float = 0.3
    """Largest perturbation of an operation's weight in the last epoch, on a line from 0.03."""
    eigenvalue: int = 0
    """Lanczos steps by which the dominant eigenvalue of the architecture's Hessian is found after each epoch; 0 for none."""
    early_stop: float | None = None
    """Growth of that eigenvalue within 4 epochs that ends the search with the cell before; 1.3 is published, none means never."""
    adaptive_decay: float | None = None
    """With --early-stop: instead of ending, go back to the epoch before with three times the weight decay, as often as it stays
    within this; 0.0243 is published (RobustDARTS's ADA)."""

    def validate(self) -> None:
        super().validate()
        self._at_least(0, "epsilon", "eigenvalue")
        if not 0 <= self.drop_path < 1:
            raise ConfigurationError(f"--drop-path must be in [0, 1), got {self.drop_path}")
        if self.early_stop is not None and not self.early_stop > 1:
            raise ConfigurationError(f"--early-stop must be above 1, got {self.early_stop}")
        if self.early_stop is not None and not self.eigenvalue:
            raise ConfigurationError("--early-stop needs --eigenvalue, such as 20")
        if self.adaptive_decay is not None and self.early_stop is None:
            raise ConfigurationError("--adaptive-decay needs --early-stop, such as 1.3")
        if self.adaptive_decay is not None and not self.adaptive_decay >= self.weight_decay > 0:
            raise ConfigurationError(f"--adaptive-decay: expected 0 < weight-decay <= it, got {self.adaptive_decay}")

    @property
    def decays(self) -> list[float]:
        """The weight decays that an adaptive search may go through."""
        found = [self.weight_decay]
        while self.adaptive_decay is not None and DECAY_FACTOR * found[-1] <= self.adaptive_decay * (1 + 1e-9):
            found.append(DECAY_FACTOR * found[-1])
        return found

    @property
    def most_epochs(self) -> int:
        return self.all_epochs * len(self.decays)

    @property
    def method(self) -> str:
        return "robust-darts"
