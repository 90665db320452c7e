"""The console script: dispatch, exit codes, one line an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine
from engine.cli import main, run_command
from engine.errors import ConfigurationError, Interrupted, MissingDataError, NumericalError, Preempted

ROOT = Path(__file__).resolve().parents[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"engine {engine.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in ("search", "data", "runs"))


@pytest.mark.parametrize(
    ("argv", "said"), [([], "no command given"), (["serach"], "did you mean 'search'?"), (["--verbose"], "known are")]
)
def test_unknown_command(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigurationError, 2), (MissingDataError, 3), (NumericalError, 4), (Preempted, 75), (Interrupted, 130)]
)
def test_errors_become_exit_codes(error: type[Exception], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: object) -> int:
        raise error("what it is")

    assert run_command(command, []) == code
    assert capsys.readouterr().err == "error: what it is\n"


@pytest.mark.parametrize(("leaving", "code"), [(SystemExit(), 0), (SystemExit(0), 0), (SystemExit(2), 2)])
def test_system_exit_becomes_a_code(leaving: SystemExit, code: int) -> None:
    def command(_: object) -> int:
        raise leaving

    assert run_command(command, []) == code


def test_keyboard_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: object) -> int:
        raise KeyboardInterrupt

    assert run_command(command, []) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--data-root", "x" * 5000]) == 2
    err = capsys.readouterr().err
    assert "File name too long" in err
    assert err.count("\n") == 1


def test_bugs_pass_through() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda _: 1 // 0, [])


def test_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "engine", "--help"], stdout=write, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_module_and_console_script_are_one() -> None:
    done = subprocess.run([sys.executable, "-m", "engine", "data", "list"], capture_output=True, text=True, cwd=ROOT)
    again = subprocess.run([sys.executable, "-m", "engine.data", "list"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert "omniglot" in done.stdout
    assert done.stdout == again.stdout
