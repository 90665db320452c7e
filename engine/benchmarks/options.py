"""The options of the evidence command. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from engine.errors import ConfigurationError, MissingDataError
from engine.methods.options import RunOptions, suggestion
from engine.methods.registry import Command, Method
from engine.scoring.proxies.catalogue import PROXIES

KERNEL_GROUPS = ("ntk", "metantk")
SETS = {
    "cheap": tuple(name for name, proxy in PROXIES.items() if proxy.group not in KERNEL_GROUPS),
    "kernels": tuple(name for name, proxy in PROXIES.items() if proxy.group in KERNEL_GROUPS),
    "all": tuple(PROXIES),
}


@dataclass(frozen=True)
class EvidenceOptions(RunOptions):
    """How good scores of untrained networks are, against a table of trained ones."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "small": {"sample": 20, "cells": 3, "batch": 8, "tasks": 1, "resamples": 100},
    }

    data: str = "cifar10"
    """Data set whose images the scores see: a name of `engine data list`, folder:PATH or npz:PATH."""
    space: Literal["nas-bench-201"] = "nas-bench-201"
    """Search space of the table."""
    benchmark: str | None = None
    """Table of trained architectures (npz or csv); needed."""
    target: str = "cifar10"
    """Data set of the table whose test accuracies count."""
    architectures: Literal["random", "published"] = "random"
    """Which are scored: a random sample of the table, or those with published scores, compared with these."""
    sample: int = 100
    """Architectures of the random sample."""
    seeds: int = 2
    """Times each architecture is scored, on new weights and images; from two on, the report says how far these agree."""
    metrics: str = "all"
    """Scores, separated by commas; cheap, kernels and all are sets of them."""
    batch: int = 128
    """Images that a score sees. The cheap scores of one architecture then take about 5 CPU seconds, 1.2 with 32."""
    tasks: int = 3
    """Episodes, five ways with one support and one query image, that the kernels see."""
    cells: int = 15
    """Cells of the network; the benchmark's have 15."""
    channels: int = 16
    """Channels of its first stage; the benchmark's have 16."""
    size: int | None = None
    """Side of the square images in pixels; none means the set's own."""
    kaiming: bool = False
    """Draw convolutions Kaiming-normal; else by PyTorch's default, as the published scores have it."""
    architectures_at_once: int = 1
    """Architectures that go through one pass together, as mixtures of one supernet: for GPUs, slower on a CPU."""
    resamples: int = 1000
    """Bootstrap resamples behind every interval."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "seeds", "tasks", "cells", "channels", "size", "architectures_at_once")
        self._at_least(2, "batch")
        self._at_least(3, "sample")
        self._at_least(10, "resamples")
        self.chosen()
        if self.benchmark is None:
            raise ConfigurationError("--benchmark: name a table of trained architectures (npz or csv)")
        if not Path(self.benchmark).expanduser().is_file():
            raise MissingDataError(f"--benchmark: {self.benchmark} is not a file; name a table of {self.space}")

    def chosen(self) -> tuple[str, ...]:
        """The scores to take, always with parameters and FLOPs, which every score has to beat."""
        names: list[str] = ["params", "flops"]
        for word in self.metrics.split(","):
            if word not in PROXIES and word not in SETS:
                raise ConfigurationError(f"--metrics: unknown {word!r}; {suggestion(word, (*SETS, *PROXIES))}")
            names += SETS.get(word, (word,))
        return tuple(name for name in PROXIES if name in names)


EVIDENCE = Command(
    "Correlate scores of untrained networks with the accuracies of trained ones and leave a run directory.",
    {
        "correlate": Method(
            "correlate",
            EvidenceOptions,
            "engine.benchmarks.evidence:correlate",
            "rank correlations with bootstrap intervals",
            shares_work=True,
            command="evidence",
        )
    },
    "correlate",
)
