from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.loading import load
from engine.errors import ConfigurationError

# (half, alphabet, character, Vinyals split)
CHARACTERS = [
    ("images_background", "Alphabet_of_the_Magi", "character02", "train"),
    ("images_background", "Alphabet_of_the_Magi", "character01", "train"),
    ("images_background", "Armenian", "character01", "val"),
    ("images_evaluation", "Gurmukhi", "character42", "test"),
]


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """Write four characters of three drawings in the official folders."""
    rng = np.random.default_rng(0)
    for number, (half, alphabet, character, _) in enumerate(CHARACTERS):
        folder = tmp_path / "omniglot" / half / alphabet / character
        folder.mkdir(parents=True)
        for drawer in (2, 1, 3):
            paper = rng.random((105, 105)) > 0.1
            Image.fromarray(paper).save(folder / f"{number + 1:04d}_{drawer:02d}.png")
    return tmp_path


def pack(root: Path, halves: dict[str, str]) -> None:
    """Move official folders into zips of the given names."""
    base = root / "omniglot"
    for half, name in halves.items():
        with zipfile.ZipFile(base / f"{name}.zip", "w") as archive:
            for file in sorted((base / half).glob("*/*/*.png")):
                archive.write(file, f"{name}/{file.relative_to(base / half)}")
        (base / half).rename(root / f"unpacked_{half}")


def test_official_folders(drawings: Path) -> None:
    data = load("omniglot", drawings, rotations=())
    assert data.class_names == (
        "Alphabet_of_the_Magi/character01",
        "Alphabet_of_the_Magi/character02",
        "Armenian/character01",
        "Gurmukhi/character42",
    )
    assert data.class_splits == {"train": (0, 1), "val": (2,), "test": (3,)}
    file = drawings / "omniglot/images_background/Alphabet_of_the_Magi/character01/0002_01.png"
    with Image.open(file) as image:
        expected = 255 - np.asarray(image.convert("L").resize((28, 28), Image.Resampling.LANCZOS))
    assert np.array_equal(data.images[0, 0].numpy(), expected)
    assert data.images.float().mean() < 60  # ink 255 on paper 0


def test_training_classes_are_turned_by_default(drawings: Path) -> None:
    data = load("omniglot", drawings)
    assert {split: len(classes) for split, classes in data.class_splits.items()} == {"train": 8, "val": 1, "test": 1}
    assert len(load("omniglot", drawings, rotations=("train", "val", "test")).class_names) == 16
    assert len(load("omniglot", drawings, splits=("val",)).class_names) == 1


def test_zips_and_folders_give_the_same_bytes(drawings: Path) -> None:
    expected = load("omniglot", drawings)
    pack(drawings, {"images_background": "images_background", "images_evaluation": "images_evaluation"})
    packed = load("omniglot", drawings)
    assert packed.origin.startswith("zip ")
    assert packed.content_hash() == expected.content_hash()


def test_one_half_may_be_a_zip_and_the_other_a_folder(drawings: Path) -> None:
    expected = load("omniglot", drawings)
    pack(drawings, {"images_background": "images_background"})
    assert load("omniglot", drawings).content_hash() == expected.content_hash()


def test_small_zips_hold_shared_characters_once(drawings: Path) -> None:
    (drawings / "omniglot/images_evaluation").rename(drawings / "unused")
    expected = load("omniglot", drawings)
    pack(drawings, {"images_background": "images_background_small1"})
    small = drawings / "omniglot"
    content = (small / "images_background_small1.zip").read_bytes()
    (small / "images_background_small2.zip").write_bytes(content)
    assert load("omniglot", drawings).content_hash() == expected.content_hash()


def test_a_damaged_zip_is_named(drawings: Path) -> None:
    pack(drawings, {"images_background": "images_background"})
    path = drawings / "omniglot/images_background.zip"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigurationError, match=r"images_background\.zip: not a readable zip file"):
        load("omniglot", drawings)


@pytest.fixture
def write_npz(tmp_path: Path) -> Callable[..., None]:
    def write(**change: np.ndarray) -> None:
        content = {
            "images": np.arange(4 * 784, dtype=np.uint16).astype(np.uint8).reshape(4, 28, 28),
            "char_index": np.array([0, 0, 1, 1], dtype=np.int16),
            "char_alphabet": np.array([1, 0], dtype=np.uint8),
            "char_name": np.array(["character01", "character02"]),
            "alphabet_names": np.array(["Alphabet_of_the_Magi", "Armenian"]),
        }
        np.savez(tmp_path / "omniglot28.npz", **{**content, **change})

    return write


def test_npz(tmp_path: Path, write_npz: Callable[..., None]) -> None:
    write_npz()
    data = load("omniglot", tmp_path, rotations=())
    assert data.class_names == ("Alphabet_of_the_Magi/character02", "Armenian/character01")
    assert data.class_splits == {"train": (0,), "val": (1,)}
    assert data.images.shape == (4, 1, 28, 28)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 28, 28), dtype=np.float32)}, "images must be uint8"),
        ({"char_index": np.array([0, 0, 1, 2])}, "char_index must lie between 0 and 1"),
        ({"char_index": np.array([0, 0, 1])}, "char_index"),
        ({"char_alphabet": np.array([5, 0])}, "do not fit together"),
    ],
)
def test_inconsistent_npz(tmp_path: Path, write_npz: Callable[..., None], change: dict[str, np.ndarray], message: str) -> None:
    write_npz(**change)
    with pytest.raises(ConfigurationError, match=message):
        load("omniglot", tmp_path)


def test_shared_npz_holds_what_the_official_zips_hold(shared_data: Path, tmp_path: Path) -> None:
    for name in ("images_background_small1.zip", "images_background_small2.zip"):
        (tmp_path / name).symlink_to(shared_data / "omniglot" / name)
    packed = load("omniglot", tmp_path, rotations=(), per_class=3)
    data = load("omniglot", shared_data, rotations=(), per_class=3)
    assert {split: len(classes) for split, classes in data.class_splits.items()} == {"train": 890, "val": 172, "test": 179}
    assert len(packed.class_names) == 242
    index = {name: k for k, name in enumerate(data.class_names)}
    for k, name in enumerate(packed.class_names):
        assert torch.equal(packed.images[packed.labels == k], data.images[data.labels == index[name]])
