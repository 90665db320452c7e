"""``python -m bench.studies.screen``: do first-order searches (``--screen``) decide as exact ones, within what the seed decides?

Every step is decided six times with the same operations left: exactly, by first-order estimates of the condition number
("screened"), and by such of the regions too ("smooth"), with the draws of one seed and with those of another. What the first
exact decision prunes is pruned, so that all decisions stay comparable. Printed are the shares of equal decisions: exact against
exact with another seed is the noise floor; and what the decisions cost, in forward passes of the supernet and in CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from engine.cli import run_command
from engine.methods.metantk_nas import make_pruning, searched_space, with_width
from engine.methods.options import MetaNTKNASOptions, PruningOptions, TENASOptions
from engine.methods.pruning import Candidate, Decision, Pruning, Record, State
from engine.methods.scorer import Scorer, load_images
from engine.methods.screening import EXACT_PASSES, Screened, cost_share, estimate, passes, race
from engine.methods.steps import Batch
from engine.spaces.space import Space

METHODS = {"metantk-nas": MetaNTKNASOptions, "te-nas": TENASOptions}
KINDS = ("exact", "screened", "smooth")


@dataclass
class Count:
    """Decisions that agree with those of the first exact search, by what was compared, and what each kind of search cost."""

    decisions: int = 0
    by_chance: float = 0.0
    agreed: dict[str, int] = field(default_factory=lambda: {f"{kind}-{number}": 0 for number in range(2) for kind in KINDS})
    passes: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))

    def add(self, other: Count) -> None:
        """Take in another trajectory's."""
        self.decisions += other.decisions
        self.by_chance += other.by_chance
        for name, agreed in other.agreed.items():
            self.agreed[name] += agreed
        for kind in KINDS:
            self.passes[kind] += other.passes[kind]
            self.seconds[kind] += other.seconds[kind]

    def lines(self) -> list[str]:
        """The table as text."""
        rows = {
            "exact, other seed (the noise floor)": "exact-1",
            "screened, same draws": "screened-0",
            "screened, other seed": "screened-1",
            "smooth, same draws": "smooth-0",
            "smooth, other seed": "smooth-1",
        }
        found = [f"{self.decisions} decisions; agreement with the exact search"]
        found += [f"  {name:<38} {self.agreed[key] / self.decisions:.3f}" for name, key in rows.items()]
        found.append(f"  {'by chance':<38} {self.by_chance / self.decisions:.3f}")
        for name, costs, unit in (("cost", self.passes, "forward passes"), ("time", self.seconds, "CPU s")):
            exact, *rest = (costs[kind] / 2 for kind in KINDS)
            less = [f"{kind} {cost:.1f} ({exact / cost:.1f} times less)" for kind, cost in zip(KINDS[1:], rest, strict=True)]
            found.append(f"  {name} in {unit}: exact {exact:.1f}, {', '.join(less)}")
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and print its table."""
    arguments = _parser().parse_args(argv)
    total = Count()
    settings = {name: value for name, value in vars(arguments).items() if name not in ("data_root", "seeds", "json")}
    for seed in range(arguments.seeds):
        own = Count()
        compare(_options(arguments, seed), _options(arguments, seed + 1000), own)
        total.add(own)
        print(f"after seed {seed}:", *total.lines(), sep="\n", flush=True)
        if arguments.json:
            with arguments.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": seed, **settings, **asdict(own)}) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.screen", description=__doc__)
    parser.add_argument("--method", choices=sorted(METHODS), default="metantk-nas")
    parser.add_argument("--space", default="few-shot-cell")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", default=None, help="folder that holds the data sets")
    parser.add_argument("--json", type=Path, default=None, help="append a row for each seed to this file")
    parser.add_argument("--seeds", type=int, default=1, help="exact trajectories (default: %(default)s)")
    for name, default in (("cells", 5), ("channels", 16), ("repeats", 3), ("rescore", 2), ("region-images", 200)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=10, help="te-nas: batch; metantk-nas: ten a task (default: %(default)s)")
    return parser


def _options(arguments: argparse.Namespace, seed: int) -> PruningOptions:
    names = ("space", "data", "data_root", "cells", "channels", "repeats", "rescore", "region_images")
    common = {name: getattr(arguments, name) for name in names} | {"seed": seed, "device": "cpu"}
    if arguments.method == "te-nas":
        return TENASOptions(**common, batch=arguments.images)
    return MetaNTKNASOptions(**common, tasks=max(1, arguments.images // 10))


def compare(options: PruningOptions, other: PruningOptions, total: Count) -> None:
    """Add one exact trajectory with the draws of ``options``; ``other`` differs in its seed only."""
    space = searched_space(options)
    pruning, data = make_pruning(space, options), load_images(options)
    width = with_width(options, space, data.images.shape[-1]).width
    scorers = {
        f"{kind}-{number}": Scorer(replace(each, width=width, smooth_regions=kind == "smooth"), space, data)
        for number, each in enumerate((options, other))
        for kind in KINDS
    }
    state = pruning.start(space.alive())
    while state.stage == "operations":
        candidates = pruning.candidates(state)
        found = {
            name: _decided(name.partition("-")[0], pruning, scorer, state, candidates, space, total)
            for name, scorer in scorers.items()
        }
        truth = set(found["exact-0"].pruned)
        total.decisions += len(truth)
        total.by_chance += sum(1 / sum(state.alive[c][e]) for c, e, _ in truth)
        for name, decision in found.items():
            total.agreed[name] += len(truth & set(decision.pruned))
        state = found["exact-0"].state


def _decided(
    kind: str, pruning: Pruning, scorer: Scorer, state: State, candidates: list[Candidate], space: Space, total: Count
) -> Decision:
    clock, repeats = time.process_time(), range(scorer.options.repeats)
    share = cost_share(space, state.alive, scorer.options)
    if kind == "exact":
        decision = pruning.decide(state, [record for r in repeats for record in _records(scorer, state, candidates, r)])
        spent = EXACT_PASSES * len(repeats) * (1 + len(candidates))
    else:
        screened = Screened(candidates, [estimate(scorer, state, candidates, (state.round, r)) for r in repeats])
        decision = race(pruning, scorer, state, state.round, screened, scorer.options.rescore)
        spent = passes(screened)[0]
    total.seconds[kind] += time.process_time() - clock
    total.passes[kind] += spent * share
    return decision


def _records(scorer: Scorer, state: State, candidates: list[Candidate], repeat: int) -> list[Record]:
    ((supernet, _),) = scorer.found(state, state.round, Batch(repeat, [])).pairs
    assert supernet is not None
    found: list[Record] = []
    while len(found) < len(candidates):
        rest = candidates[len(found) : len(found) + scorer.width]
        pairs = scorer.found(state, state.round, Batch(repeat, rest)).pairs
        found += [Record(c, repeat, supernet, ablated or {}) for c, (_, ablated) in zip(rest, pairs, strict=False)]
    return found


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
