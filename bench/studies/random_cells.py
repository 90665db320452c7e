"""``python -m bench.studies.random_cells``: every score of thousands of random cells, degenerate ones among them; does any fail?

The cells are divided equally among the spaces. Those of NAS-Bench-201 are drawn uniformly, each operation of each edge, "none"
among them; those of the other spaces with each edge left out at random. Cells of NAS-Bench-201 that compute the same function
(:func:`engine.spaces.nas_bench_201.canonical`) are scored once. Every proxy and every kernel of the catalogue is taken of a tiny
network. Printed are the statuses by score; a score that raises, or has no place in a ranking, is named with its cell, and the
command ends with 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from engine.benchmarks.options import SETS
from engine.cli import run_command
from engine.runs.streams import stream
from engine.scoring.proxies.catalogue import PROXIES
from engine.scoring.proxies.scores import LabelledBatch, scores
from engine.scoring.result import STATUSES, Score
from engine.scoring.score import EpisodeBatch
from engine.spaces.genotype import Genotype
from engine.spaces.nas_bench_201 import canonical, to_genotype, to_string
from engine.spaces.network import build_network
from engine.spaces.space import DARTS, FEW_SHOT, METANAS, NAS_BENCH_201, Space
from engine.spaces.supernet import initialise

SPACES = (NAS_BENCH_201, FEW_SHOT, METANAS, DARTS)
LEFT_OUT = 0.5
"""Chance that an edge has no operation, where a space's table does not let "none" compete."""


@dataclass
class Tally:
    """What became of the cells of one space: ``statuses`` counts cells by score and status."""

    space: str
    cells: int
    networks: int = 0
    cpu_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    statuses: dict[str, dict[str, int]] = field(default_factory=lambda: {name: dict.fromkeys(STATUSES, 0) for name in PROXIES})


def main(argv: Sequence[str] | None = None) -> int:
    """Score the cells, print the table, and return 1 if a score failed."""
    arguments = _parser().parse_args(argv)
    tallies = [tallied(space, arguments.count // len(SPACES), arguments.seed) for space in SPACES]
    for tally in tallies:
        print(f"{tally.cells} cells of {tally.space}, {tally.networks} different networks, {tally.cpu_seconds:.0f} CPU s")
    print(f"{'score':<36}" + "".join(f"{status:>11}" for status in STATUSES))
    for name in PROXIES:
        print(f"{name:<36}" + "".join(f"{sum(t.statuses[name][status] for t in tallies):>11}" for status in STATUSES))
    failures = [failure for tally in tallies for failure in tally.failures]
    print(*failures, f"{len(failures)} failures", sep="\n")
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(tally)) + "\n" for tally in tallies)
    return int(bool(failures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.random_cells", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="cells of all spaces together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, help="append a row for each space to this file")
    return parser


def tallied(space: Space, count: int, seed: int) -> Tally:
    """Score ``count`` random cells of a space."""
    tally, clock = Tally(space.name, count), time.process_time()
    for label, genotype, times in cells(space, count, seed):
        tally.networks += 1
        tally.failures += [f"{label}: {problem}" for problem in examined(genotype, times, tally.statuses)]
        if tally.networks % 500 == 0:
            print(f"{tally.networks} networks of {space.name}", file=sys.stderr)
    tally.cpu_seconds = round(time.process_time() - clock, 1)
    return tally


def cells(space: Space, count: int, seed: int) -> Iterator[tuple[str, Genotype, int]]:
    """A label, a genotype and how many of the ``count`` cells compute what it does."""
    if space is NAS_BENCH_201:
        drawn = torch.randint(5, (count, 6), generator=stream(seed, "random-cells")).tolist()
        functions = {canonical(codes): codes for codes in drawn}
        times = Counter(canonical(codes) for codes in drawn)
        for key, codes in functions.items():
            yield to_string(codes), to_genotype(codes), times[key]
        return
    alive = torch.tensor(space.alive())
    for number in range(count):
        generator = stream(seed, "random-cell", space.name, number)
        strength = torch.rand(alive.shape, generator=generator).masked_fill(~alive, -1.0)
        kept = torch.rand(alive.shape[:2], generator=generator) > LEFT_OUT
        chosen = torch.zeros_like(alive).scatter_(2, strength.argmax(-1, keepdim=True), True) & kept.unsqueeze(-1)
        yield f"{space.name} {number}", space.genotype(chosen.tolist()), 1


def examined(genotype: Genotype, times: int, found: dict[str, dict[str, int]]) -> list[str]:
    """Count the statuses of one network's scores, and say what went wrong."""
    problems: list[str] = []
    known: dict[str, Score] = {}
    for norm, names in (("batchnorm", SETS["cheap"]), ("groupnorm16", SETS["kernels"])):
        result = _scored(genotype, norm, names)
        if isinstance(result, str):
            problems.append(result)
        else:
            known |= result
    for name, score in known.items():
        found[name][score.status] += times
        if not score.rank_key(PROXIES[name].best) < (len(STATUSES), math.inf):
            problems.append(f"{name} has no place in a ranking: {score}")
    return problems


def _scored(genotype: Genotype, norm: str, names: tuple[str, ...]) -> dict[str, Score] | str:
    generator = stream(0, "random-cells-network")
    network = build_network(genotype, channels=2, classes=2, cells=2, norm=norm, tail=True)
    initialise(network, generator)
    x = torch.randn(4, 3, 4, 4, generator=generator)
    data = LabelledBatch(x, torch.tensor([0, 1, 0, 1])) if names == SETS["cheap"] else EpisodeBatch(x[:2], x[2:], 1)
    try:
        return scores(network, data, names)
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
