"""The options of the DARTS family. No torch here.

Values and presets follow reference note tetlo-darts: ``published`` is section 1.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from engine.errors import ConfigurationError
from engine.methods.options import NATIVE_LIMIT, SearchOptions, flag
from engine.spaces.darts import searched_space
from engine.spaces.one_shot import ONE_SHOT

# The real thing at toy size, for images of 8x8.
TOY = {"cells": 3, "channels": 8, "images": 512}
SMALL = {"cells": 5, "channels": 8, "size": 16, "batch": 64, "epochs": 20}

DARTS_PRESETS: dict[str, dict[str, Any]] = {
    "default": {**TOY, "epochs": 8},
    "published": {"data": "cifar10", "cells": 8, "channels": 16, "size": 32, "batch": 64, "epochs": 50},
    "small": {**SMALL, "data": "cifar10"},
    "one-shot": {
        "data": "cifar10",
        "space": "nas-bench-1shot1-1",
        "cells": 9,
        "channels": 16,
        "size": 32,
        "batch": 96,
        "epochs": 100,
    },
}


@dataclass(frozen=True)
class FamilyOptions(SearchOptions):
    """What every search of the DARTS family takes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = DARTS_PRESETS

    space: Literal[
        "darts",
        "darts-s1",
        "darts-s2",
        "darts-s3",
        "darts-s4",
        "nas-bench-1shot1-1",
        "nas-bench-1shot1-2",
        "nas-bench-1shot1-3",
    ] = "darts"
    """Search space: all eight operations on every edge, S1 to S4 of RobustDARTS, or (darts, tetlo on it) NAS-Bench-1Shot1's."""
    cells: int = 8
    """Cells of the supernet; those at one and two thirds of the depth reduce."""
    channels: int = 16
    """Channels of the first cell, even; each reduction cell doubles them."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """What the images enter by: one convolution, or three of stride 2 for large images."""
    size: int | None = None
    """Side of the square images in pixels; none means the set's own, at most 32."""
    images: int | None = None
    """Images of each half of the training set that are used; none means all."""
    reserve: int = 0
    """Images of each half that are set aside for engine train supervised --test-on reserve; 2500 is published for tuning."""
    augment: bool | None = None
    """Crop and mirror training images; none means yes, except for digits and omniglot, whose classes a mirror image changes."""
    label_noise: float = 0.0
    """Chance that a label of the validation half is changed to another class; 0.6 in TETLO's Table 6."""
    imbalance: float = 1.0
    """How many times more images the first class of the validation half has than the last, on an exponential profile."""
    loss: Literal["cross-entropy", "robust-log"] = "cross-entropy"
    """What training and validation lower; the robust log loss holds against wrong labels."""
    class_balance: float = 0.0
    """Beta of the class-balanced weights of the validation loss, in [0, 1); 0.9999 is published, 0 weighs all classes alike."""
    batch: int = 64
    """Images of a step; an epoch leaves out what does not fill one."""
    epochs: int = 50
    """Passes over the training half."""
    hessian: Literal["exact", "finite-difference"] = "exact"
    """How the second order is computed: a Hessian-vector product, or the published quotient of differences."""
    recompute: bool = False
    """Keep what passes between cells only and compute cells again for gradients: less memory, more time, the same bits."""
    interval: int = 1
    """Weight steps for each architecture step."""
    weight_rate: float = 0.025
    """Learning rate of the weights, falling as a cosine from epoch to epoch."""
    weight_rate_end: float = 0.001
    """Where the cosine of the weights' learning rate ends."""
    momentum: float = 0.9
    """Momentum of the weights."""
    weight_decay: float = 3e-4
    """L2 penalty of the weights; 9e-4, 27e-4 and 81e-4 are RobustDARTS's."""
    clip: float = 5.0
    """Largest norm of the weights' gradient."""
    alpha_rate: float = 3e-4
    """Learning rate of the architecture parameters (Adam)."""
    alpha_decay: float = 1e-3
    """L2 penalty of the architecture parameters."""
    alpha_scale: float = 1e-3
    """Standard deviation of the initial architecture parameters; 0 is allowed."""
    alpha_clip: float = float("inf")
    """Largest norm of the architecture parameters' gradient; 5 for P-DARTS, PR-DARTS and PC-DARTS on ImageNet."""
    warm_up: int = 0
    """Epochs, of each stage, in which only the weights move."""
    rate_warm_up: int = 0
    """Epochs in which the weights' learning rate rises to --weight-rate; 5 for PC-DARTS on ImageNet."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "cells", "size", "epochs", "interval")
        self._at_least(2, "channels", "batch", "images")
        self._at_least(
            0, "weight_rate", "weight_rate_end", "weight_decay", "alpha_rate", "alpha_decay", "alpha_scale", "momentum"
        )
        self._at_least(0, "warm_up", "rate_warm_up", "reserve")
        if self.channels % 2:
            raise ConfigurationError(f"--channels: the strided skip connection halves them, so {self.channels} must be even")
        if not self.momentum < 1:
            raise ConfigurationError(f"--momentum must be below 1, got {self.momentum}")
        for name in ("label_noise", "class_balance"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"{flag(name)} must be in [0, 1), got {getattr(self, name)}")
        if not 1 <= self.imbalance < float("inf"):
            raise ConfigurationError(f"--imbalance must be at least 1 and finite, got {self.imbalance}")
        for name in ("clip", "alpha_clip"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{flag(name)} must be above 0, got {getattr(self, name)}")
        if self.images is not None and self.images < self.batch:
            raise ConfigurationError(f"--images: {self.images} do not fill a batch of {self.batch}")
        if self.space not in ONE_SHOT:
            searched_space(self.space)
        elif self.method != "darts":
            raise ConfigurationError(f"--space: {self.space} is searched by darts, and by tetlo on darts1st or darts2nd")
        elif self.stem != "cifar" or self.recompute:
            raise ConfigurationError(f"--space: the supernet of {self.space} has no --stem imagenet and no --recompute")

    @property
    def method(self) -> str:
        """The base of the search."""
        return "darts"

    @property
    def second_order(self) -> bool:
        """Whether architecture gradients see the step of the weights."""
        return False

    @property
    def nesterov(self) -> bool:
        """Whether the weights' momentum looks ahead."""
        return False

    @property
    def all_epochs(self) -> int:
        """Epochs of the whole search."""
        return self.epochs

    @property
    def most_epochs(self) -> int:
        """``all_epochs``, and those that a search may do again."""
        return self.all_epochs

    @property
    def hessian_mode(self) -> Literal["exact", "finite-difference"]:
        """``hessian``, or the published one with --faithful."""
        return "finite-difference" if self.faithful else self.hessian

    def resolution(self, native: int) -> int:
        """Side of the images that the search sees, for a set whose own images have the side ``native``."""
        return min(native, NATIVE_LIMIT) if self.size is None else self.size


@dataclass(frozen=True)
class DartsOptions(FamilyOptions):
    """DARTS: gradient descent on a softmax over operations. --faithful is --hessian finite-difference."""

    order: Literal["first", "second"] = "second"
    """Whether architecture gradients see the step of the weights (second) or hold them (first)."""

    @property
    def second_order(self) -> bool:
        return self.order == "second"
