"""What the distribution carries."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built offline in a copy so that nothing is left in the tree."""
    try:
        if int(version("setuptools").partition(".")[0]) < 77:
            pytest.skip("building a wheel offline needs setuptools 77 or later in this environment")
    except PackageNotFoundError:
        pytest.skip("building a wheel offline needs setuptools in this environment")
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("engine", "kernels", "csrc"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        str(place),
        ".",
    ]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(place.glob("nas_engine-*.whl")))


def test_wheel_carries_code_and_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"engine/py.typed", "engine/csrc/__init__.py", "engine/cli.py"} <= names
    for path in (*(ROOT / "kernels").glob("*.py"), *(ROOT / "engine/data/splits").glob("*.json")):
        home = "engine/kernels" if path.parent.name == "kernels" else "engine/data/splits"
        assert f"{home}/{path.name}" in names
    assert any(name.startswith("engine/data/splits/") for name in names)


def test_wheel_claims_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"engine"}


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    info = f"nas_engine-{PROJECT['version']}.dist-info"
    assert "engine = engine.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()


def test_source_links_point_inside() -> None:
    for name in ("kernels", "csrc"):
        link = ROOT / "engine" / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"


def test_nothing_imports_a_top_level_kernels() -> None:
    sources = [path for folder in ("engine", "kernels", "csrc", "tests", "bench") for path in (ROOT / folder).rglob("*.py")]
    found = [path for path in sources if re.search(r"^\s*(from|import) (kernels|csrc)\b", path.read_text(), re.MULTILINE)]
    assert found == []


def test_checks_are_runnable() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
