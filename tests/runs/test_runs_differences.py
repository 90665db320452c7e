"""``python -m engine.runs diff`` and ``tail``."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from engine.errors import ConfigurationError
from engine.runs import __main__ as command
from engine.runs.__main__ import last_lines, main
from engine.runs.run import Run
from engine.spaces.genotype import CellGenotype, Connection, Genotype


def make(
    out: Path, *, seed: int = 0, operation: str = "conv_3x3", scores: tuple[float, ...] = (1.0, 2.0), seconds: float = 1.0
) -> Path:
    with Run.create(out, f'method = "random"\nseed = {seed}\n', {}) as run:
        for score in scores:
            run.append("scores.jsonl", {"condition": score, "edge": 1})
        run.append("metrics.jsonl", {"event": "round", "seconds": seconds})
        cell = CellGenotype((Connection(0, 2, operation), Connection(1, 2, "skip_connect")), (2,))
        run.write_text("genotype.json", Genotype("few-shot-cell", (("normal", cell),)).to_json())
        run.write_json("result.json", {"parameters": 10 + seed, "cpu_seconds": seconds})
    return out


def diff(first: Path, second: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main(["diff", str(first), str(second)])
    return code, capsys.readouterr().out.splitlines()


def test_runs_that_differ_in_time_only_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diff(make(tmp_path / "a"), make(tmp_path / "b", seconds=9.0), capsys)
    assert found == (0, ["no difference but the time that they took"])


def test_every_kind_of_difference_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make(tmp_path / "b", seed=3, operation="max\x1bpool", scores=(1.0, float("nan"), 3.0))
    code, lines = diff(make(tmp_path / "a"), other, capsys)
    assert code == 1
    assert lines == [
        "config: seed: 0 | 3",
        "genotype: normal 0 -> 2: conv_3x3 | max\ufffdpool",
        "result: parameters: 10 | 13",
        "scores: 2 lines | 3 lines",
        "scores, line 2: condition: 2.0 | nan",
    ]


def test_a_run_without_a_genotype_differs_from_one_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    (second / "genotype.json").unlink()
    assert diff(first, second, capsys) == (1, ["genotype: few-shot-cell | none"])


def test_tail_shows_the_last_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tail", str(make(tmp_path / "a", scores=(1.0, 2.0, 3.0))), "-n", "2"]) == 0
    expected = ["a: finished, scores.jsonl", '{"condition":2.0,"edge":1}', '{"condition":3.0,"edge":1}']
    assert capsys.readouterr().out.splitlines() == expected


def test_tail_of_a_run_without_scores_shows_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tail", str(make(tmp_path / "a", scores=()))]) == 0
    assert capsys.readouterr().out.splitlines()[1] == '{"event":"round","seconds":1.0}'
    with pytest.raises(ConfigurationError, match="--lines must be at least 0"):
        main(["tail", str(tmp_path / "a"), "-n", "-1"])


def test_tail_follows_a_run_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "FOLLOW_SECONDS", 0.01)
    with Run.create(tmp_path, "", {}) as run:
        run.append("scores.jsonl", {"step": 0})

        def go_on() -> None:
            for step in (1, 2):
                time.sleep(0.05)
                run.append("scores.jsonl", {"step": step})
            time.sleep(0.05)
            run.write_json("result.json", {})

        thread = threading.Thread(target=go_on)
        thread.start()
        assert main(["tail", str(tmp_path), "--follow"]) == 0
        thread.join()
    assert capsys.readouterr().out.splitlines()[1:] == ['{"step":0}', '{"step":1}', '{"step":2}']


def test_last_lines_are_whole_and_few_bytes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    assert last_lines(log, 3) == ([], 0)
    log.write_text("one\ntwo\nthr")
    assert last_lines(log, 5) == (["one", "two"], 8)
    assert last_lines(log, 0) == ([], 8)
    log.write_text("one\ntwo\nthree\n")
    assert last_lines(log, None, 8) == (["three"], 14)
    monkeypatch.setattr(command, "MAX_TAIL", 6)
    assert last_lines(log, None) == (["three"], 14)
    log.write_text("new\n")
    assert last_lines(log, None, 14) == ([], 4), "a resumed run has cut its log back"
