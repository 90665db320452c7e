"""What a meta-learner of images starts from: tasks of the splits of a data set, and a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from engine.data import ImageSet, load
from engine.errors import ConfigurationError
from engine.learning.inner import Params
from engine.learning.tasks import Task, image_tasks
from engine.methods.learning_options import LearningOptions, OuterOptions
from engine.runs.streams import stream
from engine.spaces.networks import build_network, initialise

Address = tuple[int | str, ...]


class TaskSource(Protocol):
    """Tasks of the splits train, val and test."""

    @property
    def name(self) -> str:
        """Name of the data."""

    @property
    def validates(self) -> bool:
        """Whether training is watched on tasks of the split val."""

    def draw(self, split: str, count: int, address: Address) -> Task:
        """``count`` tasks of a split, which depend on the options' seed and on the address alone."""


@dataclass(frozen=True)
class ImageTasks:
    """Tasks of the classes of a split."""

    options: LearningOptions
    name: str
    data: ImageSet

    @property
    def validates(self) -> bool:
        """Whether there are classes to validate on, it is asked for, and they are not those of the test."""
        options = self.options
        return bool(self.data.class_splits.get("val")) and options.validation_tasks > 0 and options.test_split != "val"

    def draw(self, split: str, count: int, address: Address) -> Task:
        """Tasks of a split by address."""
        options = self.options
        return image_tasks(
            self.data,
            split,
            ways=options.ways,
            shots=options.shots,
            queries=options.query_shots,
            tasks=count,
            seed=options.seed,
            address=(split, *address),
        )


def load_tasks(options: LearningOptions) -> ImageTasks:
    """The data set on its device, square; a split that cannot give a task is refused.

    Omniglot's turned classes are there in every split, the published protocol of these methods (reference note meta-ticket,
    section 8).
    """
    source = _load(options, options.data, options.size)
    for split in ("train", *(("val",) if source.validates else ()), options.test_split):
        source.draw(split, 1, ("check",))
    return source


def load_others(options: LearningOptions, source: ImageTasks) -> dict[str, ImageTasks]:
    """The further data sets to be tested on, in the size of ``source``; another number of channels is refused."""
    found = {}
    for name in options.others:
        found[name] = other = _load(options, name, source.data.images.shape[-1])
        if other.data.images.shape[1] != source.data.images.shape[1]:
            channels = f"{other.data.images.shape[1]} channels, {options.data} has {source.data.images.shape[1]}"
            raise ConfigurationError(f"--also-test: {name} has {channels}; name sets of as many channels")
        other.draw(options.test_split, 1, ("check",))
    return found


def draw_network(options: LearningOptions, data: ImageSet) -> tuple[nn.Module, Params]:
    """The network, on the meta device, and initial values of its parameters from ``stream(seed, "network")``."""
    channels, _, size = data.images.shape[1:]
    with torch.device("meta"):
        model = build_network(options.network, outputs=options.ways, channels_in=channels, size=size, factor=options.factor)
    return drawn(model, options)


def drawn(model: nn.Module, options: OuterOptions) -> tuple[nn.Module, Params]:
    """``model``, which is on the meta device, and initial values of its parameters from ``stream(seed, "network")``."""
    made = model.to_empty(device="cpu")
    initialise(made, stream(options.seed, "network"))
    values = {name: value.detach().to(options.device) for name, value in made.named_parameters()}
    return made.to("meta"), values


def _load(options: LearningOptions, name: str, size: int | None) -> ImageTasks:
    turned = ("train", "val", "test") if name == "omniglot" else None
    data = load(name, options.data_root, size, rotations=turned)
    return ImageTasks(options, name, data.resized(min(data.images.shape[-2:])).to(options.device))
