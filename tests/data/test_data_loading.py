from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.data.loading import data_root, load
from engine.data.names import SETS
from engine.errors import ConfigurationError, MissingDataError


@pytest.mark.parametrize("name", sorted(set(SETS) - {"digits"}))
def test_a_missing_set_says_what_where_and_how_in_two_lines(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingDataError) as caught:
        load(name, tmp_path)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"data set {name} not found: looked in {tmp_path} (--data-root)")
    assert "--data-root or ENGINE_DATA; to get it: " in second
    assert caught.value.exit_code == 3


def test_the_root_is_the_argument_then_the_environment_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE_DATA", raising=False)
    assert data_root(None)[0] == Path("data")
    monkeypatch.setenv("ENGINE_DATA", "/somewhere")
    assert data_root(None) == (Path("/somewhere"), "ENGINE_DATA")
    assert data_root("here") == (Path("here"), "--data-root")


def test_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_class: Callable[..., Any]) -> None:
    write_class(tmp_path / "cub/001.Black_footed_Albatross")
    monkeypatch.setenv("ENGINE_DATA", str(tmp_path))
    assert len(load("cub", size=8).images) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1"),
        ({"per_class": 0}, "per_class must be at least 1"),
        ({"splits": ("train", "dev")}, "splits must be a sequence out of train, val, test"),
        ({"splits": "train"}, "splits must be a sequence"),
        ({"splits": ()}, "splits must name at least one"),
        ({"rotations": ("all",)}, "rotations must be a sequence"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load("digits", **options)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'digits'"):
        load("digit")
