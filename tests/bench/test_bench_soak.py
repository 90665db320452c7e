"""The watch over long runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bench.soak import look, main, slope
from engine.errors import ConfigurationError


def test_a_slope_is_that_of_what_comes_after_the_warm_up() -> None:
    seconds = np.arange(0.0, 3600.0, 10.0)
    steady = np.where(seconds < 600, 500 - seconds / 10, 100.0)
    assert slope(seconds, steady).per_hour == pytest.approx(0, abs=1e-9)
    growing = slope(seconds, 100 + 3 * seconds / 3600)
    assert growing.per_hour == pytest.approx(3)
    assert growing.certain > 2.99
    noisy = slope(seconds, 100 + np.sin(seconds))
    assert noisy.certain < 0 < noisy.error


def test_a_look_counts_memory_descriptors_and_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    memory, descriptors, files = look(os.getpid(), tmp_path)
    with (tmp_path / "c").open("w"):
        assert look(os.getpid(), tmp_path)[1:] == (descriptors + 1, files + 1)
    assert files == 1
    assert memory > 10


def test_a_short_watch_sees_no_growth_of_files(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    main(["--seconds", "12", "--every", "0.5", "--json", str(out)])
    row = json.loads(out.read_text())
    assert row["looks"] > 10
    assert row["descriptors"]["per_hour"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigurationError, match="ten looks"):
        main(["--seconds", "1", "--every", "1"])
