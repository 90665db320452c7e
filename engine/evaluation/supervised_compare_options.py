"""The options of a comparison of searched cells by ordinary classification, the DARTS family's protocols. No torch here.

``section-4.3``, ``table2`` and ``tuning`` are paper 004's: four searches of which validation chooses one, ten runs of each
method with its baselines, and the grid of section M.6 on images that neither searches nor trainings see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.data.names import check_name
from engine.errors import ConfigurationError
from engine.evaluation.family_options import BASES, TETLO, Entry, FamilyCompareOptions, assignments, own_options
from engine.evaluation.supervised_options import SUPERVISED_PRESETS, SupervisedOptions
from engine.methods.options import flag, suggestion
from engine.spaces.one_shot import ONE_SHOT

_FAMILY = ",".join(name for base in BASES for name in (base, TETLO + base))

COMPARE_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # Far from trained: about 35 minutes of one thread for all of it. Rates are raised because steps are few.
    "small": {
        "methods": f"{_FAMILY},random,darts2nd@darts-s2",
        "data": "cifar10",
        "size": 16,
        "random_cells": 2,
        "search_preset": "small",
        "search": "images=480,batch=32,epochs=3,interval=3,weight_rate=0.05,alpha_rate=0.02,"
        "pcdarts.warm_up=1,pdarts.epochs=2,pdarts.warm_up=1",
        "train_preset": "small",
        "train": "auxiliary=0,cutout=4,budget=6epochs",
    },
    "table2": {
        "methods": _FAMILY,
        "data": "cifar100",
        "size": 32,
        "seeds": 10,
        "search_preset": "published",
        "vary": "objective=tetlo,mtl,es,att",
        "train_preset": "paper-{base}",
    },
    "tuning": {
        "methods": "tetlo-darts2nd",
        "data": "cifar100",
        "size": 32,
        "seeds": 1,
        "search_preset": "published",
        "search": "reserve=2500",
        "vary": "lam=0.01,0.1,0.2,0.5,1,2;gamma=0.01,0.1,0.2,0.5,1,2",
        "train_preset": "paper-darts",
        "train": "reserve=2500,train_on=train+val,test_on=reserve",
    },
    "section-4.3": {
        "methods": ",".join(f"{name}@darts-s{k}" for k in (1, 2, 3, 4) for name in ("darts2nd", "tetlo-darts2nd")),
        "data": "cifar10",
        "size": 32,
        "seeds": 1,
        "searches": 4,
        "search_preset": "published",
        "select_preset": "short",
        "train_preset": "paper-darts",
        "train": "cells=8,channels=16",
    },
}


@dataclass(frozen=True)
class SupervisedCompareOptions(FamilyCompareOptions):
    """Searches of the DARTS family, their cells retrained as ordinary classifiers: errors, skip connections, cost."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = COMPARE_PRESETS

    searches: int = 1
    """Searches of each run, of which the one is kept whose cell has the least validation error after a short training; 4 are
    published for S1 to S4."""
    random_cells: int = 1
    """Runs of random for each seed."""
    select_preset: str = "short"
    """Preset of engine train supervised for the short trainings, which end with the images of val."""
    select: str = ""
    """What the short trainings do otherwise, such as channels=8,budget=20epochs."""
    train_preset: str = "default"
    """Preset of engine train supervised for the evaluation; {base} stands for darts, pdarts, pcdarts or prdarts."""
    train: str = ""
    """What the evaluation does otherwise."""
    transfer_to: str | None = None
    """Another data set on which every cell is trained and tested too."""
    transfer_preset: str | None = None
    """Preset of those trainings; none means --train-preset."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "searches", "random_cells")
        if self.transfer_to is not None:
            check_name(self.transfer_to)
        for entry in self.entries:
            for option in ("select_preset", "train_preset", "transfer_preset"):
                self._check_preset(entry, option)
            if entry.space in ONE_SHOT:
                raise ConfigurationError(
                    f"--methods: {entry.text!r}: cells of {entry.space} are looked up, see engine compare stability"
                )
        for option in ("select", "train"):
            self.train_options(option)

    def _check_preset(self, entry: Entry, option: str) -> None:
        name = entry.preset(getattr(self, option) or "default")
        if name not in SUPERVISED_PRESETS:
            raise ConfigurationError(f"{flag(option)}: unknown {name!r}; {suggestion(name, SUPERVISED_PRESETS)}")

    def train_options(self, option: str) -> dict[str, str]:
        """What ``select`` or ``train`` says, texts by the names of options."""
        known = own_options(SupervisedOptions) - {"network"}
        given = assignments(flag(option), getattr(self, option))
        for scope, name, _ in given:
            if scope is not None or name not in known:
                raise ConfigurationError(f"{flag(option)}: unknown option {name!r}; {suggestion(name, known)}")
        return {name: value for _, name, value in given}
