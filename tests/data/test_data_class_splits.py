from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.class_splits import parse_split, published_split, user_split
from engine.data.names import SPLITS
from engine.data.readers.class_folders import _key
from engine.errors import ConfigurationError

SIZES = {
    "omniglot": (1028, 172, 423),
    "cifar-fs": (64, 16, 20),
    "fc100": (60, 20, 20),
    "miniimagenet": (64, 16, 20),
    "tieredimagenet": (351, 97, 160),
    "cub": (100, 50, 50),
    "aircraft": (70, 15, 15),
    "vgg-flower": (71, 15, 16),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_splits_have_the_published_sizes(name: str) -> None:
    split = published_split(name)
    assert split is not None
    assert tuple(len(split[key]) for key in SPLITS) == SIZES[name]
    classes = [c for key in SPLITS for c in split[key]]
    # Class folders are matched by this key, so it must keep classes apart.
    assert len({_key(name, c) for c in classes}) == len(classes)


def test_cifar_splits_cover_all_hundred_classes() -> None:
    few_shot, fc100 = published_split("cifar-fs"), published_split("fc100")
    assert few_shot is not None
    assert fc100 is not None
    assert sorted(c for key in SPLITS for c in few_shot[key]) == sorted(c for key in SPLITS for c in fc100[key])


def test_sets_without_a_published_split() -> None:
    assert published_split("cars") is None
    assert published_split("../names") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ("9" * 5000, "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("[1]", "expected"),
        ('{"other": []}', "expected"),
        ('{"train": "a"}', "'train' must be a list of class names"),
        ('{"train": [1]}', "'train' must be a list of class names"),
        ('{"train": ["a"], "val": ["a"]}', "class 'a' is listed more than once"),
        ('{"test": ["a", "a"]}', "class 'a' is listed more than once"),
    ],
)
def test_unusable_split_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        user_split(path)
    assert "split.json" in str(caught.value)


def test_split_files_have_a_size_limit_and_are_text(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["a" * 5_000_000]}))
    with pytest.raises(ConfigurationError, match="above the limit"):
        user_split(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        user_split(path)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(), unique=True, max_size=9), st.integers(0, 9), st.integers(0, 9))
def test_any_disjoint_lists_come_back(names: list[str], a: int, b: int) -> None:
    a, b = sorted((a, b))
    split = {"train": names[:a], "val": names[a:b], "test": names[b:]}
    assert parse_split(json.dumps(split), "x") == {key: tuple(value) for key, value in split.items()}
