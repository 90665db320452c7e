from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from engine.data.augment import horizontal_flip, normalise, random_crop, support_transform
from engine.errors import ConfigurationError
from engine.runs.streams import stream


def batch(count: int = 6, channels: int = 3, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.randint(1, 256, (count, channels, height, width), generator=stream(0, "batch")).to(torch.uint8)


def test_normalise_takes_uint8_and_float_to_the_same_numbers() -> None:
    images, mean, std = batch(), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = torch.stack([(images[:, c].double() / 255 - mean[c]) / std[c] for c in range(3)], 1).float()
    assert normalise(images, mean, std).dtype == torch.float32
    torch.testing.assert_close(normalise(images, mean, std), expected)
    torch.testing.assert_close(normalise(images.float() / 255, mean, std), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(3, 7), st.integers(3, 7), st.integers(0, 3), st.integers(0, 3), st.integers(0, 99))
def test_every_crop_is_a_window_of_its_padded_image(
    count: int, height: int, width: int, padding: int, less: int, seed: int
) -> None:
    images = batch(count, 2, height, width)
    size = min(height, width) + 2 * padding - less if less else None
    if size is not None and size < 1:
        size = 1
    out = random_crop(images, stream(seed, "crop"), padding=padding, size=size)
    rows, columns = (height, width) if size is None else (size, size)
    assert out.shape == (count, 2, rows, columns)
    assert out.dtype == images.dtype
    padded = pad(images, (padding,) * 4)
    for image, crop in zip(padded, out, strict=True):
        windows = image.unfold(1, rows, 1).unfold(2, columns, 1)
        assert (windows == crop[:, None, None]).all(-1).all(-1).all(0).any()


def test_crop_offsets_reach_both_ends_and_differ_between_images() -> None:
    images = torch.arange(1, 10, dtype=torch.float32).view(1, 1, 3, 3).expand(500, 1, 3, 3)
    out = random_crop(images, stream(0, "crop"), padding=1)
    assert len({tuple(crop.flatten().tolist()) for crop in out}) == 9


def test_flip_mirrors_about_half_and_nothing_else() -> None:
    images = batch(400)
    out = horizontal_flip(images, stream(0, "flip"))
    mirrored = (out == images.flip(-1)).flatten(1).all(1)
    kept = (out == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 150 < int(mirrored.sum()) < 250
    assert torch.equal(horizontal_flip(images, stream(0, "flip"), probability=0.0), images)
    assert torch.equal(horizontal_flip(images, stream(0, "flip"), probability=1.0), images.flip(-1))


def test_support_transform_is_a_function_of_batch_and_address() -> None:
    images = batch()
    kept = images.clone()
    first, second = support_transform(images, stream(0, "a")), support_transform(images, stream(0, "a"))
    assert torch.equal(first, second)
    assert first.shape == images.shape
    assert torch.equal(images, kept)
    assert not torch.equal(first, support_transform(images, stream(0, "b")))
    generator = stream(0, "a")
    assert torch.equal(first, random_crop(horizontal_flip(images, generator), generator, padding=4))


def test_impossible_crops_are_refused() -> None:
    for options in ({"size": 20, "padding": 1}, {"size": 0}, {"padding": -1}):
        with pytest.raises(ConfigurationError, match=r"crop does not fit|padding must not be negative"):
            random_crop(batch(), stream(0, "crop"), **options)


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    support_transform(batch(), stream(0, "a"))
    assert torch.equal(before, torch.get_rng_state())
