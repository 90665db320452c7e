"""What a training leaves in result.json: numbers, and the tables and plots of its report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from engine.evaluation.options import FewShotTestOptions
from engine.evaluation.protocol import Protocol
from engine.runs.records import read_run
from engine.spaces.cost import count_module

NOTE = (
    "Percent of queries told right: mean over {tasks} tasks ± 95 % interval (1.96 standard errors over tasks; "
    "the seed of the training is not in it)."
)


def summary(
    options: FewShotTestOptions,
    protocol: Protocol,
    network: nn.Module,
    state: dict[str, Any],
    directory: Path,
    *,
    steps: int,
    batch: int,
) -> dict[str, Any]:
    """The result of a finished training of ``steps`` batches; parameters are counted without the linear head."""
    tests = state["tests"]
    best = tests[0]["accuracies"][0]
    return {
        "network": options.network,
        "accuracy": best["mean"],
        "interval": best["interval"],
        "accuracy_of": f"{tests[0]['kind']}, {best['classifier']}",
        **size(network, protocol.data.images, head=False),
        **effort(steps, batch, state["cpu_seconds"]),
        "tests": tests,
        "tables": [accuracy_table(tests), *confusion_tables(tests)],
        "plots": [*shot_plots(tests), *training_plots(read_run(directory, scores=False).metrics)],
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
        "input": list(images.shape[1:]),
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
    """The classes that are confused most in the first kind of task, if any are, and the whole matrix where it is small."""
    first, tables = tests[0], []
    if first["confused"]:
        rows = [[pair["class"], pair["taken for"], f"{100 * pair['share']:.0f} %"] for pair in first["confused"]]
        note = "Share of the first class's queries in tasks that hold both."
        title = f"Most confused classes, {first['kind']}"
        tables.append({"title": title, "columns": ["class", "taken for", "how often"], "rows": rows, "note": note})
    if "confusion" in first:
        names, shares = first["confusion"]["classes"], first["confusion"]["shares"]
        rows = [[name, *(f"{100 * share:.0f}" for share in row)] for name, row in zip(names, shares, strict=True)]
        note = "Percent of the queries of the row's class that were taken for the column's, in tasks that hold both."
        title = f"Confusion between classes, {first['kind']}"
        tables.append({"title": title, "columns": ["", *names], "rows": rows, "note": note})
    return tables


def shot_plots(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy by the number of shots, a line for each number of ways, with intervals over tasks; nothing for a single kind."""
    series: dict[str, dict[str, Any]] = {}
    for test in tests:
        ways, shots, where = re.fullmatch(r"(\d+-way) (\d+)-shot ?(.*)", test["kind"]).groups()  # type: ignore[union-attr]
        name = f"{ways} {where}".rstrip()
        line = series.setdefault(name, {"name": name, "x": [], "y": [], "low": [], "high": []})
        best = test["accuracies"][0]
        values = (int(shots), *(100 * (best["mean"] + side * best["interval"]) for side in (0, -1, 1)))
        for key, value in zip(("x", "y", "low", "high"), values, strict=True):
            line[key].append(value)
    if len(tests) < 2:
        return []
    y_label = f"percent, {tests[0]['accuracies'][0]['classifier']}"
    return [{"title": "Accuracy by shots", "x_label": "shots", "y_label": y_label, "series": list(series.values())}]


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
