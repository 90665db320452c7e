"""Images of a differentiable search: two halves of a training set, and batches by address."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data import ImageSet, horizontal_flip, load, normalise, random_crop
from engine.data.tuning import set_aside
from engine.errors import ConfigurationError
from engine.methods.darts_options import FamilyOptions
from engine.runs.streams import stream

# Sets in which the mirror image of a picture belongs to another class or to none.
UNMIRRORED = ("digits", "omniglot")


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, C, H, W), channels innermost, and labels (B,)."""

    images: Tensor
    labels: Tensor


class Halves:
    """The training half that moves the weights and the validation half that moves the architecture.

    A set with a sample split (CIFAR-10: halves of the training images) gives its ``train`` and ``val``; of any other the images
    of the training classes are halved, class by class, at random by address. ``--imbalance`` and ``--label-noise`` change the
    validation half, also where it is only measured.
    """

    def __init__(self, options: FamilyOptions) -> None:
        data = load_set(options)
        self.data = data.to(options.device)
        self.classes = len(data.classes("train"))
        own = torch.tensor(sorted(data.classes("train")))
        label = torch.full((len(data.class_names),), -1).index_copy_(0, own, torch.arange(self.classes))
        self.train, self.validation = _halves(data, options)
        labels = label[data.labels]
        if options.imbalance > 1:
            self.validation = imbalanced(self.validation, labels, options.imbalance, options.seed)
        if options.label_noise:
            labels = noisy(labels, self.validation, options.label_noise, self.classes, options.seed)
        self.labels = labels.to(options.device)  # of every image, -1 for those of other classes
        self.seed, self.size = options.seed, options.batch
        self.augment = options.data not in UNMIRRORED if options.augment is None else options.augment
        smallest = min(len(self.train), len(self.validation))
        if smallest < options.batch:
            raise ConfigurationError(f"--batch: a half of {options.data} has {smallest} images, fewer than {options.batch}")

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.train) // self.size

    def training(self, epoch: int, step: int, reader: str = "main") -> Batch:
        """One batch of a pass over the training half, in an order of the epoch and of the model that reads it."""
        order = torch.randperm(len(self.train), generator=stream(self.seed, "train-order", reader, epoch))
        chosen = self.train[order[step * self.size : (step + 1) * self.size]]
        return self._augmented(chosen, stream(self.seed, "train-augment", reader, epoch, step))

    def validating(self, epoch: int, step: int, reader: str = "main") -> Batch:
        """A batch of the validation half, drawn afresh for every step and reader, as the published code does."""
        address = (reader, epoch, step)
        drawn = torch.randperm(len(self.validation), generator=stream(self.seed, "validation-batch", *address))[: self.size]
        return self._augmented(self.validation[drawn], stream(self.seed, "validation-augment", *address))

    def taken(self, chosen: Tensor, purpose: str, *address: int) -> Batch:
        """The images of these indices, augmented by the address of the purpose."""
        return self._augmented(chosen, stream(self.seed, purpose, *address))

    def plain_validation(self) -> Iterator[Batch]:
        """The validation half without augmentation, in equal batches; what does not fill one is left out.

        Every pass has the same order, at random by address: a half comes sorted by class, and norms that take the batch's
        statistics would tell little apart in a batch of one class.
        """
        for chosen in self.validation_order().split(self.size):
            yield self._batch(self.data.images[chosen.to(self.data.images.device)], chosen)

    def validation_order(self) -> Tensor:
        """The images that :meth:`plain_validation` goes through, by their number in the set."""
        order = torch.randperm(len(self.validation), generator=stream(self.seed, "validation-order"))
        return self.validation[order[: len(order) // self.size * self.size]]

    def _augmented(self, chosen: Tensor, generator: torch.Generator) -> Batch:
        images = self.data.images[chosen.to(self.data.images.device)]
        if self.augment:
            images = horizontal_flip(random_crop(images, generator, padding=max(1, images.shape[-1] // 8)), generator)
        return self._batch(images, chosen)

    def _batch(self, images: Tensor, chosen: Tensor) -> Batch:
        labels = self.labels[chosen.to(self.labels.device)]
        normal = normalise(images, self.data.mean, self.data.std)
        return Batch(normal.contiguous(memory_format=torch.channels_last), labels)


def load_set(options: FamilyOptions) -> ImageSet:
    """The set at the resolution of the search."""
    data, _ = set_aside(load(options.data, options.data_root, options.size, splits=("train", "val")), options.reserve)
    height, width = data.images.shape[-2:]
    size = options.resolution(max(height, width))
    return data if (height, width) == (size, size) else data.resized(size)


def _halves(data: ImageSet, options: FamilyOptions) -> tuple[Tensor, Tensor]:
    if data.sample_splits and "val" in data.sample_splits:
        halves = data.sample_splits["train"], data.sample_splits["val"]
    else:
        members = data.members("train")
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for number, (start, count) in enumerate(zip(members.starts.tolist(), members.counts.tolist(), strict=True)):
            order = torch.randperm(count, generator=stream(options.seed, "halves", number))
            own = members.order[start : start + count][order]
            parts[0].append(own[: count // 2])
            parts[1].append(own[count // 2 :])
        halves = torch.cat(parts[0]), torch.cat(parts[1])
    if options.images is None:
        return halves
    return _some(halves[0], options, "train"), _some(halves[1], options, "validation")


def _some(half: Tensor, options: FamilyOptions, which: str) -> Tensor:
    order = torch.randperm(len(half), generator=stream(options.seed, "some-images", which))
    return half[order[: options.images]]


def imbalanced(half: Tensor, labels: Tensor, ratio: float, seed: int) -> Tensor:
    """What is left of a half (N,) of images with these labels (M,) when class c of K keeps the share ratio^(-c / (K - 1)).

    The first class keeps all and the last one image in ``ratio``, at least one, at random by address (Cui et al. 2019).
    """
    own, classes = labels[half], int(labels.max()) + 1
    kept = []
    for number in range(classes):
        members = half[own == number]
        count = max(1, round(len(members) * ratio ** (-number / max(1, classes - 1))))
        kept.append(members[torch.randperm(len(members), generator=stream(seed, "imbalance", number))[:count]])
    return torch.cat(kept)


def noisy(labels: Tensor, half: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """Labels (M,) of which, in a half (N,), each is another of the ``classes`` with the chance ``share``, all others alike."""
    generator = stream(seed, "label-noise")
    changed = torch.rand(len(half), generator=generator) < share
    away = torch.randint(1, classes, (len(half),), generator=generator)
    found = labels.clone()
    found[half] = torch.where(changed, (labels[half] + away) % classes, labels[half])
    return found
