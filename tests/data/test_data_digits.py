from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from engine.data.loading import load
from engine.errors import ConfigurationError


def test_digits_are_scikit_learns_in_four_turns() -> None:
    from sklearn.datasets import load_digits

    original, digit = load_digits(return_X_y=True)
    data = load("digits")
    assert data.images.shape == (4 * 1797, 1, 8, 8)
    assert (int(data.images.min()), int(data.images.max())) == (0, 255)
    assert {split: len(classes) for split, classes in data.class_splits.items()} == {"train": 24, "val": 8, "test": 8}
    for turn in range(4):
        for number in range(10):
            expected = torch.tensor(original[digit == number].reshape(-1, 8, 8) / 16 * 255).round().to(torch.uint8)
            expected = torch.rot90(expected, turn, (1, 2))
            found = data.images[data.labels == data.class_names.index(f"{number}/rot{90 * turn:03d}"), 0]
            assert torch.equal(found, expected)


def test_the_split_never_changes() -> None:
    data = load("digits")
    assert data.content_hash() == "0f435418d34c8022114fdd4351a507066990fac53e9a98de6b54048159e1c235"
    assert load("digits").content_hash() == data.content_hash()


def test_digits_scale_and_refuse_further_rotations() -> None:
    assert load("digits", size=14, per_class=2).images.shape == (80, 1, 14, 14)
    with pytest.raises(ConfigurationError, match="digits already has its rotations"):
        load("digits", rotations=("train",))


def test_digits_do_not_import_scikit_learn() -> None:
    code = "import sys; from engine.data import load; load('digits'); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
