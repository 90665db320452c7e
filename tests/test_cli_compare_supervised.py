"""Cells of the DARTS family compared by ordinary classification: one command, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from engine.cli import main
from engine.compare_supervised import check, jobs
from engine.evaluation import training
from engine.evaluation.family_options import Entry
from engine.evaluation.supervised_compare_options import COMPARE_PRESETS, SupervisedCompareOptions
from engine.evaluation.supervised_comparison import ordered_pairs, p_value

SEARCH = "epochs=1,images=16,batch=8,cells=2,channels=4,tetlo-pcdarts.pairs=6,pcdarts.partial=2"
TINY = ("--search", SEARCH, "--train", "steps=2,batch=8,channels=4,cells=2,held_out=0.05", "--device", "cpu", "--quiet")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tables(path: Path) -> dict[str, list[list[object]]]:
    found = json.loads(path.read_text())["tables"]
    return {table["title"]: table["rows"] for table in found}


def test_a_comparison_is_stopped_resumed_and_tabulated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = training.Trainer.step

    def step(self: training.Trainer, number: int) -> None:
        plain(self, number)
        if "random" in self.options.network and number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    words = ["compare", "supervised", "darts1st", "random", "--seeds", "2", *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", step)
        assert main([*words, "--out", "a"]) == 75
    finished = place / "a/darts1st-0/search/result.json"
    before = finished.stat().st_mtime_ns
    assert not (place / "a/darts1st-1").exists()  # seed by seed
    assert main(["compare", "--out", "a", "--resume", "--quiet"]) == 0
    assert finished.stat().st_mtime_ns == before
    runs = [json.loads(line) for line in (place / "a/metrics.jsonl").read_text().splitlines()]
    names = [("darts1st", 0), ("random", 0), ("darts1st", 1), ("random", 1)]
    assert [(run["method"], run["seed"]) for run in runs] == names
    assert runs[1]["operations"] != runs[3]["operations"]
    assert all(sum(run["operations"]["normal"].values()) == 8 for run in runs)
    found = tables(place / "a/result.json")
    assert [row[:2] for row in found["Error on held-out images"]] == [["darts1st", 2], ["random", 2]]
    assert [row[0] for row in found["Which differences these runs support"]] == ["darts1st − random"]
    assert [row[0] for row in found["Supernets on the validation half"]] == ["darts1st"]
    assert "Choice among searches" not in found
    report = (place / "a/report.html").read_text()
    for text in ("Operations of the cells", "5x5 convolutions", "python -m engine.train supervised"):
        assert text in report


def test_of_several_searches_the_one_is_kept_that_validation_prefers(place: Path) -> None:
    words = ["compare", "supervised", "tetlo-pcdarts@darts-s2", "darts-v2", "--seeds", "1", "--searches", "2", *TINY]
    words += ["--select", "steps=1,batch=8,channels=4,cells=2,held_out=0.05", "--select-preset", "default"]
    assert main([*words, "--transfer-to", "digits", "--out", "a"]) == 0
    own = place / "a/tetlo-pcdarts@darts-s2-0"
    errors = [json.loads((own / name / "result.json").read_text())["error"] for name in ("short", "short-1")]
    found = tables(place / "a/result.json")
    [row] = found["Choice among searches"]
    assert row[-1] == errors.index(min(errors))
    for name in ("train", "transfer"):
        network = f'network = "a/tetlo-pcdarts@darts-s2-0/{["search", "search-1"][row[-1]]}"'
        assert network in (own / name / "config.toml").read_text()
    config = (own / "search-1/config.toml").read_text()
    for line in ('base = "pcdarts"', 'space = "darts-s2"', "partial = 2", "seed = 1000003", "interval = 5", "epochs = 1"):
        assert line in config
    assert len(found["Error on held-out images (transferred to digits)"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["darts3rd"], "did you mean"),
        (["darts1st", "darts1st"], "each once"),
        (["darts1st@darts-s9"], "darts-s9"),
        (["random@darts-s2"], "leave out @darts-s2"),
        (["darts1st", "--search", "epochs"], "not OPTION=VALUE"),
        (["darts1st", "--search", "epochs=x"], "--epochs: expected an integer"),
        (["darts1st", "--search", "channels=3"], "must be even"),
        (["darts1st", "--train", "batch=0"], "--batch must be at least 2"),
        (["tetlo"], "known are random, darts1st"),
        (["darts1st@nas-bench-1shot1-1"], "engine compare stability"),
        (["darts1st", "--search", "partial=2"], "'partial' is no option of any method"),
        (["darts1st", "--search", "seed=2"], "'seed' is no option"),
        (["darts1st", "--search", "space=darts-s2"], "'space' is no option"),
        (["darts1st", "--search", "order=second"], "'order' is no option"),
        (["darts1st", "--search", "pcdarts.kept=4"], "'kept' is no option of pcdarts"),
        (["darts1st", "--search", "pdart.kept=4"], "did you mean 'pdarts'"),
        (["darts1st", "--train", "network=conv4"], "--train: unknown option 'network'"),
        (["darts1st", "--search-preset", "smal"], "did you mean 'small'"),
        (["pdarts", "--train-preset", "paper-{bas}"], "--train-preset: unknown"),
        (["darts1st", "--vary", "lam=1,2"], "'lam' is no option of any method"),
        (["darts1st", "--vary", "epochs=1,1"], "each value once"),
        (["darts1st", "--vary", "epochs"], "each value once"),
        (["darts1st", "--searches", "0"], "--searches must be at least 1"),
        (["darts1st", "--transfer-to", "digts"], "did you mean 'digits'"),
    ],
)
def test_bad_inputs(place: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "supervised", *words, "--out", "a"]) == 2
    assert said in capsys.readouterr().err
    assert not (place / "a").exists()


@pytest.mark.parametrize("preset", COMPARE_PRESETS)
def test_presets_are_valid(preset: str) -> None:
    options = SupervisedCompareOptions(**SupervisedCompareOptions.preset_values(preset))
    options.validate()


def test_table_2() -> None:
    options = SupervisedCompareOptions(**SupervisedCompareOptions.preset_values("table2"))
    assert len(options.entries) == 5 * (1 + 4)
    assert options.entries[4].text == "tetlo-darts1st:objective=att"
    presets = {entry.base: entry.preset(options.train_preset) for entry in options.entries}
    assert (presets["darts1st"], presets["pcdarts"]) == ("paper-darts", "paper-pcdarts")
    check(options)


def test_tetlo_searches_with_the_settings_of_its_base() -> None:
    options = SupervisedCompareOptions(search_preset="published", search="lam=0.2,pdarts.epochs=7,tetlo-pdarts.pairs=9")
    found = options.search_options(Entry.parse("tetlo-pdarts"))
    expected = {
        "base": "pdarts",
        "batch": 96,
        "epochs": "7",
        "alpha_clip": 5.0,
        "added_cells": "0,6,12",
        "lam": "0.2",
        "pairs": "9",
    }
    assert expected.items() <= found.items()
    assert not {"interval", "partial", "active", "seed", "data"} & found.keys()
    assert options.search_options(Entry.parse("tetlo-darts1st"))["batch"] == 64
    assert options.search_options(Entry.parse("pdarts")) == {"space": "darts", "preset": "published", "epochs": "7"}
    assert options.search_options(Entry.parse("darts-v2")) == {}


def test_options_vary_where_a_method_has_them() -> None:
    options = SupervisedCompareOptions(
        methods="darts1st,tetlo-pdarts", vary="lam=0.1,0.5;alpha-rate=1,2", search="lam=9;pdarts.kept=4,2"
    )
    options.validate()
    assert [entry.text for entry in options.entries] == [
        "darts1st:alpha_rate=1",
        "darts1st:alpha_rate=2",
        "tetlo-pdarts:lam=0.1:alpha_rate=1",
        "tetlo-pdarts:lam=0.1:alpha_rate=2",
        "tetlo-pdarts:lam=0.5:alpha_rate=1",
        "tetlo-pdarts:lam=0.5:alpha_rate=2",
    ]
    found = options.search_options(options.entries[-1])
    assert (found["lam"], found["alpha_rate"], found["kept"]) == ("0.5", "2", "4,2")
    tuning = SupervisedCompareOptions(**SupervisedCompareOptions.preset_values("tuning"))
    assert len(tuning.entries) == 36
    assert tuning.search_options(tuning.entries[0])["reserve"] == "2500"


def test_random_cells_of_a_seed_are_runs_of_their_own() -> None:
    options = SupervisedCompareOptions(methods="darts1st,random", random_cells=2, seeds=2, seed=3)
    folders = ["darts1st-3", "random-3", "random-3-cell1", "darts1st-4", "random-4", "random-4-cell1"]
    assert [job.folder for job in jobs(options)] == folders


def test_pairs_that_a_reader_looks_for_come_first() -> None:
    found = ordered_pairs(["random", "darts1st", "tetlo-darts1st", "pdarts"])
    assert found[:4] == [
        ("tetlo-darts1st", "darts1st"),
        ("darts1st", "random"),
        ("tetlo-darts1st", "random"),
        ("pdarts", "random"),
    ]
    assert len(set(found)) == 6


def test_the_test_is_the_papers() -> None:
    """Two-sided p of gaps 1, 2 and 3: t = 2 / (1 / sqrt 3) with two degrees of freedom."""
    assert p_value([1.0, 2.0, 3.0]) == "0.0742"
    assert p_value([1.0]) is None
    assert p_value([1.0, 1.0]) is None
