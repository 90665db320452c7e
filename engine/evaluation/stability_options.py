"""The options of the stability measure on NAS-Bench-1Shot1 (paper 004, Table 15). No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.errors import ConfigurationError
from engine.evaluation.family_options import BASES, TETLO, Entry, FamilyCompareOptions
from engine.spaces.one_shot import ONE_SHOT

STABILITY_PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "seeds": 3,
        "search_preset": "default",
        "search": "cells=3,channels=4,images=64,batch=32,epochs=8",
        "early": "3-4",
        "late": "7-8",
    },
    "table15": {"data": "cifar10"},
}
_PLAIN = [name for name, (method, _) in BASES.items() if method == "darts"]


@dataclass(frozen=True)
class StabilityOptions(FamilyCompareOptions):
    """How often searches of NAS-Bench-1Shot1 degenerate: the cell of every epoch is looked up, and late ones compared with
    early ones."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = STABILITY_PRESETS

    methods: str = "darts2nd,tetlo-darts2nd"
    """What is compared, the first words of the command: darts1st, darts2nd, tetlo-darts1st, tetlo-darts2nd."""
    seeds: int = 10
    """Runs of each method, with --seed and the following ones."""
    spaces: str = "1,2,3"
    """Which of the three spaces."""
    oracle: str | None = None
    """Who knows test accuracies: a table of NAS-Bench-101 (csv or npz), or package.module:function of (matrix, operations)."""
    early: str = "45-55"
    """Epochs, from 1, whose cells are the standard."""
    late: str = "90-100"
    """Epochs whose cells are compared with them: a run is degenerate if their mean accuracy is lower."""
    search_preset: str = "one-shot"
    """Preset of the searches; tetlo-NAME takes that of NAME, and its own interval, lambda, gamma and pairs."""

    def validate(self) -> None:
        super().validate()
        if self.oracle is None:
            raise ConfigurationError("--oracle: name a table of NAS-Bench-101 (csv or npz) or package.module:function")
        known = [*_PLAIN, *(TETLO + name for name in _PLAIN)]
        for entry in self.entries:
            if entry.name not in known or entry.space != "darts":
                raise ConfigurationError(f"--methods: {entry.text!r} searches no NAS-Bench-1Shot1; known are {', '.join(known)}")
        if self.windows[0][1] >= self.windows[1][0]:
            raise ConfigurationError(f"--late {self.late} must come after --early {self.early}")
        _ = self.searched

    @property
    def windows(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last epoch of ``early`` and of ``late``."""
        return _window("--early", self.early), _window("--late", self.late)

    @property
    def searched(self) -> list[Entry]:
        """Every method in every space."""
        names = [f"nas-bench-1shot1-{word.strip()}" for word in self.spaces.split(",")]
        if len(set(names)) < len(names) or not set(names) <= set(ONE_SHOT):
            raise ConfigurationError(f"--spaces: {self.spaces!r} is not some of 1,2,3")
        return [entry.in_space(name) for name in names for entry in self.entries]


def _window(option: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5})-([1-9]\d{0,5})", text, re.ASCII)
    if not match or int(match[1]) > int(match[2]):
        raise ConfigurationError(f"{option}: {text!r} is not a range of epochs such as 45-55")
    return int(match[1]), int(match[2])
