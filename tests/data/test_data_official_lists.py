"""Sets whose classes come in a file of their own: VGG flowers as published, ImageNet's flat validation part."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from engine.data import load
from engine.data.matlab import HEADER_BYTES, MAX_FILE_BYTES, read_mat
from engine.errors import ConfigurationError

Problem = Callable[..., str]
WNIDS = ("n01440764", "n01443537")


def grey(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path, format="PNG")


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Six images; class 1 is a published training class, 90 too, 102 is not listed twice."""
    for number in range(1, 7):
        grey(tmp_path / f"vgg-flower/jpg/image_{number:05d}.jpg", 10 * number)
    savemat(tmp_path / "vgg-flower/imagelabels.mat", {"labels": np.array([[90, 38, 90, 38, 90, 2]], dtype=np.uint8)})
    return tmp_path


def test_flowers_are_grouped_by_the_published_labels(flowers: Path) -> None:
    data = load("vgg-flower", flowers, size=4)
    values = {name: data.images[data.labels == k][:, 0, 0, 0].tolist() for k, name in enumerate(data.class_names)}
    assert values == {"90": [10, 30, 50], "38": [20, 40], "2": [60]}
    assert data.class_splits["train"] == (0, 1, 2)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([[1.5, 2.0]]), "labels must be one integer an image"),
        (np.arange(9, dtype=np.uint8)[None], "image_00007.jpg is not in"),
    ],
)
def test_labels_that_do_not_fit_are_refused(flowers: Path, labels: np.ndarray, said: str, problem: Problem) -> None:
    savemat(flowers / "vgg-flower/imagelabels.mat", {"labels": labels})
    assert said in problem(load, "vgg-flower", flowers)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Three validation images without folders, of classes 2, 1, 2."""
    base = tmp_path / "imagenet"
    for wnid in WNIDS:
        grey(base / "train" / wnid / "a.JPEG", 1)
    for number in range(1, 4):
        grey(base / f"val/ILSVRC2012_val_{number:08d}.JPEG", 10 * number)
    return tmp_path


def devkit(folder: Path, numbers: str = "2\n1\n2\n") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    rows = [(np.array([[k + 1]]), wnid, "fish") for k, wnid in enumerate(WNIDS)]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kind)[:, None]}, do_compression=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers)


def test_imagenet_validation_by_the_development_kit(imagenet: Path) -> None:
    devkit(imagenet / "imagenet/ILSVRC2012_devkit_t12/data")
    check_validation(imagenet)


def test_imagenet_validation_by_kaggles_list(imagenet: Path) -> None:
    rows = [f"ILSVRC2012_val_{k:08d},{wnid} 1 2 3 4 " for k, wnid in ((3, WNIDS[1]), (1, WNIDS[1]), (2, WNIDS[0]))]
    (imagenet / "imagenet/LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    check_validation(imagenet)


def check_validation(root: Path) -> None:
    data = load("imagenet", root, size=4, splits=("test",))
    values = {name: data.images[data.labels == k][:, 0, 0, 0].tolist() for k, name in enumerate(data.class_names)}
    assert values == {WNIDS[0]: [20], WNIDS[1]: [10, 30]}


def test_imagenet_ground_truth_that_does_not_fit(imagenet: Path, problem: Problem) -> None:
    assert "add LOC_val_solution.csv, or" in problem(load, "imagenet", imagenet)
    devkit(imagenet / "imagenet", "2\n1\n")
    assert "not one known class for each of the 3 images" in problem(load, "imagenet", imagenet)
    devkit(imagenet / "imagenet", "2\n1\n3\n")
    assert "not one known class" in problem(load, "imagenet", imagenet)
    savemat(imagenet / "imagenet/meta.mat", {"synsets": np.arange(3)})
    assert "synsets has no ILSVRC2012_ID" in problem(load, "imagenet", imagenet)
    (imagenet / "imagenet/LOC_val_solution.csv").write_text("ImageId,PredictionString\nmissing,n01440764 1 2 3 4\n")
    assert "image missing of the ground truth is not there" in problem(load, "imagenet", imagenet)


def test_matlab_files_that_unpack_to_too_much_are_refused_before_they_do(tmp_path: Path, problem: Problem) -> None:
    bomb = zlib.compress(bytes(200 * 2**20), 9)
    (tmp_path / "bomb.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\0\1IM" + struct.pack("<II", 15, len(bomb)) + bomb)
    assert "unpacks to more than" in problem(read_mat, tmp_path / "bomb.mat", "labels")
    (tmp_path / "large.mat").write_bytes(bytes(MAX_FILE_BYTES + 1))
    assert "larger than such a file is" in problem(read_mat, tmp_path / "large.mat", "labels")
    assert "cannot be read" in problem(read_mat, tmp_path / "missing.mat", "labels")
    savemat(tmp_path / "other.mat", {"other": np.arange(3)})
    assert "holds no variable 'labels'" in problem(read_mat, tmp_path / "other.mat", "labels")


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**16), st.binary(min_size=1, max_size=8), st.booleans())
def test_damaged_matlab_files_are_an_error_or_an_array(tmp_path_factory, place: int, data: bytes, compressed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.mat"
    savemat(path, {"labels": np.arange(40, dtype=np.uint8)}, do_compression=compressed)
    content = bytearray(path.read_bytes())
    start = HEADER_BYTES - 8 + place % (len(content) - HEADER_BYTES)
    content[start : start + len(data)] = data
    path.write_bytes(content)
    try:
        found = read_mat(path, "labels")
    except ConfigurationError:
        return
    assert found is None or isinstance(found, np.ndarray | str | dict)


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_values_are_those_that_scipy_wrote(tmp_path: Path, compressed: bool) -> None:
    values = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([[3, -4]], dtype=np.int16), "c": "text", "d": np.array([[7]])}
    nested = np.array([(1, "one"), (2, "two")], dtype=[("n", object), ("word", object)])
    savemat(tmp_path / "x.mat", {**values, "s": nested[:, None]}, do_compression=compressed)
    for name in "abd":
        np.testing.assert_array_equal(read_mat(tmp_path / "x.mat", name), np.squeeze(values[name]))
    assert read_mat(tmp_path / "x.mat", "c") == "text"
    assert read_mat(tmp_path / "x.mat", "s") == {"n": [1, 2], "word": ["one", "two"]}
