"""``python -m bench.studies.te_nas``: true accuracies of TE-NAS in NAS-Bench-201, beside random search and the published mean.

Every seed runs two searches (:mod:`engine.search`, resumable: finished searches in ``--out`` are read), one without "none", as
published (its code masks it before the first round), and one in which "none" competes (``--prune-none``); and beside each a
random search of as many evaluations among the same cells: distinct cells drawn at random, scored by the same two scores, of which
the one with the best sum of ranks is taken.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch

from engine.benchmarks.statistics import ranks
from engine.benchmarks.table import Table, load_table
from engine.cli import run_command
from engine.data.episodes import permutation
from engine.methods.metantk_nas import with_width
from engine.methods.options import TENASOptions
from engine.methods.scorer import Scorer, load_images
from engine.runs.streams import stream
from engine.search import main as search
from engine.spaces.nas_bench_201 import Codes, every_cell, parse, to_string
from engine.spaces.space import NAS_BENCH_201

# Chen et al., TE-NAS (ICLR 2021): mean test accuracy on CIFAR-10, percent.
PUBLISHED = 93.9
TARGET = "cifar10"
_NONE = NAS_BENCH_201.operations.index("none")


class Found(NamedTuple):
    """What one search and its random search found, their true accuracies (None: the table does not say), the numbers of
    evaluations (of single networks) behind each, and the CPU seconds of the first.
    """

    architecture: str
    searched: float | None
    drawn_architecture: str
    drawn: float | None
    evaluations: int
    drawn_evaluations: int
    cpu_seconds: float


VARIANTS = {'without "none"': False, '"none" competes': True}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and print its table."""
    arguments = _parser().parse_args(argv)
    table = load_table(arguments.benchmark)
    seeds = range(arguments.seeds)
    variants = {name: none for name, none in VARIANTS.items() if not (none and arguments.without_none)}
    found = {name: [_found(arguments, table, seed, none) for seed in seeds] for name, none in variants.items()}
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as file:
            for name, rows in found.items():
                for seed, row in zip(seeds, rows, strict=True):
                    file.write(json.dumps({"search": name, "seed": seed, **row._asdict()}) + "\n")
    print("test accuracy on CIFAR-10, percent")
    print(f"{'search':<16} seed  TE-NAS   random (evaluations)")
    for name, rows in found.items():
        for seed, row in zip(seeds, rows, strict=True):
            counts = f"({row.evaluations} and {row.drawn_evaluations})"
            print(f"{name:<16} {seed:>4}  {_percent(row.searched)}  {_percent(row.drawn)}  {counts}")
        print(f"{name:<16} mean  {_spread([r.searched for r in rows])}; random {_spread([r.drawn for r in rows])}")
    column, without = table.accuracy[:, table.column(TARGET)], (table.codes != _NONE).all(1)
    print(f"published mean {PUBLISHED:.2f}; best of the table {column.max():.2f}")
    print(
        f"mean of the table {column.mean():.2f} ({len(table)} cells), without none {column[without].mean():.2f} ({without.sum()})"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.te_nas", description=__doc__)
    parser.add_argument("--benchmark", type=Path, required=True, help="table of NAS-Bench-201 (npz or csv)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the searches")
    parser.add_argument("--data", default="cifar10", help="images that the scores see (default: %(default)s)")
    parser.add_argument("--data-root", default=None, help="folder that holds the data sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--without-none", action="store_true", help='leave out the searches in which "none" competes')
    parser.add_argument("--json", type=Path, default=None, help="append a row for each search to this file")
    parser.add_argument("--cells", type=int, default=3, help="cells of the scored networks (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=30, help="images behind a tangent kernel (default: %(default)s)")
    parser.add_argument("--region-images", type=int, default=1000, help="images of each of three batches (default: %(default)s)")
    return parser


def _found(arguments: argparse.Namespace, table: Table, seed: int, none: bool) -> Found:
    options = TENASOptions(
        space=NAS_BENCH_201.name,
        data=arguments.data,
        data_root=arguments.data_root,
        seed=seed,
        cells=arguments.cells,
        batch=arguments.batch,
        region_images=arguments.region_images,
        region_batches=3,
        prune_none=none,
        device="cpu",
    )
    result = _searched(options, arguments.out / f"te-nas-{'none-' if none else ''}{seed}")
    evaluations = int(result["evaluations"]) + int(result["supernet_evaluations"])
    count = evaluations // options.repeats
    cell = _drawn(options, count, table)
    name = result["architecture"]
    searched, drawn = (_accuracy(table, each) for each in (parse(name), cell))
    return Found(name, searched, to_string(cell), drawn, evaluations, count * options.repeats, result["cpu_seconds"])


def _searched(options: TENASOptions, out: Path) -> dict[str, Any]:
    names = ("space", "data", "data_root", "seed", "cells", "batch", "region_images", "region_batches", "device")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    flags = ["--prune-none"] * options.prune_none + ["--resume"] * (out / "config.toml").is_file()
    search(["te-nas", *[w.replace("None", "none") for w in words], "--out", str(out), "--quiet", *flags])
    return json.loads((out / "result.json").read_text())


def _drawn(options: TENASOptions, count: int, table: Table) -> Codes:
    """The best of ``count`` random cells by mean ranks of condition number and linear regions over the repeats.

    Drawn from all cells that the search could end with and the table can answer for, so that a table of half the space does not
    hide the outcome.
    """
    cells = [cell for cell in every_cell() if options.prune_none or _NONE not in cell]
    known = [cell for cell in cells if table.lookup(cell).found != "unknown"]
    chosen = [known[place] for place in permutation(len(known), stream(options.seed, "random-search"))[:count].tolist()]
    alive = torch.nn.functional.one_hot(torch.tensor(chosen), len(NAS_BENCH_201.operations)).bool().unsqueeze(1)
    data = load_images(options)
    scorer = Scorer(with_width(options, NAS_BENCH_201, data.images.shape[-1]), NAS_BENCH_201, data)
    total = np.zeros(count)
    for repeat in range(options.repeats):
        draws = ("random-search", repeat)
        found = [s for part in alive.split(scorer.width) for s in scorer.scores(part, draws, draws, draws, draws)]
        total += ranks([scores["condition"] for scores in found], "smallest")
        total += ranks([scores["regions"] for scores in found], "largest")
    return chosen[int(total.argmax())]


def _accuracy(table: Table, cell: Codes) -> float | None:
    return table.lookup(cell).accuracy.get(TARGET)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:7.2f}"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return "too few known"
    return f"{mean(known):.2f} +- {stdev(known):.2f} ({len(known)} of {len(values)} known)"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
