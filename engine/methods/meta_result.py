"""What a meta-learner leaves in result.json: its test accuracy with the protocol, and its curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.learning.evaluation import Tested
from engine.methods.learning_options import LearningOptions
from engine.methods.meta_data import TaskSource
from engine.methods.meta_learner import Learner
from engine.runs.stopwatch import Stopwatch

PROTOCOLS = {
    "transductive": "BatchNorm statistics of all queries of the task (transductive, as published)",
    "support": "BatchNorm statistics of the support only",
}


def finish(
    learner: Learner,
    options: LearningOptions,
    curve: list[dict[str, Any]],
    sources: Mapping[str, TaskSource],
    stop: Any,
    watch: Stopwatch,
) -> dict[str, Any]:
    """Test on every data set, the first being that of the training, and say what came of the run."""
    split, count = options.test_split, options.test_tasks
    tests = {name: learner.test(source, split, count, (), stop) for name, source in sources.items()}
    sparsity = learner.sparsity()
    masked = {"masked_weights": sum(learner.params[name].numel() for name in sparsity), "sparsity": sparsity}
    seconds, cpu_seconds, _ = watch.read()
    return {
        **tests[options.data].to_dict(),
        "protocol": protocol(options),
        "outer_steps": options.iterations,
        "learned_parameters": learner.layout.size,
        **(masked if sparsity else {}),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "plots": plots(curve),
        "tables": [table(options, tests)],
        "tests": {name: {**found.to_dict(), "each": found.right} for name, found in tests.items()},
    }


def protocol(options: LearningOptions) -> str:
    """How the test was done, in words."""
    steps = options.steps(training=False)
    return (
        f"{options.ways}-way {options.shots}-shot, {options.query_shots} queries a class, {options.test_tasks} tasks of the "
        f"{options.test_split} classes, {steps} inner step{'s' if steps > 1 else ''}, {PROTOCOLS[options.statistics]}; "
        "95 % interval over tasks"
    )


def table(options: LearningOptions, tests: Mapping[str, Tested]) -> dict[str, Any]:
    """The tests as a table, one row a data set."""
    rows = []
    for name, found in tests.items():
        test = found.to_dict()
        percents = [round(100 * test[key], 2) for key in ("accuracy", "interval")]
        rows.append([name, *percents, round(test["loss"], 4), test["tasks"]])
    columns = ["data", "accuracy %", "95 % interval", "loss", "tasks"]
    return {"title": f"Learned from {options.data}, tested on tasks of unseen classes", "columns": columns, "rows": rows}


def plots(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy, task gradients (Figure 2) and sparsity by outer step."""
    if not curve:
        return []
    at = [line["step"] for line in curve]
    accuracy = [_series("training", at, [100 * line["train_accuracy"] for line in curve])]
    if "validation_accuracy" in curve[0]:
        mean = [100 * line["validation_accuracy"] for line in curve]
        half = [100 * line["validation_interval"] for line in curve]
        band = {"low": [m - h for m, h in zip(mean, half, strict=True)], "high": [m + h for m, h in zip(mean, half, strict=True)]}
        accuracy.append(_series("validation", at, mean) | band)
    gradients = [_series("mean over all weights", at, [line["task_gradient"] for line in curve])]
    drawn = [("Accuracy", "accuracy %", accuracy), ("Task gradients of the last feature layer", "mean absolute value", gradients)]
    if "sparsity" in curve[0]:
        gradients.append(_series("mean over kept weights", at, [line["task_gradient_kept"] for line in curve]))
        layers = [_series(name, at, [100 * line["sparsity"][name] for line in curve]) for name in curve[0]["sparsity"]]
        drawn.append(("Sparsity", "pruned %", layers))
    return [
        {"title": title, "x_label": "outer step", "y_label": label, "series": series, "kind": "line"}
        for title, label, series in drawn
    ]


def _series(name: str, x: list[int], y: list[float]) -> dict[str, Any]:
    return {"name": name, "x": x, "y": y}
