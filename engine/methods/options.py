"""The options of the search methods: their names, types, defaults, presets and limits. No torch here.

The docstring under a field is its help on the command line. Field types are ``str``, ``int``, ``float``, ``bool``, ``Literal``
of strings, or one of these with ``| None``; limits belong into ``validate``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from engine.errors import ConfigurationError

_PAPER = {"data": "miniimagenet", "size": 32, "channels": 48, "tasks": 3, "batch": 30, "region_images": 1000, "region_batches": 3}

# The settings of the reference note, sections 3 to 6; a method takes the keys it has. "default" is the defaults themselves.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"size": 28, "tasks": 3, "batch": 30, "region_batches": 3},
    "paper-5": {**_PAPER, "cells": 5, "kernel": "maml", "time": float("inf"), "reg": 1e-3},
    "paper-8": {**_PAPER, "cells": 8, "kernel": "anil", "time": 1.0, "reg": 1e-5},
}

# Options that say how this one command behaves, not what is computed. They are not written to config.toml.
INVOCATION = frozenset({"config", "out", "resume", "quiet", "dry_run", "then_train", "nvtx", "profile_steps"})

# Beyond these a slip of the keyboard is likelier than a purpose, and a machine would be busy with it for long.
MAX_THREADS = 1024
MAX_CELLS = 1000
MAX_CHANNELS = 65536

# Images of a set that is bigger than the published search resolution are scaled down to it unless a size is given.
NATIVE_LIMIT = 32


@dataclass(frozen=True)
class RunOptions:
    """What every command that leaves a run directory takes. ``reads_images``: ``data`` names a data set."""

    reads_images: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}

    data: str = "digits"
    """Data set: a name of `engine data list`, folder:PATH or npz:PATH."""
    data_root: str | None = None
    """Folder that holds the data sets; none means $ENGINE_DATA, then ./data."""
    preset: str = "default"
    """Named settings that the configuration file and the options override."""
    config: str | None = None
    """TOML file of options; a run's config.toml is one."""
    out: str | None = None
    """Run directory; none means a free runs/METHOD-DATA-SEED."""
    seed: int = 0
    """Seed of every random draw."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a usable GPU, else the CPU, and is written down as what it took."""
    threads: int = 1
    """CPU threads of this process."""
    resume: bool = False
    """Go on with the run in --out."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinity does: stop the run, or skip what led to it (undo a training step, rank a candidate last)."""
    quiet: bool = False
    """Show no progress, only the closing line."""
    dry_run: bool = False
    """Print the plan with its cost and stop."""
    nvtx: bool = False
    """Name the phases of every step for Nsight Systems and Nsight Compute."""
    profile_steps: int = 0
    """Steps to profile after two of warm-up: on a GPU a window for nsys and ncu, on the CPU trace.json.gz in the run."""

    @classmethod
    def preset_values(cls, name: str) -> dict[str, Any]:
        """The options that the preset changes, as far as this method has them."""
        if name not in cls.presets:
            raise ConfigurationError(f"--preset: unknown {name!r}; {suggestion(name, cls.presets)}")
        names = {field.name for field in fields(cls)}
        return {key: value for key, value in cls.presets[name].items() if key in names}

    def validate(self) -> None:
        """Raise a :class:`ConfigurationError` that names the first option whose value cannot be used."""
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"--seed must be in 0 .. 2^63-1, got {self.seed}")
        for name in ("data_root", "config", "out"):
            if getattr(self, name) == "":
                raise ConfigurationError(f"{flag(name)} is empty; name a path or leave the option out")
        self._at_least(1, "threads")
        self._at_most(MAX_THREADS, "threads")
        self._at_least(0, "profile_steps")

    def _at_least(self, least: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigurationError(f"{flag(name)} must be at least {least}, got {value}")

    def _at_most(self, most: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not value <= most:
                raise ConfigurationError(f"{flag(name)} must be at most {most}, got {value}")


@dataclass(frozen=True)
class SearchOptions(RunOptions):
    """What every search takes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    faithful: bool = False
    """Reproduce the published code, quirks included, instead of the sound default."""


@dataclass(frozen=True)
class CellOptions(SearchOptions):
    """What a search in a space of cells takes. Alone: the options of the random search."""

    then_train: str | None = None
    """Preset of engine train by which the found cell is then trained and tested, in the directory OUT-train."""
    space: str = "few-shot-cell"
    """Search space: a registered name, or package.module:NAME of your own."""
    cells: int = 5
    """Cells of the network; 5 and 8 are published."""
    channels: int = 16
    """Channels of the first cell, a multiple of 16 (48 is published); each reduction cell doubles them."""
    size: int | None = None
    """Side of the square images in pixels; none means the set's own, at most 32."""
    final_edges: int | None = None
    """Edges that each node keeps at the end; none means as many as the space says."""
    benchmark: str | None = None
    """Table of trained architectures of nas-bench-201 (npz or csv) that tells the true accuracy of what was found."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "cells", "channels", "size", "final_edges")
        self._at_most(MAX_CELLS, "cells")
        self._at_most(MAX_CHANNELS, "channels")
        if self.channels % min(16, self.channels):
            raise ConfigurationError(f"--channels: GroupNorm(16) cannot divide {self.channels} channels; use a multiple of 16")

    def resolution(self, native: int) -> int:
        """Side of the images that the search sees, for a set whose own images have the side ``native``."""
        return min(native, NATIVE_LIMIT) if self.size is None else self.size


@dataclass(frozen=True)
class PruningOptions(CellOptions):
    """What a search by pruning a supernet takes (Algorithm 1 of the MetaNTK-NAS paper)."""

    repeats: int = 3
    """Times each candidate is scored, on new weights and data."""
    precision: int = 3
    """Decimals that the relative change of a score is rounded to before candidates are ranked."""
    width: int | None = None
    """Candidates per forward; none computes it from --memory. Written down and reused."""
    memory: str = "500MB"
    """Memory for one forward and backward, such as 500MB or 4GB; decides the width. More seldom helps a CPU's caches."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of networks and gradients; kernels are always accumulated in float64."""
    screen: bool = False
    """Rank removals by the first-order change of the condition number, from one second-order pass a repeat, and score exactly
    only those nearest to a decision: about 18 times fewer passes in the few-shot space. Region counts stay exact."""
    rescore: int = 2
    """With --screen: removals a round that are scored exactly after all, two of each edge, the nearest to a decision."""
    smooth_regions: bool = False
    """With --screen: estimate the change of the region counts too, by the derivative of a smooth surrogate, and count only for
    the removals that are scored exactly."""
    prune_none: bool = False
    """Let "none" compete in a space that knows it (nas-bench-201). Published searches leave it out: to remove it only rescales an
    edge, which a normalised network hardly feels, so the scores keep it."""
    nonfinite: Literal["stop", "skip"] = "skip"
    """What a NaN or infinite score does: stop the search, or rank its candidate last."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "repeats", "precision", "width")
        self._at_least(0, "rescore")
        parse_bytes(self.memory)
        if self.screen and self.faithful:
            raise ConfigurationError("--screen: the published code scores every removal exactly; leave out --faithful")
        if self.smooth_regions and not (self.screen and isinstance(self, RegionOptions)):
            raise ConfigurationError("--smooth-regions: is for --screen in a search that counts linear regions")
        if self.screen and not isinstance(self, EpisodeOptions | BatchOptions):
            raise ConfigurationError("--screen: this method has no kernel; region counts are cheap, and always exact")

    @property
    def memory_bytes(self) -> int:
        """``memory`` in bytes."""
        return parse_bytes(self.memory)


@dataclass(frozen=True)
class EpisodeOptions(PruningOptions):
    """What scoring by the MetaNTK takes."""

    kernel: Literal["maml", "anil"] = "maml"
    """Inner loop that the kernel models: all layers (maml) or the head only (anil)."""
    time: float = float("inf")
    """Training time of the inner loop, the product of its learning rate and steps (lambda * tau); inf is allowed."""
    reg: float = 1e-3
    """Ridge added to the support kernel before it is inverted."""
    ways: int = 5
    """Classes of an episode."""
    shots: int = 1
    """Support images of a class."""
    queries: int = 1
    """Query images of a class."""
    tasks: int = 1
    """Episodes a repeat; 3 is published."""

    def validate(self) -> None:
        super().validate()
        self._at_least(2, "ways")
        self._at_least(1, "shots", "queries", "tasks")
        self._at_least(0, "time", "reg")
        if self.reg == float("inf"):
            raise ConfigurationError("--reg must be finite, got inf")


@dataclass(frozen=True)
class BatchOptions(PruningOptions):
    """What scoring by the NTK of a plain batch takes."""

    batch: int = 10
    """Images of the batch; 30 is published."""

    def validate(self) -> None:
        super().validate()
        self._at_least(2, "batch")


@dataclass(frozen=True)
class RegionOptions(PruningOptions):
    """What scoring by the number of linear regions takes. Alone: the options of linear-regions."""

    region_images: int = 200
    """Images of each batch whose activation patterns are counted; 1000 is published."""
    region_batches: int = 1
    """Batches whose patterns are counted together; 3 is published."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "region_images", "region_batches")


@dataclass(frozen=True)
class MetaNTKNASOptions(EpisodeOptions, RegionOptions):
    """MetaNTK-NAS: MetaNTK and linear regions."""


@dataclass(frozen=True)
class TENASOptions(BatchOptions, RegionOptions):
    """TE-NAS in the few-shot space: NTK and linear regions."""


def flag(name: str) -> str:
    """The command line's spelling of an option."""
    return "--" + name.replace("_", "-")


def suggestion(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """What to say about an unknown name: the closest known one, else ``otherwise`` or all the known ones."""
    known = list(known)
    close = get_close_matches(name.lower(), known, n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise or f"known are {', '.join(known)}"


def parse_bytes(text: str) -> int:
    """Bytes in a size such as ``500MB``, ``4GB`` (powers of 1000) or ``1.5GiB`` (powers of 1024)."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT]?)(i?)B", text, re.IGNORECASE | re.ASCII)
    count = 0
    if match:
        number, prefix, binary = match.groups()
        count = int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
    if not count:
        raise ConfigurationError(f"--memory: {text!r} is not a size such as 500MB or 4GB")
    return count
