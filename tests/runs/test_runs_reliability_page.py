"""docs/reliability.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text("utf-8")


def test_every_file_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)", PAGE))
    assert len(named) > 8
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"(?:::|`)(test_\w+)`", PAGE))
    assert len(named) > 20
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in sorted(named) if f"def {name}(" not in sources] == []
