from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.image_set import channel_statistics, resize
from engine.errors import ConfigurationError
from engine.runs.streams import stream


def test_members_group_the_images_of_a_split(make_set) -> None:
    data = make_set([2, 3, 4], {"train": (0, 2), "val": (1,)})
    members = data.members("train")
    assert members.classes.tolist() == [0, 2]
    assert members.counts.tolist() == [2, 4]
    assert members.starts.tolist() == [0, 2]
    assert members.order.tolist() == [0, 1, 5, 6, 7, 8]


def test_members_of_a_sample_split_are_its_images_only(make_set) -> None:
    data = make_set([2, 2], {"train": (0, 1), "val": (0, 1)})
    data = replace(data, sample_splits={"train": torch.tensor([0, 3]), "val": torch.tensor([1, 2])})
    assert data.members("train").order.tolist() == [0, 3]
    assert data.members("val").order.tolist() == [1, 2]


def test_an_unknown_and_an_absent_split_are_named(make_set) -> None:
    data = make_set([2, 2])
    with pytest.raises(ConfigurationError, match="unknown split 'dev'"):
        data.classes("dev")
    with pytest.raises(ConfigurationError, match="no classes in split 'test'; it has train"):
        data.members("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 1, 2, 2)}, "uint8"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"labels": torch.full((4,), 9)}, "between 0 and 1"),
        ({"std": (0.0,)}, "above zero"),
        ({"mean": (0.5, 0.5)}, "one number a channel"),
    ],
)
def test_inconsistent_sets_are_refused(make_set, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replace(make_set([2, 2]), **change)


def test_the_hash_sees_images_labels_names_and_splits_but_not_the_name(make_set) -> None:
    data = make_set([2, 2], {"train": (0,), "val": (1,)})
    changed = data.images.clone()
    changed[3, 0, 1, 1] += 1
    others = [
        replace(data, images=changed),
        replace(data, labels=torch.tensor([0, 1, 0, 1])),
        replace(data, class_names=("c0", "other")),
        replace(data, class_splits={"train": (0, 1)}),
        replace(data, sample_splits={"train": torch.tensor([0])}),
        replace(data, images=data.images.reshape(4, 1, 2, 8)),
    ]
    hashes = {data.content_hash(), *(other.content_hash() for other in others)}
    assert len(hashes) == 1 + len(others)
    assert replace(data, name="x", origin="y").content_hash() == data.content_hash()


def test_to_moves_images_and_labels(make_set) -> None:
    data = make_set([2, 2])
    calls: list[str] = []

    class Recorder(torch.Tensor):
        def to(self, device: str) -> torch.Tensor:
            calls.append(device)
            return self

    recorded = replace(data, images=data.images.as_subclass(Recorder), labels=data.labels.as_subclass(Recorder))
    recorded.to("there")
    assert calls == ["there", "there"]


def test_resized_keeps_constant_images_and_returns_itself_at_its_size(make_set) -> None:
    data = make_set([3, 3], size=8)
    assert data.resized(8) is data
    for size in (3, 20):
        small = data.resized(size)
        assert small.images.shape == (6, 1, size, size)
        assert small.images.dtype == torch.uint8
        assert torch.equal(small.images[:, 0, 0, 0], data.images[:, 0, 0, 0])
        assert (small.images == small.images[:, :, :1, :1]).all()


def test_resize_takes_the_central_square() -> None:
    images = torch.randint(256, (2, 1, 16, 24), generator=stream(0, "test")).to(torch.uint8)
    assert torch.equal(resize(images, 5), resize(images[..., 4:-4], 5))
    assert torch.equal(resize(images, 16), images[..., 4:-4])
    assert torch.equal(resize(images.mT, 5), resize(images.mT[..., 4:-4, :], 5))


def test_resize_equals_the_filter_written_out() -> None:
    row = torch.arange(0, 160, 10, dtype=torch.float64)
    scaled = resize(row.to(torch.uint8).expand(1, 1, 16, 16).contiguous(), 4)[0, 0, 0]
    places = torch.arange(16, dtype=torch.float64) + 0.5
    weights = torch.stack([(1 - (places - 4 * (k + 0.5)).abs() / 4).clamp(min=0) for k in range(4)])
    expected = (weights / weights.sum(1, keepdim=True)) @ row
    assert ((scaled - expected).abs() <= 0.51).all()


def test_statistics_are_exact() -> None:
    images = torch.tensor([[0, 255], [51, 51]], dtype=torch.uint8).T.reshape(2, 2, 1, 1)
    means, deviations = channel_statistics(images)
    assert means == pytest.approx((0.5, 0.2))
    assert deviations == pytest.approx((0.5, 1 / 255))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 3))
def test_resize_gives_the_asked_shape_and_stays_in_range(height: int, width: int, size: int, channels: int) -> None:
    images = torch.arange(2 * channels * height * width).remainder(256).to(torch.uint8).reshape(2, channels, height, width)
    scaled = resize(images, size)
    assert scaled.shape == (2, channels, size, size)
    assert images.min() <= scaled.min()
    assert scaled.max() <= images.max()
