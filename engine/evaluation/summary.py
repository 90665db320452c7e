"""What a training leaves in result.json: numbers, and the tables and plots of its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from engine.evaluation.options import RFSOptions
from engine.evaluation.protocol import Protocol
from engine.runs.records import read_run
from engine.spaces.cost import count_module

NOTE = (
    "Percent of queries told right: mean over {tasks} tasks ± 95 % interval (1.96 standard errors over tasks; "
    "the seed of the training is not in it)."
)


def summary(
    options: RFSOptions, protocol: Protocol, network: nn.Module, state: dict[str, Any], directory: Path
) -> dict[str, Any]:
    """The result of a finished training; parameters are counted without the linear head of the training classes."""
    tests = state["tests"]
    best = tests[0]["accuracies"][0]
    return {
        "network": options.network,
        "accuracy": best["mean"],
        "interval": best["interval"],
        "accuracy_of": f"{tests[0]['kind']}, {best['classifier']}",
        **size(network, protocol.data.images, head=False),
        **effort(int(options.steps or 0), options.batch, state["cpu_seconds"]),
        "tests": tests,
        "tables": [accuracy_table(tests), *confusion_tables(tests)],
        "plots": training_plots(read_run(directory, scores=False).metrics),
    }


def size(network: nn.Module, images: Tensor, *, head: bool) -> dict[str, Any]:
    """Parameters and FLOPs of one image of the network that answers, ``head`` with its linear classifier; never with an auxiliary
    tower."""
    cost = count_module(network.eval(), torch.zeros(1, *images.shape[1:], device=images.device))
    classifier, tower = cast(nn.Linear, network.classifier), getattr(network, "auxiliary", None)
    left_out = [] if head else [*classifier.parameters()]
    left_out += [] if tower is None else [*tower.parameters()]
    return {
        "parameters": cost.parameters - sum(p.numel() for p in left_out),
        "flops": cost.flops - (0 if head else 2 * classifier.weight.numel()),
        "features": classifier.in_features,
        "train_classes": classifier.out_features,
    }


def effort(steps: int, batch: int, seconds: float) -> dict[str, Any]:
    """What a training took."""
    seen = steps * batch
    return {
        "steps": steps,
        "images_seen": seen,
        "images_per_cpu_second": round(seen / seconds, 1) if seconds else None,
        "cpu_seconds": round(seconds, 3),
    }


def accuracy_table(tests: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy by kind of task, a column for each classifier."""
    names = [part["classifier"] for part in tests[0]["accuracies"]]
    rows = [[test["kind"], *(percent(part) for part in test["accuracies"])] for test in tests]
    note = NOTE.format(tasks=tests[0]["tasks"])
    return {"title": "Few-shot accuracy", "columns": ["tasks", *names], "rows": rows, "note": note}


def percent(accuracy: dict[str, Any]) -> str:
    """``93.3 ± 0.2`` of a mean and an interval in shares."""
    return f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['interval']:.1f}"


def confusion_tables(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The classes that are confused most in the first kind of task, if any are."""
    pairs = tests[0]["confused"]
    if not pairs:
        return []
    rows = [[pair["class"], pair["taken for"], f"{100 * pair['share']:.0f} %"] for pair in pairs]
    note = "Share of the first class's queries in tasks that hold both."
    title = f"Most confused classes, {tests[0]['kind']}"
    return [{"title": title, "columns": ["class", "taken for", "how often"], "rows": rows, "note": note}]


def training_plots(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Loss, accuracy and learning rate of the training images, as the network was trained."""
    lines = [record for record in records if record.get("event") == "train"]
    steps = [record["step"] for record in lines]
    return [
        {
            "title": title,
            "x_label": "step",
            "y_label": name,
            "series": [{"name": "", "x": steps, "y": [record[name] for record in lines]}],
        }
        for title, name in (("Training loss", "loss"), ("Training accuracy", "accuracy"), ("Learning rate", "rate"))
    ]
