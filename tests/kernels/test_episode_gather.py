from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.data.augment import horizontal_flip, normalise, random_crop
from engine.kernels import episode
from engine.kernels.episode import gather_episode, gather_episode_reference
from engine.runs.streams import stream

Case = dict[str, Any]


def case(bank: tuple[int, int, int, int] = (5, 3, 9, 7), count: int = 4, padding: int = 2, size: int = 7) -> Case:
    generator = stream(0, "test-episode")
    spare = [length + 2 * padding - size + 1 for length in bank[2:]]
    return {
        "images": torch.randint(0, 256, bank, generator=generator, dtype=torch.uint8),
        "index": torch.randint(0, bank[0], (count,), generator=generator),
        "tops": torch.randint(0, spare[0], (count,), generator=generator),
        "lefts": torch.randint(0, spare[1], (count,), generator=generator),
        "flips": torch.rand(count, generator=generator) < 0.5,
        "mean": torch.rand(bank[1], generator=generator),
        "std": torch.rand(bank[1], generator=generator) + 0.1,
        "padding": padding,
        "size": size,
    }


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 5),
    st.integers(0, 6),
    st.integers(1, 9),
)
def test_cpu_path_equals_the_reference(bank: tuple[int, int, int, int], count: int, padding: int, size: int) -> None:
    arguments = case(bank, count, padding, min(size, min(bank[2:]) + 2 * padding))
    found = gather_episode(**arguments)
    assert found.is_contiguous()
    assert torch.equal(found, gather_episode_reference(**arguments))


def test_values_are_those_of_the_augmentations() -> None:
    """Flip, then pad and crop, then normalise, with the augmentations' own draws."""
    arguments = case((20, 3, 12, 12), count=50, padding=3, size=12)
    flips, corners = stream(0, "flips"), stream(0, "corners")
    chosen = arguments["images"][arguments["index"]]
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    expected = normalise(random_crop(horizontal_flip(chosen, flips), corners, padding=3), mean, std)
    arguments |= {"flips": torch.rand(50, generator=stream(0, "flips")) < 0.5, "mean": mean, "std": std}
    corners = stream(0, "corners")
    arguments |= {name: torch.randint(7, (50,), generator=corners) for name in ("tops", "lefts")}
    assert torch.equal(gather_episode(**arguments), expected)


def test_by_hand() -> None:
    """One 2x3 image, mirrored, padded by one, the window's corner at row 1, column 0."""
    arguments: Case = {
        "images": torch.tensor([[[[0, 51, 102], [153, 204, 255]]]], dtype=torch.uint8),
        "index": torch.tensor([0]),
        "tops": torch.tensor([1]),
        "lefts": torch.tensor([0]),
        "flips": torch.tensor([True]),
        "mean": [0.5],
        "std": [0.1],
        "padding": 1,
        "size": 3,
    }
    expected = torch.tensor([[-5.0, -1.0, -3.0], [-5.0, 5.0, 3.0], [-5.0, -5.0, -5.0]])
    torch.testing.assert_close(gather_episode(**arguments), expected[None, None])


def test_windows_wholly_in_the_padding_are_black() -> None:
    arguments = case((2, 1, 3, 3), count=4, padding=5, size=2)
    arguments |= {"tops": torch.tensor([0, 11, 0, 11]), "lefts": torch.tensor([0, 0, 11, 11])}
    black = -arguments["mean"] / arguments["std"]
    assert torch.equal(gather_episode(**arguments), black.expand(4, 1, 2, 2))


@pytest.mark.parametrize("block", [1, 200, 10**9])
def test_blocks_of_samples_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = case(count=7)
    monkeypatch.setattr(episode, "BLOCK_PIXELS", block)
    assert torch.equal(gather_episode(**arguments), gather_episode_reference(**arguments))


def test_bank_is_left_alone() -> None:
    arguments = case()
    before = arguments["images"].clone()
    gather_episode(**arguments)
    assert torch.equal(arguments["images"], before)


def test_operator_is_registered_soundly() -> None:
    torch.library.opcheck(torch.ops.engine.gather_episode.default, tuple(case().values()))


def test_compiles_whole() -> None:
    arguments = case()
    compiled = torch.compile(lambda **given: 2 * gather_episode(**given), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**arguments), 2 * gather_episode_reference(**arguments))


def changed(name: str, change: Any) -> Case:
    arguments = case()
    value = arguments[name]
    return arguments | {name: change(value) if callable(change) else change}


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("images", Tensor.float, TypeError, "images: expected torch.uint8, got torch.float32 (5, 3, 9, 7)"),
        ("images", lambda t: t[0], ValueError, "images: expected a contiguous (M, C, H, W), got shape (3, 9, 7)"),
        ("images", lambda t: t.flip(0).mT, ValueError, "got shape (5, 3, 7, 9), strides (189, 63, 1, 7)"),
        ("index", Tensor.int, TypeError, "index: expected torch.int64, got torch.int32 (4,)"),
        ("index", lambda t: t[None], ValueError, "index: expected shape (N,)"),
        ("tops", Tensor.float, TypeError, "tops: expected torch.int64, got torch.float32 (4,)"),
        ("tops", lambda t: t[:3], ValueError, "tops: expected shape (N,) as index has, got (3,), index (4,)"),
        ("lefts", lambda t: t.to("meta"), ValueError, "lefts: expected on cpu as images are, got (4,) on meta"),
        ("flips", Tensor.long, TypeError, "flips: expected torch.bool, got torch.int64 (4,)"),
        ("mean", Tensor.double, TypeError, "mean: expected floats or a float32 tensor, got torch.float64 (3,)"),
        ("mean", [0.5], ValueError, "mean: expected (3,) on cpu as images are, got (1,) on cpu"),
        ("std", lambda t: t[None], ValueError, "std: expected (3,) on cpu"),
        ("padding", -1, ValueError, "padding: expected at least 0, got -1"),
        ("size", 0, ValueError, "size: expected 1 to 11 for images (5, 3, 9, 7) padded by 2, got 0"),
        ("size", 12, ValueError, "size: expected 1 to 11"),
        ("index", lambda t: t.new_tensor([0, 1, 5, 2]), ValueError, "index: expected 0 to 4, got 0 to 5"),
        ("index", lambda t: t.new_tensor([0, -1, 3, 2]), ValueError, "index: expected 0 to 4, got -1 to 3"),
        ("tops", lambda t: t.new_full((4,), 7), ValueError, "tops: expected 0 to 6, got 7 to 7"),
        ("lefts", lambda t: t.new_full((4,), 5), ValueError, "lefts: expected 0 to 4, got 5 to 5"),
    ],
)
def test_bad_arguments_are_named(name: str, change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        gather_episode(**changed(name, change))
