"""What the searches of the DARTS family share: the resumable loop, the log of an epoch, and the result.

A method subclasses :class:`Learner`; everything that changes between two steps is in its tensors, counts, sums and curve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.bilevel import warmed_cosine
from engine.learning.losses import Criterion, class_balanced_weights
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Halves
from engine.methods.darts_options import FamilyOptions
from engine.runs.loop import steps
from engine.runs.stopwatch import Stopwatch
from engine.spaces.genotype import Genotype

if TYPE_CHECKING:
    from engine.runs.run import Run


class Learner(ABC):
    """A search between two steps. Epochs are counted from the start of the search, through all its networks."""

    def __init__(self, options: FamilyOptions, data: Halves, base: Base) -> None:
        self.options, self.data, self.base = options, data, base
        self.criterion = criterion(options, data)
        # On the device, so that a step waits for nothing.
        names = ("training_loss", "search_loss", "searched")
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=options.device) for name in names}
        self.curve: list[dict[str, Any]] = []
        self.redone = 0
        """Epochs that were done again."""

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
        """Take over a checkpoint of the same base."""

    @abstractmethod
    def logits(self, images: Tensor, where: Pass) -> Tensor:
        """What the supernet that is searched says of images, by the statistics of the batch."""

    @property
    @abstractmethod
    def alphas(self) -> Tensor:
        """The architecture parameters, in the base's shape."""

    def with_base(self, base: Base) -> Learner:
        """The same search in a fresh network."""
        fresh = type(self)(self.options, self.data, base)
        fresh.curve = self.curve
        return fresh

    def after(self, epoch: int) -> Learner:
        """What goes on after an epoch: this, or a fresh network where the base begins another stage. A search that goes back to
        the end of an earlier epoch counts what it will do again in ``redone``."""
        following = self.base.following(epoch, self.alphas)
        return self if following is None else self.with_base(following)

    def genotype(self) -> Genotype:
        """The cell at this moment."""
        return self.base.genotype(self.alphas)

    def stops(self) -> bool:
        """Whether the search ends with the epoch that has just ended; decided by the curve alone."""
        return False

    def result(self) -> dict[str, Any]:
        """What the method adds to a result; "plots" and "tables" join the others."""
        return self.base.result(self.alphas)

    def rate(self, epoch: int) -> float:
        """The weights' learning rate of an epoch."""
        options, base = self.options, self.base
        ends = options.weight_rate, options.weight_rate_end
        return warmed_cosine(*ends, epoch - base.first_epoch, base.epochs, options.rate_warm_up)

    def searches(self, epoch: int, step: int) -> bool:
        """Whether the architecture moves in this step."""
        if epoch - self.base.first_epoch < self.options.warm_up:
            return False
        return (epoch * self.data.steps + step) % self.options.interval == 0

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """The line of an epoch, which also goes on the curve."""
        genotype = self.genotype()
        training, search, searched = (float(total) for total in self.sums.values())
        found = {
            "epoch": epoch,
            "training_loss": training / self.data.steps,
            "search_loss": search / searched if searched else None,
            **self.validate(epoch),
            **self.base.noted(genotype),
        }
        self.curve.append(found)
        for total in self.sums.values():
            total.zero_()
        return {"event": "epoch", **found, "genotype": genotype.to_dict()["cells"]}

    def validate(self, epoch: int) -> dict[str, float]:
        """``validation_loss`` and ``validation_accuracy`` of the supernet on the validation half, unaugmented and unweighted."""
        losses, right, seen = 0.0, 0, 0
        with torch.no_grad():
            for step, batch in enumerate(self.data.plain_validation()):
                logits = self.logits(batch.images, Pass("validation", epoch, step))
                losses += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
                right += int((logits.argmax(1) == batch.labels).sum())
                seen += len(batch.labels)
        return {"validation_loss": losses / seen, "validation_accuracy": right / seen}


def criterion(options: FamilyOptions, data: Halves) -> Criterion:
    """What the options make models and architectures lower; the classes' weights are those of the validation half."""
    weights = None
    if options.class_balance:
        counts = torch.bincount(data.labels[data.validation.to(data.labels.device)], minlength=data.classes)
        weights = class_balanced_weights(counts, options.class_balance).to(options.device)
    return Criterion(robust=options.loss == "robust-log", weights=weights)


def run_search(learner: Learner, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Go through the epochs, or through what a resumed run has left of them, and return what goes into result.json."""
    data, options = learner.data, learner.options
    learner, before, start = _resume(run, learner)
    watch = Stopwatch()

    def spent() -> tuple[float, float]:
        seconds, cpu, _ = watch.read()
        return before[0] + seconds, before[1] + cpu

    def snapshot() -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts = {"base": learner.base.state(), "counts": learner.counts(), "curve": learner.curve}
        sums = {f"sums.{name}": total for name, total in learner.sums.items()}
        return {**facts, "spent": list(spent())}, {**learner.tensors(), **sums}

    total = options.most_epochs * data.steps
    with progress(total, "steps", done=start) as bar:
        for number in steps(run, stop, snapshot, start=start, total=total):
            epoch, step = divmod(number - learner.redone * data.steps, data.steps)
            learner.iterate(epoch, step)
            if step + 1 == data.steps:
                run.append("metrics.jsonl", learner.end_epoch(epoch))
                if learner.stops():
                    break
                learner = learner.after(epoch)
            bar.advance(epoch=epoch, **{key: learner.curve[-1][key] for key in ("validation_loss",) if learner.curve})
    return outcome(learner, *spent())


def _resume(run: Run, learner: Learner) -> tuple[Learner, tuple[float, float], int]:
    """The search to go on with, seconds and CPU seconds spent before, and the step to go on with."""
    loaded = run.load()
    if loaded is None:
        return learner, (0.0, 0.0), 0
    state, tensors = loaded
    base = learner.base.restored(state["base"])
    learner = learner if base is learner.base else learner.with_base(base)
    learner.restore(tensors, state["counts"])
    for name, total in learner.sums.items():
        total.copy_(tensors[f"sums.{name}"])
    learner.curve = state["curve"]
    return learner, (state["spent"][0], state["spent"][1]), state["step"]


def outcome(learner: Learner, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    """The result of a finished search."""
    genotype, extra = learner.genotype(), learner.result()
    channels_in, _, size = learner.data.data.images.shape[1:]
    last = learner.curve[-1]
    return {
        "genotype": genotype,
        "evaluations": len(learner.curve) * learner.data.steps,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "validation_loss": last["validation_loss"],
        "validation_accuracy": last["validation_accuracy"],
        **learner.base.described(genotype, size=size, classes=learner.data.classes, channels_in=channels_in),
        **extra,
        "plots": [_curves(learner.curve), *extra.get("plots", [])],
        "tables": [learner.base.strength_table(learner.alphas), *extra.get("tables", [])],
    }


def _curves(curve: list[dict[str, Any]]) -> dict[str, Any]:
    names = {"training": "training_loss", "validation, in the search": "search_loss", "validation, whole half": "validation_loss"}
    series = []
    for name, key in names.items():
        points = [(line["epoch"] + 1, line[key]) for line in curve if line[key] is not None]
        series.append({"name": name, "x": [x for x, _ in points], "y": [y for _, y in points]})
    return {"title": "Loss of the supernet", "x_label": "epoch", "y_label": "cross-entropy", "kind": "line", "series": series}
