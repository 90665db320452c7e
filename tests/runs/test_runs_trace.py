"""Named ranges."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch

from engine.errors import ConfigurationError
from engine.runs.trace import Tracer


def test_off_is_one_shared_object() -> None:
    tracer = Tracer()
    assert tracer.span("a") is tracer.span("b")
    with tracer.span("a"), tracer.span("a"):
        pass


def test_record_marks_the_profile() -> None:
    tracer = Tracer(record=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, tracer.span("kernel phase"):
        torch.ones(2).sum()
    assert "kernel phase" in {event.key for event in profile.key_averages()}


def test_nvtx_marks_ranges_and_closes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = []

    @contextmanager
    def annotate(name: str):  # type: ignore[no-untyped-def]
        marks.append(f"push {name}")
        try:
            yield
        finally:
            marks.append("pop")

    fake = ModuleType("nvtx")
    fake.annotate = annotate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    with pytest.raises(RuntimeError, match="inside"), Tracer(nvtx=True, record=True).span("eigen"):
        raise RuntimeError("inside")
    with Tracer(nvtx=True).span("data"):
        pass
    assert marks == ["push eigen", "pop", "push data", "pop"]


def test_nvtx_without_the_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'nas-engine\[profile\]'"):
        Tracer(nvtx=True)
