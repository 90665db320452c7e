"""Progress on terminals, in logs, and quiet."""

from __future__ import annotations

import io
import time

import pytest

from engine.runs.progress import Progress, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_throttled() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(600, "search", stream=stream, clock=clock) as progress:
        for _ in range(600):
            clock.now += 1
            progress.advance(best=3.789)
    lines = stream.getvalue().splitlines()
    # The start, six in the first minute, one in each of the nine after it, the end.
    assert 15 <= len(lines) <= 18
    assert lines[0].startswith("search: 0/600")
    assert lines[1].startswith("search: 10/600 · 1/s · 9 min 50 s left · best 3.79 · ")
    assert lines[-1].startswith("search: 600/600 · 1/s · 10 min 00 s · best 3.79")


def test_a_resumed_run_does_not_count_its_past_as_speed() -> None:
    clock = Clock()
    progress = Progress(100, "search", done=80, stream=io.StringIO(), clock=clock)
    clock.now = 10
    progress.advance(10)
    assert progress.status(10).startswith("90/100 · 1/s · 10 s left")


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress(2, "search", quiet=True) as progress:
        progress.advance()
        progress.note("hello")
    assert capfd.readouterr() == ("", "")


def test_notes_come_at_once() -> None:
    stream = io.StringIO()
    with Progress(2, "search", stream=stream) as progress:
        progress.note("round 1 [done]")
        assert "round 1 [done]\n" in stream.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with Progress(4, "search [x]", stream=stream) as progress:
        progress.advance(2, best=1.5)
        progress.note("pruned [bold]conv")
    text = stream.getvalue()
    assert "search [x]" in text
    assert "2/4" in text
    assert "best 1.5" in text
    assert "pruned [bold]conv" in text


def test_advancing_is_cheap() -> None:
    progress = Progress(10**9, "search", stream=io.StringIO())
    with progress:
        start = time.process_time()
        for _ in range(20_000):
            progress.advance(best=1.0)
        assert time.process_time() - start < 0.4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (8.24, "8.2 s"),
        (9.96, "10 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.7, "1 h 00 min"),
        (11_220, "3 h 07 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_best_so_far_stands_beside_the_latest() -> None:
    bar = Progress(4, "steps", quiet=True)
    for loss, accuracy in ((2.0, 0.5), (float("nan"), 0.75), (3.0, 0.25)):
        bar.advance(loss=loss, accuracy=accuracy, epoch=1)
    status = bar.status(1.0)
    assert "loss 3 (best 2) · accuracy 0.25 (best 0.75) · epoch 1" in status
    bar.advance(loss=1.5)
    assert "loss 1.5 ·" in bar.status(1.0)
