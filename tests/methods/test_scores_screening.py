"""First-order search, end to end and piece by piece."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore

from bench.studies.screen import main as study
from engine.errors import ConfigurationError, Interrupted
from engine.methods.estimates import Estimate, estimate_from_json, estimate_to_json
from engine.methods.metantk_nas import make_pruning, with_width
from engine.methods.options import BatchOptions, MetaNTKNASOptions, TENASOptions
from engine.methods.pruning import Candidate
from engine.methods.scorer import Scorer, load_images
from engine.methods.screening import (
    EXACT_PASSES,
    LARGEST,
    PASSES,
    Screened,
    estimate,
    exact,
    passes,
    screen,
    separation,
)
from engine.methods.steps import StepWork
from engine.runs import signals
from engine.runs.distribution import ALONE, Ranks
from engine.scoring.result import Score
from engine.search import main
from engine.spaces.mixture import without
from engine.spaces.space import Space, dense_edges

TOY = Space(name="toy", operations=("none", "skip_connect", "sep_conv_3x3", "conv_3x3"), nodes=2, edges=dense_edges(2))
WORDS = ["--cells", "2", "--size", "6", "--region-images", "20", "--quiet", "--screen"]


@pytest.fixture(autouse=True)
def toy_space_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def search(out: Path, method: str, *words: str) -> dict:
    assert main([method, "--space", "toy_space:TOY", *WORDS, "--out", str(out), *words]) == 0
    return json.loads((out / "result.json").read_text())


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["metantk-nas", "te-nas"])
def test_a_screened_search_leaves_a_whole_run(tmp_path, method):
    result = search(tmp_path / "run", method, "--repeats", "2", "--rescore", "4")
    found = result["screening"]
    assert found["estimated"] > 0
    assert 4 <= found["rescored"] <= 4 * 2 * 5
    assert found["forward_passes"] < found["exact"]
    rows = [line for line in lines(tmp_path / "run") if line["stage"] == "operations"]
    assert sum(not line["condition_estimated"] for line in rows) == found["rescored"]
    assert (tmp_path / "run" / "genotype.json").is_file()


def test_regions_too_can_be_estimated(tmp_path):
    result = search(tmp_path / "run", "te-nas", "--repeats", "2", "--rescore", "4", "--smooth-regions")
    rows = [line for line in lines(tmp_path / "run") if line["stage"] == "operations"]
    counted = [row for row in rows if not row["regions_estimated"]]
    assert len(counted) == result["screening"]["rescored"]
    assert all(row["regions"].is_integer() for row in counted)
    assert any(not row["regions"].is_integer() for row in rows)


def test_stopped_and_resumed_is_the_same(tmp_path, monkeypatch):
    search(tmp_path / "whole", "te-nas", "--repeats", "2")

    class Once(signals.Stop):
        checks = 0

        def check(self) -> None:
            self.checks += 1
            if self.checks == 4:
                raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(signals, "Stop", Once)
        patch.setattr("engine.runs.loop.Pace.due", lambda self: True)
        with pytest.raises(Interrupted):
            search(tmp_path / "cut", "te-nas", "--repeats", "2")
    search(tmp_path / "cut", "te-nas", "--repeats", "2", "--resume")
    for name in ("scores.jsonl", "genotype.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    counts = [json.loads((tmp_path / name / "result.json").read_text())["screening"] for name in ("cut", "whole")]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["linear-regions"], "--screen: this method has no kernel"),
        (["te-nas", "--faithful"], "--screen: the published code scores every removal exactly"),
        (["te-nas", "--rescore", "-1"], "--rescore must be at least 0"),
    ],
)
def test_what_cannot_be_screened_is_said(tmp_path, words, message):
    with pytest.raises(ConfigurationError, match=message):
        search(tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [TENASOptions(smooth_regions=True), BatchOptions(screen=True, smooth_regions=True)])
def test_only_a_screened_search_that_counts_regions_estimates_them(options):
    with pytest.raises(ConfigurationError, match="--smooth-regions: is for --screen"):
        options.validate()


def prepared(options):
    data = load_images(options)
    options = with_width(options, TOY, data.images.shape[-1])
    scorer, pruning = Scorer(options, TOY, data), make_pruning(TOY, options)
    state = pruning.start(TOY.alive())
    return scorer, state, pruning.candidates(state)


def test_supernet_and_regions_are_those_of_the_exact_search():
    options = MetaNTKNASOptions(cells=2, size=6, region_images=20, device="cpu", seed=3)
    scorer, state, candidates = prepared(options)
    found = estimate(scorer, state, candidates, (0, 1))
    whole = torch.tensor(state.alive).unsqueeze(0)
    (supernet,) = scorer.scores(whole, (0, 1), (0, 1), (0, 1), (0, 1))
    assert found.supernet["condition"].value == pytest.approx(supernet["condition"].value, rel=1e-4)
    assert found.supernet["regions"] == supernet["regions"]
    for candidate, regions in zip(candidates[:5], found.regions, strict=False):
        changed = torch.tensor(state.alive)
        changed[candidate] = False
        (own,) = scorer.scores(changed.unsqueeze(0), (0, 1), (0, 1), (0, 1), (0, 1))
        assert regions == own["regions"]
        assert exact(scorer, state, candidate, (0, 1))["condition"].value == pytest.approx(own["condition"].value, rel=1e-4)
    assert estimate_from_json(json.loads(json.dumps(estimate_to_json(found)))) == found


def test_estimates_go_with_exact_changes():
    """Away from noise: the mean over several draws of the estimates orders removals as that of the exact changes does."""
    options = TENASOptions(cells=2, size=6, batch=16, region_images=20, device="cpu")
    scorer, state, candidates = prepared(options)
    draws = [(0, repeat) for repeat in range(6)]
    estimates = [estimate(scorer, state, candidates, address) for address in draws]
    screened = Screened(candidates, estimates)
    for repeat, address in enumerate(draws):
        found = scorer.conditions(without(torch.tensor(state.alive), candidates), address, address, address)
        screened.exact |= {(c, repeat): score for c, score in zip(candidates, found, strict=True)}
    means = torch.tensor(
        [
            [sum(f(c, r) for r in range(len(draws))) / len(draws) for c in candidates]
            for f in (screened.change, screened.exact_change)
        ]
    )
    ranks = means.argsort(1).argsort(1).double()
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.5


class Recorded:
    """A run that keeps what a step appends."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.lines = ranks, []

    def append(self, name: str, line: dict) -> None:
        self.lines.append(line)

    def offer(self, snapshot, stop) -> None:
        """No checkpoints here."""


def test_ranks_share_a_step_and_decide_alike():
    options = TENASOptions(cells=2, size=6, region_images=20, repeats=3, rescore=4, device="cpu", screen=True)
    store, found = HashStore(), {}

    def program(name: str, ranks: Ranks) -> None:
        scorer, state, candidates = prepared(options)
        run, work, bar = Recorded(ranks), StepWork(state), SimpleNamespace(advance=lambda *_, **__: None)
        decision, _ = screen(candidates, work, make_pruning(TOY, options), scorer, options, run, signals.Stop(), bar)
        found[name] = (decision.pruned, run.lines, work.rescored, work.passes)

    program("alone", ALONE)
    threads = [threading.Thread(target=program, args=(rank, Ranks(rank, 2, store)), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found["alone"][2] >= 4
    assert found[0] == found["alone"]
    assert found[1] == found["alone"]


A, B = Candidate(0, 0, 1), Candidate(0, 0, 2)


def made(changes: list[tuple[float | None, float]]) -> Screened:
    supernet = {"condition": Score(10.0)}
    return Screened([A, B], [Estimate(supernet, list(pair), []) for pair in changes])


def test_estimates_are_shrunk_by_what_the_exact_scores_show():
    screened = made([(0.4, -0.2), (5.0, -0.2)])
    assert screened.share() == 1.0
    assert screened.change(A, 1) == LARGEST
    assert screened.records()[0].ablated["condition"].value == pytest.approx(10 * math.exp(0.4))
    screened.exact[A, 0] = Score(10 * math.exp(0.1))
    assert screened.share() == pytest.approx(0.25)
    values = [record.ablated["condition"].value for record in screened.records()]
    assert values == pytest.approx([10 * math.exp(x) for x in (0.1, -0.05, 0.25, -0.05)])
    screened.exact[B, 0] = Score(20.0)  # far the other way
    assert screened.share() == 0.05
    assert passes(screened) == (2 * PASSES + 2 * EXACT_PASSES, 2 * 3 * EXACT_PASSES)


def test_estimated_regions_are_shrunk_by_the_counts_of_the_race():
    supernet = {"condition": Score(10.0), "regions": Score(50.0)}
    estimated = [Score(50.0 * math.exp(0.4)), Score(50.0 * math.exp(-0.2))]
    screened = Screened([A, B], [Estimate(supernet, [0.1, 0.1], estimated)])
    assert [record.ablated["regions"] for record in screened.records()] == estimated
    screened.counted[A, 0] = Score(50.0 * math.exp(0.1))
    assert screened.region_share() == pytest.approx(0.25)
    values = [record.ablated["regions"].value for record in screened.records()]
    assert values == pytest.approx([50 * math.exp(0.1), 50 * math.exp(-0.05)])


def test_what_is_not_usable_tells_nothing():
    screened = made([(None, 0.1)])
    assert screened.records()[0].ablated["condition"].value == 10.0
    screened.exact[A, 0] = Score(math.inf, "singular")
    screened.exact[B, 0] = Score(10.0)
    assert screened.exact_change(A, 0) is None
    assert screened.share() == 0.05
    assert screened.records()[0].ablated["condition"].status == "singular"


def test_separation_counts_standard_errors():
    assert separation([(1.0, 0.0)]) == 0.0
    assert separation([(1.0, 0.0), (None, 0.0)]) == 0.0
    assert separation([(1.0, 0.0), (1.0, 0.0)]) == math.inf
    assert separation([(1.0, 0.0), (2.0, 0.0), (3.0, 0.0)]) == pytest.approx(2 / (1 / math.sqrt(3)))


def test_study(tmp_path, capsys):
    words = "--cells 2 --channels 2 --repeats 1 --region-images 10 --space toy_space:TOY --seeds 1 --json"
    assert study([*words.split(), str(tmp_path / "rows.jsonl")]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert row["agreed"]["exact-0"] == row["decisions"] == 20
    printed = capsys.readouterr().out
    assert "20 decisions; agreement with the exact search" in printed
    assert "the noise floor" in printed
    assert "forward passes" in printed
