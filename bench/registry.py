"""The table of benchmarks and the settings they take. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from bench.rows import Row

Scale = Literal["smoke", "default", "full"]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    ``rounds`` are counted after a discarded one. ``scale``: ``"smoke"`` measures tiny shapes only, to see that everything runs;
    ``"full"`` adds the combinations that take minutes a round. ``width`` is the number of candidates in a batch, by default what
    the search would choose. ``methods`` restricts what is measured to these, beside the baseline; empty means all.
    """

    device: str = "cpu"
    rounds: int = 5
    scale: Scale = "default"
    width: int | None = None
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.rounds), ("width", self.width)):
            if value is not None and value < 1:
                raise ConfigurationError(f"--{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Benchmark:
    """One row of the table: a module whose ``rows(settings)`` yields :class:`bench.rows.Row`, and where it can run."""

    module: str
    summary: str
    devices: tuple[str, ...] = ("cpu",)

    def rows(self, settings: Settings) -> Iterator[Row]:
        """Measure; rows come as soon as a configuration is done."""
        return import_module(self.module).rows(settings)


BENCHMARKS: dict[str, Benchmark] = {
    "checkpoint": Benchmark("bench.checkpoint", "the time that checkpoints take of a search"),
    "darts": Benchmark("bench.darts", "steps of a DARTS search, against the same steps as plain modules"),
    "layers": Benchmark("bench.layers", "masked layers, updates and an edge group's convolutions, against plain modules"),
    "mixed-edge": Benchmark("bench.mixed_edge", "what reads a state of a DARTS cell, fused, against one module after another"),
    "meta-gradient": Benchmark("bench.meta_gradient", "the outer gradient of an MLP, written out, against a lean loop"),
    "metanas": Benchmark("bench.metanas", "an inner step of MetaNAS for a meta-batch, against a plain module loop"),
    "training-step": Benchmark("bench.training_step", "a training step of a cell's network, against plain modules"),
    "few-shot": Benchmark("bench.few_shot", "classifiers of 1000 few-shot tasks at once, against a loop in scikit-learn"),
    "ntk": Benchmark("bench.ntk", "tangent kernels of a supernet and a single path, against one training step and plain peers"),
    "paired-round": Benchmark("bench.paired_round", "candidates scored as one batch, against two networks a candidate"),
    "proxies": Benchmark("bench.proxies", "all single-pass proxies of a network at once, against the dearest alone"),
    "regions": Benchmark("bench.regions", "linear regions of all candidates as one batch, against one candidate at a time"),
    "sample-gradient": Benchmark("bench.sample_gradient", "formulations of per-sample weight gradients, layer by layer"),
}


def find(name: str, device: str) -> Benchmark:
    """Look a benchmark up; an unknown one, or one without rows for ``device``, is a :class:`ConfigurationError`."""
    if name not in BENCHMARKS:
        raise ConfigurationError(f"benchmark: unknown {name!r}; known are {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if device not in benchmark.devices:
        raise ConfigurationError(f"--device: {name!r} measures on {', '.join(benchmark.devices)} only, not on {device}")
    return benchmark
