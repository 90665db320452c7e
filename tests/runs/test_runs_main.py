"""``python -m engine.runs``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import ConfigurationError
from engine.runs.__main__ import main
from engine.runs.run import Run
from engine.spaces.genotype import CellGenotype, Connection, Genotype


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    with Run.create(tmp_path / "first", 'method = "random"\ndata = "digits"\nseed = 7\n', {}) as run:
        cell = CellGenotype((Connection(0, 2, "skip_connect"),), (2,))
        run.write_text("genotype.json", Genotype("few-shot-cell", (("normal", cell),)).to_json())
        run.write_json("result.json", {"method": "random", "seconds": 61.0})
    with Run.create(tmp_path / "second", 'method = "te\x1b[31m-nas"\n', {}) as run:
        run.append("metrics.jsonl", {"event": "round"})
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_list(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(runs)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["run", "method", "data", "seed", "state", "time"]
    assert lines[1] == ["first", "random", "digits", "7", "finished", "1", "min", "01", "s"]
    assert lines[2] == ["second", "?", "?", "?", "1", "round", "done"]
    assert len(lines) == 3


def test_show(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(runs / "first")]) == 0
    text = capsys.readouterr().out
    assert "first: finished" in text
    assert "normal cell\n  0 -> 2  skip_connect" in text


def test_report(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs / "first")]) == 0
    assert capsys.readouterr().out == f"{runs / 'first' / 'report.html'}\n"
    assert "skip_connect" in (runs / "first/report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "missing"], "missing: no such folder"),
        (["show", "missing"], "missing holds no run"),
        (["report", "missing"], "missing holds no run"),
        (["explain"], "invalid choice: 'explain'"),
        ([], "required: COMMAND"),
        (["show"], "required: directory"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no run directories"):
        main(["list", str(tmp_path)])


def test_the_module_runs(runs: Path) -> None:
    command = [sys.executable, "-m", "engine.runs", "show", str(runs / "notes")]
    answer = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert "Traceback" not in answer.stderr
