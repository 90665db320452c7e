"""The environment that a run records."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.runs import environment as module
from engine.runs.environment import environment

ROOT = Path(__file__).parents[2]


def test_versions_and_hardware() -> None:
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cores"] >= 1
    assert {"engine", "numpy", "platform"} <= facts.keys()
    assert None not in facts.values()


def test_no_paths_and_no_host_names() -> None:
    text = json.dumps(environment())
    for secret in (str(ROOT), str(Path.home()), socket.gethostname()):
        assert len(secret) < 3 or secret not in text


def test_nothing_heavy_is_imported() -> None:
    program = "import sys; from engine.runs.environment import environment as e; print('threads' in e(), 'torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_an_uninstalled_engine_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise module.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "version", missing)
    facts = environment()
    assert facts["engine"] == "0+unknown"
    assert "numpy" not in facts


@pytest.mark.parametrize("name", ["run", "report", "drawing", "progress", "signals", "profiling", "records", "__main__"])
def test_every_module_is_cheap_to_import(name: str) -> None:
    heavy = (
        "torch",
        "numpy",
        "scipy",
        "sklearn",
        "triton",
        "cupy",
        "opacus",
        "matplotlib",
        "PIL",
        "tyro",
        "tomli_w",
        "nvtx",
        "rich",
    )
    program = f"import sys; import engine.runs.{name}; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
