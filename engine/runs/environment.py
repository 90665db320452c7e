"""What a run ran on: versions and hardware, no paths and no host names."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "triton": ("triton",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
}


def environment() -> dict[str, Any]:
    """Return the versions and the hardware as JSON types; what does not exist here is left out.

    Imports nothing: versions come from package metadata, and threads and GPU are given only once torch is loaded. Costs
    some ten milliseconds, most of them asking git.
    """
    facts: dict[str, Any] = {
        "engine": _version("nas-engine") or "0+unknown",
        "revision": _revision(),
        "python": platform.python_version(),
        **{name: next(filter(None, map(_version, names)), None) for name, names in PACKAGES.items()},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **_torch_facts(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Return the commit of the checkout that this package lies in, with ``+changes`` where tracked files differ from it."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changes else commit


def _git(checkout: Path, *arguments: str) -> str | None:
    # Without optional locks, so that looking never writes to somebody's index.
    command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor()) or None


def _torch_facts() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    # Of its own version metadata may leave out the build (+cpu, +cu130).
    facts: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts
