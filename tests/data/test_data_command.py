from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.data.__main__ import main
from engine.data.loading import load
from engine.data.names import SETS
from engine.errors import ConfigurationError, MissingDataError


def test_list_names_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == [*SETS, "folder:PATH", "npz:PATH"]


def test_check_prints_layout_counts_split_and_hash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "digits", "--size", "14"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["layout"] == "the digits embedded in scikit-learn"
    assert rows["images"] == "7188 of 1x14x14 uint8, 1.4 MB"
    assert rows["train"] == "24 classes, 4312 images, 174 to 183 a class"
    assert rows["sha256"] == load("digits", size=14).content_hash()


def test_check_takes_bare_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str], write_class) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.arange(2))
    write_class(tmp_path / "folder/cat")
    for path in ("a.npz", "folder"):
        assert main(["check", str(tmp_path / path)]) == 0
    out = capsys.readouterr().out
    assert f"npz:{tmp_path}/a.npz" in out
    assert f"folder:{tmp_path}/folder" in out


def test_check_counts_published_classes_that_are_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str], write_class) -> None:
    write_class(tmp_path / "cub/001.Black_footed_Albatross")
    main(["check", "cub", "--data-root", str(tmp_path), "--size", "8"])
    assert "1 classes, 3 images, 3 a class (99 published classes are not there)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["check", "omniglt"], ConfigurationError),
        (["check", "no/such/folder"], MissingDataError),
        (["check", "none.npz"], MissingDataError),
        (["check"], ConfigurationError),
        (["check", "digits", "--size", "x"], ConfigurationError),
        (["frobnicate"], ConfigurationError),
        ([], ConfigurationError),
    ],
)
def test_errors_are_raised_for_the_command_line(arguments: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        main(arguments)


def test_exit_codes_and_lines(tmp_path: Path) -> None:
    for arguments, code, lines in ((["check", "cub", "--data-root", str(tmp_path)], 3, 2), (["check", "omniglt"], 2, 1)):
        command = [sys.executable, "-m", "engine.data", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == lines
        assert done.stdout == ""
