"""The options of the compare command. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.data.names import check_name
from engine.errors import ConfigurationError
from engine.evaluation.options import PRESETS as TRAIN_PRESETS
from engine.methods.options import RunOptions, suggestion

FEW_SHOT_RECIPES = ("rfs", "maml", "anil", "reptile", "meta-ticket")

_CELLS = "metanas-in-v2@5,metanas-in-v2@8,metantk-nas@5,metantk-nas@8"

COMPARE_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # Paper 001, Table 1: what was trained there, and MAML and ANIL on their own network.
    "table1": {
        "methods": f"conv4+maml,conv4+anil,resnet12-rfs,{_CELLS}",
        "data": "miniimagenet",
        "search_preset": "paper-{cells}",
        "train_preset": "paper-mini-{cells}",
        "transfer_to": "tieredimagenet",
        "transfer_preset": "paper-tiered-{cells}",
    },
    "table1-small": {"methods": f"res5+maml,res5+anil,res5,{_CELLS}", "train_preset": "small-digits"},
}


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: what is trained, written NAME, NAME@CELLS or either +RECIPE."""

    text: str
    name: str
    cells: int | None
    recipe: str

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read one; :class:`ConfigurationError` if it is malformed or its recipe is none for few-shot learning."""
        match = re.fullmatch(r"([^@+]+)(?:@([1-9]\d?))?(?:\+([a-z-]+))?", text, re.ASCII)
        if not match:
            raise ConfigurationError(f"--methods: {text!r} is not NAME, NAME@CELLS or either with +RECIPE")
        recipe = match[3] or "rfs"
        if recipe not in FEW_SHOT_RECIPES:
            raise ConfigurationError(f"--methods: {text!r}: unknown recipe {recipe!r}; {suggestion(recipe, FEW_SHOT_RECIPES)}")
        return cls(text, match[1], int(match[2]) if match[2] else None, recipe)

    def preset(self, pattern: str) -> str:
        """A preset's name with this entry's cells in the place of ``{cells}``; 5 where it names none."""
        return pattern.replace("{cells}", str(self.cells or 5))


@dataclass(frozen=True)
class CompareOptions(RunOptions):
    """Several methods under one protocol: search, train and test with each seed."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = COMPARE_PRESETS

    methods: str = "metantk-nas,random"
    """Search methods, published genotypes (darts-v2) and reference networks (conv4), the first words of the command; NAME@8 has
    8 cells, NAME+maml is meta-trained (maml, anil, reptile, meta-ticket)."""
    seeds: int = 3
    """Runs of each method, with --seed and the following ones."""
    random_cells: int = 1
    """Cells that the method random draws and trains for each seed."""
    search_preset: str = "default"
    """Preset of the searches; {cells} stands for a method's number of cells."""
    search_size: int | None = None
    """Side of the images that the searches see; none means what the preset says."""
    train_preset: str = "default"
    """Preset of the trainings; {cells} stands for a method's number of cells."""
    transfer_to: str | None = None
    """Another data set on which every cell and network is trained and tested too."""
    transfer_preset: str | None = None
    """Preset of those trainings; none means --train-preset."""
    budget: str | None = None
    """Length of every training (600s of CPU time, 100epochs); none means what the preset says."""
    tasks: int | None = None
    """Test tasks of each kind; none means what the preset says."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "seeds", "search_size", "tasks", "random_cells")
        texts = [entry.text for entry in self.entries]
        if len(set(texts)) < len(texts):
            raise ConfigurationError(f"--methods: {self.methods!r} must name methods, each once")
        for entry in self.entries:
            self._check_preset("--train-preset", entry.preset(self.train_preset))
            if self.transfer_preset is not None:
                self._check_preset("--transfer-preset", entry.preset(self.transfer_preset))
        if self.transfer_to is not None:
            check_name(self.transfer_to)

    def _check_preset(self, option: str, name: str) -> None:
        if name not in TRAIN_PRESETS:
            raise ConfigurationError(f"{option}: unknown {name!r}; {suggestion(name, TRAIN_PRESETS)}")

    @property
    def entries(self) -> list[Entry]:
        """``methods`` parsed; :class:`ConfigurationError` if one is malformed."""
        return [Entry.parse(text.strip()) for text in self.methods.split(",")]
