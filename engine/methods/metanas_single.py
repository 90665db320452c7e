"""Table 3 of the MetaNAS appendix: a search on one classification task, and what pruning it costs.

DARTS's search (first order; its defaults are preset ``table3``) in the MetaNAS space: SGD moves the weights on one half of the
training images, Adam the architecture on the other, while the temperature falls from the first step to the last. The genotype
then keeps the weights that it has in the supernet: no retraining. Both networks are tested on images that the search never saw,
with the statistics of each test batch (running statistics of the supernet would not fit the pruned network).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.data import ImageSet, load, normalise
from engine.data.episodes import permutation
from engine.learning.architecture_task import Classifier
from engine.learning.bilevel import Adam, Bilevel, Sgd, cosine
from engine.learning.task_networks import SearchedNetwork
from engine.methods.darts_data import Batch, Halves
from engine.methods.darts_options import DartsOptions
from engine.methods.metanas_networks import build
from engine.methods.metanas_options import MetaNASOptions
from engine.runs.parts import Saved, Training
from engine.runs.stopwatch import Stopwatch
from engine.runs.streams import stream
from engine.spaces.metanas import Architecture, genotype_parameters
from engine.spaces.relaxations import annealed_temperature

CLIP = 5.0  # DARTS's largest norm of the weights' gradient
LAST_RATE = 0.04  # DARTS's cosine goes from 0.025 to 0.001


class SingleTask(Training):
    """One search by one strategy."""

    def __init__(self, options: MetaNASOptions, halves: Halves) -> None:
        self.halves = halves
        _, channels_in, _, size = halves.data.images.shape
        self.options = options = replace(options, ways=halves.classes)
        learner = build(options, channels_in, size)
        assert learner.searched is not None, "validate() asks for --network search"
        self.network: SearchedNetwork = learner.searched
        w, a = (t.to(options.device).clone() for t in (learner.weights, learner.alphas))
        sgd = Sgd(torch.zeros_like(w), 0.9, options.decay, CLIP)
        adam = Adam(torch.zeros_like(a), torch.zeros_like(a), rate=options.architecture_rate, decay=options.architecture_decay)
        self.state = Bilevel(w, a, sgd, adam)
        self.curve: list[dict[str, float]] = []
        self.cpu_seconds = 0.0
        self._watch = Stopwatch()

    @property
    def architecture(self) -> Architecture:
        """How the architecture parameters are read."""
        return self.network.architecture

    def temperature(self, step: int) -> float:
        """From t_max at the first step to t_min at the last; 1 where nothing is made sparse."""
        return annealed_temperature(step, self.options.steps, *self.options.temperatures)

    def advance(self, step: int) -> list[dict[str, Any]]:
        """A step of the architecture and one of the weights (DARTS, Algorithm 1, first order)."""
        options, state = self.options, self.state
        epoch, number = divmod(step, self.halves.steps)
        temperature = self.temperature(step)
        _, gradient = self._gradient(self.halves.validating(epoch, number), temperature, state.a)
        state.adam.step(state.a, gradient)
        loss, gradient = self._gradient(self.halves.training(epoch, number), temperature, state.w)
        state.sgd.step(state.w, gradient, cosine(options.rate, LAST_RATE * options.rate, step, options.steps))
        if (step + 1) % options.eval_every and step + 1 < options.steps:
            return []
        before, after = self.accuracies(self._validation(), temperature)
        line = {"step": step + 1, "loss": loss, "temperature": temperature, "accuracy": before, "pruned_accuracy": after}
        self.curve.append(line)
        return [{"event": "validation", **line}]

    def _validation(self) -> Iterable[Batch]:
        return plain_batches(self.options, self.halves.data, "train", self.halves.validation)

    def _gradient(self, batch: Batch, temperature: float, wanted: Tensor) -> tuple[float, Tensor]:
        """The batch's loss and its gradient in ``wanted``, the weights or the architecture parameters."""
        w, a = (t.detach().requires_grad_(t is wanted) for t in (self.state.w, self.state.a))
        alive = self.network.active(a, temperature) if a.device.type == "cpu" else None
        loss = F.cross_entropy(self.network(w, a, batch.images, temperature, alive=alive), batch.labels)
        (gradient,) = torch.autograd.grad(loss, w if w.requires_grad else a)
        return float(loss.detach()), gradient

    def accuracies(self, batches: Iterable[Batch], temperature: float) -> tuple[float, float]:
        """Shares of images told right by the supernet, and by its genotype's network with the same weights."""
        networks: list[Classifier] = [self.network, self.network.discrete(self.state.a)]
        right, seen = [0, 0], 0
        with torch.no_grad():
            for batch in batches:
                seen += len(batch.labels)
                for k, network in enumerate(networks):
                    logits = network(self.state.w, self.state.a, batch.images, temperature)
                    right[k] += int((logits.argmax(1) == batch.labels).sum())
        return right[0] / seen, right[1] / seen

    def snapshot(self) -> Saved:
        spent = self.cpu_seconds + self._watch.read()[1]
        return {"curve": self.curve, "adam": self.state.adam.count, "cpu_seconds": spent}, self.state.tensors()

    def restore(self, saved: Saved) -> None:
        state, tensors = saved
        self.curve, self.cpu_seconds = state["curve"], state["cpu_seconds"]
        self.state.restore(tensors, state["adam"])

    def result(self) -> dict[str, Any]:
        """Accuracies before and after pruning on the test images, and the sizes of both networks."""
        options, temperature = self.options, self.temperature(self.options.steps)
        before, after = self.accuracies(test_batches(options), temperature)
        genotype = self.architecture.genotype(self.state.a)
        sizes = {"channels": options.channels, "cells": options.cells, "outputs": options.ways}
        alphas, _ = self.architecture.split(self.state.a)
        return {
            "accuracy": before,
            "pruned_accuracy": after,
            "lost": before - after,
            "parameters": len(self.state.w),
            "pruned_parameters": genotype_parameters(
                genotype, self.architecture.space, channels_in=self.halves.data.images.shape[1], **sizes
            ),
            "largest_weight": float(torch.softmax(alphas / temperature, -1).amax(-1).mean()),
            "cpu_seconds": round(self.cpu_seconds + self._watch.read()[1], 3),
            "curve": self.curve,
            "genotype": genotype.to_dict(),
        }


def halves(options: MetaNASOptions) -> Halves:
    """The two halves of the training images."""
    return Halves(
        DartsOptions(
            data=options.data,
            data_root=options.data_root,
            size=options.size,
            batch=options.batch,
            seed=options.seed,
            device=options.device,
        )
    )


def test_batches(options: MetaNASOptions) -> Iterable[Batch]:
    """The images of the test split."""
    data = load(options.data, options.data_root, options.size, splits=("test",)).to(options.device)
    return plain_batches(options, data, "test", data.members("test").order)


def plain_batches(options: MetaNASOptions, data: ImageSet, split: str, chosen: Tensor) -> Iterable[Batch]:
    """Images of a split as they are, in batches of the search's size, in a random order by address: norms take the statistics of
    the batch, and a batch of one class would have those of that class."""
    ids = torch.tensor(sorted(data.classes(split)), device=data.labels.device)
    order = permutation(len(chosen), stream(options.seed, "plain-order", split))
    for part in chosen[order].split(options.batch):
        images = normalise(data.images[part], data.mean, data.std).contiguous(memory_format=torch.channels_last)
        yield Batch(images, torch.searchsorted(ids, data.labels[part]))


def summary(variants: list[MetaNASOptions], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Table 3: what each strategy reaches and what pruning takes from it."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for variant, result in zip(variants, results, strict=True):
        groups.setdefault(variant.label, []).append(result)
    rows, plots = [], []
    for label, found in groups.items():
        figures = [_spread([100 * r[key] for r in found]) for key in ("accuracy", "pruned_accuracy", "lost")]
        largest = sum(r["largest_weight"] for r in found) / len(found)
        rows.append([label, len(found), *figures, f"{largest:.2f}", f"{sum(r['cpu_seconds'] for r in found) / len(found):.0f}"])
        for key, name in (("accuracy", label), ("pruned_accuracy", f"{label}, pruned")):
            plots.append({"name": name, "x": [p["step"] for p in found[0]["curve"]], "y": [p[key] for p in found[0]["curve"]]})
    columns = ["strategy", "seeds", "before pruning", "after pruning", "lost", "largest operation weight", "CPU s"]
    note = "Percent of the test images, mean over seeds ± standard error of the mean; the weight is the mean over edges."
    plot = {"title": "Validation half, first seed", "x_label": "steps", "y_label": "accuracy", "series": plots, "kind": "line"}
    title = "Accuracy of the one-shot network before and after pruning (Table 3)"
    facts = [{"variant": v.label, "seed": v.seed, **r} for v, r in zip(variants, results, strict=True)]
    return {"variants": facts, "tables": [{"title": title, "columns": columns, "rows": rows, "note": note}], "plots": [plot]}


def _spread(values: list[float]) -> str:
    numbers = torch.tensor(values, dtype=torch.float64)
    spread = f" ± {float(numbers.std()) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{float(numbers.mean()):.1f}{spread}"
