"""Scores of many untrained networks against the accuracies of the trained ones: resumable, and dealt to the ranks of a group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from engine.benchmarks.examiner import Examiner
from engine.benchmarks.options import EvidenceOptions
from engine.benchmarks.published import Published, load_published
from engine.benchmarks.summary import Judgement, judge
from engine.benchmarks.table import CHANCE, Table, load_table
from engine.data.episodes import permutation
from engine.errors import ConfigurationError
from engine.runs.loop import Pace
from engine.runs.streams import stream
from engine.scoring.result import STATUSES, Score
from engine.spaces.nas_bench_201 import Codes, canonical, to_string

if TYPE_CHECKING:
    from engine.runs.run import Run

# Accuracies this close to guessing, in percent, are chance.
NEAR_CHANCE = 0.5


def correlate(options: EvidenceOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Score the architectures, all of one repeat before the next, and return what goes into result.json.

    Every score is a line of scores.jsonl. Resuming goes on with the next architecture, or the next ``architectures_at_once``.
    """
    table = load_table(Path(options.benchmark or "").expanduser())
    cells, published = sampled(options, table)
    examiner = Examiner(options)
    names = options.chosen()
    work = Work.restore(run.load(), len(cells) * options.seeds, len(names))
    pace = Pace()
    parts = [part for part in blocks(len(cells), options) if part.first >= work.done]

    def found(number: int) -> list[Any]:
        part = parts[number]
        examined = examiner.scores([cells[place] for place in part.places], part.repeat)
        return [[[repr(score.value), score.status] for score in scores.values()] + [cost] for scores, cost in examined]

    with progress(len(work.values), "architectures", done=work.done) as bar:
        for part, rows in zip(parts, run.ranks.deal(f"evidence from {work.done}", len(parts), found, stop), strict=True):
            for place, values in zip(part.places, rows, strict=True):
                scores = {name: Score(float(value), status, name) for name, (value, status) in zip(names, values, strict=False)}
                run.append("scores.jsonl", score_line(part.repeat, cells[place], scores, values[-1]))
                work.add(list(scores.values()), values[-1])
            if stop.requested or pace.due() or work.done == len(work.values):
                run.save(*work.snapshot())
                pace.saved()
            bar.advance(len(part.places))
            stop.check()
    accuracy = [table.lookup(cell).accuracy[options.target] for cell in cells]
    twins = [canonical(cell) for cell in cells]
    judged = judge(options, names, work.scores(names, len(cells)), accuracy, _chance(options.target), published, twins)
    if run.ranks.lead and not options.quiet:
        print("\n".join(judged.lines()))
    return outcome(options, cells, work, judged)


class Block(NamedTuple):
    """Architectures that are scored together: their repeat and places in the list; ``first`` counts what comes before."""

    repeat: int
    places: range
    first: int


def blocks(cells: int, options: EvidenceOptions) -> list[Block]:
    """All that is to be scored, all of one repeat before the next."""
    width = options.architectures_at_once
    return [
        Block(repeat, range(start, min(start + width, cells)), repeat * cells + start)
        for repeat in range(options.seeds)
        for start in range(0, cells, width)
    ]


def score_line(repeat: int, cell: Codes, scores: dict[str, Score], seconds: dict[str, float]) -> dict[str, Any]:
    """One line of scores.jsonl: every value, the statuses that are not ok, and CPU seconds."""
    values = {name: score.value for name, score in scores.items()}
    bad = {f"{name}_status": score.status for name, score in scores.items() if not score.ok}
    return {"repeat": repeat, "architecture": to_string(cell), **values, **bad, **seconds}


def plan(options: EvidenceOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    table = load_table(Path(options.benchmark or "").expanduser())
    cells, _ = sampled(options, table)
    return [
        ("architectures", f"{len(cells)} of {len(table)}"),
        ("evaluations", f"{len(cells) * options.seeds}"),
        ("scores", ", ".join(options.chosen())),
    ]


def sampled(options: EvidenceOptions, table: Table) -> tuple[list[Codes], Published | None]:
    """The architectures that are scored, and what others published of them."""
    table.column(options.target)
    if options.architectures == "published":
        published = load_published(Path(options.benchmark or "").expanduser(), table.codes, options.target)
        return list(published.cells), published
    if options.sample > len(table):
        raise ConfigurationError(f"--sample: {options.sample} architectures asked of a table of {len(table)}")
    order = permutation(len(table), stream(options.seed, "evidence-sample"))[: options.sample]
    return [tuple(table.codes[row].tolist()) for row in order.tolist()], None


def _chance(target: str) -> float:
    return CHANCE.get(target, 0.0) + NEAR_CHANCE


class Work:
    """What is scored so far: values (n, M), statuses (n, M) as numbers into ``STATUSES``, and CPU seconds (n, 2)."""

    def __init__(self, done: int, values: Tensor, statuses: Tensor, seconds: Tensor) -> None:
        self.done, self.values, self.statuses, self.seconds = done, values, statuses, seconds

    @classmethod
    def restore(cls, loaded: tuple[dict[str, Any], dict[str, Tensor]] | None, count: int, metrics: int) -> Work:
        """The work that a checkpoint holds, or a fresh start."""
        if loaded is None:
            values = torch.zeros(count, metrics, dtype=torch.float64)
            return cls(0, values, torch.zeros(count, metrics, dtype=torch.uint8), torch.zeros(count, 2, dtype=torch.float64))
        state, tensors = loaded
        if tensors["values"].shape != (count, metrics):
            raise ConfigurationError("checkpoint: of other architectures or scores; start again in another --out")
        return cls(int(state["done"]), tensors["values"], tensors["statuses"], tensors["seconds"])

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What :meth:`restore` reads."""
        return {"done": self.done}, {"values": self.values, "statuses": self.statuses, "seconds": self.seconds}

    def add(self, scores: list[Score], seconds: dict[str, float]) -> None:
        """Take the scores of the next evaluation."""
        self.values[self.done] = torch.tensor([score.value for score in scores], dtype=torch.float64)
        self.statuses[self.done] = torch.tensor([STATUSES.index(score.status) for score in scores], dtype=torch.uint8)
        self.seconds[self.done] = torch.tensor([seconds.get(part, 0.0) for part in ("plain", "kernels")], dtype=torch.float64)
        self.done += 1

    def scores(self, names: tuple[str, ...], cells: int) -> dict[str, list[list[Score]]]:
        """By name and repeat, the scores of all architectures."""
        rows = zip(self.values.T.tolist(), self.statuses.T.tolist(), strict=True)
        found = {}
        for name, (values, statuses) in zip(names, rows, strict=True):
            column = [Score(value, STATUSES[status], name) for value, status in zip(values, statuses, strict=True)]
            found[name] = [column[first : first + cells] for first in range(0, len(column), cells)]
        return found


def outcome(options: EvidenceOptions, cells: list[Codes], work: Work, judged: Judgement) -> dict[str, Any]:
    """The result: numbers, tables and plots."""
    plain, kernels = work.seconds.mean(0).tolist()
    return {
        "architectures": len(cells),
        "repeats": options.seeds,
        "target": options.target,
        "cpu_seconds": round(float(work.seconds.sum()), 3),
        "cpu_seconds_an_architecture": {"plain": round(plain, 4), "kernels": round(kernels, 4)},
        **judged.to_dict(),
    }
