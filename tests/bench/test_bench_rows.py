"""Rows: their statistics, and files of them that may come from anywhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rows import MAX_FILE_BYTES, Quantiles, Row, read
from engine.errors import ConfigurationError

ROW = Row(
    benchmark="ntk",
    configuration={"network": "path", "cells": 5},
    method="ntk sum",
    memory_format="contiguous",
    dtype="float32",
    device="cpu",
    rounds=3,
    cpu_s=Quantiles(0.2, 0.1, 0.3),
    wall_s=Quantiles(0.25, 0.15, 0.35),
    baseline="training step",
    ratio=Quantiles(1.1, 1.0, 1.2),
    peak_bytes=None,
    peak_ratio=None,
    note="",
    date="2024-05-06T07:08:09+00:00",
    environment={"threads": 1},
)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_quantiles_are_numpys(values: list[float]) -> None:
    found = Quantiles.of(values)
    assert [found.p20, found.median, found.p80] == pytest.approx(np.quantile(values, [0.2, 0.5, 0.8]), rel=1e-9)


def test_rows_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{ROW.json()}\n\n{ROW.json()}\n")
    assert read(path) == [ROW, ROW]


def test_text_shows_what_was_measured() -> None:
    assert "ntk sum (contiguous)" in ROW.text()
    assert "MB" not in ROW.text()
    assert "12.0 MB  0.50x" in Row(**{**vars(ROW), "peak_bytes": 12_000_000, "peak_ratio": 0.5}).text()


def spoiled(**changes: object) -> str:
    return json.dumps({**asdict(ROW), **changes})


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        "null",
        spoiled(surplus=1),
        spoiled(ratio=1.0),
        spoiled(ratio={"median": 1.0}),
        spoiled(ratio={"median": "fast", "p20": 1, "p80": 1}),
        spoiled(ratio={"median": float("nan"), "p20": 1, "p80": 1}),
        spoiled(configuration=7),
        spoiled(method=["ntk"]),
        spoiled(peak_bytes="many"),
        "[" * 100_000,
    ],
)
def test_foreign_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{ROW.json()}\n{line}\n")
    with pytest.raises(ConfigurationError, match="line 2 is not a benchmark row"):
        read(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not text"):
        read(path)
    path.write_text("\n")
    with pytest.raises(ConfigurationError, match="holds no rows"):
        read(path)
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigurationError, match="larger than 64 MiB"):
        read(path)
