"""Data sets for ordinary classification: the same classes in training and test, different images."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engine.data.episodes import permutation
from engine.data.image_set import ImageSet
from engine.data.loading import load
from engine.data.names import SPLITS
from engine.data.tuning import set_aside
from engine.errors import ConfigurationError
from engine.evaluation.supervised_options import SupervisedOptions
from engine.runs.streams import stream


def load_samples(options: SupervisedOptions) -> ImageSet:
    """The images of the options as a set that is split by image into ``train`` and ``test``.

    A set that comes split by image (CIFAR, ImageNet) keeps its parts, as ``train_on`` and ``test_on`` say. Of any other the
    images of the training classes are divided class by class, by an address that holds no seed: every run tests the same ones.
    """
    wanted = {*options.train_on.split("+"), options.test_on, *(("train", "val") if options.reserve else ())}
    data = load(options.data, options.data_root, options.size, splits=[s for s in SPLITS if s in wanted], rotations=())
    data, reserve = set_aside(data, options.reserve)
    if data.sample_splits:
        parts = {
            "train": torch.cat([data.sample_splits[part] for part in options.train_on.split("+")]),
            "test": reserve if options.test_on == "reserve" else data.sample_splits[options.test_on],
        }
    else:
        parts = divided(data, options.held_out)
    classes = data.classes("train")
    found = replace(data, sample_splits=parts, class_splits={"train": classes, "test": classes})
    for part in parts:
        if not len(found.members(part).order):
            raise ConfigurationError(f"--held-out: no image of {data.name} is left for {part}; take another share")
    return found


def divided(data: ImageSet, share: float) -> dict[str, Tensor]:
    """Of each training class's images, ``share`` (rounded) for the test and the others for the training."""
    members = data.members("train")
    parts: dict[str, list[Tensor]] = {"train": [], "test": []}
    for k, start, count in zip(members.classes.tolist(), members.starts.tolist(), members.counts.tolist(), strict=True):
        own = members.order[start : start + count]
        own = own[permutation(count, stream(0, "held-out", data.class_names[k]))]
        held = round(share * count)
        parts["test"].append(own[:held])
        parts["train"].append(own[held:])
    return {name: torch.cat(each) for name, each in parts.items()}
