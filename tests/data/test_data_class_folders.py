from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data.class_splits import published_split
from engine.data.loading import load
from engine.errors import ConfigurationError, MissingDataError

Write = Callable[..., list[np.ndarray]]


def sizes(data: object) -> dict[str, int]:
    return {split: len(classes) for split, classes in data.class_splits.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folder_with_splits(tmp_path: Path, write_class: Write, val: str) -> None:
    pixels = write_class(tmp_path / "train/b")
    write_class(tmp_path / "train/a")
    write_class(tmp_path / val / "c", 2)
    data = load(f"folder:{tmp_path}")
    assert data.class_names == ("a", "b", "c")
    assert sizes(data) == {"train": 2, "val": 1}
    assert np.array_equal(data.images[data.labels == 1].numpy(), np.stack(pixels).transpose(0, 3, 1, 2))


def test_a_split_that_a_folder_lacks_is_named(tmp_path: Path, write_class: Write) -> None:
    write_class(tmp_path / "train/a")
    with pytest.raises(ConfigurationError, match="holds no images in split test"):
        load(f"folder:{tmp_path}", splits=("test",))
    with pytest.raises(
        ConfigurationError, match=r"no classes in split 'test'; it has train \(folders train/, val/ and test/ or a"
    ):
        load(f"folder:{tmp_path}").classes("test")


def test_the_same_classes_in_every_split_folder_are_a_sample_split(tmp_path: Path, write_class: Write) -> None:
    for split, count in (("train", 3), ("test", 2)):
        write_class(tmp_path / split / "a", count)
        write_class(tmp_path / split / "b", count)
    data = load(f"folder:{tmp_path}")
    assert {split: len(index) for split, index in data.sample_splits.items()} == {"train": 6, "test": 4}
    assert data.class_splits == {"train": (0, 1), "test": (0, 1)}


def test_flat_folder_is_all_train_or_as_split_json_says(tmp_path: Path, write_class: Write) -> None:
    for name in ("a", "b", "c"):
        write_class(tmp_path / name, mode="L")
    assert sizes(load(f"folder:{tmp_path}")) == {"train": 3}
    assert load(f"folder:{tmp_path}").images.shape == (9, 1, 8, 8)
    (tmp_path / "split.json").write_text(json.dumps({"train": ["c"], "test": ["a"]}))
    data = load(f"folder:{tmp_path}")
    assert data.class_names == ("c", "a")
    assert sizes(data) == {"train": 1, "test": 1}
    (tmp_path / "split.json").write_text(json.dumps({"train": ["c", "../c"]}))
    with pytest.raises(ConfigurationError, match=r"class '\.\./c' of the split's 'train' list has no folder"):
        load(f"folder:{tmp_path}")


def test_folder_errors(tmp_path: Path, write_class: Write) -> None:
    with pytest.raises(MissingDataError, match="is not a folder\nwrite folder:PATH"):
        load(f"folder:{tmp_path / 'none'}")
    with pytest.raises(ConfigurationError, match="no class folders"):
        load(f"folder:{tmp_path}")
    write_class(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(ConfigurationError, match=r"b: no images \(\.png"):
        load(f"folder:{tmp_path}")
    write_class(tmp_path / "b", size=9)
    with pytest.raises(ConfigurationError, match="differ in size"):
        load(f"folder:{tmp_path}")
    assert load(f"folder:{tmp_path}", size=6).images.shape == (6, 3, 6, 6)
    (tmp_path / "a" / "scan.TIF").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"scan\.TIF: \.TIF images are not read; convert them"):
        load(f"folder:{tmp_path}", size=6)


def test_mini_as_split_folders(tmp_path: Path, write_class: Write) -> None:
    write_class(tmp_path / "miniImageNet/train/n01532829")
    write_class(tmp_path / "miniImageNet/test/n01930112")
    data = load("miniimagenet", tmp_path)
    assert sizes(data) == {"train": 1, "test": 1}
    assert data.images.shape[1:] == (3, 84, 84)


def test_folders_of_another_set_are_not_taken(tmp_path: Path, write_class: Write) -> None:
    write_class(tmp_path / "train/cat")
    write_class(tmp_path / "cat")
    (tmp_path / "train/empty").mkdir()
    for name in ("miniimagenet", "cub", "cars", "imagenet", "omniglot"):
        with pytest.raises(MissingDataError):
            load(name, tmp_path)


@pytest.mark.parametrize("name", ["tieredimagenet", "cub", "fc100", "cifar-fs"])
def test_flat_class_folders_take_the_published_split(tmp_path: Path, write_class: Write, name: str) -> None:
    published = published_split(name)
    assert published is not None
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for class_name in published[split][:count]:
            write_class(tmp_path / class_name, 2)
    write_class(tmp_path / "something else", 2)
    data = load(name, tmp_path)
    assert sizes(data) == {"train": 2, "val": 1, "test": 1}
    assert data.class_names[:2] == published["train"][:2]


def test_cub_as_published(tmp_path: Path, write_class: Write) -> None:
    write_class(tmp_path / "CUB_200_2011/images/001.Black_footed_Albatross")
    assert load("cub", tmp_path, size=20).images.shape == (3, 3, 20, 20)


def test_cifar_fs_as_published_with_its_lists(tmp_path: Path, write_class: Write) -> None:
    base = tmp_path / "cifar100"
    for name in ("apple", "bear", "beaver", "baby"):
        write_class(base / "data" / name, size=32)
    assert sizes(load("cifar-fs", tmp_path)) == {"train": 2, "val": 1, "test": 1}
    lists = base / "splits/bertinetto"
    lists.mkdir(parents=True)
    for split, name in (("train", "baby"), ("val", "bear"), ("test", "apple")):
        (lists / f"{split}.txt").write_text(f"{name}\n")
    assert load("cifar-fs", tmp_path).class_names == ("baby", "bear", "apple")


def test_flowers_are_matched_by_number(tmp_path: Path, write_class: Write) -> None:
    for folder in ("090.canna lily", "10", "005"):
        write_class(tmp_path / "vgg_flower" / folder, 2)
    data = load("vgg-flower", tmp_path, size=8)
    assert data.class_names == ("90", "10", "5")
    assert sizes(data) == {"train": 1, "val": 1, "test": 1}


def test_cars_need_a_split_of_the_user(tmp_path: Path, write_class: Write) -> None:
    write_class(tmp_path / "cars/Fiat 500 2012")
    write_class(tmp_path / "cars/Jeep 2011")
    with pytest.raises(MissingDataError, match=r"split\.json"):
        load("cars", tmp_path)
    (tmp_path / "cars/split.json").write_text(json.dumps({"train": ["Jeep 2011"], "val": ["Fiat 500 2012"]}))
    assert load("cars", tmp_path, size=8).class_names == ("Jeep 2011", "Fiat 500 2012")


def test_mini_as_images_with_csv(tmp_path: Path, write_class: Write) -> None:
    base = tmp_path / "miniimagenet"
    pixels = write_class(base / "images", 4, size=84)
    (base / "train.csv").write_text("filename,label\n0002.png,n01532829\n0000.png,n01532829\n")
    (base / "val.csv").write_text("filename,label\n0003.png,n01855672\n")
    data = load("miniimagenet", tmp_path)
    assert sizes(data) == {"train": 1, "val": 1}
    assert np.array_equal(data.images.numpy(), np.stack([pixels[k] for k in (2, 0, 3)]).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filename,label\n../../secret.png,n01532829\n", r"image '\.\./\.\./secret\.png' is not in"),
        ("name,label\n0000.png,n01532829\n", "columns filename and label"),
        ('filename,label\n"0000.png,n01532829\n', "columns filename and label"),
    ],
)
def test_unusable_csv(tmp_path: Path, write_class: Write, content: str, message: str) -> None:
    write_class(tmp_path / "images", 1)
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        load("miniimagenet", tmp_path)


def test_aircraft_as_published(tmp_path: Path) -> None:
    base = tmp_path / "fgvc-aircraft-2013b/data"
    (base / "images").mkdir(parents=True)
    for k in range(4):
        Image.fromarray(np.full((10, 14, 3), 40 * k, dtype=np.uint8)).save(base / "images" / f"{k:07d}.jpg")
    (base / "images_variant_trainval.txt").write_text("0000000 F-16A/B\n0000001 Falcon 2000\n0000002 F-16A/B\n")
    (base / "images_variant_test.txt").write_text("0000003 737-900\n")
    data = load("aircraft", tmp_path, size=8)
    assert sizes(data) == {"train": 2, "val": 1}
    assert data.images[data.labels == data.class_names.index("F-16A/B"), 0, 0, 0].tolist() == [0, 80]
    (base / "images_variant_test.txt").write_text("0000009 737-900\n")
    with pytest.raises(ConfigurationError, match="image '0000009' is not in"):
        load("aircraft", tmp_path)


def test_aircraft_as_class_folders(tmp_path: Path, write_class: Write) -> None:
    write_class(tmp_path / "aircraft/F-16A_B")
    write_class(tmp_path / "aircraft/BAE 146-300")
    data = load("aircraft", tmp_path, size=8)
    assert data.class_names == ("F-16A/B", "BAE 146-300")


def test_imagenet_shares_are_disjoint_and_repeatable(tmp_path: Path, write_class: Write) -> None:
    stored = {name: write_class(tmp_path / "imagenet/train" / name, 80) for name in ("n01440764", "n01443537")}
    for name in stored:
        write_class(tmp_path / "imagenet/val" / name, 3, prefix="v")
    data = load("imagenet", tmp_path, size=8)
    assert {split: len(index) for split, index in data.sample_splits.items()} == {"train": 16, "val": 4, "test": 6}
    assert data.members("train").counts.tolist() == [8, 8]
    drawn = [data.images[data.sample_splits[split]].flatten(1).numpy() for split in ("train", "val")]
    rows = [row.tobytes() for half in drawn for row in half]
    known = {image.transpose(2, 0, 1).tobytes() for images in stored.values() for image in images}
    assert len(set(rows)) == len(rows) == 20
    assert set(rows) <= known
    assert load("imagenet", tmp_path, size=8).content_hash() == data.content_hash()


def test_imagenet_decodes_its_share_only(tmp_path: Path, write_class: Write) -> None:
    folder = tmp_path / "train/n01440764"
    write_class(folder, 40)
    used = load("imagenet", tmp_path, size=8)
    assert len(used.images) == 5
    for file in folder.iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(ConfigurationError, match="not a readable image"):
        load("imagenet", tmp_path, size=8)
