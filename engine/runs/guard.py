"""NaN and infinities in training: found at the step that made them, kept for a look, and the step undone or the run ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.errors import NumericalError

if TYPE_CHECKING:
    from torch import Tensor

    from engine.runs.run import Run

Snapshot = Callable[[], tuple[dict[str, Any], "dict[str, Tensor]"]]
KEPT_NAME = "nonfinite.safetensors"


class Guard:
    """Looks after every step at all tensors of a checkpoint: a loss or gradient that is not finite has reached them by then.

    The first state that is not finite goes to :data:`KEPT_NAME` in the run directory, as the step left it, and every such step
    is a line of metrics.jsonl. ``run.nonfinite`` ``"stop"`` then raises :class:`~engine.errors.NumericalError`; ``"skip"`` undoes
    the step, which counts as done: weights and moments are what they were, step counts and schedules go on.

    Costs one pass over the tensors and one read by the host a step, between steps; ``"skip"`` a copy of the tensors beside.
    """

    def __init__(self, run: Run, snapshot: Snapshot) -> None:
        self.run, self.snapshot = run, snapshot
        self._before: dict[str, Tensor] = {}

    def before(self) -> None:
        """Remember what a step may have to be undone to."""
        if self.run.nonfinite == "skip":
            self._before = {name: tensor.detach().clone() for name, tensor in self.snapshot()[1].items()}

    def after(self, step: int) -> None:
        """Look at what step number ``step`` left."""
        tensors = self.snapshot()[1]
        bad = nonfinite(tensors)
        if not bad:
            return
        self.run.append("metrics.jsonl", {"event": "nonfinite", "step": step, "where": bad})
        if not (self.run.directory / KEPT_NAME).exists():
            self.run.write_tensors(KEPT_NAME, tensors)
        what = f"step {step + 1}: {', '.join(bad)} not finite"
        undoable = all(name in self._before and self._before[name].shape == t.shape for name, t in tensors.items())
        if self.run.nonfinite != "skip" or not undoable:
            remedy = "lower the learning rates and start anew, or go on without the step: --resume --nonfinite skip"
            raise NumericalError(f"{what} ({self.run.directory / KEPT_NAME} holds the state); {remedy}")
        for name, tensor in tensors.items():
            tensor.copy_(self._before[name])


def nonfinite(tensors: dict[str, Tensor]) -> list[str]:
    """The tensors with a NaN or infinity, each with the place of its first, such as ``weights[3]``; one read where there is
    none.
    """
    import torch

    floating = {name: t.detach() for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    if not floating:
        return []
    largest = torch.stack([tensor.abs().amax().double() for tensor in floating.values()])
    if largest.isfinite().all().item():
        return []
    found = []
    for name, tensor in floating.items():
        places = (~tensor.isfinite()).nonzero()
        if len(places):
            found.append(f"{name}[{', '.join(map(str, places[0].tolist()))}]" if tensor.dim() else name)
    return found
