"""The search command around a method of the user's own, from the dry run to the finished run directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from engine import Genotype
from engine.cli import main

ROOT = Path(__file__).resolve().parents[1]

METHOD = '''
import os
import signal
from dataclasses import dataclass, replace
from engine.errors import ConfigurationError, MissingDataError
from engine.methods.options import CellOptions
from engine.methods.registry import Method
from engine.runs.config import rewrite_config
from engine.spaces.space import get_space


@dataclass(frozen=True)
class ToyOptions(CellOptions):
    """My options."""

    steps: int = 4
    """Steps to take."""
    fail: str = ""
    """How to fail."""


def plan(options):
    return [("steps", str(options.steps))]


def search(options, run, stop, progress):
    if options.fail == "data":
        raise MissingDataError("nothing there")
    if options.fail == "memory":
        options = replace(options, steps=options.steps // 2, fail="")
        rewrite_config(run, options)
    state, _ = run.load() or ({"step": 0}, {})
    with progress(options.steps, "toy") as bar:
        for step in range(state["step"], options.steps):
            run.append("scores.jsonl", {"step": step})
            run.save({"step": step + 1})
            bar.advance()
            if options.fail == "once" and step == 1 and not os.path.exists("failed"):
                open("failed", "w").close()
                raise ConfigurationError("half way")
            if options.fail in ("SIGINT", "SIGTERM") and step == 1 and not os.path.exists("failed"):
                open("failed", "w").close()
                os.kill(os.getpid(), getattr(signal, options.fail))
            stop.check()
    space = get_space(options.space)
    alive = [[[name == "conv_3x3" for name in space.operations] for _ in space.edges] for _ in space.kinds]
    return {"genotype": space.genotype(alive), "evaluations": options.steps}


TOY = Method("toy", ToyOptions, "toy_method_for_tests:search", "a toy")
'''
TOY = "toy_method_for_tests:TOY"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy_method_for_tests.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_method_for_tests", raising=False)
    return tmp_path


def search(*words: str) -> int:
    return main(["search", TOY, "--quiet", *words])


def test_leaves_a_run_directory(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--out", "a", "--steps", "3") == 0
    assert capsys.readouterr() == (f"{TOY} on digits: see a/report.html\n", "")
    expected = {"config.toml", "env.json", "scores.jsonl", "genotype.json", "result.json", "report.html"}
    assert expected | {"cell_normal.svg", "cell_reduction.svg"} <= set(os.listdir("a"))
    result = json.loads((place / "a/result.json").read_text())
    assert (result["schema"], result["method"], result["data"], result["seed"], result["evaluations"]) == (1, TOY, "digits", 0, 3)
    genotype = Genotype.load(place / "a/genotype.json")
    assert Genotype.from_dict(result["genotype"]) == genotype
    assert {connection.operation for connection in genotype["normal"].connections} == {"conv_3x3"}
    assert tomllib.loads((place / "a/config.toml").read_text())["device"] in ("cpu", "cuda")


def test_written_configuration_gives_the_same_run(place: Path) -> None:
    assert search("--out", "a", "--seed", "5", "--steps", "2", "--preset", "small") == 0
    assert search("--config", "a/config.toml", "--out", "b") == 0
    for name in ("config.toml", "scores.jsonl", "genotype.json"):
        assert (place / "a" / name).read_bytes() == (place / "b" / name).read_bytes()


def test_a_method_can_write_down_what_it_changed(place: Path) -> None:
    assert search("--out", "a", "--steps", "6", "--fail", "memory") == 0
    written = tomllib.loads((place / "a/config.toml").read_text())
    assert (written["method"], written["steps"]) == (TOY, 3)


def test_used_directory_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--out", "a") == 0
    before = (place / "a/scores.jsonl").read_bytes()
    assert search("--out", "a") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (place / "a/scores.jsonl").read_bytes() == before


def test_default_directories(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search() == 0
    assert search() == 0
    assert sorted(os.listdir("runs")) == ["toy_method_for_tests-TOY-digits-0", "toy_method_for_tests-TOY-digits-0-2"]
    capsys.readouterr()
    assert search("--resume") == 0
    assert capsys.readouterr().out.startswith("runs/toy_method_for_tests-TOY-digits-0-2 is finished already")
    assert search("--resume", "--seed", "1") == 2
    assert "runs/toy_method_for_tests-TOY-digits-1 holds no run" in capsys.readouterr().err


def test_resume(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--out", "whole", "--fail", "never") == 0
    assert search("--out", "a", "--fail", "once") == 2
    assert (place / "a/scores.jsonl").read_text().count("\n") == 2
    assert search("--out", "a", "--resume") == 0
    assert (place / "a/scores.jsonl").read_bytes() == (place / "whole/scores.jsonl").read_bytes()
    assert (place / "a/genotype.json").read_bytes() == (place / "whole/genotype.json").read_bytes()
    capsys.readouterr()
    assert search("--out", "a", "--resume") == 0
    assert capsys.readouterr().out == "a is finished already; nothing is left to do\n"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_signal_saves_and_resume_goes_on(place: Path, name: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--out", "a", "--fail", name) == code
    err = capsys.readouterr().err
    assert "continue with --resume" in err
    assert "Traceback" not in err
    assert (place / "a/scores.jsonl").read_text().count("\n") == 2
    assert search("--out", "a", "--resume") == 0
    assert (place / "a/scores.jsonl").read_text().count("\n") == 4


def test_missing_report_of_a_finished_run_is_made(place: Path) -> None:
    assert search("--out", "a") == 0
    (place / "a/report.html").unlink()
    assert search("--out", "a", "--resume") == 0
    assert (place / "a/report.html").is_file()


def test_resume_refuses_other_settings(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--out", "a", "--fail", "once", "--channels", "32") == 2
    capsys.readouterr()
    assert search("--out", "a", "--resume", "--channels", "48") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--channels 48 contradicts a/config.toml, which has 32" in err
    # auto and none leave the choice to the run, and the data may have moved
    assert (
        search("--out", "a", "--resume", "--channels", "32", "--device", "auto", "--size", "none", "--data-root", str(place)) == 0
    )


def test_a_run_refused_at_the_start_leaves_its_directory_free(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine").mkdir()
    (place / "mine/notes.txt").write_text("keep")
    for out in ("new", "mine"):
        assert search("--out", out, "--fail", "data") == 3
        assert capsys.readouterr().err == "error: nothing there\n"
    assert not (place / "new").exists()
    assert os.listdir("mine") == ["notes.txt"]
    assert search("--out", "mine") == 0


def test_dry_run_leaves_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--dry-run", "--steps", "9", "--device", "cpu") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["method", TOY], ["data", "digits"], ["device", "cpu"], ["steps", "9"]]
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--data", "digts"], 2, "did you mean 'digits'?"),
        (["--space", "nowhere"], 2, "space: unknown 'nowhere'"),
        (["--space", ".nowhere:SPACE"], 2, "space: cannot import '.nowhere:SPACE'"),
        (["--data-root", "not/there"], 3, "there is no folder not/there"),
        (["--data", "omniglot", "--data-root", "not/there"], 3, "to get it: "),
        (["--out", "toy_method_for_tests.py"], 2, "toy_method_for_tests.py"),
    ],
)
def test_bad_inputs(place: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(*words) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") <= 2
    assert not (place / "runs").exists()


def test_cuda_without_a_gpu(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert search("--device", "cuda") == 2
    assert capsys.readouterr().err == "error: --device cuda: torch finds no usable GPU; use --device cpu\n"


def test_cuda_that_does_not_compute(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available\nmore lines")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.zeros", broken)
    assert search("--device", "cuda") == 2
    assert "the GPU does not compute (no kernel image is available)" in capsys.readouterr().err
    assert search("--device", "auto", "--dry-run") == 0
    assert "device               cpu" in capsys.readouterr().out


def test_own_method_as_a_command_in_its_folder(place: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", "import sys; from engine.cli import main; sys.path.remove(''); sys.exit(main())"]
    done = subprocess.run(
        [*words, "search", TOY, "--dry-run", "--device", "cpu"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "steps                4" in done.stdout
