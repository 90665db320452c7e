"""The harness for atheris, with a stand-in that feeds it a few inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import guided
import pytest
from targets import TARGETS

from engine.errors import ConfigurationError


@pytest.fixture
def atheris(monkeypatch: pytest.MonkeyPatch) -> Any:
    package: Any = ModuleType("atheris")
    package.inputs, package.instrument_all = [b"", b"\x00" * 64], lambda: None

    def setup(arguments: list[str], one: Callable[[bytes], None]) -> None:
        package.arguments, package.one = arguments, one
        package.seeds = [path.read_bytes() for path in sorted(Path(arguments[1]).iterdir())]

    package.Setup = setup
    package.Fuzz = lambda: [package.one(content) for content in (*package.seeds, *package.inputs)]
    monkeypatch.setitem(sys.modules, "atheris", package)
    return package


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_takes_seeds_and_noise(name: str, atheris: Any) -> None:
    assert guided.main([name, "-runs=9"]) == 0
    assert atheris.seeds == TARGETS[name].seeds()
    assert atheris.arguments[2:] == ["-runs=9"]


def test_a_finding_is_not_hidden(tmp_path: Path) -> None:
    def read(folder: Path, content: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guided.one_input(read, tmp_path / "in")(b"")
    assert not (tmp_path / "in").exists()


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert guided.main([]) == 0
    assert capsys.readouterr().out.split() == list(TARGETS)
    with pytest.raises(ConfigurationError, match="unknown 'x'"):
        guided.main(["x"])
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(ConfigurationError, match="pip install atheris"):
        guided.main([next(iter(TARGETS))])
