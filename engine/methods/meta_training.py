"""The outer loop that MAML, ANIL, BOIL and Meta-ticket share: tasks in, meta-gradients, updates, validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from engine.learning.ranks import GroupStop
from engine.learning.tasks import Task
from engine.methods.learning_options import OuterOptions
from engine.methods.meta_data import TaskSource
from engine.methods.meta_learner import Learner
from engine.runs.config import rewrite_config
from engine.runs.loop import steps

if TYPE_CHECKING:
    from engine.runs.run import Run

Options = TypeVar("Options", bound=OuterOptions)
TIMED_SHARE = 0.03  # of a budget in CPU seconds, spent on finding out how long a step takes


@dataclass
class Window:
    """Losses and accuracies of the outer steps since the last line of the log, (W, B), on the device."""

    losses: Tensor
    right: Tensor
    size: int
    batch: int
    filled: int = field(default=0)

    @classmethod
    def empty(cls, size: int, batch: int, like: Tensor) -> Window:
        """No steps yet."""
        return cls(like.new_zeros(size, batch), like.new_zeros(size, batch), size, batch)

    def add(self, facts: Tensor) -> None:
        """Shares of right answers and losses (2, B) of one outer step."""
        self.right[self.filled], self.losses[self.filled] = facts
        self.filled += 1

    def means(self) -> tuple[float, float]:
        """Mean loss and accuracy; starts a new window."""
        loss, right = float(self.losses[: self.filled].mean()), float(self.right[: self.filled].mean())
        self.filled = 0
        return loss, right


def settle_length(options: Options, build: Callable[[Options], Learner], source: TaskSource, run: Run) -> Options:
    """The options with a number of outer steps.

    CPU seconds are turned into one by the lead of the ranks, who times steps of a learner that is thrown away, and written to
    config.toml.
    """
    if options.cpu_seconds is None:
        return options
    steps = run.ranks.share("iterations", timed_steps(build(options), source, options.cpu_seconds) if run.ranks.lead else 0)
    settled = replace(options, iterations=steps, cpu_seconds=None)
    rewrite_config(run, settled)
    return settled


def timed_steps(learner: Learner, source: TaskSource, seconds: float) -> int:
    """Outer steps that take ``seconds`` of this process with the time spent here, at least one."""

    def advance(step: int) -> None:
        learner.step(source.draw("train", learner.options.batch, (step,)), step, lambda chunk: None)

    advance(0)  # loads libraries and takes memory
    started, done = time.process_time(), 0
    while time.process_time() - started < TIMED_SHARE * seconds or done < 3:
        done += 1
        advance(done)
    each = (time.process_time() - started) / done
    return max(1, round((1 - TIMED_SHARE) * seconds / each))


def train(learner: Learner, source: TaskSource, run: Run, stop: Any, progress: Any) -> list[dict[str, Any]]:
    """Run the outer loop; returns the lines of metrics.jsonl. What memory or the number of ranks decides is written down."""
    options = learner.options
    window = Window.empty(options.validate_every, options.batch, learner.meta)
    done, curve = _restore(run, learner, window)
    group = GroupStop(stop, run.ranks)

    def snapshot() -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {**learner.tensors, "losses": window.losses, "right": window.right}
        return {"curve": curve, "filled": window.filled}, tensors

    def halved(chunk: int) -> None:
        rewrite_config(run, replace(options, task_chunk=chunk))
        bar.note(f"out of memory: going on with {chunk} tasks at a time")

    if run.ranks.world > 1:
        rewrite_config(run, replace(options, task_chunk=learner.piece))
    with progress(options.iterations, "outer steps", done=done) as bar:
        for step in steps(run, group, snapshot, start=done, total=options.iterations):
            tasks = source.draw("train", options.batch, (step,))
            facts, asked = learner.step(tasks, step, halved, group.own)
            group.agree(asked)
            window.add(facts)
            done = step + 1
            if done % options.validate_every == 0 or done == options.iterations:
                curve.append(_line(learner, source, window, tasks, done))
                run.append("metrics.jsonl", curve[-1])
            bar.advance(1, **_shown(curve))
    return curve


def _shown(curve: list[dict[str, Any]]) -> dict[str, float]:
    """What the progress bar says."""
    return {name: curve[-1][f"train_{name}"] for name in ("accuracy", "loss") if curve and f"train_{name}" in curve[-1]}


def _restore(run: Run, learner: Learner, window: Window) -> tuple[int, list[dict[str, Any]]]:
    loaded = run.load()
    if loaded is None:
        return 0, []
    state, tensors = loaded
    for name, tensor in {**learner.tensors, "losses": window.losses, "right": window.right}.items():
        tensor.copy_(tensors[name])
    window.filled = state["filled"]
    return state["step"], state["curve"]


def _line(learner: Learner, source: TaskSource, window: Window, tasks: Task, done: int) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    options = learner.options
    loss, accuracy = window.means()
    line: dict[str, Any] = {"event": "validation", "step": done, "train_loss": loss}
    if not learner.problem.regression:
        line["train_accuracy"] = accuracy
    if source.validates:
        found = learner.test(source, "val", options.validation_tasks, (done,))
        line |= {f"validation_{name}": value for name, value in found.to_dict().items()}
    sparsity = learner.sparsity()
    line["task_gradient"] = raw = learner.task_gradient(tasks)
    if sparsity:
        last = [share for name, share in sparsity.items() if not name.startswith("classifier")][-1]
        line |= {"task_gradient_kept": raw / (1 - last) if last < 1 else math.nan, "sparsity": sparsity}
    return line
