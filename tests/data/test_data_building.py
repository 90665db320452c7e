from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data import building
from engine.data.building import Part, Request, build, build_from_pictures
from engine.data.pictures import Picture
from engine.data.rotations import with_rotations
from engine.errors import ConfigurationError

ALL = ("train", "val", "test")


def request(**change: object) -> Request:
    return Request(**{"name": "folder:x", "size": None, "splits": ALL, "per_class": None, **change})


def part(split: str, labels: list[int], names: list[str], first: int = 0, size: int = 4) -> Part:
    values = np.arange(first, first + len(labels), dtype=np.uint8)
    return Part(split, np.broadcast_to(values[:, None, None, None], (len(labels), 1, size, size)), np.array(labels), names)


def test_classes_are_numbered_by_appearance_and_images_grouped() -> None:
    data = build(request(), [part("train", [2, 0, 2], ["a", "b", "c"]), part("val", [0, 0], ["d"], 3)], "here")
    assert data.class_names == ("a", "c", "d")
    assert data.labels.tolist() == [0, 1, 1, 2, 2]
    assert data.images[:, 0, 0, 0].tolist() == [1, 0, 2, 3, 4]
    assert data.class_splits == {"train": (0, 1), "val": (2,)}
    assert data.sample_splits == {}


def test_parts_of_one_split_are_joined_by_class_name() -> None:
    data = build(request(), [part("train", [0, 1], ["a", "b"]), part("train", [0, 1], ["b", "a"], 2)], "here")
    assert data.images[:, 0, 0, 0].tolist() == [0, 3, 1, 2]
    assert data.labels.tolist() == [0, 0, 1, 1]


def test_a_class_in_two_splits_makes_sample_splits() -> None:
    data = build(request(), [part("train", [0, 1], ["a", "b"]), part("test", [1, 1], ["a", "b"], 2)], "here")
    assert data.class_splits == {"train": (0, 1), "test": (1,)}
    assert {split: index.tolist() for split, index in data.sample_splits.items()} == {"train": [0, 1], "test": [2, 3]}


def test_per_class_counts_over_parts_and_within_a_split() -> None:
    parts = [part("train", [0, 0, 1], ["a", "b"]), part("train", [0, 1, 1], ["a", "b"], 3), part("val", [0] * 4, ["a"], 6)]
    data = build(request(per_class=3), parts, "here")
    assert data.images[data.members("train").order, 0, 0, 0].tolist() == [0, 1, 3, 2, 4, 5]
    assert data.images[data.members("val").order, 0, 0, 0].tolist() == [6, 7, 8]
    assert len(build(request(per_class=1), parts, "here").images) == 3


def test_statistics_come_from_the_training_images() -> None:
    parts = [part("train", [0, 0], ["a"]), part("val", [0], ["b"], 200)]
    assert build(request(), parts, "here").mean == pytest.approx((0.5 / 255,))


def test_sizes_are_made_equal_or_refused() -> None:
    parts = [part("train", [0, 0], ["a"]), part("val", [0], ["b"], 9, size=8)]
    with pytest.raises(ConfigurationError, match="mixes image shapes; give a size"):
        build(request(), parts, "here")
    assert build(request(size=6), parts, "here").images.shape == (3, 1, 6, 6)


def test_nothing_in_the_asked_splits_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="here holds no images in split test"):
        build(request(splits=("test",)), [part("test", [], ["a"])], "here")


def picture(value: int, size: int = 4) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size), value, dtype=np.uint8)).save(buffer, format="PNG")
    return Picture(f"p{value}", lambda: io.BytesIO(buffer.getvalue()))


def forbidden(name: str) -> Picture:
    def fail() -> io.BytesIO:
        raise AssertionError(f"{name} must not be decoded")

    return Picture(name, fail)


def test_only_what_is_asked_for_is_decoded() -> None:
    table = {"train": {"a": [picture(1), picture(2), forbidden("a3")]}, "val": {"b": [forbidden("b1")]}}
    data = build_from_pictures(request(splits=("train",), per_class=2), table, "here")
    assert data.images[:, 0, 0, 0].tolist() == [1, 2]


def test_pictures_of_different_sizes_need_a_size() -> None:
    table = {"train": {"a": [picture(1, 4), picture(2, 6)]}}
    with pytest.raises(ConfigurationError, match=r"differ in size \(4x4, 6x6, \.\.\.\); give a size"):
        build_from_pictures(request(), table, "here")
    assert build_from_pictures(request(size=5), table, "here").images.shape == (2, 1, 5, 5)


def test_named_sets_have_a_usual_size_and_colour() -> None:
    data = build_from_pictures(request(name="cub"), {"train": {"a": [picture(7)]}}, "here")
    assert data.images.shape == (1, 3, 84, 84)
    assert (data.images == 7).all()


def test_too_large_a_set_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "MAX_SET_BYTES", 3 * 84 * 84)
    with pytest.raises(ConfigurationError, match="give a smaller size or a limit per class"):
        build_from_pictures(request(name="cub"), {"train": {"a": [forbidden("1"), forbidden("2")]}}, "here")


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"train": {"a": [picture(k) for k in range(3)], "b": [picture(k) for k in range(10, 14)]}}
    whole = build_from_pictures(request(size=3), table, "here")
    monkeypatch.setattr(building, "CHUNK", 2)
    assert build_from_pictures(request(size=3), table, "here").content_hash() == whole.content_hash()


def test_rotations_add_turned_classes_to_their_split() -> None:
    data = build(request(), [part("train", [0, 0, 1], ["a", "b"]), part("val", [0], ["c"], 3)], "here")
    data.images[0, 0] = torch.arange(16, dtype=torch.uint8).reshape(4, 4)
    turned = with_rotations(data, ("train",))
    assert turned.class_names[3:] == tuple(f"{c}/rot{d}" for d in ("090", "180", "270") for c in ("a", "b"))
    assert turned.class_splits == {"train": (0, 1, 3, 4, 5, 6, 7, 8), "val": (2,)}
    assert turned.members("train").counts.tolist() == [2, 1] * 4
    quarter = turned.images[turned.labels == turned.class_names.index("a/rot090")][0, 0]
    assert torch.equal(quarter, torch.rot90(data.images[0, 0]))
    assert torch.equal(turned.images[:4], data.images)
    assert with_rotations(data, ()) is data
    val = with_rotations(data, ("val",))
    assert val.class_names[3:] == ("c/rot090", "c/rot180", "c/rot270")
    assert val.class_splits == {"train": (0, 1), "val": (2, 3, 4, 5)}
    assert val.labels.tolist() == [0, 0, 1, 2, 3, 4, 5]


def test_rotations_need_squares_and_class_splits() -> None:
    flat = build(request(), [Part("train", np.zeros((2, 1, 3, 4), np.uint8), np.array([0, 1]), ["a", "b"])], "here")
    with pytest.raises(ConfigurationError, match="only square images"):
        with_rotations(flat, ("train",))
    single = build(request(), [part("train", [0], ["a"]), part("val", [0], ["a"], 1)], "here")
    with pytest.raises(ConfigurationError, match="split by sample"):
        with_rotations(single, ("train",))
