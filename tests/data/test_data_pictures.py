from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data import pictures
from engine.data.pictures import Picture, decode, file_picture, probe
from engine.errors import ConfigurationError


def saved(path: Path, array: np.ndarray) -> Picture:
    Image.fromarray(array).save(path)
    return file_picture(path)


def test_pngs_of_the_asked_size_come_back_unchanged(tmp_path: Path) -> None:
    rgb = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    grey = np.arange(20, dtype=np.uint8).reshape(5, 4)
    out = decode([saved(tmp_path / "a.png", rgb)], (3, 5, 4))
    assert np.array_equal(out[0], rgb.transpose(2, 0, 1))
    assert np.array_equal(decode([saved(tmp_path / "b.png", grey)], (1, 5, 4))[0, 0], grey)
    both = decode([file_picture(tmp_path / "a.png"), file_picture(tmp_path / "b.png")], (3, 5, 4))
    assert np.array_equal(both[1], np.broadcast_to(grey, (3, 5, 4)))


def test_other_sizes_are_cut_to_the_centre_and_scaled(tmp_path: Path) -> None:
    wide = np.zeros((8, 24), dtype=np.uint8)
    wide[:, 8:16] = 120
    assert np.array_equal(decode([saved(tmp_path / "w.png", wide)], (1, 4, 4)), np.full((1, 1, 4, 4), 120))
    tall = wide.T.copy()
    assert np.array_equal(decode([saved(tmp_path / "t.png", tall)], (1, 16, 16)), np.full((1, 1, 16, 16), 120))


def test_probe_reports_channels_and_sizes(tmp_path: Path) -> None:
    grey = saved(tmp_path / "g.png", np.zeros((5, 4), dtype=np.uint8))
    rgb = saved(tmp_path / "c.png", np.zeros((6, 7, 3), dtype=np.uint8))
    assert probe([grey]) == (1, {(5, 4)})
    assert probe([grey, rgb]) == (3, {(5, 4), (6, 7)})


def test_bad_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    good = saved(tmp_path / "good.png", noise)
    content = (tmp_path / "good.png").read_bytes()
    for name, data in {"text.png": b"hello", "empty.png": b"", "cut.png": content[: len(content) // 2]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigurationError, match=rf"{name}: not a readable image"):
            decode([file_picture(tmp_path / name)], (1, 4, 4))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ConfigurationError, match=r"pipe\.png: not a readable image"):
        decode([file_picture(tmp_path / "pipe.png")], (1, 4, 4))
    deep = saved(tmp_path / "deep.png", np.zeros((4, 4), dtype=np.uint16))
    with pytest.raises(ConfigurationError, match="more than 8 bits"):
        decode([deep], (1, 4, 4))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 399)
    with pytest.raises(ConfigurationError, match="20x20 is above the limit of 399 pixels"):
        decode([good], (1, 4, 4))


def test_formats_that_are_not_expected_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(buffer, format="TIFF")
    with pytest.raises(ConfigurationError, match="not a readable image"):
        decode([Picture("x.tif", lambda: io.BytesIO(buffer.getvalue()))], (1, 4, 4))
