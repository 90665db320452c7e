"""DARTS and TETLO in NAS-Bench-1Shot1's spaces: run directories, resuming, what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from engine.cli import run_command
from engine.methods.darts import Darts
from engine.methods.darts_options import DARTS_PRESETS, DartsOptions
from engine.search import main
from engine.spaces.genotype import Genotype
from engine.spaces.nas_bench_101 import from_genotype, parse

CPU = ("--device", "cpu", "--quiet")
TINY = ("--cells", "3", "--channels", "4", "--batch", "8", "--images", "16", "--epochs", "2", "--alpha-rate", "0.1")


def test_a_search_that_is_stopped_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["darts", "--space", "nas-bench-1shot1-1", *TINY, *CPU]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    plain = Darts.iterate

    def iterate(self: Darts, epoch: int, step: int) -> None:
        plain(self, epoch, step)
        if (epoch, step) == (0, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Darts, "iterate", iterate)
        assert run_command(main, [*words, "--out", str(tmp_path / "cut")]) == 75
    assert main(["--resume", "--out", str(tmp_path / "cut"), "--quiet"]) == 0
    for name in ("genotype.json", "metrics.jsonl", "cell_normal.svg"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    result = json.loads((tmp_path / "whole/result.json").read_text())
    cell = from_genotype(Genotype.load(tmp_path / "whole/genotype.json"))
    assert parse(result["matrix"], result["vertices"]) == cell
    assert sum(result["operations"].values()) == len(cell.pruned().operations) - 2
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["fingerprint"] == result["fingerprint"] == cell.fingerprint()
    assert "Weights of the operations and inputs" in (tmp_path / "whole/report.html").read_text()


def test_tetlo_searches_it_too(tmp_path: Path) -> None:
    words = ["tetlo", "--base", "darts2nd", "--space", "nas-bench-1shot1-3", "--pairs", "6", "--interval", "1", *TINY, *CPU]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert Genotype.load(tmp_path / "genotype.json").space == "nas-bench-101"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pdarts"], "is searched by darts"),
        (["robust-darts"], "is searched by darts"),
        (["tetlo", "--base", "pcdarts"], "is searched by darts"),
        (["darts", "--stem", "imagenet"], "no --stem imagenet"),
        (["darts", "--recompute"], "no --recompute"),
    ],
)
def test_what_cannot_search_it(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*words, "--space", "nas-bench-1shot1-2", "--out", str(tmp_path / "a")]
    assert run_command(main, words) == 2
    assert said in capsys.readouterr().err


def test_the_published_settings() -> None:
    options = DartsOptions(**DARTS_PRESETS["one-shot"])
    options.validate()
    assert (options.cells, options.channels, options.batch, options.epochs) == (9, 16, 96, 100)
    assert (options.weight_rate, options.weight_rate_end, options.alpha_rate) == (0.025, 0.001, 3e-4)
