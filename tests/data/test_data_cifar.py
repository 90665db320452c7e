from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.data.class_splits import published_split
from engine.data.loading import load
from engine.errors import ConfigurationError, MissingDataError

RNG = np.random.default_rng(0)
NAMES10 = ["airplane", "automobile", "bird"]


def pixels(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 3072), dtype=np.uint8)


def cifar10() -> dict[str, Any]:
    batches: dict[str, Any] = {f"data_batch_{k}": {"data": pixels(6), "labels": [0, 1, 2] * 2} for k in range(1, 6)}
    return {**batches, "test_batch": {"data": pixels(3), "labels": [2, 1, 0]}, "batches.meta": {"label_names": NAMES10}}


def cifar100() -> dict[str, Any]:
    names = sorted(c for classes in (published_split("cifar-fs") or {}).values() for c in classes)
    return {
        "train": {"data": pixels(200), "fine_labels": list(range(100)) * 2},
        "test": {"data": pixels(100), "fine_labels": list(range(100))},
        "meta": {"fine_label_names": names},
    }


def write(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write_tar(path: Path, folder: str, files: dict[str, Any]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_official_cifar10_is_halved_by_address(tmp_path: Path) -> None:
    files = cifar10()
    write(tmp_path / "cifar10/cifar-10-batches-py", files)
    data = load("cifar10", tmp_path)
    assert data.images.shape == (33, 3, 32, 32)
    assert data.class_names == tuple(NAMES10)
    assert {split: len(index) for split, index in data.sample_splits.items()} == {"train": 15, "val": 15, "test": 3}
    assert data.class_splits == dict.fromkeys(("train", "val", "test"), (0, 1, 2))
    stored = np.concatenate([files[f"data_batch_{k}"]["data"] for k in range(1, 6)])
    halves = {split: data.images[data.sample_splits[split]].flatten(1).numpy() for split in ("train", "val")}
    assert {row.tobytes() for half in halves.values() for row in half} == {row.tobytes() for row in stored}
    for k, row in enumerate(files["test_batch"]["data"]):
        found = data.images[data.sample_splits["test"]].flatten(1).numpy()
        label = data.labels[data.sample_splits["test"]][(found == row).all(1).tolist().index(True)]
        assert int(label) == [2, 1, 0][k]
    assert data.content_hash() == load("cifar10", tmp_path).content_hash()


def test_archive_and_folder_hold_the_same(tmp_path: Path) -> None:
    files = cifar10()
    write(tmp_path / "a/cifar-10-batches-py", files)
    (tmp_path / "b").mkdir()
    write_tar(tmp_path / "b/cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    folder, archive = load("cifar10", tmp_path / "a"), load("cifar10", tmp_path / "b")
    assert archive.origin.startswith("archive ")
    assert folder.content_hash() == archive.content_hash()


def test_only_the_batches_of_the_asked_splits_are_needed(tmp_path: Path) -> None:
    files = cifar10()
    write(tmp_path / "cifar-10-batches-py", {name: files[name] for name in ("test_batch", "batches.meta")})
    assert len(load("cifar10", tmp_path, splits=("test",)).images) == 3
    with pytest.raises(MissingDataError):
        load("cifar10", tmp_path)


def test_cifar100_and_what_is_made_from_it(tmp_path: Path) -> None:
    write(tmp_path / "cifar-100-python", cifar100())
    assert len(load("cifar100", tmp_path).class_names) == 100
    for name, sizes in (("cifar-fs", (64, 16, 20)), ("fc100", (60, 20, 20))):
        data = load(name, tmp_path)
        assert tuple(len(data.class_splits[split]) for split in ("train", "val", "test")) == sizes
        assert data.sample_splits == {}
        assert len(data.images) == 300
        published = published_split(name)
        assert published is not None
        assert {data.class_names[k] for k in data.classes("val")} == set(published["val"])


def test_regrouped_images_keep_their_class(tmp_path: Path) -> None:
    files = cifar100()
    write(tmp_path / "cifar-100-python", files)
    data = load("cifar-fs", tmp_path, splits=("test",))
    name = data.class_names[3]
    label = files["meta"]["fine_label_names"].index(name)
    expected = [*files["train"]["data"][label::100], files["test"]["data"][label]]
    assert np.array_equal(data.images[data.labels == 3].flatten(1).numpy(), np.stack(expected))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test_batch", {"labels": [0]}, r"test_batch has no data \(N, 3072\)"),
        ("test_batch", {"data": pixels(3), "labels": [0, 1]}, "labels must be 3 integers"),
        ("test_batch", {"data": pixels(3), "labels": [0, 1, 3]}, "labels must lie between 0 and 2"),
        ("test_batch", {"data": pixels(1).astype(np.float32), "labels": [0]}, "images must be uint8"),
        ("test_batch", [1], "test_batch has no data"),
        ("batches.meta", {}, "batches.meta has no label_names"),
    ],
)
def test_unusable_batches(tmp_path: Path, file: str, content: Any, message: str) -> None:
    write(tmp_path / "cifar-10-batches-py", {**cifar10(), file: content})
    with pytest.raises(ConfigurationError, match=message):
        load("cifar10", tmp_path)


def test_an_incomplete_archive_is_named(tmp_path: Path) -> None:
    files = cifar10()
    del files["data_batch_3"]
    write_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    with pytest.raises(ConfigurationError, match="data_batch_3 not in the archive"):
        load("cifar10", tmp_path)


def test_few_shot_npz_parts_are_joined(tmp_path: Path) -> None:
    for name, count, classes in (("train_a", 4, ["x", "y"]), ("train_b", 6, ["x", "y"]), ("val", 2, ["z"])):
        images, labels = pixels(count).reshape(-1, 3, 32, 32), np.arange(count, dtype=np.int16) % len(classes)
        np.savez(tmp_path / f"cifar_fs_{name}.npz", images=images, label=labels, class_names=np.array(classes))
    data = load("cifar-fs", tmp_path)
    assert data.class_names == ("x", "y", "z")
    assert data.members("train").counts.tolist() == [5, 5]
    assert data.class_splits == {"train": (0, 1), "val": (2,)}


def test_shared_cifar10_subset(shared_data: Path) -> None:
    data = load("cifar10", shared_data)
    assert {split: len(index) for split, index in data.sample_splits.items()} == {"train": 2500, "val": 2500, "test": 1000}
    assert data.class_names[:2] == ("airplane", "automobile")
    assert data.images.float().mean((0, 2, 3)).div(255).tolist() == pytest.approx(data.mean, abs=0.01)


def test_shared_cifar_fs_val(shared_data: Path) -> None:
    data = load("cifar-fs", shared_data, splits=("val",), per_class=20)
    assert data.images.shape == (320, 3, 32, 32)
    published = published_split("cifar-fs")
    assert published is not None
    assert set(data.class_names) == set(published["val"])
