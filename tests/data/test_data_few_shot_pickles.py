from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data.loading import load
from engine.errors import ConfigurationError

RNG = np.random.default_rng(0)


def pixels(count: int, size: int = 84) -> np.ndarray:
    return RNG.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def png(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


def test_image_data_with_class_dict(tmp_path: Path) -> None:
    images = {"train": pixels(5), "val": pixels(2)}
    rows = {"train": {"n01532829": [0, 3], "n01558993": [1, 2, 4]}, "val": {"n01855672": np.array([0, 1])}}
    for split, image in images.items():
        dump(tmp_path / f"mini-imagenet/mini-imagenet-cache-{split}.pkl", {"image_data": image, "class_dict": rows[split]})
    data = load("miniimagenet", tmp_path)
    assert data.class_names == ("n01532829", "n01558993", "n01855672")
    assert data.class_splits == {"train": (0, 1), "val": (2,)}
    assert np.array_equal(data.images[data.labels == 1].numpy(), images["train"][[1, 2, 4]].transpose(0, 3, 1, 2))
    assert data.mean == pytest.approx((0.472, 0.453, 0.410), abs=1e-3)


@pytest.mark.parametrize("key", ["data", "images"])
def test_data_or_images_with_labels(tmp_path: Path, key: str) -> None:
    image = pixels(4)
    names = {"n01532829": 0, "n01558993": 1}
    train = {key: image, "labels": [1, 0, 1, 0], "catname2label": names}
    dump(tmp_path / "miniimagenet/miniImageNet_category_split_train_phase_train.pickle", train)
    dump(tmp_path / "miniimagenet/miniImageNet_category_split_val.pickle", {key: pixels(2), "labels": [64, 65]})
    data = load("miniimagenet", tmp_path)
    assert data.class_names == ("n01532829", "n01558993", "val-64", "val-65")
    assert np.array_equal(data.images[:2].numpy(), image[[1, 3]].transpose(0, 3, 1, 2))


def test_cifar_fs_and_fc100_pickles(tmp_path: Path) -> None:
    sets = {"cifar-fs": "CIFAR_FS_{}.pickle", "fc100": "FC100_{}.pickle"}  # side by side in one folder
    images = {name: pixels(3, 32) for name in sets}
    for name, pattern in sets.items():
        for split in ("train", "val", "test"):
            dump(tmp_path / pattern.format(split), {"data": images[name], "labels": [5, 6, 7]})
    for name in sets:
        data = load(name, tmp_path)
        assert np.array_equal(data.images[:3].numpy(), images[name].transpose(0, 3, 1, 2))
        assert {split: len(classes) for split, classes in data.class_splits.items()} == {"train": 3, "val": 3, "test": 3}


def test_tiered_pngs_are_decoded_only_as_asked(tmp_path: Path) -> None:
    image = pixels(4)
    encoded = [png(image[0]), png(image[1]), png(image[2]), b"never decoded"]
    base = tmp_path / "tiered-imagenet"
    dump(base / "train_images_png.pkl", encoded)
    described = {"label_specific": np.array([0, 1, 1, 1]), "label_specific_str": ["n01530575", "n01531178"]}
    dump(base / "train_labels.pkl", described)
    data = load("tieredimagenet", tmp_path, per_class=2)
    assert data.class_names == ("n01530575", "n01531178")
    assert np.array_equal(data.images.numpy(), image[:3].transpose(0, 3, 1, 2))
    assert load("tieredimagenet", tmp_path, size=16, per_class=1).images.shape == (2, 3, 16, 16)
    with pytest.raises(ConfigurationError, match=r"train_images_png\.pkl\[3\]: not a readable image"):
        load("tieredimagenet", tmp_path)


def test_tiered_npz_with_pickled_labels(tmp_path: Path) -> None:
    image = pixels(3)
    np.savez(tmp_path / "val_images.npz", images=image)
    dump(tmp_path / "val_labels.pkl", {"labels": [7, 3, 7]})
    data = load("tieredimagenet", tmp_path)
    assert data.class_splits == {"val": (0, 1)}
    assert np.array_equal(data.images.numpy(), image[[1, 0, 2]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_data": pixels(2), "class_dict": {"a": [0, 2]}}, "must map each class to rows"),
        ({"image_data": pixels(2), "class_dict": {"a": [0]}}, "leaves 1 of 2 images without a class"),
        ({"image_data": pixels(2), "class_dict": {"a": "x"}}, "must map each class to rows"),
        ({"data": pixels(2), "labels": [0]}, "2 images but 1 labels"),
        ({"data": pixels(2), "labels": ["a", "b"]}, "labels must be integers"),
        ({"data": pixels(2)}, "has no labels or label_specific; it holds data"),
        ({"pixels": 1}, "has no data or images; it holds pixels"),
        ({"data": pixels(2).astype(np.float32), "labels": [0, 1]}, "images must be uint8"),
        ({"data": pixels(2)[..., 0], "labels": [0, 1]}, "images must be uint8"),
        (5, "it holds int"),
    ],
)
def test_unusable_pickles(tmp_path: Path, content: Any, message: str) -> None:
    dump(tmp_path / "mini-imagenet-cache-train.pkl", content)
    with pytest.raises(ConfigurationError, match=message):
        load("miniimagenet", tmp_path)
