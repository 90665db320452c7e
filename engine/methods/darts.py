"""DARTS: the cell whose relaxation learns best (Liu, Simonyan, Yang, ICLR 2019; reference note tetlo-darts, section 1).

Each iteration moves the architecture on a validation batch, then the weights on a training batch. By default the architecture's
gradient sees one step of the weights (second order) through the exact Hessian product; ``faithful`` takes the published quotient
of finite differences instead. Architecture passes form no weight gradients and leave nothing behind in the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.bilevel import Adam, Bilevel, FlatNetwork, Sgd, cosine
from engine.learning.hypergradient import Hypergradient, Loss, Step, first_order, second_order, weight_gradient
from engine.methods.darts_data import Batch, Halves
from engine.methods.darts_options import DartsOptions
from engine.runs.loop import steps
from engine.runs.stopwatch import Stopwatch
from engine.runs.streams import stream
from engine.spaces.cost import count
from engine.spaces.darts import operation_counts, searched_space
from engine.spaces.darts_supernet import SoftmaxRelaxation, darts_supernet
from engine.spaces.genotype import Genotype
from engine.spaces.supernet import initialise

if TYPE_CHECKING:
    from engine.runs.run import Run

# The network that a found cell is published with; result.json counts the parameters of that (note, section 7).
PUBLISHED_CELLS, PUBLISHED_CHANNELS = 20, 36


def search(options: DartsOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Search, and return what goes into result.json: the cell, the validation loss by epoch, the time."""
    data = Halves(options)
    learner = Darts(options, data)
    spent, start = _resume(run, learner)
    watch = Stopwatch()

    def snapshot() -> tuple[dict[str, Any], dict[str, Tensor]]:
        seconds, cpu, _ = watch.read()
        state = {"adam": learner.state.adam.count, "seconds": spent[0] + seconds, "cpu": spent[1] + cpu, "epoch": learner.sums}
        return {**state, "curve": learner.curve}, learner.state.tensors()

    total = options.epochs * data.steps
    with progress(total, "steps", done=start) as bar:
        for number in steps(run, stop, snapshot, start=start, total=total):
            epoch, step = divmod(number, data.steps)
            learner.iterate(epoch, step)
            if step + 1 == data.steps:
                run.append("metrics.jsonl", learner.end_epoch(epoch))
            bar.advance(epoch=epoch, **({"validation_loss": learner.curve[-1]["validation_loss"]} if learner.curve else {}))
    seconds, cpu, _ = watch.read()
    return outcome(options, learner, spent[0] + seconds, spent[1] + cpu)


def plan(options: DartsOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    passes = {"first": "1 forward and backward pass", "second": "4 forward and backward passes, or what they cost"}
    return [
        ("epochs", str(options.epochs)),
        ("architecture step", f"{options.order} order: {passes[options.order]}, every {options.interval} weight steps"),
        ("supernet", f"{options.cells} cells, {options.channels} channels, space {options.space}"),
    ]


def _resume(run: Run, learner: Darts) -> tuple[tuple[float, float], int]:
    """Seconds and CPU seconds spent before, and the step to go on with."""
    loaded = run.load()
    if loaded is None:
        return (0.0, 0.0), 0
    state, tensors = loaded
    learner.state.restore(tensors, state["adam"])
    learner.sums, learner.curve = state["epoch"], state["curve"]
    return (state["seconds"], state["cpu"]), state["step"]


class Darts:
    """One search: its network, its two levels, and what it has seen of this epoch."""

    def __init__(self, options: DartsOptions, data: Halves) -> None:
        self.options, self.data = options, data
        self.space = searched_space(options.space)
        self.relaxation = SoftmaxRelaxation(self.space)
        model = darts_supernet(
            self.space,
            cells=options.cells,
            channels=options.channels,
            outputs=data.classes,
            channels_in=data.data.images.shape[1],
        )
        initialise(model, stream(options.seed, "weights"), kaiming=False)
        self.network = FlatNetwork(model.to(options.device))
        w = self.network.start
        drawn = torch.randn(self.relaxation.shape, generator=stream(options.seed, "alphas"))
        a = (options.alpha_scale * drawn).to(options.device)
        sgd = Sgd(torch.zeros_like(w), options.momentum, options.weight_decay, options.clip)
        adam = Adam(torch.zeros_like(a), torch.zeros_like(a), rate=options.alpha_rate, decay=options.alpha_decay)
        self.state = Bilevel(w, a, sgd, adam)
        self.sums = {"training_loss": 0.0, "search_loss": 0.0, "searched": 0.0}
        self.curve: list[dict[str, Any]] = []

    def iterate(self, epoch: int, step: int) -> None:
        """An architecture step on a validation batch, then a weight step on a training batch."""
        options, state = self.options, self.state
        rate = cosine(options.weight_rate, options.weight_rate_end, epoch, options.epochs)
        batch = self.data.training(epoch, step)
        if (epoch * self.data.steps + step) % options.interval == 0:
            found = self.hypergradient(batch, self.data.validating(epoch, step), rate)
            state.adam.step(state.a, found.gradient)
            self.sums["search_loss"] += float(found.validation)
            self.sums["searched"] += 1
        loss, gradient = weight_gradient(self.loss(batch), state.w, state.a)
        state.sgd.step(state.w, gradient, rate)
        self.sums["training_loss"] += float(loss)

    def hypergradient(self, training: Batch, validation: Batch, rate: float) -> Hypergradient:
        """DARTS, Eq. 7, or its first term alone."""
        options, state = self.options, self.state
        if options.order == "first":
            return first_order(self.loss(validation), state.w, state.a)
        step = Step(rate, options.weight_decay, state.sgd.inertia)
        return second_order(self.loss(training), self.loss(validation), state.w, state.a, step, hessian=options.hessian_mode)

    def loss(self, batch: Batch) -> Loss:
        """Mean cross-entropy of a batch as a function of weights and architecture."""
        return lambda w, a: F.cross_entropy(self.network(w, batch.images, self.relaxation(a)), batch.labels)

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """The line of an epoch, which also goes on the curve."""
        steps = self.data.steps
        loss, accuracy = self.validate()
        genotype = self.genotype()
        found = {
            "epoch": epoch,
            "training_loss": self.sums["training_loss"] / steps,
            "search_loss": self.sums["search_loss"] / self.sums["searched"] if self.sums["searched"] else None,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "skips": operation_counts(genotype)["normal"]["skip_connect"],
        }
        self.curve.append(found)
        self.sums = dict.fromkeys(self.sums, 0.0)
        return {"event": "epoch", **found, "genotype": genotype.to_dict()["cells"]}

    def genotype(self) -> Genotype:
        """The cell at this moment."""
        return self.relaxation.genotype(self.state.a)

    def validate(self) -> tuple[float, float]:
        """Loss and accuracy of the supernet on the validation half, unaugmented, by the statistics of each batch."""
        losses, right, seen = 0.0, 0, 0
        mixture = self.relaxation(self.state.a)
        with torch.no_grad():
            for batch in self.data.plain_validation():
                logits = self.network(self.state.w, batch.images, mixture)
                losses += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
                right += int((logits.argmax(1) == batch.labels).sum())
                seen += len(batch.labels)
        return losses / seen, right / seen


def outcome(options: DartsOptions, learner: Darts, seconds: float, cpu_seconds: float) -> dict[str, Any]:
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
        "evaluations": options.epochs * learner.data.steps,
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


def _alphas(learner: Darts) -> dict[str, Any]:
    space, weights = learner.space, learner.relaxation(learner.state.a).weights.tolist()
    rows = [
        [kind, f"{source}->{target}", *(round(value, 4) for value in weights[k][e])]
        for k, kind in enumerate(space.kinds)
        for e, (source, target) in enumerate(space.edges)
    ]
    return {"title": "Weights of the operations", "columns": ["cell", "edge", *space.operations], "rows": rows}
