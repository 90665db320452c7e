"""The outer loop that MAML, ANIL, BOIL and Meta-ticket share: tasks in, meta-gradients, updates, validation, test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.data import ImageSet, load
from engine.errors import ConfigurationError, NumericalError
from engine.learning.evaluation import Accuracy, evaluate, support_predict, with_steps
from engine.learning.flat import Layout
from engine.learning.inner import SGD, Params, adapt
from engine.learning.masked_mlp import is_written_out, mlp_batch
from engine.learning.masking import MaskedNetwork
from engine.learning.outer import ManyTasks, Problem, Sums, looped, meta_gradient, vmapped
from engine.learning.outer_update import AdamW, Momentum, OuterUpdate
from engine.learning.schedules import constant, warmup_cosine
from engine.learning.tasks import Task, image_tasks
from engine.methods.learning_options import LearningOptions
from engine.runs.config import rewrite_config
from engine.runs.loop import steps
from engine.runs.streams import stream
from engine.spaces.networks import build_network, initialise

if TYPE_CHECKING:
    from engine.runs.run import Run

TASKS_AT_ONCE = 25
PROTOCOLS = {
    "transductive": "BatchNorm statistics of all queries of the task (transductive, as published)",
    "support": "BatchNorm statistics of the support only",
}


def load_tasks(options: LearningOptions) -> ImageSet:
    """The data set on its device, square; a split that cannot give a task is refused.

    Omniglot's turned classes are there in every split, the published protocol of these methods (reference note meta-ticket,
    section 8).
    """
    data = _load(options, options.data, options.size)
    for split in ("train", *(("val",) if validates(options, data) else ()), options.test_split):
        draw_tasks(options, data, split, 1, ("check",))
    return data


def load_others(options: LearningOptions, data: ImageSet) -> dict[str, ImageSet]:
    """The further data sets to be tested on, in the size of ``data``; another number of channels is refused."""
    found = {}
    for name in options.others:
        found[name] = other = _load(options, name, data.images.shape[-1])
        if other.images.shape[1] != data.images.shape[1]:
            channels = f"{other.images.shape[1]} channels, {options.data} has {data.images.shape[1]}"
            raise ConfigurationError(f"--also-test: {name} has {channels}; name sets of as many channels")
        draw_tasks(options, other, options.test_split, 1, ("check",))
    return found


def _load(options: LearningOptions, name: str, size: int | None) -> ImageSet:
    turned = ("train", "val", "test") if name == "omniglot" else None
    data = load(name, options.data_root, size, rotations=turned)
    return data.resized(min(data.images.shape[-2:])).to(options.device)


def validates(options: LearningOptions, data: ImageSet) -> bool:
    """Whether there are classes to validate on, and it is asked for."""
    return bool(data.class_splits.get("val")) and options.validation_tasks > 0 and options.test_split != "val"


def draw_tasks(options: LearningOptions, data: ImageSet, split: str, count: int, address: tuple[int | str, ...]) -> Task:
    """Tasks of a split by address."""
    return image_tasks(
        data,
        split,
        ways=options.ways,
        shots=options.shots,
        queries=options.query_shots,
        tasks=count,
        seed=options.seed,
        address=(split, *address),
    )


def draw_network(options: LearningOptions, data: ImageSet) -> tuple[nn.Module, Params]:
    """The network, on the meta device, and initial values of its parameters from ``stream(seed, "network")``."""
    channels, _, size = data.images.shape[1:]
    with torch.device("meta"):
        model = build_network(options.network, outputs=options.ways, channels_in=channels, size=size, factor=options.factor)
    drawn = model.to_empty(device="cpu")
    initialise(drawn, stream(options.seed, "network"))
    values = {name: value.detach().to(options.device) for name, value in drawn.named_parameters()}
    return drawn.to("meta"), values


def make_update(options: LearningOptions, parameters: Tensor) -> OuterUpdate:
    """The outer optimiser of these options."""
    if options.outer == "adamw":
        return AdamW.zeros(parameters, constant(options.outer_rate_adamw))
    schedule = warmup_cosine(options.outer_rate_sgd, warmup=options.warmup, total=options.iterations)
    return Momentum(torch.zeros_like(parameters), schedule)


class Learner:
    """Meta-parameters and the rest, each in one buffer, and everything that moves them.

    ``effective`` makes the module's parameters of ``params``; ``after(params, step)`` is called after outer step number ``step``,
    counted from 1.
    """

    def __init__(
        self,
        options: LearningOptions,
        problem: Problem,
        module: nn.Module,
        params: Params,
        network: MaskedNetwork | None = None,
        after: Callable[[Params, int], None] | None = None,
    ) -> None:
        self.options, self.problem, self.module, self.network, self.after = options, problem, module, network, after
        learned = {name: params[name] for name in problem.learned}
        rest = {name: value for name, value in params.items() if name not in learned}
        self.layout = Layout.of(learned)
        self.meta = self.layout.pack(learned)
        self.fixed = Layout.of(rest).pack(rest) if rest else self.meta.new_zeros(0)
        self.params = self.layout.views(self.meta) | (Layout.of(rest).views(self.fixed) if rest else {})
        self.gradient = torch.zeros_like(self.meta)
        self.update = make_update(options, self.meta)
        self.run = self._way()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds; all are updated in place."""
        return {"meta": self.meta, "fixed": self.fixed, **self.update.state}

    @property
    def together(self) -> bool:
        """Whether tasks run as one batch: MLPs always, convolutions on a GPU; on a CPU a loop measured faster for those."""
        return is_written_out(self.problem, self.module) or self.options.device == "cuda"

    def _way(self) -> ManyTasks:
        if is_written_out(self.problem, self.module):
            return mlp_batch(self.problem, self.module, self.network)
        return vmapped(self.problem) if self.together else looped(self.problem)

    def step(self, tasks: Task, step: int, chunk: int | None, halved: Callable[[int], None]) -> Sums:
        """One outer step; no synchronisation with the device."""
        sums = meta_gradient(self.run, self.params, tasks, chunk=chunk, halved=halved)
        for name, view in self.layout.views(self.gradient).items():
            view.copy_(sums.gradients[name])
        self.update.step(self.meta, self.gradient, step)
        if self.after is not None:
            self.after(self.params, step + 1)
        return sums

    def test(self, data: ImageSet, split: str, count: int, address: tuple[int | str, ...]) -> Accuracy:
        """Accuracy over ``count`` tasks of a split, under the protocol of the options."""
        options = self.options
        shared = None
        if options.statistics == "support":
            effective = (lambda p: p) if self.network is None else self.network.effective
            shared = support_predict(self.module, options.ways * options.shots, effective)
        problem = with_steps(self.problem, options.steps(training=False))

        def batches() -> Iterator[Task]:
            for first in range(0, count, TASKS_AT_ONCE):
                yield draw_tasks(options, data, split, min(TASKS_AT_ONCE, count - first), (*address, first))

        return evaluate(problem, self.params, batches(), together=self.together, shared=shared)

    def task_gradient(self, tasks: Task) -> float:
        """Mean |sum over inner steps of the gradient| of the last feature layer's weight, averaged over tasks (Figure 2)."""
        name = [n for n, p in self.module.named_parameters() if p.ndim > 1 and not n.startswith("classifier")][-1]
        if self.problem.rates.get(name, 0.0) == 0.0:
            return 0.0
        sizes = []
        for t in range(len(tasks.support_y)):
            learner = adapt(self.problem.loss, self.params, tasks.take(t).support, self.problem.steps, SGD(self.problem.rates))
            sizes.append(learner.gradients[name].abs().mean())
        return float(torch.stack(sizes).mean())

    def sparsity(self) -> dict[str, float]:
        """Pruned share by layer; empty where nothing is masked."""
        return {} if self.network is None else self.network.sparsity(self.params)


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

    def add(self, sums: Sums, tasks: Task) -> None:
        """One outer step."""
        self.losses[self.filled] = sums.losses.detach()
        self.right[self.filled] = (sums.outputs.argmax(-1) == tasks.query_y).to(self.right.dtype).mean(-1)
        self.filled += 1

    def check(self, step: int, meta: Tensor) -> None:
        """Raise :class:`NumericalError` if something since the last line is not finite; ``step`` steps are done."""
        bad = (~self.losses[: self.filled].isfinite()).nonzero()
        if len(bad):
            row, task = bad[0].tolist()
            where = f"outer step {step - self.filled + row + 1}, task {task + 1} of {self.batch}"
            raise NumericalError(
                f"the loss is not finite at {where}; lower the learning rates and resume the last good checkpoint"
            )
        if not meta.isfinite().all():
            raise NumericalError(f"meta-parameters are not finite after outer step {step}; lower the outer learning rate")

    def means(self) -> tuple[float, float]:
        """Mean loss and accuracy; starts a new window."""
        loss, right = float(self.losses[: self.filled].mean()), float(self.right[: self.filled].mean())
        self.filled = 0
        return loss, right


def train(learner: Learner, data: ImageSet, run: Run, stop: Any, progress: Any) -> tuple[list[dict[str, Any]], LearningOptions]:
    """Run the outer loop; returns the lines of metrics.jsonl and the options, whose task chunk may have been halved."""
    options = learner.options
    window = Window.empty(options.validate_every, options.batch, learner.meta)
    state, curve = _restore(run, learner, window)

    def snapshot() -> tuple[dict[str, Any], dict[str, Tensor]]:
        window.check(done, learner.meta)
        tensors = {**learner.tensors, "losses": window.losses, "right": window.right}
        return {"curve": curve, "filled": window.filled}, tensors

    def halved(chunk: int) -> None:
        nonlocal options
        options = replace(options, task_chunk=chunk)
        rewrite_config(run, options)
        bar.note(f"out of memory: going on with {chunk} tasks at a time")

    done = state
    with progress(options.iterations, "outer steps", done=done) as bar:
        for step in steps(run, stop, snapshot, start=done, total=options.iterations):
            tasks = draw_tasks(options, data, "train", options.batch, (step,))
            window.add(learner.step(tasks, step, options.task_chunk, halved), tasks)
            done = step + 1
            if done % options.validate_every == 0 or done == options.iterations:
                window.check(done, learner.meta)
                curve.append(_line(learner, data, window, tasks, done))
                run.append("metrics.jsonl", curve[-1])
            bar.advance(1, **({"accuracy": curve[-1]["train_accuracy"]} if curve else {}))
    return curve, options


def _restore(run: Run, learner: Learner, window: Window) -> tuple[int, list[dict[str, Any]]]:
    loaded = run.load()
    if loaded is None:
        return 0, []
    state, tensors = loaded
    for name, tensor in {**learner.tensors, "losses": window.losses, "right": window.right}.items():
        tensor.copy_(tensors[name])
    window.filled = state["filled"]
    return state["step"], state["curve"]


def _line(learner: Learner, data: ImageSet, window: Window, tasks: Task, done: int) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    options = learner.options
    loss, accuracy = window.means()
    line: dict[str, Any] = {"event": "validation", "step": done, "train_loss": loss, "train_accuracy": accuracy}
    if validates(options, data):
        found = learner.test(data, "val", options.validation_tasks, (done,))
        line |= {f"validation_{name}": value for name, value in found.to_dict().items()}
    sparsity = learner.sparsity()
    line["task_gradient"] = raw = learner.task_gradient(tasks)
    if sparsity:
        last = [share for name, share in sparsity.items() if not name.startswith("classifier")][-1]
        line |= {"task_gradient_kept": raw / (1 - last) if last < 1 else math.nan, "sparsity": sparsity}
    return line
