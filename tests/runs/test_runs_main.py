"""``python -m engine.runs``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import ConfigurationError
from engine.methods.registry import find_method
from engine.runs.__main__ import main
from engine.runs.config import from_toml
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


ENDLESS = ("env.json", "result.json", "genotype.json", "metrics.jsonl", "scores.jsonl")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_files_that_never_end_are_left_out(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the check each of these commands would wait for ever, or read zeros until memory is full."""
    make = {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind]
    run = tmp_path / "run"
    with Run.create(run, 'method = "random"\n', {}) as made:
        made.save({})
    for name in ENDLESS:
        (run / name).unlink(missing_ok=True)
        make(run / name)
    for command in ("show", "report"):
        assert main([command, str(run)]) == 0
    assert main(["diff", str(run), str(run)]) == 0
    assert main(["tail", str(run)]) == 0
    assert "result.json was left out: " in capsys.readouterr().out
    assert main(["list", str(tmp_path)]) == 0
    for name in ("env.json", "result.json", "genotype.json"):
        (run / name).rmdir() if kind == "folder" else (run / name).unlink()
    if kind != "device":
        with Run.resume(run) as resumed, pytest.raises(ConfigurationError, match=r"jsonl: cannot be used"):
            resumed.load()
    manifest = json.loads((run / "checkpoints/000001/manifest.json").read_text())["files"]
    for name in (*manifest, "manifest.json"):
        (run / "checkpoints/000001" / name).unlink()
        make(run / "checkpoints/000001" / name)
    with Run.resume(run) as resumed, pytest.raises(ConfigurationError, match=r"no checkpoint can be used: .*manifest\.json"):
        resumed.load()
    make(tmp_path / "config.toml")
    with pytest.raises(ConfigurationError, match="cannot read the configuration"):
        from_toml(find_method("random"), tmp_path / "config.toml")


def test_one_folder_that_is_no_run_does_not_hide_the_others(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "strange" / "config.toml").mkdir(parents=True)
    assert main(["list", str(runs)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
