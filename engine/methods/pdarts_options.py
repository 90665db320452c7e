"""The options of P-DARTS. No torch here. Values follow reference note tetlo-darts, section 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.errors import ConfigurationError
from engine.methods.darts_options import SMALL, TOY, FamilyOptions, flag

_PUBLISHED = {"data": "cifar10", "size": 32}

PDARTS_PRESETS: dict[str, dict[str, Any]] = {
    "default": {**TOY, "added_cells": "0,1,2", "batch": 64, "epochs": 3, "warm_up": 1},
    "published": _PUBLISHED,
    "cifar100": {**_PUBLISHED, "data": "cifar100", "skip_dropout": "0.1,0.2,0.3"},
    "small": {**SMALL, "data": "cifar10", "cells": 3, "added_cells": "0,1,2", "epochs": 8, "warm_up": 3},
}


@dataclass(frozen=True)
class ProgressiveOptions(FamilyOptions):
    """What the stages of P-DARTS take. Lists are numbers with commas between them, one a stage."""

    added_cells: str = "0,6,12"
    """Cells that each stage has beyond --cells."""
    kept: str = "5,3"
    """Operations that each edge keeps after every stage but the last."""
    skip_dropout: str = "0,0.4,0.7"
    """Initial dropout of skip connections in each stage, in [0, 1); 0.1,0.2,0.3 for CIFAR-100."""
    max_skips: int = 2
    """Skip connections that the normal cell may have at the end."""

    @property
    def stage_cells(self) -> tuple[int, ...]:
        """Cells of each stage."""
        return tuple(self.cells + int(value) for value in _numbers("added_cells", self.added_cells))

    @property
    def stage_kept(self) -> tuple[int, ...]:
        """Operations kept after each stage but the last."""
        return tuple(int(value) for value in _numbers("kept", self.kept)) if self.kept else ()

    @property
    def stage_dropout(self) -> tuple[float, ...]:
        """Initial dropout of each stage."""
        return _numbers("skip_dropout", self.skip_dropout)

    def validate(self) -> None:
        super().validate()
        self._at_least(0, "max_skips")
        stages = len(self.stage_cells)
        for name, found, wanted in (("kept", self.stage_kept, stages - 1), ("skip_dropout", self.stage_dropout, stages)):
            if len(found) != wanted:
                given = getattr(self, name)
                raise ConfigurationError(f"{flag(name)}: {stages} stages take {wanted} numbers, got {given!r}")
        if min(self.stage_cells) < self.cells:
            raise ConfigurationError(f"--added-cells: numbers must be at least 0, got {self.added_cells!r}")
        if any(value < 2 for value in self.stage_kept):
            raise ConfigurationError(f"--kept: an edge keeps at least 2 operations for the next stage, got {self.kept!r}")
        if not all(0 <= value < 1 for value in self.stage_dropout):
            raise ConfigurationError(f"--skip-dropout: numbers must be in [0, 1), got {self.skip_dropout!r}")

    @property
    def all_epochs(self) -> int:
        return self.epochs * len(self.stage_cells) if self.method == "pdarts" else self.epochs


def _numbers(name: str, text: str) -> tuple[float, ...]:
    whole = name != "skip_dropout"
    try:
        values = tuple(int(word) if whole else float(word) for word in text.split(","))
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise ConfigurationError(f"{flag(name)}: expected {kind} with commas between them, got {text!r}") from None
    return values


@dataclass(frozen=True)
class PdartsOptions(ProgressiveOptions):
    """P-DARTS: a supernet that deepens in stages while operations are dropped. First order."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PDARTS_PRESETS

    cells: int = 5
    """Cells of the first stage's supernet; those at one and two thirds of the depth reduce."""
    batch: int = 96
    """Images of a step; an epoch leaves out what does not fill one."""
    epochs: int = 25
    """Passes over the training half in each stage."""
    warm_up: int = 10
    """Epochs, of each stage, in which only the weights move."""
    weight_rate_end: float = 0.0
    """Where the cosine of the weights' learning rate ends."""
    alpha_rate: float = 6e-4
    """Learning rate of the architecture parameters (Adam)."""
    alpha_clip: float = 5.0
    """Largest norm of the architecture parameters' gradient."""

    @property
    def method(self) -> str:
        return "pdarts"
