"""A resumable loop of training steps: where a long computation is saved, stopped and gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from engine.runs.guard import Guard
from engine.runs.profiling import span, step_begins

if TYPE_CHECKING:
    from torch import Tensor

    from engine.runs.run import Run
    from engine.runs.signals import Stop

Snapshot = Callable[[], tuple[dict[str, Any], "dict[str, Tensor]"]]

# A second of saved work lost is a second done again: half a minute is what an interruption may cost.
SAVE_SECONDS = 30.0
# Of the time between two checkpoints, writing one may take this share.
SAVE_SHARE = 0.01


class Pace:
    """When a checkpoint is due whose writing takes unknown time: often, but for at most a hundredth of all time.

    That is after 100 times what the last one took, at the latest after :data:`SAVE_SECONDS`; the first is due at once. Call
    :meth:`due`, and right after saving :meth:`saved`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = self._asked = clock()

    def due(self) -> bool:
        """Whether to save now."""
        self._asked = self._clock()
        return self._asked >= self._next

    def saved(self) -> None:
        """Take note of a checkpoint that was written since :meth:`due` was asked."""
        now = self._clock()
        self._next = now + min(SAVE_SECONDS, (now - self._asked) / SAVE_SHARE)


def steps(
    run: Run,
    stop: Stop,
    snapshot: Snapshot,
    *,
    start: int,
    total: int,
    seconds: float = SAVE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[int]:
    """Yield the steps ``start`` to ``total - 1``, saving what ``snapshot`` returns between them.

    ``snapshot() -> (state, tensors)`` is what the run's checkpoint shall hold after the steps yielded so far, the number of
    finished steps not among it: it is added to ``state`` as ``"step"``. A checkpoint is written ``seconds`` after the last
    one, after the last step, and before a stop is obeyed (:meth:`~engine.runs.signals.Stop.check`). Log lines of a step are
    to be appended before its iteration ends: so a run that is killed anywhere goes on with the same bytes. A step that leaves
    NaN or infinities in the tensors ends the run or is undone, as :class:`~engine.runs.guard.Guard` says.
    """
    saved, guard = clock(), Guard(run, snapshot)
    for step in range(start, total):
        step_begins()
        guard.before()
        with span("outer step"):
            yield step
        guard.after(step)
        if stop.requested or step + 1 == total or clock() - saved >= seconds:
            state, tensors = snapshot()
            run.save({**state, "step": step + 1}, tensors)
            saved = clock()
        stop.check()
