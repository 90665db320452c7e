"""Bookkeeping of a pruning search between two checkpoints: which candidates are scored, what was decided, what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.errors import ConfigurationError
from engine.methods.pruning import Candidate, Decision, Pruning, Record, State
from engine.runs.stopwatch import Stopwatch
from engine.scoring.result import Score
from engine.spaces.space import Space


class Batch(NamedTuple):
    """Candidates that are scored together, in one repeat."""

    repeat: int
    candidates: list[Candidate]


@dataclass
class StepWork:
    """The state of the pruning and the records of the step at hand; everything that a checkpoint holds."""

    state: State
    records: list[Record] = field(default_factory=list)
    evaluated: int = 0
    supernets: int = 0
    decisions: int = 0
    changed: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def step(self) -> int:
        """Operation rounds and node groups decided so far: the address of this step's draws."""
        return self.state.round + self.state.group

    def batches(self, candidates: list[Candidate], repeats: int, width: Callable[[], int]) -> Iterator[Batch]:
        """What is still to be scored of this step, repeat by repeat, at most ``width()`` candidates at a time."""
        total = len(candidates) * repeats
        while len(self.records) < total:
            repeat, start = divmod(len(self.records), len(candidates))
            yield Batch(repeat, candidates[start : start + width()])

    def supernet(self, repeat: int) -> Mapping[str, Score] | None:
        """The supernet's scores in this repeat, if a scored batch brought them."""
        return next((record.supernet for record in reversed(self.records) if record.repeat == repeat), None)

    def add(self, records: list[Record], supernets: int) -> None:
        """Take the records of one batch and the number of supernet evaluations that they needed."""
        self.records.extend(records)
        self.evaluated += len(records)
        self.supernets += supernets

    def advance(self, decision: Decision, watch: Stopwatch) -> None:
        """Go on to the next step."""
        self.state, self.records = decision.state, []
        self.decisions += len(decision.pruned)
        self.changed += sum(share < 1 for share in decision.agreement)
        self.clock(watch)

    def clock(self, watch: Stopwatch) -> None:
        """Add the time of a finished or interrupted step."""
        seconds, cpu_seconds, _ = watch.read()
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`restore` reads them back."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {"pruning": self.state.to_dict(), "records": [_record_to_list(r) for r in self.records], **counts}

    @classmethod
    def restore(cls, loaded: tuple[dict[str, Any], Any] | None, pruning: Pruning, space: Space) -> StepWork:
        """The work that a checkpoint holds, or a fresh start where there is none."""
        if loaded is None:
            return cls(pruning.start(space.alive()))
        value = loaded[0]
        try:
            records = [_record_from_list(item) for item in value["records"]]
            return cls(pruning.restore(value["pruning"]), records, **{name: value[name] for name in _COUNTS})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"checkpoint: not one of a pruning search ({error}); start again in another --out") from None


_COUNTS = ("evaluated", "supernets", "decisions", "changed", "seconds", "cpu_seconds")


def _record_to_list(record: Record) -> list[Any]:
    # Floats as their shortest exact text, because strict JSON has no infinities.
    scores = [{name: [repr(s.value), s.status] for name, s in side.items()} for side in (record.supernet, record.ablated)]
    return [list(record.candidate), record.repeat, *scores]


def _record_from_list(item: list[Any]) -> Record:
    candidate, repeat, *sides = item
    supernet, ablated = ({name: Score(float(value), status, name) for name, (value, status) in side.items()} for side in sides)
    return Record(Candidate(*candidate), repeat, supernet, ablated)
