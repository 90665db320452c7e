"""The options of the training recipes: names, types, defaults, presets and limits. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from engine.errors import ConfigurationError
from engine.evaluation.published import REFERENCE_NAMES
from engine.methods.options import MAX_CELLS, MAX_CHANNELS, RunOptions, flag

CLASSIFIERS = ("logistic", "svm", "centroid", "cosine")

_OMNIGLOT = {
    "data": "omniglot",
    "split": "alphabets",
    "rotations": True,
    "augmentation": "drawing",
    "tests": "5w1s,5w5s,20w1s,20w5s",
}
_CIFAR_FS = {"data": "cifar-fs", "test_split": "val", "augmentation": "photo"}
# Reference note section 7. Milestones are epochs.
_PAPER = {
    "size": 84,
    "channels": 48,
    "budget": "100epochs",
    "batch": 64,
    "rate": 0.02,
    "schedule": "step",
    "milestones": "60,80",
    "nesterov": False,
    "label_smoothing": 0.0,
    "drop_path": 0.2,
    "augmentation": "rfs",
    "support_views": 5,
    "queries": 50,
    "classifiers": "logistic",
}
_MINI = {**_PAPER, "data": "miniimagenet"}
_TIERED = {
    **_PAPER,
    "data": "tieredimagenet",
    "budget": "60epochs",
    "rate": 0.01,
    "milestones": "30,40,50",
    "drop_path": 0.1,
    "drop_path_ramp": False,
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small-digits": {"channels": 16, "cells": 3, "batch": 64, "rate": 0.05, "budget": "60s"},
    "small-omniglot": {**_OMNIGLOT, "channels": 16, "pool": 2, "batch": 64, "budget": "600s"},
    "small-cifar-fs": {**_CIFAR_FS, "channels": 16, "batch": 64, "pool": 2, "mirror": True, "budget": "900s"},
    "paper-mini-5": {**_MINI, "cells": 5},
    "paper-mini-8": {**_MINI, "cells": 8, "batch": 40},
    "paper-tiered-5": {**_TIERED, "cells": 5},
    "paper-tiered-8": {**_TIERED, "cells": 8, "batch": 56},
}


def length(budget: str, unit: str) -> tuple[float, str]:
    """A length such as ``(600.0, "s")``, in CPU seconds or in whole ``unit``; :class:`ConfigurationError` if malformed."""
    match = re.fullmatch(rf"(\d{{1,9}}(?:\.\d{{1,6}})?) ?(s|{unit})", budget, re.ASCII)
    amount = float(match[1]) if match else 0.0
    if not match or amount <= 0 or (match[2] == unit and amount != int(amount)):
        raise ConfigurationError(f"--budget: {budget!r} is not a length such as 100{unit} or 600s")
    return amount, match[2]


@dataclass(frozen=True)
class TaskShape:
    """One kind of few-shot task."""

    ways: int
    shots: int

    @property
    def name(self) -> str:
        """Such as ``5-way 1-shot``."""
        return f"{self.ways}-way {self.shots}-shot"


@dataclass(frozen=True)
class NetworkOptions(RunOptions):
    """Which network is built, and on which images. ``draws_noise``: passes draw the noise of cells of S4."""

    draws_noise: ClassVar[bool] = False

    network: str = "res5"
    """Run directory, genotype.json, published genotype (darts-v2, metanas-in-v2), or network such as conv4, res5, resnet12."""
    space: str | None = None
    """Space of the genotype if it is your own: package.module:NAME."""
    cells: int = 5
    """Cells of a genotype's network; 5 and 8 are published for few-shot learning, 20 for CIFAR, 14 for ImageNet."""
    channels: int = 16
    """Channels of its first cell; 48 is published for few-shot learning and ImageNet, 36 for CIFAR."""
    pool: int = 1
    """Factor by which its stem's map is max-pooled before the first cell; 1 is published, 2 is four times as fast."""
    stem: Literal["plain", "imagenet"] = "plain"
    """Its stem: one convolution, or DARTS's three of stride 2 for images of about 224 pixels."""
    size: int | None = None
    """Side of the square images in pixels; none means the set's own."""
    augmentation: Literal["none", "drawing", "photo", "crop", "rfs", "imagenet"] = "none"
    """Pipeline of training images (and of --support-views)."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "cells", "channels", "pool", "size")
        self._at_most(MAX_CELLS, "cells")
        self._at_most(MAX_CHANNELS, "channels")
        if self.stem == "imagenet" and self.pool > 1:
            raise ConfigurationError("--pool: the stem for ImageNet is not pooled; leave it out")


@dataclass(frozen=True)
class FewShotTestOptions(NetworkOptions):
    """Which classes are trained on and tested, and how features are tested on few-shot tasks."""

    split: Literal["classes", "alphabets"] = "classes"
    """Which classes are trained on: the set's class split, or (Omniglot) the background alphabets against the evaluation ones."""
    rotations: bool = False
    """Add every training class turned by 90, 180 and 270 degrees as further classes."""
    test_split: Literal["val", "test"] = "test"
    """Classes of the few-shot test, where the set's class split is used."""
    tests: str = "5w1s,5w5s"
    """Kinds of tasks, such as 5w1s,20w5s for 5-way 1-shot and 20-way 5-shot."""
    tasks: int = 1000
    """Tasks of each kind."""
    queries: int = 15
    """Query images of a class; 50 is the default of the published script."""
    support_views: int = 1
    """Augmented copies that stand for each support image; 1 takes the image as it is, 5 is published."""
    mirror: bool = False
    """Add the features of its mirror image to those of each test image: for photographs, at twice the cost of the features."""
    classifiers: str = "logistic,centroid"
    """Classifiers on the features, the headline first: logistic, svm, centroid, cosine."""
    penalty: float = 1.0
    """C of the logistic regression and the SVM, as in scikit-learn."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "tasks", "queries", "support_views")
        if self.split == "alphabets" and self.data != "omniglot":
            raise ConfigurationError(f"--split alphabets is for omniglot, not for {self.data}; use --split classes")
        if self.data == "digits" and self.rotations:
            raise ConfigurationError("--rotations: digits already has its rotations as classes; leave it out")
        if not 0 < self.penalty < float("inf"):
            raise ConfigurationError(f"--penalty must be positive and finite, got {self.penalty}")
        _ = self.task_shapes, self.classifier_names

    @property
    def task_shapes(self) -> list[TaskShape]:
        """``tests`` parsed; :class:`ConfigurationError` if it is malformed."""
        shapes = []
        for word in self.tests.split(","):
            match = re.fullmatch(r"(\d{1,3})w(\d{1,3})s", word.strip(), re.ASCII)
            if not match or int(match[1]) < 2 or int(match[2]) < 1:
                raise ConfigurationError(f"--tests: {word.strip()!r} is not a kind of task such as 5w1s (5-way 1-shot)")
            shapes.append(TaskShape(int(match[1]), int(match[2])))
        return shapes

    @property
    def classifier_names(self) -> list[str]:
        """``classifiers`` parsed; :class:`ConfigurationError` if one is unknown."""
        names = [word.strip() for word in self.classifiers.split(",")]
        for name in names:
            if name not in CLASSIFIERS:
                raise ConfigurationError(f"--classifiers: unknown {name!r}; known are {', '.join(CLASSIFIERS)}")
        return names


@dataclass(frozen=True)
class SGDOptions(NetworkOptions):
    """How a network is trained as an ordinary classifier."""

    budget: str = "20s"
    """Length of the training: epochs (100epochs), or CPU seconds (600s), which timing some steps turns into a number of steps."""
    steps: int | None = None
    """Length in steps; none means what --budget comes to, which is then written down here."""
    batch: int = 128
    """Images of a step."""
    rate: float = 0.1
    """Peak learning rate."""
    schedule: Literal["cosine", "step", "epoch-cosine", "epoch-linear"] = "cosine"
    """How the rate falls: cosine to zero after a warm-up, a tenth at each milestone, or DARTS's for CIFAR and for ImageNet."""
    warmup: float = 0.15
    """Share of the training in which the cosine schedule's rate rises from zero."""
    milestones: str = ""
    """Epochs after which the step schedule divides the rate by ten, such as 60,80."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's momentum."""
    weight_decay: float = 5e-4
    """Weight decay, of all parameters."""
    label_smoothing: float = 0.1
    """Probability that is spread over all classes."""
    drop_path: float = 0.0
    """Probability that a path of a cell is left out for an image; 0.2 is published."""
    drop_path_ramp: bool = True
    """Let that probability rise from zero, epoch by epoch."""
    drop_block: float = 0.0
    """Rate of dropout and DropBlock behind the blocks of resnet12 and resnet12-rfs; RFS publishes 0.1."""
    compile: bool = False
    """Compile the training pass with torch.compile."""
    auxiliary: float = 0.0
    """Weight of the auxiliary tower's loss, which a genotype's network then has; 0.4 is published."""
    cutout: int = 0
    """Side of the square that is cut out of every training image; 16 is published."""
    clip: float | None = None
    """Largest norm of a gradient, which is scaled down to it; 5 is published."""
    autocast: bool = False
    """Compute convolutions and products in bfloat16."""

    def validate(self) -> None:
        super().validate()
        self._at_least(2, "batch")  # statistics of one image may be those of one number
        self._at_least(1, "steps")
        self._at_least(0, "weight_decay", "rate", "auxiliary", "cutout")
        if self.clip is not None and not self.clip > 0:
            raise ConfigurationError(f"--clip must be above 0, got {self.clip}")
        for name in ("warmup", "momentum", "label_smoothing", "drop_path", "drop_block"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"{flag(name)} must be in 0 .. 1 (without 1), got {getattr(self, name)}")
        if self.drop_block and self.network not in ("resnet12", "resnet12-rfs"):
            raise ConfigurationError(f"--drop-block is for resnet12 and resnet12-rfs, not for {self.network}; leave it out")
        if self.compile and self.drop_block:
            raise ConfigurationError("--compile: a training pass with --drop-block is not compiled; leave one of them out")
        if self.auxiliary and self.network in REFERENCE_NAMES:
            raise ConfigurationError(f"--auxiliary: {self.network} has no auxiliary tower, only genotypes have; leave it out")
        _ = self.milestone_epochs, self.length

    @property
    def milestone_epochs(self) -> list[int]:
        """``milestones`` parsed; :class:`ConfigurationError` if one is no epoch."""
        words = [word.strip() for word in self.milestones.split(",") if word.strip()]
        if any(not re.fullmatch(r"\d{1,6}", word, re.ASCII) for word in words):
            raise ConfigurationError(f"--milestones: {self.milestones!r} is not a list of epochs such as 60,80")
        return [int(word) for word in words]

    @property
    def length(self) -> tuple[float, str]:
        """``budget`` parsed, such as ``(600.0, "s")``; the unit is s or epochs. :class:`ConfigurationError` if malformed."""
        return length(self.budget, "epochs")


@dataclass(frozen=True)
class RFSOptions(SGDOptions, FewShotTestOptions):
    """Rethinking few-shot: supervised training on the base classes, then a linear classifier on frozen features."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
