"""What the searches of the DARTS family share: the resumable loop, the log of an epoch, and the result.

A method subclasses :class:`Learner`; everything that changes between two steps is in its tensors, counts, sums and curve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.bilevel import cosine
from engine.methods.darts_data import Halves
from engine.methods.darts_options import FamilyOptions
from engine.runs.loop import steps
from engine.runs.stopwatch import Stopwatch
from engine.runs.streams import stream
from engine.spaces.cost import count
from engine.spaces.darts import operation_counts, searched_space
from engine.spaces.darts_supernet import SoftmaxRelaxation
from engine.spaces.genotype import Genotype

if TYPE_CHECKING:
    from engine.runs.run import Run

# The network that a found cell is published with; result.json counts the parameters of that (note, section 7).
PUBLISHED_CELLS, PUBLISHED_CHANNELS = 20, 36


class Learner(ABC):
    """A search between two steps."""

    def __init__(self, options: FamilyOptions, data: Halves) -> None:
        self.options, self.data = options, data
        self.space = searched_space(options.space)
        self.relaxation = SoftmaxRelaxation(self.space)
        self.sums = {"training_loss": 0.0, "search_loss": 0.0, "searched": 0.0}
        self.curve: list[dict[str, Any]] = []

    @abstractmethod
    def iterate(self, epoch: int, step: int) -> None:
        """One step of the weights, and one of the architecture where it is due."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, in place: restoring copies into these."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """The whole numbers that a checkpoint holds."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], counts: dict[str, int]) -> None:
        """Take over a checkpoint."""

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """What the supernet that is searched says of images, by the statistics of the batch."""

    @property
    @abstractmethod
    def alphas(self) -> Tensor:
        """The architecture parameters (T, E, O)."""

    def genotype(self) -> Genotype:
        """The cell at this moment."""
        return self.relaxation.genotype(self.alphas)

    def rate(self, epoch: int) -> float:
        """The weights' learning rate of an epoch."""
        return cosine(self.options.weight_rate, self.options.weight_rate_end, epoch, self.options.epochs)

    def searches(self, epoch: int, step: int) -> bool:
        """Whether the architecture moves before this step of the weights."""
        return (epoch * self.data.steps + step) % self.options.interval == 0

    def initial_alphas(self) -> Tensor:
        """Normal numbers of the options' scale, by address."""
        drawn = torch.randn(self.relaxation.shape, generator=stream(self.options.seed, "alphas"))
        return (self.options.alpha_scale * drawn).to(self.options.device)

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """The line of an epoch, which also goes on the curve."""
        loss, accuracy = self.validate()
        genotype = self.genotype()
        found = {
            "epoch": epoch,
            "training_loss": self.sums["training_loss"] / self.data.steps,
            "search_loss": self.sums["search_loss"] / self.sums["searched"] if self.sums["searched"] else None,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "skips": operation_counts(genotype)["normal"]["skip_connect"],
        }
        self.curve.append(found)
        self.sums = dict.fromkeys(self.sums, 0.0)
        return {"event": "epoch", **found, "genotype": genotype.to_dict()["cells"]}

    def validate(self) -> tuple[float, float]:
        """Loss and accuracy of the supernet on the validation half, unaugmented."""
        losses, right, seen = 0.0, 0, 0
        with torch.no_grad():
            for batch in self.data.plain_validation():
                logits = self.logits(batch.images)
                losses += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
                right += int((logits.argmax(1) == batch.labels).sum())
                seen += len(batch.labels)
        return losses / seen, right / seen


def run_search(learner: Learner, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Go through the epochs, or through what a resumed run has left of them, and return what goes into result.json."""
    data, options = learner.data, learner.options
    before, start = _resume(run, learner)
    watch = Stopwatch()

    def spent() -> tuple[float, float]:
        seconds, cpu, _ = watch.read()
        return before[0] + seconds, before[1] + cpu

    def snapshot() -> tuple[dict[str, Any], dict[str, Tensor]]:
        state = {"counts": learner.counts(), "sums": learner.sums, "curve": learner.curve, "spent": list(spent())}
        return state, learner.tensors()

    total = options.epochs * data.steps
    with progress(total, "steps", done=start) as bar:
        for number in steps(run, stop, snapshot, start=start, total=total):
            epoch, step = divmod(number, data.steps)
            learner.iterate(epoch, step)
            if step + 1 == data.steps:
                run.append("metrics.jsonl", learner.end_epoch(epoch))
            bar.advance(epoch=epoch, **{key: learner.curve[-1][key] for key in ("validation_loss",) if learner.curve})
    return outcome(learner, *spent())


def _resume(run: Run, learner: Learner) -> tuple[tuple[float, float], int]:
    """Seconds and CPU seconds spent before, and the step to go on with."""
    loaded = run.load()
    if loaded is None:
        return (0.0, 0.0), 0
    state, tensors = loaded
    learner.restore(tensors, state["counts"])
    learner.sums, learner.curve = state["sums"], state["curve"]
    return (state["spent"][0], state["spent"][1]), state["step"]


def outcome(learner: Learner, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    """The result of a finished search."""
    genotype = learner.genotype()
    channels_in, _, size = learner.data.data.images.shape[1:]
    cost = count(
        genotype,
        channels=PUBLISHED_CHANNELS,
        cells=PUBLISHED_CELLS,
        size=size,
        classes=learner.data.classes,
        channels_in=channels_in,
    )
    last = learner.curve[-1]
    return {
        "genotype": genotype,
        "evaluations": learner.options.epochs * learner.data.steps,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "validation_loss": last["validation_loss"],
        "validation_accuracy": last["validation_accuracy"],
        "parameters": cost.parameters,
        "flops": cost.flops,
        "counted_network": {"cells": PUBLISHED_CELLS, "channels": PUBLISHED_CHANNELS},
        "operations": operation_counts(genotype),
        "plots": [_curves(learner.curve)],
        "tables": [_alphas(learner)],
    }


def _curves(curve: list[dict[str, Any]]) -> dict[str, Any]:
    names = {"training": "training_loss", "validation, in the search": "search_loss", "validation, whole half": "validation_loss"}
    series = []
    for name, key in names.items():
        points = [(line["epoch"] + 1, line[key]) for line in curve if line[key] is not None]
        series.append({"name": name, "x": [x for x, _ in points], "y": [y for _, y in points]})
    return {"title": "Loss of the supernet", "x_label": "epoch", "y_label": "cross-entropy", "kind": "line", "series": series}


def _alphas(learner: Learner) -> dict[str, Any]:
    space, weights = learner.space, learner.relaxation(learner.alphas).weights.tolist()
    rows = [
        [kind, f"{source}->{target}", *(round(value, 4) for value in weights[k][e])]
        for k, kind in enumerate(space.kinds)
        for e, (source, target) in enumerate(space.edges)
    ]
    return {"title": "Weights of the operations", "columns": ["cell", "edge", *space.operations], "rows": rows}
