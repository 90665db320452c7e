from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.data.image_set import ImageSet, resize
from engine.data.patches import region_patches
from engine.errors import ConfigurationError


@pytest.fixture
def numbered() -> ImageSet:
    """Forty images whose 3 channels hold different values at every place."""
    images = torch.arange(40 * 3 * 8 * 8).remainder(251).to(torch.uint8).reshape(40, 3, 8, 8)
    labels = torch.zeros(40, dtype=torch.int64)
    return ImageSet("numbered", images, labels, ("a",), {"train": (0,)}, {}, (0.2, 0.4, 0.6), (0.5, 0.25, 0.125))


def test_patches_are_normalised_windows_of_one_channel(numbered: ImageSet) -> None:
    patches = region_patches(numbered, "train", 40, seed=0)
    assert patches.shape == (40, 1, 3, 3)
    assert patches.dtype == torch.float32
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (numbered.mean, numbered.std))
    whole = (numbered.images.float() / 255 - mean) / std
    windows = whole.unfold(2, 3, 1).unfold(3, 3, 1)  # (40, 3, 6, 6, 3, 3)
    hits = [torch.nonzero(((windows - patch).abs() < 1e-6).flatten(-2).all(-1)) for patch in patches[:, 0]]
    assert all(len(hit) >= 1 for hit in hits)
    first = torch.stack([hit[0] for hit in hits])
    assert len(first[:, 1].unique()) == 3
    assert len(first[:, 2:].unique(dim=0)) > 10


def test_patches_depend_on_the_address_alone(numbered: ImageSet) -> None:
    same = region_patches(numbered, "train", 10, seed=0, address=(1,))
    assert torch.equal(same, region_patches(numbered, "train", 10, seed=0, address=(1,)))
    assert not torch.equal(same, region_patches(numbered, "train", 10, seed=0, address=(2,)))
    assert not torch.equal(same, region_patches(numbered, "train", 10, seed=1, address=(1,)))


def test_source_size_scales_before_the_crop(numbered: ImageSet) -> None:
    scaled = replace(numbered, images=resize(numbered.images, 5))
    direct = region_patches(numbered, "train", 12, source_size=5, patch=2, seed=3)
    assert torch.equal(direct, region_patches(scaled, "train", 12, patch=2, seed=3))


def test_impossible_patches_are_refused(numbered: ImageSet) -> None:
    with pytest.raises(ConfigurationError, match="9x9 pixels, which images of 8x8"):
        region_patches(numbered, "train", 4, patch=9, seed=0)
    with pytest.raises(ConfigurationError, match="41 images asked"):
        region_patches(numbered, "train", 41, seed=0)
