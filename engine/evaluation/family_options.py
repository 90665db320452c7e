"""What comparisons of searches of the DARTS family have in common: which searches, and with which options. No torch here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from engine.errors import ConfigurationError
from engine.evaluation.published import GENOTYPES
from engine.methods.darts_options import FamilyOptions
from engine.methods.options import CellOptions, RunOptions, suggestion
from engine.methods.registry import METHODS
from engine.methods.tetlo_options import TetloOptions
from engine.spaces.darts import searched_space
from engine.spaces.one_shot import ONE_SHOT

# A base by its name in the paper's tables: the method, and the options that make it that base.
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "darts1st": ("darts", {"order": "first"}),
    "darts2nd": ("darts", {"order": "second"}),
    "pdarts": ("pdarts", {}),
    "pcdarts": ("pcdarts", {}),
    "prdarts": ("prdarts", {}),
}
TETLO = "tetlo-"
RANDOM = "random"


@dataclass(frozen=True)
class Entry:
    """One row of the comparison, written NAME or NAME@SPACE: which search finds its cells, in which space, and the values that
    ``--vary`` gives its options, which ``text`` ends with."""

    text: str
    name: str
    space: str
    chosen: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read one; :class:`ConfigurationError` if it is malformed or unknown."""
        name, at, space = text.partition("@")
        known = list(dict.fromkeys([RANDOM, *BASES, *(TETLO + base for base in BASES), *GENOTYPES, *_family_methods()]))
        if name not in known:
            raise ConfigurationError(f"--methods: {text!r} is not NAME or NAME@SPACE; {suggestion(name, known)}")
        if at and space not in ONE_SHOT:
            searched_space(space)
        entry = cls(text, name, space if at else "darts")
        if at and (entry.method is None or name == RANDOM):
            raise ConfigurationError(f"--methods: {text!r}: {name} is a cell of the space darts; leave out @{space}")
        return entry

    @property
    def base(self) -> str:
        """The base, without TETLO."""
        return self.name.removeprefix(TETLO)

    def in_space(self, space: str) -> Entry:
        """The same search in another space."""
        values = "".join(f":{name}={value}" for name, value in self.chosen)
        return replace(self, text=f"{self.name}@{space}{values}", space=space)

    def varied(self, options: Sequence[tuple[str, Sequence[str]]]) -> list[Entry]:
        """This entry with each combination of values of those options that it has; just itself where it has none."""
        own = [[(name, value) for value in values] for name, values in options if self.method and name in _names(self)]
        return [
            replace(self, text=self.text + "".join(f":{name}={value}" for name, value in chosen), chosen=chosen)
            for chosen in product(*own)
        ]

    def preset(self, pattern: str) -> str:
        """A preset's name with the base in the place of ``{base}``: darts, pdarts, pcdarts or prdarts."""
        return pattern.replace("{base}", self.base if self.base in ("pdarts", "pcdarts", "prdarts") else "darts")

    @property
    def method(self) -> str | None:
        """The method of engine search; None for a published cell, unless a search has its name."""
        if self.name.startswith(TETLO):
            return "tetlo"
        if self.base in BASES:
            return BASES[self.base][0]
        return None if self.name in GENOTYPES else self.name


def _family_methods() -> list[str]:
    return [name for name, method in METHODS.items() if issubclass(method.options, FamilyOptions) and name != "tetlo"]


def assignments(option: str, text: str) -> list[tuple[str | None, str, str]]:
    """``epochs=3,pdarts.epochs=1`` as (scope, name, value); ``epochs=3;pdarts.kept=5,3`` where a value has commas."""
    found = []
    for word in filter(None, (word.strip() for word in text.split(";" if ";" in text else ","))):
        match = re.fullmatch(r"(?:([A-Za-z0-9-]+)\.)?([a-z_-]+)=(.+)", word, re.ASCII)
        if not match:
            raise ConfigurationError(f"{option}: {word!r} is not OPTION=VALUE or NAME.OPTION=VALUE")
        found.append((match[1], match[2].replace("-", "_"), match[3]))
    return found


@dataclass(frozen=True)
class FamilyCompareOptions(RunOptions):
    """Searches of the DARTS family under one protocol."""

    methods: str = "darts1st,random"
    """What is compared, the first words of the command: darts1st, darts2nd, pdarts, pcdarts, prdarts, each also as tetlo-..., any
    other method of the family, random, or a published cell (darts-v2, pcdarts-cifar); NAME@SPACE searches another space."""
    seeds: int = 2
    """Runs of each method, with --seed and the following ones; 10 are published."""
    search_preset: str = "default"
    """Preset of the searches; tetlo-NAME takes that of NAME, and its own interval, lambda, gamma and pairs."""
    search: str = ""
    """What searches do otherwise, such as epochs=6,pdarts.epochs=2: an option for all that have it, or for one NAME; with
    semicolons between them where a value has commas."""
    vary: str = ""
    """Options that take several values in turn, such as lam=0.1,0.5;gamma=1,2: a method that has them is run with every
    combination."""
    size: int | None = None
    """Side of the images; none means what the presets say."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "seeds", "size")
        texts = [entry.text for entry in self.entries]
        if len(set(texts)) < len(texts):
            raise ConfigurationError(f"--methods: {self.methods!r} must name methods, each once")
        for entry in self.entries:
            self.search_options(entry)
        for name, _ in self.varied_options:
            if not any(name in dict(entry.chosen) for entry in self.entries):
                raise ConfigurationError(f"--vary: {name!r} is no option of any method of this comparison")
        for scope, name, _ in assignments("--search", self.search):
            meant = self.entries if scope is None else [Entry.parse(scope)]
            if not any(entry.method and name in _names(entry) for entry in meant):
                raise ConfigurationError(f"--search: {name!r} is no option of {scope or 'any method of this comparison'}")

    @property
    def entries(self) -> list[Entry]:
        """``methods`` parsed, each with every combination of what varies."""
        return [entry for text in self.methods.split(",") for entry in Entry.parse(text.strip()).varied(self.varied_options)]

    @property
    def varied_options(self) -> list[tuple[str, list[str]]]:
        """``vary`` parsed: options and their values."""
        found = []
        for word in filter(None, (word.strip() for word in self.vary.split(";"))):
            name, equals, values = word.partition("=")
            listed = [value.strip() for value in values.split(",")]
            if not equals or not all(listed) or len(set(listed)) < len(listed) or not re.fullmatch(r"[a-z_-]+", name, re.ASCII):
                raise ConfigurationError(f"--vary: {word!r} is not OPTION=VALUE,VALUE,... with each value once")
            found.append((name.replace("-", "_"), listed))
        return found

    def search_options(self, entry: Entry) -> dict[str, Any]:
        """What the search of an entry is given, values or their texts by the names of options."""
        if entry.method is None:
            return {}
        found = {**({} if entry.name == RANDOM else self._base_options(entry)), "space": entry.space}
        for scope, name, value in assignments("--search", self.search):
            if scope in (None, entry.name, entry.base) and name in _names(entry):
                found[name] = value
        found |= dict(entry.chosen)
        return found if self.size is None else {**found, "size": self.size}

    def _base_options(self, entry: Entry) -> dict[str, Any]:
        """The preset of a base; TETLO's options are those of its base's preset, but for its own."""
        method, extra = BASES.get(entry.base, (entry.base, {}))
        base = METHODS[method].options
        values = {**base.preset_values(self.search_preset), **extra}
        if entry.method != "tetlo":
            return {"preset": self.search_preset, **extra}
        usual = {field.name: field.default for field in fields(base)}
        return {"base": entry.base} | {k: v for k, v in {**usual, **values}.items() if k in _names(entry) - {"interval"}}


def own_options(options: type[RunOptions]) -> set[str]:
    """The options beyond those that all commands take."""
    return {field.name for field in fields(options)} - {field.name for field in fields(RunOptions)}


def _names(entry: Entry) -> set[str]:
    """The options that an entry's search takes, but for those that its name says; TETLO those that its base has, and its own."""
    own = own_options(CellOptions if entry.name == RANDOM else METHODS[entry.method or ""].options)
    own -= {"space", "base", *BASES.get(entry.base, ("", {}))[1]}
    if entry.method != "tetlo":
        return own
    return own & (own_options(METHODS[BASES[entry.base][0]].options) | {*TetloOptions.__annotations__} | {"interval"})
