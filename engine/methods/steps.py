"""Bookkeeping of a pruning search between two checkpoints: which candidates are scored, what was decided, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.errors import ConfigurationError
from engine.methods.pruning import Candidate, Decision, Pruning, Record, State
from engine.runs.stopwatch import Stopwatch
from engine.scoring.result import Score
from engine.spaces.space import Space

Scores = Mapping[str, Score]


class Batch(NamedTuple):
    """What is scored together in one repeat: candidates, or without any the supernet that they are compared with."""

    repeat: int
    candidates: list[Candidate]


@dataclass(frozen=True)
class Found:
    """The scores of a batch, or of its first candidates where memory was short, and the width that memory allows.

    ``pairs`` holds (supernet, ablated) for each; None where the supernet is scored for all candidates at once, or where it was
    scored alone.
    """

    width: int
    pairs: list[tuple[Scores | None, Scores | None]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, floats exact; :meth:`from_json` reads them back."""
        return {"width": self.width, "pairs": [[_scores_to_json(side) for side in pair] for pair in self.pairs]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Found:
        """Read :meth:`to_json`'s form."""
        return cls(value["width"], [(_scores_from_json(a), _scores_from_json(b)) for a, b in value["pairs"]])


@dataclass
class StepWork:
    """The state of the pruning and the records of the step at hand; everything that a checkpoint holds."""

    state: State
    records: list[Record] = field(default_factory=list)
    known: tuple[int, Scores] | None = None
    """The last repeat of this step whose supernet was scored alone, and its scores."""
    estimates: list[dict[str, Any]] = field(default_factory=list)
    """What a first-order step has estimated so far, by repeat (:mod:`engine.methods.screening`)."""
    evaluated: int = 0
    estimated: int = 0
    rescored: int = 0
    passes: float = 0.0
    exact_passes: float = 0.0
    supernets: int = 0
    decisions: int = 0
    changed: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def step(self) -> int:
        """Operation rounds and node groups decided so far: the address of this step's draws."""
        return self.state.round + self.state.group

    def batches(self, candidates: list[Candidate], repeats: int, width: int, *, paired: bool) -> list[Batch]:
        """What this step has still to score, repeat by repeat: ``paired`` its supernet, then ``width`` candidates at a time."""
        first, start = divmod(len(self.records), len(candidates))
        found = []
        for repeat in range(first, repeats):
            if paired and (self.known is None or self.known[0] != repeat):
                found.append(Batch(repeat, []))
            found += [Batch(repeat, candidates[i : i + width]) for i in range(start, len(candidates), width)]
            start = 0
        return found

    def add(self, batch: Batch, found: Found) -> list[Record]:
        """Take the scores of one batch of :meth:`batches`, in its order, and return its records."""
        self.supernets += sum(supernet is not None for supernet, _ in found.pairs)
        if not batch.candidates:
            supernet = found.pairs[0][0]
            assert supernet is not None
            self.known = (batch.repeat, supernet)
            return []
        records = []
        for candidate, (own, ablated) in zip(batch.candidates, found.pairs, strict=False):
            supernet = own if own is not None else self.known and self.known[1]
            assert supernet is not None
            assert ablated is not None
            records.append(Record(candidate, batch.repeat, supernet, ablated))
        self.records += records
        self.evaluated += len(records)
        return records

    def advance(self, decision: Decision, watch: Stopwatch) -> None:
        """Go on to the next step, adding the time of this one, or of what is left of it after an interruption."""
        self.state, self.records, self.known, self.estimates = decision.state, [], None, []
        self.decisions += len(decision.pruned)
        self.changed += sum(share < 1 for share in decision.agreement)
        seconds, cpu_seconds, _ = watch.read()
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`restore` reads them back."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        known = self.known and [self.known[0], _scores_to_json(self.known[1])]
        records = [_record_to_list(r) for r in self.records]
        return {"pruning": self.state.to_dict(), "records": records, "known": known, "estimates": self.estimates, **counts}

    @classmethod
    def restore(cls, loaded: tuple[dict[str, Any], Any] | None, pruning: Pruning, space: Space) -> StepWork:
        """The work that a checkpoint holds, or a fresh start where there is none."""
        if loaded is None:
            return cls(pruning.start(space.alive()))
        value = loaded[0]
        try:
            records = [_record_from_list(item) for item in value["records"]]
            known = value["known"] and (int(value["known"][0]), _scores_from_json(value["known"][1]) or {})
            counts = {name: value[name] for name in _COUNTS}
            return cls(pruning.restore(value["pruning"]), records, known, list(value["estimates"]), **counts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"checkpoint: not one of a pruning search ({error}); start again in another --out") from None


def score_line(space: Space, work: StepWork, record: Record) -> dict[str, Any]:
    """One line of scores.jsonl."""
    line = {"round": work.step, "stage": work.state.stage, "repeat": record.repeat, **named(space, record.candidate)}
    for prefix, scores in (("", record.ablated), ("supernet_", record.supernet)):
        for name, score in scores.items():
            line |= {f"{prefix}{name}": score.value, f"{prefix}{name}_status": score.status}
    return line


def named(space: Space, candidate: Candidate) -> dict[str, Any]:
    """A candidate in the words of the space."""
    source, target = space.edges[candidate.edge]
    return {
        "cell": space.kinds[candidate.cell],
        "edge": candidate.edge,
        "source": source,
        "target": target,
        "operation": space.operations[candidate.operation],
    }


_COUNTS = (
    "evaluated",
    "estimated",
    "rescored",
    "passes",
    "exact_passes",
    "supernets",
    "decisions",
    "changed",
    "seconds",
    "cpu_seconds",
)


def _scores_to_json(scores: Scores | None) -> dict[str, Any] | None:
    # Floats as their shortest exact text, because strict JSON has no infinities.
    return None if scores is None else {name: [repr(s.value), s.status] for name, s in scores.items()}


def _scores_from_json(value: dict[str, Any] | None) -> Scores | None:
    return None if value is None else {name: Score(float(text), status, name) for name, (text, status) in value.items()}


def _record_to_list(record: Record) -> list[Any]:
    return [list(record.candidate), record.repeat, _scores_to_json(record.supernet), _scores_to_json(record.ablated)]


def _record_from_list(item: list[Any]) -> Record:
    candidate, repeat, *sides = item
    supernet, ablated = (_scores_from_json(side) or {} for side in sides)
    return Record(Candidate(*candidate), repeat, supernet, ablated)
