"""What a meta-learner leaves in result.json: its test accuracy with the protocol, and its curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.learning.evaluation import Tested
from engine.methods.learning_options import LearningOptions
from engine.methods.meta_data import ImageTasks
from engine.methods.meta_learner import Learner
from engine.runs.bitmaps import MAX_SIDE, svg, to_bits
from engine.runs.stopwatch import Stopwatch

if TYPE_CHECKING:
    from engine.runs.run import Run

UNITS = 24  # whose masks are drawn
PROTOCOLS = {
    "transductive": "BatchNorm statistics of all queries of the task (transductive, as published)",
    "support": "BatchNorm statistics of the support only",
}


def finish(
    learner: Learner,
    options: LearningOptions,
    curve: list[dict[str, Any]],
    sources: Mapping[str, ImageTasks],
    run: Run,
    stop: Any,
    watch: Stopwatch,
) -> dict[str, Any]:
    """Test on every data set, the first being that of the training, and say what came of the run."""
    split, count = options.test_split, options.test_tasks
    tests = {name: learner.test(source, split, count, (), stop) for name, source in sources.items()}
    pictures = mask_pictures(learner, *sources[options.data].data.images.shape[1:3])
    for group in pictures:
        run.write_text("masks.svg", svg(group) or "")
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
        "pictures": pictures,
        "tables": [table(options, tests)],
        "tests": tested(tests),
    }


def tested(tests: Mapping[str, Tested]) -> dict[str, Any]:
    """The tests with what came of each task: its accuracy, or in a regression its error."""
    return {name: {**found.to_dict(), "each": found.right or found.losses} for name, found in tests.items()}


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


def mask_pictures(learner: Learner, channels: int, size: int) -> list[dict[str, Any]]:
    """Masks of the first units of a masked MLP as pictures of its images, light where a weight is kept (Figure 4).

    Channels of colour images lie below one another.
    """
    name = "features.0.linear.weight"
    if learner.network is None or name not in learner.network.names or channels * size > MAX_SIDE:
        return []
    masks = learner.network.masks(learner.params)[name][:UNITS].tolist()
    title = "Masks of the first layer's units"
    return [{"title": title, "width": size, "height": channels * size, "bits": [to_bits(mask) for mask in masks]}]


def plots(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy, task gradients (Figure 2) and sparsity by outer step."""
    if not curve:
        return []
    at = [line["step"] for line in curve]
    name, label, scale = ("accuracy", "accuracy %", 100) if "train_accuracy" in curve[0] else ("loss", "loss", 1)
    scores = [_series("training", at, [scale * line[f"train_{name}"] for line in curve])]
    if f"validation_{name}" in curve[0]:
        mean = [scale * line[f"validation_{name}"] for line in curve]
        half = [scale * line["validation_interval"] for line in curve]
        band = {"low": [m - h for m, h in zip(mean, half, strict=True)], "high": [m + h for m, h in zip(mean, half, strict=True)]}
        scores.append(_series("validation", at, mean) | band)
    gradients = [_series("mean over all weights", at, [line["task_gradient"] for line in curve])]
    drawn = [(name.capitalize(), label, scores), ("Task gradients of the last feature layer", "mean absolute value", gradients)]
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
