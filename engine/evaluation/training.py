"""Supervised training on the base classes: one step, and the resumable loop around it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from engine.data.episodes import permutation
from engine.data.image_set import ImageSet
from engine.errors import ConfigurationError
from engine.evaluation.augment import augment, cutout
from engine.evaluation.drop_block import drop_block_logits
from engine.evaluation.drop_path import drop_path_lanes
from engine.evaluation.noise import has_units, noise_lanes
from engine.evaluation.options import SGDOptions
from engine.evaluation.schedule import cosine, drop_path_probability, epoch_cosine, epoch_linear, step_decay
from engine.evaluation.sgd import SGD
from engine.runs.loop import steps
from engine.runs.streams import stream
from engine.spaces.network import CellNetwork
from engine.spaces.networks import ResNet12

if TYPE_CHECKING:
    from engine.runs.run import Run
    from engine.runs.signals import Stop

TIMED_SHARE = 0.03  # of a budget in CPU seconds, spent on finding out how long a step takes
RECORDS = 200  # lines of metrics that a training leaves


class Training(Protocol):
    """A network on its way; what :func:`train_steps` moves.

    ``sums`` adds up loss and accuracy of the steps since the last record, (2,) float64 on the device, so that no step waits for
    the device.
    """

    total: int
    network: nn.Module
    sums: Tensor

    def step(self, step: int) -> None:
        """One update of the weights."""

    def rate(self, step: int) -> float:
        """Learning rate of a step."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors."""


class Trainer:
    """A network on its way through the training images.

    Step ``i`` depends on the options and on ``i`` alone: its images come from the permutation of its epoch, its augmentation
    and its dropped paths from streams of their own (design rule 4).
    """

    def __init__(self, options: SGDOptions, data: ImageSet, network: nn.Module) -> None:
        members = data.members("train")
        self.options, self.data, self.network, self.total = options, data, network, options.steps or 1
        self.order = members.order
        self.classes = members.classes.to(data.images.device)
        self.per_epoch = len(members.order) // options.batch
        if not self.per_epoch:
            raise ConfigurationError(f"--batch {options.batch} is more than the {len(members.order)} training images; lower it")
        self.epochs = -(-self.total // self.per_epoch)
        self.sgd = SGD(network, momentum=options.momentum, nesterov=options.nesterov, weight_decay=options.weight_decay)
        self.sums = torch.zeros(2, dtype=torch.float64, device=data.images.device)
        self._epoch, self._shuffled = -1, members.order
        forward: Callable[..., Any] = network.training_logits if isinstance(network, CellNetwork) else network.__call__
        self._network = torch.compile(forward) if options.compile else forward

    def rate(self, step: int) -> float:
        """Learning rate of a step; the cosine schedule is read in the middle of the step, so that none has the rate zero."""
        options, epoch = self.options, step // self.per_epoch
        if options.schedule == "cosine":
            share = cosine((step + 0.5) / self.total, warmup=options.warmup)
        elif options.schedule == "step":
            share = step_decay(epoch, options.milestone_epochs)
        else:
            share = (epoch_cosine if options.schedule == "epoch-cosine" else epoch_linear)(epoch, self.epochs)
        return options.rate * share

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Augmented images (B, C, H, W) and labels (B,) of a step; the images that do not fill an epoch's last batch wait."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._shuffled = self.order[permutation(len(self.order), stream(self.options.seed, "epoch", epoch))]
        index = self._shuffled[place * self.options.batch : (place + 1) * self.options.batch].to(self.data.images.device)
        labels = torch.searchsorted(self.classes, self.data.labels[index])
        seed, side = self.options.seed, self.options.cutout
        images = augment(self.data, self.data.images[index], self.options.augmentation, stream(seed, "augment", step))
        if side:
            images = cutout(images, stream(seed, "cutout", step), side=side)
        return images.contiguous(memory_format=torch.channels_last), labels

    def step(self, step: int) -> None:
        """One update of the weights."""
        options = self.options
        images, labels = self.batch(step)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=options.autocast):
            logits, auxiliary = self._logits(images, step)
        loss = self._loss(logits, labels)
        if auxiliary is not None:
            loss = loss + options.auxiliary * self._loss(auxiliary, labels)
        loss.backward()
        if options.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), options.clip)
        self.sgd.step(self.rate(step))
        with torch.no_grad():
            self.sums += torch.stack([loss.detach().double(), (logits.argmax(1) == labels).double().mean()])

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits.float(), labels, label_smoothing=self.options.label_smoothing)

    def _logits(self, images: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Logits, and those of an auxiliary tower."""
        options = self.options
        if isinstance(self.network, ResNet12) and options.drop_block:
            return drop_block_logits(
                self.network, images, options.drop_block, step, stream(options.seed, "drop-block", step)
            ), None
        if not isinstance(self.network, CellNetwork):
            return self._network(images), None
        epoch = step // self.per_epoch
        probability = drop_path_probability(options.drop_path, epoch, self.epochs, ramp=options.drop_path_ramp)
        lanes = None
        if probability:
            lanes = drop_path_lanes(self.network, images, probability, stream(options.seed, "drop-path", step))
        if has_units(self.network):
            lanes = noise_lanes(self.network, images, partial(stream, options.seed), ("train", step), lanes)
        return self._network(images, lanes)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: weights, momentum, and the sums since the last record."""
        weights = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        return {**weights, **{f"velocity.{name}": t for name, t in self.sgd.velocity.items()}, "sums": self.sums}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors."""
        weights = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        self.network.load_state_dict(weights)
        self.sgd.load({name.removeprefix("velocity."): t for name, t in tensors.items() if name.startswith("velocity.")})
        self.sums.copy_(tensors["sums"])


def count_steps(options: SGDOptions, data: ImageSet, network: nn.Module) -> int:
    """How many steps the options ask for. CPU seconds are turned into steps by timing some on a copy of the network."""
    if options.steps is not None:
        return options.steps
    amount, unit = options.length
    if unit == "epochs":
        return int(amount) * Trainer(options, data, network).per_epoch
    trial = Trainer(replace(options, steps=10**9), data, copy.deepcopy(network).train())
    return timed_steps(trial.step, amount)


def timed_steps(step: Callable[[int], None], seconds: float) -> int:
    """How many steps fit into CPU seconds, some of which go into timing ``step``."""
    step(0)  # loads libraries and plans convolutions
    started, done = time.process_time(), 0
    while time.process_time() - started < TIMED_SHARE * seconds or done < 3:
        done += 1
        step(done)
    each = (time.process_time() - started) / done
    return max(1, round((1 - TIMED_SHARE) * seconds / each))


def train_steps(trainer: Training, run: Run, stop: Stop, state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Train from step ``state["step"]`` to the end; yield after each step the newest record of ``metrics.jsonl``.

    ``state`` goes into every checkpoint and is kept up to date: ``"step"`` and the ``"cpu_seconds"`` spent.
    """
    interval = max(1, trainer.total // RECORDS)
    clock = time.process_time() - state["cpu_seconds"]
    record: dict[str, Any] = {}

    def snapshot() -> tuple[dict[str, Any], dict[str, Tensor]]:
        state["cpu_seconds"] = time.process_time() - clock
        return state, trainer.tensors()

    trainer.network.train()
    for step in steps(run, stop, snapshot, start=state["step"], total=trainer.total):
        trainer.step(step)
        if (step + 1) % interval == 0 or step + 1 == trainer.total:
            loss, accuracy = (trainer.sums / (step % interval + 1)).tolist()
            record = {"event": "train", "step": step + 1, "loss": loss, "accuracy": accuracy, "rate": trainer.rate(step)}
            run.append("metrics.jsonl", record)
            trainer.sums.zero_()
        yield record
    state["step"] = trainer.total
