from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.loading import load
from engine.errors import ConfigurationError, MissingDataError


@settings(max_examples=40, deadline=None)
@given(data=st.data(), height=st.integers(1, 5), width=st.integers(1, 5), channels=st.integers(0, 4))
def test_any_consistent_arrays_come_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, height: int, width: int, channels: int
) -> None:
    labels = np.array(data.draw(st.lists(st.integers(-5, 5), min_size=1, max_size=8)))
    shape = (len(labels), height, width) + ((channels,) if channels else ())
    images = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    values = np.unique(labels)
    split = data.draw(st.lists(st.sampled_from(["train", "val", "test"]), min_size=len(values), max_size=len(values)))
    path = tmp_path_factory.getbasetemp() / "any.npz"
    np.savez(path, images=images, labels=labels, split=np.array(split))
    loaded = load(f"npz:{path}")
    assert loaded.images.shape == (len(labels), max(channels, 1), height, width)
    for value, part in zip(values, split, strict=True):
        number = loaded.class_names.index(str(value))
        assert number in loaded.class_splits[part]
        expected = images.reshape(len(labels), height, width, -1)[labels == value].transpose(0, 3, 1, 2)
        assert np.array_equal(loaded.images[loaded.labels == number].numpy(), expected)


def test_names_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((3, 4, 4), np.uint8), labels=np.array([7, 2, 7]), class_names=np.array(["two", "seven"]))
    data = load(f"npz:{path}")
    assert data.class_names == ("two", "seven")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.class_splits == {"train": (0, 1)}
    assert load(f"npz:{path}", size=2, per_class=1, rotations=("train",)).images.shape == (8, 1, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "the npz has no array images; it holds labels"),
        ({"labels": None}, "the npz has no array labels"),
        ({"images": np.zeros((4, 3, 3), np.float32)}, r"images must be uint8 .* not float32 \(4, 3, 3\)"),
        ({"images": np.zeros((4, 3, 32, 32), np.uint8)}, "C of 1 to 4"),
        ({"images": np.zeros((0, 3, 3), np.uint8)}, "images must be"),
        ({"labels": np.zeros(4)}, "labels must be 4 integers, not float64"),
        ({"labels": np.zeros(3, np.int64)}, "labels must be 4 integers"),
        ({"labels": np.array([{}] * 4, dtype=object)}, "holds Python objects"),
        ({"split": np.array(["train"])}, "split must be 2 texts, one a class"),
        ({"split": np.array(["train", "dev"])}, "split names 'dev'"),
        ({"split": np.array([0, 1])}, "split must be 2 texts"),
        ({"class_names": np.array(["a", "a"])}, "class_names repeats a name"),
    ],
)
def test_unusable_arrays(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    content = {"images": np.zeros((4, 3, 3), np.uint8), "labels": np.array([0, 0, 1, 1]), **change}
    path = tmp_path / "a.npz"
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(f"npz:{path}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_truncated_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((4, 3, 3), np.uint8), labels=np.arange(4))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ConfigurationError, match=r"a\.npz: not a readable npz"):
        load(f"npz:{path}")
    with pytest.raises(MissingDataError, match="is not a file\nwrite npz:PATH"):
        load(f"npz:{tmp_path / 'none.npz'}")
