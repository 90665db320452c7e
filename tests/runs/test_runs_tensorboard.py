"""Numbers of a run for TensorBoard."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from engine.errors import ConfigurationError
from engine.runs.__main__ import main
from engine.runs.tensorboard import scalars

LINES = [
    {"event": "epoch", "epoch": 0, "loss": 2.5, "search_loss": None, "genotype": {"normal": [["a", 0]]}},
    {"event": "epoch", "epoch": 1, "loss": "NaN", "skips": 3, "kept": True},
    {"event": "test", "accuracy": 0.5, "phases": {"data": 1, "kernel": 2.0}},
    {"event": "test", "accuracy": 0.75},
]


class Writer:
    """Keeps the points."""

    made: ClassVar[list[tuple[str, list[tuple[str, float, int]]]]] = []

    def __init__(self, folder: str) -> None:
        self.points: list[tuple[str, float, int]] = []
        self.made.append((folder, self.points))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.points.append((tag, value, step))

    def close(self) -> None:
        self.points.append(("closed", 0.0, 0))


EXPECTED = [
    ("epoch/loss", 2.5, 0),
    ("epoch/skips", 3.0, 1),
    ("test/accuracy", 0.5, 0),
    ("test/phases/data", 1.0, 0),
    ("test/phases/kernel", 2.0, 0),
    ("test/accuracy", 0.75, 1),
]


def test_numbers_are_named_by_event_and_counted() -> None:
    assert list(scalars(LINES)) == EXPECTED


def test_a_run_is_written_by_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package: Any = ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert main(["tensorboard", str(tmp_path), "--out", str(tmp_path / "tb")]) == 0
    assert Writer.made == [(str(tmp_path / "tb"), [*EXPECTED, ("closed", 0.0, 0)])]
    assert capsys.readouterr().out == f"6 numbers in {tmp_path / 'tb'}\n"


def test_without_the_package_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigurationError, match=r"nas-engine\[tensorboard\]"):
        main(["tensorboard", str(tmp_path), "--out", str(tmp_path / "tb")])
    with pytest.raises(ConfigurationError):
        main(["tensorboard", str(tmp_path / "missing"), "--out", str(tmp_path / "tb")])
