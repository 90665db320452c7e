"""The picture of a trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.trace import Bar, bars, main
from engine.errors import ConfigurationError


def event(name: str, start: float, length: float, category: str = "user_annotation") -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length}


def trace(folder: Path, events: list[dict[str, Any]]) -> Path:
    (folder / "trace.json.gz").write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    return folder


def test_depths_follow_from_the_times() -> None:
    events = [event("b", 1, 4), event("run", 0, 10), event("a", 0, 3), event("c", 5, 5), event("op", 0, 1, "cpu_op")]
    events[0], events[2] = event("b", 1, 2), event("a", 0, 5)
    assert bars(events, "user_annotation") == [Bar("run", 0, 10, 0), Bar("a", 0, 5, 1), Bar("b", 1, 3, 2), Bar("c", 5, 10, 1)]


def test_a_trace_is_drawn_with_its_ranges_and_operators(tmp_path: Path) -> None:
    narrow = [event(f"op{k}", 100 + k / 10, 0.05, "cpu_op") for k in range(9)]
    ranges = [event("run", 0, 1000), event("Kernel", 10, 900), event("<x>", 20, 300)]
    out = tmp_path / "trace.svg"
    assert main([str(trace(tmp_path, [*ranges, *narrow, event("mm", 500, 50, "cpu_op")])), "--svg", str(out)]) == 0
    titles = [element.text for element in ElementTree.parse(out).iter() if element.tag.endswith("title")]
    assert titles == ["run", "kernel", "<x>", "9 operators", "mm"]


@pytest.mark.parametrize("content", [b"", b"{}", gzip.compress(b"[" * 9999), gzip.compress(b'{"traceEvents": []}'), None])
def test_what_is_no_trace_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "trace.json.gz").write_bytes(content)
    with pytest.raises(ConfigurationError, match="--profile-steps 1"):
        main([str(tmp_path), "--svg", str(tmp_path / "x.svg")])
