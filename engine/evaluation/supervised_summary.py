"""What an ordinary classification leaves in result.json: numbers, and the tables and plots of its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from engine.data.image_set import ImageSet
from engine.evaluation.intervals import wilson
from engine.evaluation.summary import effort, size, training_plots
from engine.evaluation.supervised_options import SupervisedOptions
from engine.runs.records import read_run

MOST_CLASSES = 20  # of a whole confusion matrix
WORST = 10  # pairs of classes that a result lists


def summary(
    options: SupervisedOptions,
    data: ImageSet,
    network: nn.Module,
    state: dict[str, Any],
    taken: Tensor,
    first: int,
    directory: Path,
) -> dict[str, Any]:
    """The result of a finished training; ``taken`` (K, K) counts answers by class, ``first`` those among the five best scores."""
    total, right = int(taken.sum()), int(taken.trace())
    low, high = wilson(right, total)
    names = [data.class_names[k] for k in data.members("test").classes.tolist()]
    return {
        "network": options.network,
        "accuracy": right / total,
        "low": low,
        "high": high,
        "error": 1 - right / total,
        "top5": first / total,
        "test_images": total,
        "train_images": len(data.members("train").order),
        **size(network, data.images, head=True),
        **effort(int(options.steps or 0), options.batch, state["cpu_seconds"]),
        "tables": [accuracy_table(right, first, total), *confusion_tables(taken, names)],
        "plots": training_plots(read_run(directory, scores=False).metrics),
    }


def accuracy_table(right: int, first: int, total: int) -> dict[str, Any]:
    """Accuracy and error in percent, by the first answer and by the first five."""
    rows = []
    for name, count in (("first answer", right), ("first five", first)):
        low, high = wilson(count, total)
        interval = f"{100 * low:.2f} to {100 * high:.2f}"
        rows.append([name, f"{100 * count / total:.2f}", interval, f"{100 * (1 - count / total):.2f}"])
    note = f"Percent of {total} test images; Wilson's 95 % interval over images. The seed of the training is not in it."
    return {"title": "Accuracy on held-out images", "columns": ["", "accuracy", "interval", "error"], "rows": rows, "note": note}


def confusion_tables(taken: Tensor, names: list[str]) -> list[dict[str, Any]]:
    """The whole matrix where it is small, and the pairs of classes that are confused most."""
    shares = taken.double() / taken.sum(1, keepdim=True).clamp(min=1)
    tables = []
    if len(names) <= MOST_CLASSES:
        rows = [[name, *(f"{100 * share:.0f}" for share in row)] for name, row in zip(names, shares.tolist(), strict=True)]
        note = "Percent of the images of the row's class that were taken for the column's."
        tables.append({"title": "Confusion between classes", "columns": ["", *names], "rows": rows, "note": note})
    wrong = shares.clone().fill_diagonal_(0.0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:WORST].tolist()
    pairs = [divmod(place, len(names)) for place in order if float(wrong.flatten()[place]) > 0]
    if pairs:
        worst = [[names[a], names[b], f"{100 * float(wrong[a, b]):.0f} %"] for a, b in pairs]
        tables.append({"title": "Most confused classes", "columns": ["class", "taken for", "how often"], "rows": worst})
    return tables
