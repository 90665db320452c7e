"""Which classes a network is trained on and which it is tested on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from engine.data.image_set import ImageSet, channel_statistics
from engine.data.loading import load
from engine.data.names import SPLITS
from engine.data.rotations import with_rotations
from engine.errors import ConfigurationError
from engine.evaluation.options import FewShotTestOptions

# Lake's 30 background alphabets (964 characters); all others are evaluation alphabets.
BACKGROUND = frozenset(
    (
        "Alphabet_of_the_Magi",
        "Anglo-Saxon_Futhorc",
        "Arcadian",
        "Armenian",
        "Asomtavruli_(Georgian)",
        "Balinese",
        "Bengali",
        "Blackfoot_(Canadian_Aboriginal_Syllabics)",
        "Braille",
        "Burmese_(Myanmar)",
        "Cyrillic",
        "Early_Aramaic",
        "Futurama",
        "Grantha",
        "Greek",
        "Gujarati",
        "Hebrew",
        "Inuktitut_(Canadian_Aboriginal_Syllabics)",
        "Japanese_(hiragana)",
        "Japanese_(katakana)",
        "Korean",
        "Latin",
        "Malay_(Jawi_-_Arabic)",
        "Mkhedruli_(Georgian)",
        "N_Ko",
        "Ojibwe_(Canadian_Aboriginal_Syllabics)",
        "Sanskrit",
        "Syriac_(Estrangelo)",
        "Tagalog",
        "Tifinagh",
    )
)


@dataclass(frozen=True, eq=False)
class Protocol:
    """One data set whose split ``"train"`` is trained on and whose split ``test`` is tested on.

    ``alphabets`` maps an alphabet to the ids of its test characters where tasks within one alphabet make sense, else it is empty.
    """

    data: ImageSet
    test: str
    alphabets: dict[str, tuple[int, ...]]

    def to(self, device: torch.device | str) -> Protocol:
        """The protocol with its images on ``device``."""
        return replace(self, data=self.data.to(device))


def load_protocol(options: FewShotTestOptions) -> Protocol:
    """Load the images that the options name, with turned training classes where they ask for them.

    A set that is split by image and not by class is a :class:`ConfigurationError`: it has no unseen classes.
    """
    if options.split == "alphabets":
        data = by_alphabet(load(options.data, options.data_root, options.size, rotations=()))
        test = "test"
    else:
        splits = tuple(split for split in SPLITS if split in ("train", options.test_split))
        data = load(options.data, options.data_root, options.size, splits=splits, rotations=())
        test = options.test_split
    if data.sample_splits:
        raise ConfigurationError(f"{data.name} is split by image and has no unseen classes; name a few-shot data set with --data")
    data.classes(test)
    alphabets = alphabets_of(data, test) if options.split == "alphabets" else {}
    return Protocol(with_rotations(data, ("train",)) if options.rotations else data, test, alphabets)


def by_alphabet(data: ImageSet) -> ImageSet:
    """Split Omniglot's classes into background alphabets (``"train"``) and evaluation alphabets (``"test"``), statistics
    included."""
    known = [name.partition("/")[0] in BACKGROUND for name in data.class_names]
    splits = {
        "train": tuple(k for k, is_known in enumerate(known) if is_known),
        "test": tuple(k for k, is_known in enumerate(known) if not is_known),
    }
    if not all(splits.values()):
        raise ConfigurationError(f"{data.name}: only one kind of alphabet is there ({data.origin}); use --split classes")
    mean, std = channel_statistics(data.images[torch.tensor(known)[data.labels]])
    return replace(data, class_splits=splits, mean=mean, std=std)


def alphabets_of(data: ImageSet, split: str) -> dict[str, tuple[int, ...]]:
    """The class ids of each alphabet of a split, in the order of the classes."""
    found: dict[str, list[int]] = {}
    for k in sorted(data.classes(split)):
        found.setdefault(data.class_names[k].partition("/")[0], []).append(k)
    return {name: tuple(ids) for name, ids in found.items()}
