"""The search end to end, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.errors import ConfigurationError, NumericalError
from engine.methods.metantk_nas import make_pruning, plan, with_width
from engine.methods.options import EpisodeOptions, MetaNTKNASOptions, RegionOptions, TENASOptions
from engine.methods.pruning import Candidate
from engine.methods.scorer import Scorer, load_images
from engine.methods.steps import Batch, StepWork
from engine.search import main
from engine.spaces.genotype import Genotype
from engine.spaces.space import FEW_SHOT

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOY = ["--space", "toy_space:TOY", "--cells", "2", "--repeats", "2", "--region-images", "30", "--quiet"]
FILES = {"config.toml", "env.json", "metrics.jsonl", "scores.jsonl", "genotype.json", "result.json", "report.html"}


@pytest.fixture(autouse=True)
def toy_space_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def search(out: Path, *words: str) -> Path:
    assert main([*words, *TOY, "--out", str(out)]) == 0
    return out


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "engine.search", *words, *TOY, "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_scores(out: Path, lines: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        scores = out / "scores.jsonl"
        if scores.exists() and scores.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.01)
    pytest.fail("the search wrote no scores in a minute")


def same_answer(first: Path, second: Path) -> None:
    for name in ("genotype.json", "scores.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("method", ["metantk-nas", "te-nas", "metantk-only", "linear-regions", "random"])
def test_every_method_leaves_a_whole_run_directory(tmp_path, method):
    words = TOY if method not in ("random", "metantk-only") else [w for w in TOY if w not in ("--region-images", "30")]
    if method == "random":
        words = ["--space", "toy_space:TOY", "--cells", "2", "--quiet"]
    out = tmp_path / "run"
    assert main([method, *words, "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} >= FILES | {"cell_normal.svg", "cell_reduction.svg"}
    genotype = Genotype.load(out / "genotype.json")
    for kind, cell in genotype.cells:
        into = [c.target for c in cell.connections]
        assert sorted(into) == [2, 2, 3, 3], kind
    result = json.loads((out / "result.json").read_text())
    assert result["method"] == method
    assert result["parameters"] > 0
    assert result["flops"] > 0


def test_same_seed_gives_same_bytes_and_another_seed_does_not(tmp_path):
    first, second = search(tmp_path / "a"), search(tmp_path / "b")
    same_answer(first, second)
    other = search(tmp_path / "c", "--seed", "1")
    assert (other / "scores.jsonl").read_bytes() != (first / "scores.jsonl").read_bytes()


def test_killed_anywhere_and_resumed_gives_the_same_bytes(tmp_path):
    whole = search(tmp_path / "whole", "--width", "2")
    total = (whole / "scores.jsonl").read_bytes().count(b"\n")
    out = tmp_path / "killed"
    process = start(out, "--width", "2")
    for lines in (1, total // 3, 2 * total // 3):
        wait_for_scores(out, lines)
        process.kill()
        process.wait()
        process = start(out, "--resume")
    assert process.wait(timeout=60) == 0, process.stderr.read()
    same_answer(whole, out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_save_and_leave_with_their_code(tmp_path, number, code):
    out = tmp_path / "run"
    process = start(out, "--width", "1")
    wait_for_scores(out, 2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert start(out, "--resume").wait(timeout=60) == 0


def test_faithful_mode_runs_and_scores_supernets_for_every_candidate(tmp_path):
    out = search(tmp_path / "run", "--faithful")
    result = json.loads((out / "result.json").read_text())
    assert result["supernet_evaluations"] == result["evaluations"]
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    first = [line["supernet_condition"] for line in lines if line["round"] == 0 and line["repeat"] == 0]
    assert len(set(first)) == len(first), "every published comparison has its own images and heads"


def test_faithful_numbers_where_no_gradient_reaches_the_body():
    """Reference note, section 4: a Theta that is the head's part alone counts as 100000."""
    options = MetaNTKNASOptions(device="cpu", width=2, cells=2, faithful=True)
    scorer = Scorer(options, FEW_SHOT, load_images(options))
    alive = torch.tensor(FEW_SHOT.alive())
    dead = torch.zeros_like(alive)
    scores = scorer.scores(torch.stack([alive, dead]), (0,), (0,), (0,), (0,))
    assert scores[0]["condition"].ok
    assert scores[1]["condition"].value == 100000.0


def test_paired_mode_scores_the_supernet_once_a_repeat(tmp_path):
    out = search(tmp_path / "run")
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    steps = {(line["round"], line["repeat"]) for line in lines}
    assert len({(line["round"], line["repeat"], line["supernet_condition"]) for line in lines}) == len(steps)
    assert json.loads((out / "result.json").read_text())["supernet_evaluations"] == len(steps)


def scored(dtype: str, width: int) -> list[float]:
    """Conditions of seven candidates of the real supernet, in batches of this width."""
    options = MetaNTKNASOptions(device="cpu", width=width, dtype=dtype, cells=3, region_images=20)  # type: ignore[arg-type]
    scorer = Scorer(options, FEW_SHOT, load_images(options))
    pruning = make_pruning(FEW_SHOT, options)
    work = StepWork(pruning.start(FEW_SHOT.alive()))
    candidates = pruning.candidates(work.state)[::18]
    for batch in work.batches(candidates, 1, width, paired=True):
        work.add(batch, scorer.found(work.state, 0, batch))
    assert work.supernets == 1
    return [record.ablated["condition"].value for record in work.records]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
def test_scores_do_not_depend_on_the_width(dtype, tolerance):
    one, three, seven = (scored(dtype, width) for width in (1, 3, 7))
    assert one == pytest.approx(seven, rel=tolerance)
    assert three == pytest.approx(seven, rel=tolerance)
    assert three == scored(dtype, 3), "at the same width, bit for bit"


def test_candidates_of_one_repeat_share_weights_images_and_head():
    options = EpisodeOptions(device="cpu", width=2, cells=2)
    scorer = Scorer(options, FEW_SHOT, load_images(options))
    state = make_pruning(FEW_SHOT, options).start(FEW_SHOT.alive())
    candidate = Candidate(0, 3, 2)

    def conditions(repeat: int, *candidates: Candidate) -> list[float]:
        pairs = scorer.found(state, 0, Batch(repeat, list(candidates))).pairs
        return [(supernet or ablated)["condition"].value for supernet, ablated in pairs]

    alone = conditions(0, candidate)
    first, again = conditions(0, Candidate(1, 0, 1), candidate)
    assert [again] == pytest.approx(alone, rel=1e-4)
    assert [first] != pytest.approx(alone, rel=1e-4)
    assert conditions(0) != conditions(1), "repeats draw anew"


def test_out_of_memory_halves_the_width_and_goes_on(tmp_path, monkeypatch):
    from engine.scoring import ablations

    kernels = ablations.KernelScorer.kernels

    def greedy(self, alive, images):
        if len(alive) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return kernels(self, alive, images)

    monkeypatch.setattr(ablations.KernelScorer, "kernels", greedy)
    small = search(tmp_path / "small", "--width", "2")
    halved = search(tmp_path / "halved", "--width", "8")
    same_answer(small, halved)
    assert "width = 2" in (halved / "config.toml").read_text()


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(tmp_path, monkeypatch):
    from engine.scoring import ablations

    def broken(self, alive, images):
        raise RuntimeError("something else")

    monkeypatch.setattr(ablations.KernelScorer, "kernels", broken)
    with pytest.raises(RuntimeError, match="something else"):
        search(tmp_path / "run")


def test_a_supernet_without_a_usable_score_ends_the_search(tmp_path, monkeypatch):
    from engine.scoring import ablations

    def nan(self, alive, images):
        kernel = torch.full((len(alive), 10, 10), torch.nan, dtype=torch.float64)
        return ablations.KernelPair(kernel, kernel)

    monkeypatch.setattr(ablations.KernelScorer, "kernels", nan)
    with pytest.raises(NumericalError, match="condition"):
        search(tmp_path / "run")


@pytest.fixture
def one_nan(monkeypatch):
    """The condition number of the third candidate of the first batch is NaN."""
    from engine.scoring import ablations

    kernels, batches = ablations.KernelScorer.kernels, []

    def broken(self, alive, images):
        pair = kernels(self, alive, images)
        batches.append(len(alive))
        if len(batches) == 2:
            pair.theta[2] = torch.nan
        return pair

    monkeypatch.setattr(ablations.KernelScorer, "kernels", broken)


@pytest.mark.usefixtures("one_nan")
def test_a_candidate_whose_score_is_nan_is_named_and_ranks_last(tmp_path, capsys):
    words = [word for word in TOY if word != "--quiet"]
    assert main([*words, "--width", "8", "--out", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/scores.jsonl").read_text().splitlines()]
    (bad,) = [line for line in lines if line["condition_status"] == "nonfinite"]
    assert bad["condition"] == "nan"
    named = f"condition not finite without {bad['operation']} on {bad['cell']} edge {bad['edge']} (repeat 0)"
    assert capsys.readouterr().err.count(named) == 1
    rounds = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    first = [(row["cell"], row["edge"], row["operation"]) for row in rounds[0]["pruned"]]
    assert (bad["cell"], bad["edge"], bad["operation"]) not in first


@pytest.mark.usefixtures("one_nan")
def test_a_score_that_is_nan_ends_the_search_where_that_is_asked(tmp_path):
    with pytest.raises(NumericalError, match=r"condition not finite without .* --nonfinite skip"):
        search(tmp_path / "run", "--nonfinite", "stop", "--width", "8")
    last = json.loads((tmp_path / "run/scores.jsonl").read_text().splitlines()[2])
    assert last["condition_status"] == "nonfinite"


def test_too_little_memory_for_one_candidate_is_said_so(tmp_path, monkeypatch):
    from engine.scoring import ablations

    def greedy(self, alive, images):
        raise MemoryError

    monkeypatch.setattr(ablations.KernelScorer, "kernels", greedy)
    with pytest.raises(ConfigurationError, match="memory does not hold one candidate"):
        search(tmp_path / "run", "--width", "8")


def test_width_follows_from_memory_and_is_written_down(tmp_path):
    options = MetaNTKNASOptions(memory="100MB")
    narrow, wide = with_width(options, FEW_SHOT, 8), with_width(replace(options, memory="1GB"), FEW_SHOT, 8)
    assert 1 <= narrow.width < wide.width <= 126
    assert with_width(replace(options, width=7), FEW_SHOT, 8).width == 7
    out = search(tmp_path / "run", "--memory", "1GB")
    assert "width = " in (out / "config.toml").read_text()


@pytest.mark.parametrize(
    "options", [MetaNTKNASOptions(), TENASOptions(), RegionOptions(), MetaNTKNASOptions(data="omniglot", faithful=True)]
)
def test_plan_counts_what_the_published_loop_counts(options):
    rows = dict(plan(options))
    assert rows["candidates"].startswith("500 in 6 rounds")
    assert rows["evaluations"].startswith("1500 candidates")


def test_dry_run_starts_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["--dry-run", "--out", str(out)]) == 0
    assert not out.exists()
    assert "500 in 6 rounds" in capsys.readouterr().out


def test_omniglot_from_the_shared_data(shared_data, tmp_path):
    out = search(tmp_path / "run", "--data", "omniglot", "--data-root", str(shared_data), "--size", "8")
    assert json.loads((out / "result.json").read_text())["data"] == "omniglot"
