"""Tasks of a MetaNAS run and what is measured on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.data import ImageSet, load
from engine.learning.architecture_task import Learned, Moments, Supports, TaskLearner, TaskRule, predictions
from engine.learning.tasks import Task, image_tasks
from engine.methods.metanas_networks import Learner
from engine.methods.metanas_options import MetaNASOptions
from engine.runs.streams import stream
from engine.spaces.metanas import pruned_parameters

Address = tuple[int | str, ...]
Z_95 = 1.96


def load_data(options: MetaNASOptions) -> ImageSet:
    """The splits that the run needs, on its device."""
    splits = ["train", *(["val"] if options.validation_tasks else []), options.eval_split]
    data = load(options.data, options.data_root, options.size, splits=tuple(dict.fromkeys(splits)))
    return data.to(options.device)


def drawn(options: MetaNASOptions, data: ImageSet, split: str, *, shots: int, tasks: int, address: Address) -> Task:
    """Tasks of a split, by address."""
    return image_tasks(
        data,
        split,
        ways=options.ways,
        shots=shots,
        queries=options.queries,
        tasks=tasks,
        seed=options.seed,
        address=address,
    )


def supports(options: MetaNASOptions, task: Task, batch: int, address: Address) -> Supports:
    """The tasks' support sets with draws of ``batch`` images with replacement; all of them where they are no more."""
    count = task.support_x.shape[1]

    def generator(t: int, step: int, purpose: str) -> torch.Generator:
        return stream(options.seed, "drop-path", *address, t, step, purpose)

    def draw(t: int, step: int, purpose: str) -> Tensor | None:
        if batch >= count:
            return None
        index = torch.randint(count, (batch,), generator=stream(options.seed, "batches", *address, t, step, purpose))
        return index.to(task.support_x.device)

    return Supports(task.support_x, task.support_y, draw, generator)


def rules(options: MetaNASOptions) -> tuple[TaskRule, TaskRule]:
    """How tasks are learned in meta-training (after the warm-up) and in meta-testing."""
    t_max, t_min = options.temperatures
    shared: dict[str, Any] = {
        "rate": options.rate,
        "architecture_rate": options.architecture_rate,
        "decay": options.decay,
        "architecture_decay": options.architecture_decay,
        "t_max": t_max,
        "t_min": t_min,
        "alternating": options.faithful or options.update == "alternating",
    }
    searched = options.steps if options.searches else 0
    train = TaskRule(steps=options.steps, architecture_steps=searched, drop_path=options.drop_path, **shared)
    return train, TaskRule(steps=options.test_steps, architecture_steps=options.test_architecture, **shared)


def tested(
    options: MetaNASOptions,
    data: ImageSet,
    learner: Learner,
    adapting: TaskLearner,
    start: tuple[Tensor, Tensor],
    moments: Moments,
    split: str,
    address: Address,
    also: Callable[[Learned, Supports, Tensor, Tensor], dict[str, Any]],
) -> dict[str, Any]:
    """One test task: its accuracy as it was learned, and as its genotype's network with the same weights, without retraining.

    ``parameters`` are those of the operations that weigh at least the threshold; ``pruned_parameters`` those of the genotype. The
    optimiser starts from the meta-training's moments and is forgotten after the task. ``also`` adds to the record.
    """
    task = drawn(options, data, split, shots=options.shots, tasks=1, address=address)
    _, rule = rules(options)
    given = supports(options, task, options.test_batch, address)
    found = adapting.learn(start, moments, given, rule)
    weights, alphas = found.weights[0], found.alphas[0]
    temperature = rule.temperature(rule.steps)
    x, y = task.query_x[0], task.query_y[0]
    both = (task.support_x[0], x)
    alive = learner.test.active(alphas, temperature)
    logits = predictions(learner.test, weights, alphas, temperature, *both, transductive=options.transductive, alive=alive)
    record: dict[str, Any] = {"accuracy": _share(logits, y), **also(found, given, logits, y)}
    if learner.searched is not None:
        pruned = learner.searched.discrete(alphas)
        logits = predictions(learner.extracted(pruned), weights, alphas, temperature, *both, transductive=options.transductive)
        sizes = {"channels": options.channels, "outputs": options.ways, "cells": options.cells, "channels_in": x.shape[1]}
        count = pruned_parameters(learner.searched.architecture, alphas, temperature, **sizes)
        record |= {"pruned_accuracy": _share(logits, y), "parameters": count + learner.extractor_parameters}
        record["pruned_parameters"] = pruned.parameters(**sizes) + learner.extractor_parameters
        record["operations"] = dict(
            sorted(Counter(c.operation for _, cell in pruned.genotype.cells for c in cell.connections).items())
        )
    return record


def _share(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(-1) == labels).double().mean())


def interval(values: list[float]) -> dict[str, float]:
    """Mean, half width of its normal 95 % interval over tasks, and standard deviation; one value has no interval (NaN)."""
    numbers = torch.tensor(values, dtype=torch.float64)
    deviation = float(numbers.std()) if len(values) > 1 else float("nan")
    return {"mean": float(numbers.mean()), "interval": Z_95 * deviation / len(values) ** 0.5, "deviation": deviation}
