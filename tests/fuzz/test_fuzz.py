"""Hostile files: whatever is in a file, reading it returns or raises the library's own error, soon, and runs nothing.

``pytest tests/fuzz --fuzz-inputs 10000`` gives each of the targets ten thousand damaged files.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from targets import TARGETS, Target

from engine.errors import EngineError

# CPU time that one input may take (the first meets cold caches), and address space beyond what the process has.
SECONDS = 1.0
BYTES = 4 * 2**30

# What parsers trip over: signs, huge numbers, nesting, format markers, names that leave a folder.
MARKERS = (b"\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"-1", b"1e999", b"NaN", b"null", b"[" * 2000, b"{" * 2000, b'"')
MARKERS += (
    b"../../x",
    b"/etc/passwd",
    b"9" * 400,
    b"\xed\xa0\x80",
    b"__reduce__",
    b"cos\nsystem\n(S'true'\ntR.",
    b"PK\x03\x04",
    b"\n",
)

EDIT = st.tuples(
    st.sampled_from(("flip", "write", "insert", "delete", "cut", "repeat")),
    st.integers(0, 2**16),
    st.one_of(st.sampled_from(MARKERS), st.binary(min_size=1, max_size=8)),
)


def edited(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """The content after all edits, each at its position modulo the length."""
    for kind, position, data in edits:
        place = position % max(1, len(content))
        head, tail = content[:place], content[place:]
        if kind == "flip":
            content = head + bytes([(tail[:1] or b"\0")[0] ^ 1 << position % 8]) + tail[1:]
        elif kind == "write":
            content = head + data + tail[len(data) :]
        elif kind == "insert":
            content = head + data + tail
        elif kind == "delete":
            content = head + tail[len(data) :]
        elif kind == "cut":
            content = head
        else:
            content = head + tail[:64] + tail
    return content


@pytest.fixture
def limited_memory() -> Iterator[None]:
    """A reader that believes a declared size of gigabytes fails instead of filling the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def meets(target: Target, folder: Path, content: bytes) -> None:
    folder.mkdir()
    started = time.process_time()
    try:
        with contextlib.suppress(EngineError), contextlib.redirect_stdout(io.StringIO()):
            target.read(folder, content)
    finally:
        taken = time.process_time() - started
        shutil.rmtree(folder)
    assert taken < SECONDS, f"{taken:.1f} s of CPU time for {len(content)} bytes"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the address space is read from /proc")
@pytest.mark.usefixtures("limited_memory")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_refused_in_order(name: str, tmp_path: Path, fuzz_inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setattr(os, "system", lambda *_: (_ for _ in ()).throw(AssertionError("code from a file was run")))
    for seed in seeds:
        meets(target, tmp_path / "in", seed)  # also warms caches and imports

    @settings(
        max_examples=fuzz_inputs,
        deadline=None,
        derandomize=fuzz_inputs <= 1000,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.one_of(st.tuples(st.sampled_from(seeds), st.lists(EDIT, min_size=1, max_size=6)), st.tuples(st.binary(), st.just([])))
    )
    def attack(case: tuple[bytes, list[tuple[str, int, bytes]]]) -> None:
        meets(target, tmp_path / "in", edited(*case))

    attack()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside"], "nothing is written beside the folder"
    assert not any(outside.iterdir())
