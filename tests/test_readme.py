"""Every Python block of the README runs, and what it teaches works from the command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from engine.cli import main
from engine.spaces.operations import OPERATIONS

ROOT = Path(__file__).parents[1]
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.M | re.S))


@pytest.mark.parametrize(
    ("title", "printed"),
    [
        ("Scores of your own networks", " ok\n"),
        ("A cell as a network", "torch.Size([2, 10])\n"),
        ("Training, testing, comparing", "torch.Size([1000, 75])\n"),
        ("Scores against trained architectures", "'jacov': 'ok', 'params': 'ok'}\n"),
        ("Speed", "torch.Size([4, 8])\n"),
    ],
)
def test_library_examples_print_what_they_promise(title, printed, capsys):
    exec(compile(BLOCKS[title], title, "exec"), {})
    assert printed in capsys.readouterr().out


def test_own_operation_space_and_method_are_searched(tmp_path, monkeypatch):
    (tmp_path / "my_space.py").write_text(BLOCKS["Your own operation"] + BLOCKS["Your own space"])
    (tmp_path / "my_method.py").write_text(BLOCKS["Your own method"])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    common = ["--space", "my_space:MINE", "--cells", "2", "--quiet"]
    try:
        assert main(["search", *common, "--repeats", "1", "--region-images", "20", "--out", "pruned"]) == 0
        assert main(["search", "my_method:SHORTEST", *common, "--out", "shortest"]) == 0
    finally:
        OPERATIONS.pop("conv_1x1", None)
        for name in ("my_space", "my_method"):
            sys.modules.pop(name, None)
    assert "skip_connect" in (tmp_path / "shortest" / "genotype.json").read_text()
    assert (tmp_path / "pruned" / "cell_normal.svg").exists()


def test_every_command_of_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    from engine.methods.registry import METHODS

    for name in re.findall(r"^\| `([a-z-]+)`", text, re.M):
        assert name in METHODS
