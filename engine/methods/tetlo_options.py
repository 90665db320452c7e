"""The options of TETLO. No torch here.

Presets follow the text of paper 004; those named ``paper-table-`` follow its tables 27 to 29 where these say otherwise (reference
note tetlo-darts, sections 6.7 and 6.10).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from engine.errors import ConfigurationError
from engine.methods.darts_options import SMALL, TOY, FamilyOptions
from engine.methods.options import flag
from engine.methods.pcdarts_options import PartialOptions
from engine.methods.pdarts_options import ProgressiveOptions
from engine.methods.prdarts_options import GateOptions
from engine.methods.study_options import variation

_CIFAR10 = {"data": "cifar10", "cells": 8, "channels": 16, "size": 32}
_PDARTS = {
    **_CIFAR10,
    "base": "pdarts",
    "cells": 5,
    "epochs": 25,
    "warm_up": 10,
    "batch": 96,
    "weight_rate_end": 0.0,
    "alpha_rate": 6e-4,
    "alpha_clip": 5.0,
}
_PCDARTS = {
    **_CIFAR10,
    "base": "pcdarts",
    "epochs": 50,
    "warm_up": 15,
    "batch": 256,
    "weight_rate": 0.1,
    "weight_rate_end": 0.0,
    "alpha_rate": 6e-4,
}
_PRDARTS = {**_CIFAR10, "base": "prdarts", "epochs": 200, "batch": 128, "weight_rate_end": 0.0}
# Table 29 repeats table 27, and table 28 table 26, whatever the base.
_TABLE = {"epochs": 50, "batch": 96, "weight_rate": 0.1, "alpha_rate": 6e-4, "lam": 0.5}

TETLO_PRESETS: dict[str, dict[str, Any]] = {
    "default": {**TOY, "epochs": 4},
    "published": _CIFAR10,
    "published-darts1st": {**_CIFAR10, "base": "darts1st"},
    "published-pdarts": _PDARTS,
    "published-pcdarts": _PCDARTS,
    "published-prdarts": _PRDARTS,
    "paper-table-pdarts": {**_PDARTS, "epochs": 30, "batch": 32, "alpha_rate": 3e-4, "cells": 8, "added_cells": "0,0,0"},
    "paper-table-pcdarts": {**_PCDARTS, **_TABLE},
    "paper-table-prdarts": {**_PRDARTS, **_TABLE},
    "small": {**SMALL, "data": "cifar10"},
}

_TRILEVEL = ("tetlo", "auxiliary-only")
_FIT = ("fit-auxiliary", "fit-main")
# Which objectives an option is for; the others leave it at its default.
_OF_OBJECTIVES = {
    "transfer": (*_TRILEVEL, "mtl"),
    "auxiliary": (*_TRILEVEL, "mtl"),
    "pretraining": ("att",),
    "quadruples": _FIT,
    "swapped": _FIT,
}

# Whose options a base takes, beyond those that all take.
_OWN: dict[str, type[FamilyOptions]] = {"pcdarts": PartialOptions, "pdarts": ProgressiveOptions, "prdarts": GateOptions}


@dataclass(frozen=True)
class TetloOptions(PartialOptions, ProgressiveOptions, GateOptions):
    """TETLO: an auxiliary model learns from the main one which images are alike. --faithful is --hessian finite-difference."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = TETLO_PRESETS

    batch: int = 32
    """Images of a step; an epoch leaves out what does not fill one."""
    epochs: int = 30
    """Passes over the training half, of each stage."""
    interval: int = 5
    """Weight steps for each architecture step."""
    base: Literal["darts1st", "darts2nd", "pdarts", "pcdarts", "prdarts"] = "darts2nd"
    """Search to build on; all but darts1st see how the main model's step acts on its validation loss, and all the transfer."""
    lam: float = 0.1
    """Weight lambda of the similarities in the auxiliary model's loss; 0.1 in the paper's text, 0.5 in its tables 27 and 29."""
    gamma: float = 1.0
    """Weight of the auxiliary model's validation loss."""
    objective: Literal["tetlo", "auxiliary-only", "mtl", "es", "att", "noaux", "fit-auxiliary", "fit-main"] = "tetlo"
    """What the search descends on: TETLO, or with its auxiliary validation loss only; baselines that learn both models at once
    (mtl), with one encoder (es) or one after the other (att); the main model alone with an ordering loss (noaux); or a model and
    a collection of quadruples that it fits in training (fit-auxiliary) or that its architecture fits (fit-main)."""
    transfer: Literal["qrs", "ts", "ps", "pl", "regembed"] = "qrs"
    """What the auxiliary model takes over: the order of quadruples or triples of images, which pairs are similar, the classes'
    probabilities of images (pl), or their features (regembed)."""
    pairs: int = 300
    """Quadruples (qrs, noaux), triples (ts) or pairs (ps) of images of a batch whose similarities are compared."""
    similarity: Literal["sum", "mean"] = "sum"
    """How the transfer's terms are put together: the paper's sum, or a mean, which makes lambda independent of --pairs."""
    auxiliary: Literal["tied", "simple-cnn", "resnet18", "resnet50", "resnet101"] = "tied"
    """The auxiliary model: one of the searched architecture, which shares all weights but those of the last cell and the head, or
    a fixed network."""
    auxiliary_width: int = 64
    """Channels of the first stage of a fixed auxiliary network."""
    unroll: int = 1
    """Steps of the main and of the auxiliary model that an architecture gradient looks through (Table 16: 1, 2 and 3)."""
    neighbours: int = 0
    """Validation images whose four nearest by the main model are shown at the end, in neighbours.svg and a table (Figure 3)."""
    pretraining: int | None = None
    """Epochs, of each stage, in which --objective att trains the auxiliary model on both halves; none means --epochs."""
    quadruples: int = 10_000
    """Quadruples of images that --objective fit-auxiliary and fit-main collect (Figure 2)."""
    swapped: float = 0.0
    """Share of these quadruples whose order is wrong, from 0 to 1."""
    vary: str = ""
    """An option and its values, such as lam=0.01,0.1,1: a search with each of them, in runs of their own below this one."""
    seeds: int = 1
    """Searches of each kind, with --seed and the following ones."""

    def validate(self) -> None:
        name, values = self.varied
        for value in values:
            replace(self, vary="", **{name: value}).validate()
        if values:
            return
        super().validate()
        self._at_least(0, "lam", "gamma", "neighbours")
        self._at_least(1, "pairs", "auxiliary_width", "unroll", "seeds")
        self._at_least(2, "cells")
        if self.neighbours and self.batch < 5:
            raise ConfigurationError(f"--neighbours: a batch of {self.batch} may be all there is; four neighbours need 5 images")
        if self.auxiliary == "tied" and self.auxiliary_width != 64:
            raise ConfigurationError("--auxiliary-width belongs to a fixed --auxiliary; a tied one has the --channels")
        self._check_objective()
        possible = self.batch * (self.batch - 1) // 2
        if possible < self.pairs and (self.objective == "noaux" or (self.two_models and self.transfer in ("qrs", "ts", "ps"))):
            raise ConfigurationError(f"--batch: {self.batch} images make {possible} pairs, fewer than --pairs {self.pairs}")
        shared = {field.name for field in fields(FamilyOptions)}
        for base, options in _OWN.items():
            for field in fields(options):
                if base != self.base and field.name not in shared and getattr(self, field.name) != field.default:
                    raise ConfigurationError(f"{flag(field.name)} belongs to --base {base}, not to {self.base}")

    def _check_objective(self) -> None:
        for name, objectives in _OF_OBJECTIVES.items():
            default = next(field.default for field in fields(self) if field.name == name)
            if getattr(self, name) != default and self.objective not in objectives:
                known = ", ".join(objectives)
                raise ConfigurationError(f"{flag(name)} belongs to --objective {known}, not to {self.objective}")
        if self.pretraining is not None:
            self._at_least(1, "pretraining")
        if self.objective == "auxiliary-only" and not self.gamma:
            raise ConfigurationError("--objective auxiliary-only: --gamma 0 leaves nothing to descend on")
        if not 0 <= self.swapped <= 1:
            raise ConfigurationError(f"--swapped must be in [0, 1], got {self.swapped}")
        if self.objective in _FIT:
            self._at_least(4, "batch")
            self._at_least(self.batch // 4, "quadruples")

    @property
    def varied(self) -> tuple[str, list[Any]]:
        """Name and values of ``vary``; see :func:`engine.methods.study_options.variation`."""
        return variation(self.vary, type(self))

    @property
    def is_study(self) -> bool:
        """Whether this is several searches and what they say together."""
        return bool(self.vary or self.seeds > 1)

    @property
    def trilevel(self) -> bool:
        """Whether the search has three levels."""
        return self.objective in _TRILEVEL

    @property
    def two_models(self) -> bool:
        """Whether an auxiliary model learns from the main one."""
        return self.objective in (*_TRILEVEL, "mtl")

    @property
    def pretraining_epochs(self) -> int:
        """Epochs of each stage before those of the base."""
        if self.objective != "att":
            return 0
        return self.epochs if self.pretraining is None else self.pretraining

    @property
    def all_epochs(self) -> int:
        base = super().all_epochs
        return base + base // self.epochs * self.pretraining_epochs

    @property
    def method(self) -> str:
        return "darts" if self.base in ("darts1st", "darts2nd") else self.base
