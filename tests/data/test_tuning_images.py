"""Images set aside for tuning: neither searched nor trained on, the same for every command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.data import ImageSet, load
from engine.data.tuning import set_aside
from engine.errors import ConfigurationError
from engine.evaluation.samples import load_samples
from engine.evaluation.supervised_options import SupervisedOptions
from engine.methods.darts_data import Halves
from engine.methods.darts_options import DartsOptions


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A CIFAR-10 of 80 images, each of one colour of its own."""
    places = np.arange(80, dtype=np.uint8)
    images = np.broadcast_to(places[:, None, None, None], (80, 3, 32, 32))
    content = {"train_images": images, "train_label": places % 10, "test_images": images[:10], "test_label": places[:10] % 10}
    names = np.array([f"c{k}" for k in range(10)])
    np.savez(tmp_path / "cifar10_subset.npz", **content, class_names=names)  # type: ignore[arg-type]
    return tmp_path


def colours(images: torch.Tensor) -> set[int]:
    return set(images[:, 0, 0, 0].tolist())


def test_searches_and_trainings_see_none_of_them(root: Path) -> None:
    halves = Halves(DartsOptions(data="cifar10", data_root=str(root), reserve=8, batch=4, device="cpu"))
    seen = colours(halves.data.images[torch.cat([halves.train, halves.validation])])
    samples = load_samples(
        SupervisedOptions(data="cifar10", data_root=str(root), reserve=8, train_on="train+val", test_on="reserve")
    )
    trained, tested = (colours(samples.images[samples.sample_splits[part]]) for part in ("train", "test"))
    assert (len(halves.train), len(halves.validation), len(trained), len(tested)) == (32, 32, 64, 16)
    assert seen == trained
    assert not seen & tested
    assert seen | tested == set(range(80))
    other = DartsOptions(data="cifar10", data_root=str(root), reserve=8, batch=4, device="cpu", seed=5)
    assert torch.equal(Halves(other).train, halves.train)


def test_without_a_number_nothing_changes(root: Path) -> None:
    data = load("cifar10", root, splits=("train", "val"))
    same, taken = set_aside(data, 0)
    assert same is data
    assert not len(taken)


def test_what_cannot_be_set_aside(root: Path) -> None:
    with pytest.raises(ConfigurationError, match="leave none"):
        set_aside(load("cifar10", root, splits=("train", "val")), 40)
    digits: ImageSet = load("digits")
    with pytest.raises(ConfigurationError, match="does not come with"):
        set_aside(digits, 1)
    with pytest.raises(ConfigurationError, match="--reserve how many"):
        SupervisedOptions(test_on="reserve").validate()
