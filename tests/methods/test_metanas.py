"""The metanas command from its options to the finished run directory, at the smallest sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli import main
from engine.data import load
from engine.errors import ConfigurationError
from engine.methods.metanas import NEVER, MetaTraining
from engine.methods.metanas_networks import build, find_genotype
from engine.methods.metanas_options import MetaNASOptions
from engine.methods.metanas_tasks import interval
from engine.runs.config import resolve
from engine.spaces.genotype import Genotype
from engine.spaces.metanas_genotypes import PUBLISHED
from engine.spaces.network import build_network
from engine.spaces.space import METANAS

TINY = ["--channels", "2", "--cells", "2", "--ways", "3", "--train-shots", "3", "--meta-epochs", "4", "--warm-up", "2"]
TINY += ["--meta-batch", "2", "--steps", "2", "--batch", "4", "--test-steps", "4", "--eval-tasks", "2", "--eval-every", "2"]
TINY += ["--validation-tasks", "1", "--quiet"]


def search(*words: str) -> int:
    return main(["search", "metanas", *TINY, *words])


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("metanas") / "whole"
    assert search("--out", str(out)) == 0
    return out


def test_leaves_a_run_directory(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    assert result["test_tasks"] == 2
    assert 0 <= result["accuracy"] <= 1
    assert result["mean_pruned_parameters"] <= result["mean_parameters"] <= result["meta_parameters"]
    genotype = Genotype.load(whole / "genotype.json")
    METANAS.check(genotype)
    lines = metrics(whole)
    assert [line["event"] for line in lines].count("validation") == 2
    assert lines[-1]["event"] == "test"
    assert sum(lines[-1]["operations"].values()) == 12
    assert result["tables"][0]["rows"][1][0] == "one-hot, not retrained"
    assert result["plots"][0]["series"][0]["x"] == [2, 4]


@pytest.mark.parametrize("stop_after", [2, 4])
def test_a_stopped_run_goes_on_with_the_same_bytes(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Stopped in the search, and among the test tasks."""
    import signal

    monkeypatch.setattr("engine.runs.loop.SAVE_SECONDS", 0.0)
    calls = []
    for name in ("update", "test"):
        original = getattr(MetaTraining, name)

        def counted(self: MetaTraining, *words: Any, _original: Any = original, _name: str = name) -> Any:
            found = _original(self, *words)
            calls.append(_name)
            if len([c for c in calls if c == "update"]) + (stop_after == 4) * (words[0] == "test") == stop_after + (
                stop_after == 4
            ):
                signal.raise_signal(signal.SIGTERM)
            return found

        monkeypatch.setattr(MetaTraining, name, counted)
    assert search("--out", str(tmp_path / "b")) == 75
    monkeypatch.undo()
    assert search("--out", str(tmp_path / "b"), "--resume") == 0
    for name in ("metrics.jsonl", "genotype.json"):
        assert (tmp_path / "b" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["--faithful", "--drop-path", "0.2"],
        ["--update", "alternating", "--sparse", "operations", "--meta-schedule", "cosine"],
        ["--sparse", "none", "--meta-schedule", "linear", "--transductive", "false"],
        ["--hard", "--sparse", "inputs"],
        ["--meta-learner", "fomaml", "--meta-rate", "0.1"],
        ["--meta-learner", "maml", "--meta-rate", "0.1", "--meta-architecture-rate", "0.1"],
        ["--network", "random"],
        ["--network", "og-v2"],
        ["--network", "autometa"],
        ["--network", "conv4"],
    ],
)
def test_every_form_runs(tmp_path: Path, words: list[str]) -> None:
    out = tmp_path / "a"
    assert search("--out", str(out), "--meta-epochs", "2", "--warm-up", "1", "--validation-tasks", "0", *words) == 0
    result = json.loads((out / "result.json").read_text())
    assert ("genotype" in result) == ("conv4" not in words)
    losses = [line["loss"] for line in metrics(out) if line["event"] == "meta-update"]
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)


def test_compares_networks_over_seeds(tmp_path: Path) -> None:
    words = ["--network", "compare", "--repeats", "2", "--meta-epochs", "2", "--warm-up", "1", "--conv4-epochs", "3"]
    assert search("--out", str(tmp_path / "a"), "--eval-every", "1", *words) == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    assert [(v["variant"], v["seed"]) for v in result["variants"]] == [
        (name, seed) for seed in (0, 1) for name in ("search", "random", "conv4")
    ]
    assert [v["meta_updates"] for v in result["variants"]] == [2, 2, 3] * 2
    assert len(result["findings"]) == 2
    summary, differences = result["tables"]
    assert [row[:2] for row in summary["rows"]] == [["search", 2], ["random", 2], ["conv4", 2]]
    assert summary["rows"][1][3] == "–"  # a fixed network is not pruned
    assert [row[0] for row in differences["rows"]] == ["random", "conv4"]
    assert all(len(series["x"]) == len(series["y"]) > 0 for series in result["plots"][0]["series"])
    alone = tmp_path / "alone"
    assert search("--out", str(alone), "--network", "random", "--seed", "1", *words[4:8], "--eval-every", "1") == 0
    accuracy = [v["accuracy"] for v in result["variants"] if (v["variant"], v["seed"]) == ("random", 1)]
    assert accuracy == [json.loads((alone / "result.json").read_text())["accuracy"]]


def test_one_seed_and_every_strategy(tmp_path: Path) -> None:
    assert search("--out", str(tmp_path / "a"), "--sparse", "every", "--meta-epochs", "1", "--validation-tasks", "0") == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    assert [v["variant"] for v in result["variants"]] == ["search, nothing sparse", "search, operations sparse", "search"]
    assert all("one seed does not say" in sentence for sentence in result["findings"])


def options(**changes: Any) -> MetaNASOptions:
    words = [word for key, value in changes.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    found = resolve("metanas", [*TINY, "--device", "cpu", *words])
    assert isinstance(found, MetaNASOptions)
    return found


def test_warm_up_and_meta_level_pruning() -> None:
    chosen = options(meta_threshold=0.1, architecture_rate=1.0, validation_tasks=0, warm_up=1, eval_every=1)
    training = MetaTraining(chosen, load("digits"))
    before = training.alphas.clone()
    training.advance(0)
    assert torch.equal(training.alphas, before)
    training.advance(1)
    architecture = training.learner.architecture
    assert architecture is not None
    alphas, pairs = architecture.split(training.alphas)
    gone = alphas == NEVER
    assert 0 < int(gone.sum()) < gone.numel()
    assert bool(gone.any(-1).any())
    assert pairs is not None
    assert float(pairs.abs().max()) < 10
    assert architecture.genotype(training.alphas)


@pytest.mark.parametrize(("name", "count"), [("in-v2", 1_160_741), ("og-v2", 1_056_116)])
def test_published_genotypes_have_the_published_size(name: str, count: int) -> None:
    classes, channels_in = (5, 3) if name == "in-v2" else (20, 1)
    with torch.device("meta"):
        network = build_network(
            PUBLISHED[name], channels=96, classes=classes, cells=5, channels_in=channels_in, norm="batchstat-affine"
        )
    assert sum(p.numel() for p in network.parameters()) == count


def test_autometa_adds_two_convolutions_of_one_input(tmp_path: Path) -> None:
    genotype, channels, cells = PUBLISHED["autometa"], 4, 2
    assert [len([c for c in genotype["normal"].connections if c.target == node]) for node in range(2, 7)] == [2, 2, 2, 1, 2]
    path = tmp_path / "genotype.json"
    path.write_text(genotype.to_json())
    assert find_genotype(options(network=str(path))) == genotype
    once = json.loads(genotype.to_json().replace("conv_3x3_twice", "conv_3x3"))
    sizes = []
    for found in (genotype, Genotype.from_dict(once)):
        with torch.device("meta"):
            network = build_network(found, channels=channels, classes=5, cells=cells, norm="batchstat-affine")
            sizes.append(sum(p.numel() for p in network.parameters()))
            assert network(torch.empty(2, 3, 8, 8)).shape == (2, 5)
    assert sizes[0] - sizes[1] == cells * (9 * channels + channels**2 + 2 * channels)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--channels", "7"], "--channels"),
        (["--steps", "1"], "--steps: annealing"),
        (["--t-min", "0"], "--t-min"),
        (["--t-min", "2"], "--t-min"),
        (["--threshold", "0.2"], "--threshold"),
        (["--drop-path", "1"], "--drop-path"),
        (["--test-architecture-steps", "9"], "--test-architecture-steps"),
        (["--ways", "9"], "9 ways need 9 classes"),
        (["--network", "nowhere"], "--network"),
        (["--network", "compare", "--sparse", "every"], "--sparse every"),
        (["--meta-learner", "maml", "--drop-path", "0.1"], "--meta-learner"),
    ],
)
def test_bad_input(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--out", str(tmp_path / "a"), *words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_presets_are_table_4() -> None:
    mini, omniglot = (resolve("metanas", ["--preset", f"table4-{name}"]) for name in ("mini", "omniglot"))
    assert isinstance(mini, MetaNASOptions)
    assert isinstance(omniglot, MetaNASOptions)
    assert (mini.meta_epochs, mini.warm_up, mini.meta_batch, mini.batch, mini.steps) == (30_000, 15_000, 10, 20, 5)
    assert (mini.train_shots, omniglot.train_shots) == (15, 10)
    assert (mini.architecture_rate, omniglot.architecture_rate) == (1e-3, 5e-4)
    assert (mini.meta_rate, mini.meta_architecture_rate, mini.decay, mini.architecture_decay) == (1.0, 0.6, 0.0, 1e-3)
    assert (mini.test_steps, mini.test_architecture) == (100, 50)


def test_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--dry-run") == 0
    assert "16 in meta-training, 8 in test tasks" in capsys.readouterr().out


def test_interval() -> None:
    found = interval([0.0, 1.0])
    assert found["mean"] == 0.5
    assert found["interval"] == pytest.approx(1.96 * 0.5**0.5 / 2**0.5)
    assert interval([1.0])["interval"] != interval([1.0])["interval"]


def test_a_genotype_of_another_space_is_refused(tmp_path: Path) -> None:
    from engine.spaces.space import FEW_SHOT

    path = tmp_path / "genotype.json"
    path.write_text(FEW_SHOT.genotype(FEW_SHOT.alive()).to_json())
    with pytest.raises(ConfigurationError, match="metanas-cell"):
        build(options(network=str(path)), 1, 8)
