"""Meta-training as an alternative to supervised pretraining: MAML, ANIL, Reptile or Meta-ticket on any network.

The inner and outer loops are those of :mod:`engine.learning`. Batch norm takes the statistics of the images at hand while tasks
are learned; afterwards its running statistics are measured on images of the training classes, so that the test is the same as
after supervised training: frozen features in inference mode and a linear classifier for each task.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_

from engine.data.augment import normalise
from engine.data.episodes import sample_episodes, sample_images
from engine.data.image_set import ImageSet
from engine.evaluation.allocator import keep_freed_memory
from engine.evaluation.few_shot import run_tests
from engine.evaluation.fitting import carry_out
from engine.evaluation.meta_options import MetaOptions
from engine.evaluation.networks import find_genotype, make_network
from engine.evaluation.protocol import load_protocol
from engine.evaluation.summary import summary
from engine.evaluation.tasks import kinds_of
from engine.evaluation.training import timed_steps
from engine.evaluation.weights import save_weights
from engine.learning.flat import Layout
from engine.learning.inner import Params
from engine.learning.masking import MaskedNetwork, mask_parameters
from engine.learning.outer import Problem, automatic, looped, meta_gradient, reptile, vmapped
from engine.learning.outer_update import AdamW, Momentum, OuterUpdate
from engine.learning.schedules import Schedule, warmup_cosine
from engine.learning.tasks import Task
from engine.runs.config import rewrite_config
from engine.runs.streams import stream

if TYPE_CHECKING:
    from engine.runs.run import Run

MEASURED = 32  # batches of images that running statistics are averaged over
IMAGES = 128  # of such a batch


def train(options: MetaOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Meta-train one network and test it, going on where the run was stopped; return what goes to result.json."""
    keep_freed_memory()
    state, tensors = run.load() or ({"step": 0, "cpu_seconds": 0.0}, {})
    genotype = find_genotype(options.network, run.directory)
    protocol = load_protocol(options).to(options.device)
    kinds = kinds_of(options, protocol)
    data = protocol.data
    network = make_network(
        options,
        genotype,
        classes=options.ways,
        channels_in=data.images.shape[1],
        size=data.images.shape[-1],
        generator=stream(options.seed, "weights"),
    ).to(data.images.device)
    if options.steps is None:
        options = replace(options, steps=count_steps(options, data, network))
        rewrite_config(run, options)
    trainer = MetaTrainer(options, data, network)
    carry_out(trainer, genotype, state, tensors, run, stop, progress)
    trainer.settle()
    save_weights(run.directory / "weights.safetensors", network)
    state.setdefault("tests", [])
    run_tests(options, protocol, network, kinds, run, stop, progress, state, trainer.tensors())
    images = options.ways * (options.shots + options.task_queries)
    found = summary(options, protocol, network, state, run.directory, steps=trainer.total, batch=options.batch * images)
    return found if genotype is None else {**found, "genotype": genotype}


def plan(options: MetaOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    amount = options.budget if options.steps is None else f"{options.steps} outer steps"
    tasks = f"{options.batch} tasks ({options.ways}-way {options.shots}-shot, {options.inner_steps} inner steps)"
    return [
        ("network", options.network),
        ("training", f"{amount} of {tasks}"),
        ("tests", f"{options.tasks} tasks each of {', '.join(shape.name for shape in options.task_shapes)}"),
    ]


def count_steps(options: MetaOptions, data: ImageSet, network: nn.Module) -> int:
    """How many outer steps the budget comes to; CPU seconds are timed on copies."""
    amount, unit = options.length
    if unit == "steps":
        return int(amount)
    return timed_steps(MetaTrainer(replace(options, steps=10**9), data, copy.deepcopy(network)).step, amount)


@dataclass(frozen=True)
class Descent:
    """theta <- theta - rate(step) g: Reptile's outer update, phi <- phi + rate mean(phi_S - phi)."""

    schedule: Schedule

    @property
    def state(self) -> dict[str, Tensor]:
        """Nothing is remembered."""
        return {}

    def step(self, parameters: Tensor, gradient: Tensor, step: int) -> None:
        """One step."""
        parameters.sub_(gradient, alpha=self.schedule(step))


class MetaTrainer:
    """A network on its way through tasks of the training classes (:class:`~engine.evaluation.training.Training`).

    Outer step ``i`` depends on the options and on ``i`` alone. The network itself is written by :meth:`settle`.
    """

    def __init__(self, options: MetaOptions, data: ImageSet, network: nn.Module) -> None:
        self.options, self.data, self.network, self.total = options, data, network, options.steps or 1
        module = replace_all_batch_norm_modules_(copy.deepcopy(network)).train()
        params: Params = {name: p.detach().clone() for name, p in network.named_parameters()}
        self.masked: MaskedNetwork | None = None
        if options.algorithm == "meta-ticket":
            weights = {name for name, p in params.items() if p.ndim > 1 and not name.startswith("classifier")}
            self.masked, params = mask_parameters(module, params, weights.__contains__, seed=options.seed)
        self.problem = self._problem(module, params)
        learned = {name: params[name] for name in self.problem.learned}
        rest = {name: value for name, value in params.items() if name not in learned}
        self.layout = Layout.of(learned)
        self.meta = self.layout.pack(learned)
        self.params: Params = {**self.layout.views(self.meta), **rest}
        self.schedule = warmup_cosine(options.outer_rate, warmup=0, total=self.total)
        self.update = self._update()
        one = reptile if options.algorithm == "reptile" else automatic
        many = vmapped if self.meta.is_cuda else looped  # a loop over tasks measured faster for convolutions on a CPU
        self.run = many(self.problem, one)
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.meta.device)

    def _problem(self, module: nn.Module, params: Params) -> Problem:
        options, masked = self.options, self.masked

        def predict(values: Params, x: Tensor) -> Tensor:
            return functional_call(module, values, (x,))

        names = [name for name in params if masked is None or name not in masked.scores]
        inner = [name for name in names if options.algorithm != "anil" or name.startswith("classifier")]
        rates = dict.fromkeys(inner, options.inner_rate)
        if masked is None:
            return Problem(predict, rates, options.inner_steps, tuple(names), options.first_order)
        return Problem(masked.predict, rates, options.inner_steps, masked.scores, options.first_order)

    def _update(self) -> OuterUpdate:
        if self.options.algorithm in ("maml", "anil"):
            return AdamW.zeros(self.meta, self.schedule)
        if self.masked is not None:
            return Momentum(torch.zeros_like(self.meta), self.schedule)
        return Descent(self.schedule)

    def rate(self, step: int) -> float:
        """Learning rate of an outer step."""
        return self.schedule(step)

    def tasks(self, step: int) -> Task:
        """The tasks of an outer step, normalised."""
        options, data = self.options, self.data
        drawn = sample_episodes(
            data,
            "train",
            ways=options.ways,
            shots=options.shots,
            queries=options.task_queries,
            tasks=options.batch,
            seed=options.seed,
            address=("meta-train", step),
        )

        def images(index: Tensor) -> Tensor:
            return normalise(data.images[index.flatten()], data.mean, data.std).unflatten(0, index.shape)

        return Task(images(drawn.support_index), drawn.support_labels, images(drawn.query_index), drawn.query_labels)

    def step(self, step: int) -> None:
        """One outer step."""
        tasks = self.tasks(step)
        found = meta_gradient(self.run, self.params, tasks)
        self.update.step(self.meta, self.layout.pack(found.gradients), step)
        right = (found.outputs.argmax(-1) == tasks.query_y).double().mean()
        self.sums += torch.stack([found.losses.detach().double().mean(), right])

    @torch.no_grad()
    def settle(self) -> None:
        """Write the meta-learned weights into the network and measure its batch norms' running statistics, which become the plain
        average over :data:`MEASURED` batches of training images."""
        weights = self.params if self.masked is None else self.masked.effective(self.params)
        for name, parameter in self.network.named_parameters():
            parameter.copy_(weights[name])
        norms = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.network.train()
        images = min(IMAGES, len(self.data.members("train").order))
        for batch in range(MEASURED):
            index = sample_images(self.data, "train", images, seed=self.options.seed, address=("statistics", batch))
            shown = normalise(self.data.images[index], self.data.mean, self.data.std)
            self.network(shown.contiguous(memory_format=torch.channels_last))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: meta-parameters, the outer optimiser's state, and the sums since the last record."""
        return {"meta": self.meta, "sums": self.sums, **{f"update.{name}": t for name, t in self.update.state.items()}}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
