"""``python -m bench.studies.variance``: what common random numbers are worth, measured: how noisy is the score of a removal?

The supernet and the removals of some edges are scored on common draws (weights, heads, episodes, region patches), many times
over. A removal's delta is the change of log score that it makes. Paired, supernet and removal share a draw; unpaired, each has
draws of its own (here: the same draws, shuffled for each column). Of every number of repeats are printed

* the standard error of a delta, the median over removals, beside the spread of the true deltas (what there is to find: the
  standard deviation over removals of their means, less the part that noise explains);
* the share of decisions, which removal of an edge hurts the score least, that a second set of draws would change. Decisions by
  the condition number, by linear regions, and by the sum of their ranks; a coin of k sides changes 1 - 1/k.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from engine.cli import run_command
from engine.methods.metantk_nas import searched_space, with_width
from engine.methods.options import MetaNTKNASOptions
from engine.methods.scorer import Scorer, load_images
from engine.runs.streams import address_seed
from engine.spaces.mixture import full, without

REPEATS = (1, 3, 10)
SPLITS = 200
METRICS = {"condition": 1.0, "regions": -1.0}  # the sign that makes a small delta the one to prune


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    data: str
    operations: int
    metric: str
    pairing: str
    repeats: int
    standard_error: float | None
    true_spread: float | None
    changed: float
    by_chance: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and print its table."""
    arguments = _parser().parse_args(argv)
    values, edges = measured(arguments)
    rows = list(table(arguments, values, edges))
    print("metric     pairing   repeats  standard error  true spread  decisions changed (by chance)")
    for row in rows:
        error, spread = (f"{x:.4f}" if x is not None else "–" for x in (row.standard_error, row.true_spread))
        line = f"{row.metric:<10} {row.pairing:<9} {row.repeats:>7}  {error:>14}  {spread:>11}"
        print(f"{line}  {row.changed:.3f} ({row.by_chance:.3f})")
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.variance", description=__doc__)
    parser.add_argument("--data", default="digits", help="images of the episodes (default: %(default)s)")
    parser.add_argument("--data-root", default=None, help="folder that holds the data sets")
    parser.add_argument("--size", type=int, default=None, help="side of the images; none means the set's own, at most 32")
    parser.add_argument("--json", type=Path, default=None, help="append the rows to this file")
    for name, default, text in (
        ("draws", 20, "draws of everything, at least 2"),
        ("edges", 4, "edges whose operations are removed"),
        ("operations", 7, "operations left on every edge"),
        ("cells", 5, "cells of the network"),
        ("channels", 16, "channels of its first cell"),
        ("tasks", 1, "episodes a kernel sees"),
        ("region-images", 200, "patches whose regions are counted"),
        ("seed", 0, "seed of every draw"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: %(default)s)")
    return parser


def measured(arguments: argparse.Namespace) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """By metric the log scores (draws, 1 + removals) of the supernet and each removal, and each removal's edge (removals,)."""
    names = ("data", "data_root", "size", "cells", "channels", "tasks", "region_images", "seed")
    options = MetaNTKNASOptions(**{name: getattr(arguments, name) for name in names}, device="cpu")
    space, data = searched_space(options), load_images(options)
    scorer = Scorer(with_width(options, space, data.images.shape[-1]), space, data)
    alive = full(space)
    generator = np.random.default_rng(address_seed(arguments.seed, "variance-study"))
    for edge in (edge for kind in alive for edge in kind):
        on = edge.nonzero().flatten().numpy()
        edge[torch.from_numpy(generator.permutation(on)[arguments.operations :])] = False
    places = [(kind, edge) for kind in range(alive.shape[0]) for edge in range(alive.shape[1])]
    chosen = [places[i] for i in generator.permutation(len(places))[: arguments.edges]]
    removals = [(*place, o) for place in chosen for o in alive[place].nonzero().flatten().tolist()]
    rows = torch.cat([alive.unsqueeze(0), without(alive, removals)])
    values: dict[str, list[list[float]]] = {name: [] for name in METRICS}
    for draw in range(arguments.draws):
        address = ("variance", draw)
        parts = rows.split(scorer.width)
        found = [scores for part in parts for scores in scorer.scores(part, address, address, address, address)]
        for name, column in values.items():
            column.append([math.log(scores[name].value) if scores[name].ok else math.nan for scores in found])
        print(f"draw {draw + 1} of {arguments.draws}", file=sys.stderr)
    edges = np.array([chosen.index((kind, edge)) for kind, edge, _ in removals])
    return {name: np.array(column) for name, column in values.items()}, edges


def table(arguments: argparse.Namespace, values: dict[str, np.ndarray], edges: np.ndarray) -> Iterator[Row]:
    """The rows, for every metric, pairing and number of repeats that half of the draws allow."""
    generator = np.random.default_rng(address_seed(arguments.seed, "variance-splits"))
    repeats = [r for r in REPEATS if 2 * r <= arguments.draws]
    shuffled = {name: np.stack([generator.permutation(column) for column in v.T], 1) for name, v in values.items()}
    chance = 1 - 1 / arguments.operations
    for pairing, scores in (("paired", values), ("unpaired", shuffled)):
        deltas = {name: METRICS[name] * (v[:, 1:] - v[:, :1]) for name, v in scores.items()}
        for count in repeats:
            for name, delta in deltas.items():
                error, spread = spreads(delta, count)
                share = changed([delta], edges, count, generator)
                yield Row(arguments.data, arguments.operations, name, pairing, count, error, spread, share, chance)
            share = changed(list(deltas.values()), edges, count, generator)
            yield Row(arguments.data, arguments.operations, "rank sum", pairing, count, None, None, share, chance)


def spreads(delta: np.ndarray, repeats: int) -> tuple[float, float]:
    """Of deltas (draws, removals): the median standard error of a mean over ``repeats``, and the spread of the true means."""
    variance = np.nanvar(delta, 0, ddof=1)
    between = np.nanvar(np.nanmean(delta, 0), ddof=1) - variance.mean() / len(delta)
    return float(np.median(np.sqrt(variance / repeats))), float(np.sqrt(max(between, 0.0)))


def changed(deltas: list[np.ndarray], edges: np.ndarray, repeats: int, generator: np.random.Generator) -> float:
    """Share of the edges whose decision differs between two disjoint sets of ``repeats`` draws, over :data:`SPLITS` splits."""

    def decide(rows: np.ndarray) -> np.ndarray:
        return decisions([np.nanmean(delta[rows], 0) for delta in deltas], edges, generator)

    shares = []
    for _ in range(SPLITS):
        order = generator.permutation(len(deltas[0]))
        shares.append(float((decide(order[:repeats]) != decide(order[repeats : 2 * repeats])).mean()))
    return float(np.mean(shares))


def decisions(means: list[np.ndarray], edges: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each edge, which of its removals comes first by the sum of ranks over all removals; three decimals count, as in a
    search, and ties, which tell nothing, are broken at random.
    """
    total = np.sum([rankdata(np.round(np.nan_to_num(mean, nan=np.inf), 3), method="dense") for mean in means], axis=0)
    total = total + generator.uniform(0, 0.5, len(total))
    return np.array([int(np.argmin(np.where(edges == edge, total, np.inf))) for edge in range(edges.max() + 1)])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
