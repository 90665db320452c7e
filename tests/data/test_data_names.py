from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.loading import LAYOUTS
from engine.data.names import SETS, check_name
from engine.errors import ConfigurationError


@pytest.mark.parametrize("name", [*SETS, "folder:x", "npz:a.npz"])
def test_known_names_pass(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(("wrong", "meant"), [("omniglt", "omniglot"), ("CIFAR10", "cifar10"), ("minimagenet", "miniimagenet")])
def test_an_unknown_name_is_answered_with_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"unknown data set '{wrong}'; did you mean '{meant}'"):
        check_name(wrong)


def test_a_name_near_to_nothing_is_answered_with_all() -> None:
    with pytest.raises(ConfigurationError, match=r"known are digits, omniglot, .*folder:PATH"):
        check_name("zzzz")


@pytest.mark.parametrize("name", ["folder:", "npz:"])
def test_a_prefix_needs_a_path(name: str) -> None:
    with pytest.raises(ConfigurationError, match="names no path"):
        check_name(name)


@given(st.text(max_size=30))
def test_any_text_passes_or_is_one_line(problem: Callable[..., str], name: str) -> None:
    assert len(problem(check_name, name).splitlines()) <= 1


def test_every_named_set_has_a_reader() -> None:
    assert set(LAYOUTS) == set(SETS) - {"digits"}


def test_names_and_command_are_light() -> None:
    code = (
        "import sys, engine.data, engine.data.names, engine.data.__main__;"
        "print([m for m in ('torch', 'numpy', 'scipy', 'sklearn', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
