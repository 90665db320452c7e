"""Light imports, seen in sys.modules of fresh processes: what answers at once must not load what takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import engine

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "numpy", "scipy", "sklearn", "triton", "cupy", "opacus", "matplotlib", "PIL", "nvtx", "safetensors"}
COMMANDS_ONLY = {"tyro", "tomli_w", "rich"}

REPORT = """
import json, resource, sys
{code}
used = resource.getrusage(resource.RUSAGE_SELF)
print("\\n" + json.dumps([sorted({{name.partition(".")[0] for name in sys.modules}}), used.ru_utime + used.ru_stime]))
"""


def loaded_by(code: str) -> tuple[set[str], float]:
    """Top-level modules and CPU seconds of a fresh process that ran ``code``."""
    done = subprocess.run([sys.executable, "-c", REPORT.format(code=code)], capture_output=True, text=True, cwd=ROOT, check=True)
    modules, seconds = json.loads(done.stdout.splitlines()[-1])
    return set(modules), seconds


LIGHT_MODULES = [
    "engine",
    "engine.cli",
    "engine.errors",
    "engine.methods.options",
    "engine.methods.registry",
    "engine.runs.config",
    "engine.search",
    "engine.spaces.genotype",
    "engine.train",
]


def test_modules_that_are_imported_early() -> None:
    modules, _ = loaded_by("import " + ", ".join(LIGHT_MODULES))
    assert not modules & (HEAVY | COMMANDS_ONLY)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["search", "--help"],
        ["search", "te-nas", "--help"],
        ["search", "te-nsa"],
        ["search", "--dta"],
        ["search", "--channels", "20"],
        ["search", "--data", "digts"],
        ["search", "--config", "not/there.toml"],
        ["search", "--data-root", "not/there"],
        ["search", "--resume", "--out", "not/there"],
        ["train", "--help"],
        ["train", "--tests", "5x1"],
        ["train", "supervised", "--help"],
        ["train", "maml", "--help"],
        ["compare", "res5+mam"],
        ["export", "--help"],
        ["export", "run", "--to", "tiff"],
    ],
    ids=" ".join,
)
def test_answers_at_once(argv: list[str]) -> None:
    modules, seconds = loaded_by(f"from engine.cli import main; main({argv!r})")
    assert not modules & HEAVY
    assert seconds < 0.5


def test_a_heavy_import_would_be_seen() -> None:
    assert "numpy" in loaded_by("import numpy")[0]


def test_public_names() -> None:
    assert {*engine.__all__, "__version__"} <= set(dir(engine))
    with pytest.raises(AttributeError, match="no attribute 'nkt'"):
        engine.nkt  # noqa: B018


@pytest.mark.parametrize("name", engine.__all__)
def test_public_name_is_there(name: str) -> None:
    assert getattr(engine, name).__name__ == name


def test_library_needs_nothing_of_the_commands() -> None:
    missing = sorted(COMMANDS_ONLY - {"rich"} | {"nvtx", "opacus", "cupy"})
    code = f"for name in {missing}: sys.modules[name] = None\nimport engine\nfor name in engine.__all__: getattr(engine, name)"
    loaded_by(code)


def test_version_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert engine.__version__ == "0+unknown"
