"""The options of PC-DARTS. No torch here. Values follow reference note tetlo-darts, section 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from engine.errors import ConfigurationError
from engine.methods.darts_options import SMALL, TOY, FamilyOptions

PCDARTS_PRESETS: dict[str, dict[str, Any]] = {
    "default": {**TOY, "batch": 64, "epochs": 8, "warm_up": 2},
    "published": {"data": "cifar10", "cells": 8, "channels": 16, "size": 32},
    "imagenet": {
        "data": "imagenet",
        "stem": "imagenet",
        "cells": 8,
        "channels": 16,
        "size": 224,
        "partial": 2,
        "batch": 1024,
        "epochs": 50,
        "warm_up": 35,
        "weight_rate": 0.5,
        "rate_warm_up": 5,
        "alpha_rate": 6e-3,
        "alpha_clip": 5.0,
    },
    "small": {**SMALL, "data": "cifar10", "warm_up": 5},
}


@dataclass(frozen=True)
class PartialOptions(FamilyOptions):
    """What partial channels take."""

    partial: int = 4
    """Channels: one in so many goes through the operations, the others pass by; 2 on ImageNet, 1 for all."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "partial")
        if self.method == "pcdarts" and self.channels % (2 * self.partial):
            raise ConfigurationError(
                f"--channels: one in {self.partial} is operated on and halved by strided skip connections, "
                f"so {self.channels} must be a multiple of {2 * self.partial}"
            )


@dataclass(frozen=True)
class PcdartsOptions(PartialOptions):
    """PC-DARTS: a part of the channels is searched, with edge weights apart. --faithful is --hessian finite-difference."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PCDARTS_PRESETS

    order: Literal["first", "second"] = "first"
    """Whether architecture gradients see the step of the weights (second) or hold them (first)."""
    batch: int = 256
    """Images of a step; an epoch leaves out what does not fill one."""
    warm_up: int = 15
    """Epochs, of each stage, in which only the weights move."""
    weight_rate: float = 0.1
    """Learning rate of the weights, falling as a cosine from epoch to epoch."""
    weight_rate_end: float = 0.0
    """Where the cosine of the weights' learning rate ends."""
    alpha_rate: float = 6e-4
    """Learning rate of the architecture parameters (Adam)."""

    @property
    def method(self) -> str:
        return "pcdarts"

    @property
    def second_order(self) -> bool:
        return self.order == "second"
