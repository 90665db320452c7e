"""The options of supervised classification: the DARTS family's evaluation on CIFAR and ImageNet. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from engine.errors import ConfigurationError
from engine.evaluation.options import SGDOptions

# Reference note tetlo-darts, sections 1.5, 6.7 and 7. What a preset does not name is the default of its option.
_PUBLISHED = {"momentum": 0.9, "nesterov": False, "auxiliary": 0.4, "clip": 5.0, "train_on": "train+val", "test_on": "test"}
_CIFAR = {
    **_PUBLISHED,
    "data": "cifar10",
    "cells": 20,
    "channels": 36,
    "budget": "600epochs",
    "batch": 96,
    "rate": 0.025,
    "schedule": "epoch-cosine",
    "weight_decay": 3e-4,
    "label_smoothing": 0.0,
    "drop_path": 0.2,
    "augmentation": "crop",
    "cutout": 16,
}
_IMAGENET = {
    **_PUBLISHED,
    "data": "imagenet",
    "size": 224,
    "stem": "imagenet",
    "cells": 14,
    "channels": 48,
    "budget": "250epochs",
    "batch": 1024,
    "rate": 0.5,
    "schedule": "epoch-linear",
    "weight_decay": 3e-5,
    "label_smoothing": 0.1,
    "augmentation": "imagenet",
}

# The text of paper 004 where it contradicts its tables 31 to 33, which are the presets named -table.
SUPERVISED_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper-darts": {**_CIFAR, "network": "darts-v2"},
    "paper-pdarts": {**_CIFAR, "network": "pdarts", "batch": 128, "drop_path": 0.3},
    "paper-pdarts-cifar100": {
        **_CIFAR,
        "network": "pdarts",
        "data": "cifar100",
        "batch": 128,
        "drop_path": 0.3,
        "weight_decay": 5e-4,
    },
    "paper-pdarts-table": {**_CIFAR, "network": "pdarts"},
    "paper-pcdarts": {**_CIFAR, "network": "pcdarts-cifar", "batch": 128, "drop_path": 0.3},
    "paper-pcdarts-table": {**_CIFAR, "network": "pcdarts-cifar", "drop_path": 0.3},
    "paper-prdarts": {**_CIFAR, "network": "prdarts", "batch": 128},
    "paper-prdarts-table": {**_CIFAR, "network": "prdarts", "drop_path": 0.3},
    "paper-imagenet": {**_IMAGENET, "network": "darts-v2"},
    "short": {**_CIFAR, "network": "darts-v2", "cells": 8, "channels": 16, "budget": "60epochs"},
    "small": {
        **_CIFAR,
        "network": "darts-v2",
        "cells": 5,
        "channels": 8,
        "budget": "300s",
        "batch": 64,
        "rate": 0.05,
        "drop_path": 0.0,
        "cutout": 8,
        "train_on": "train",
        "test_on": "val",
    },
}


@dataclass(frozen=True)
class SupervisedOptions(SGDOptions):
    """Ordinary classification: train on some images of every class, test on others."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = SUPERVISED_PRESETS
    draws_noise: ClassVar[bool] = True

    train_on: Literal["train", "train+val"] = "train"
    """Images that are trained on, where the set is split by image (CIFAR, ImageNet); train+val is published."""
    test_on: Literal["val", "test", "reserve"] = "val"
    """Images that are tested, where the set is split by image."""
    reserve: int = 0
    """Images of each half of the training images that are set aside, as a search with --reserve does; 2500 is published for
    tuning."""
    held_out: float = 0.2
    """Share of each class's images that is held out for the test, where the set is split by class."""

    def validate(self) -> None:
        super().validate()
        self._at_least(0, "reserve")
        if self.test_on == "reserve" and not self.reserve:
            raise ConfigurationError("--test-on reserve: say with --reserve how many images of each half are set aside")
        if self.train_on == "train+val" and self.test_on == "val":
            raise ConfigurationError("--test-on val: these images are trained on with --train-on train+val; use --test-on test")
        if not 0 < self.held_out < 1:
            raise ConfigurationError(f"--held-out must be between 0 and 1, got {self.held_out}")
