"""Meta-ticket as a command: what moves and what stays, its ablations and presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli import main
from engine.methods.learning_options import LEARNING_PRESETS, MAMLOptions, MetaTicketOptions
from engine.runs.checkpoints import CheckpointStore

QUICK = ["--iterations", "6", "--validate-every", "3", "--validation-tasks", "0", "--test-tasks", "4", "--batch", "2", "--quiet"]


def search(out: Path, *words: str) -> dict[str, Any]:
    assert main(["search", "meta-ticket", "--out", str(out), "--device", "cpu", *QUICK, *words]) == 0
    return json.loads((out / "result.json").read_text())


def buffers(out: Path) -> dict[str, torch.Tensor]:
    found = CheckpointStore(out / "checkpoints").newest({"metrics.jsonl": 10**9, "scores.jsonl": 10**9})
    assert found is not None
    return found[1].tensors


def test_weights_stay_and_scores_move(tmp_path: Path) -> None:
    start = search(tmp_path / "start", "--iterations", "0")
    search(tmp_path / "early", "--iterations", "3")
    trained = search(tmp_path / "trained")
    early, late = buffers(tmp_path / "early"), buffers(tmp_path / "trained")
    assert torch.equal(early["fixed"], late["fixed"])
    assert not torch.equal(early["meta"], late["meta"])
    assert set(start["sparsity"].values()) == {0.0}
    assert all(0 < share < 0.5 for share in trained["sparsity"].values())
    assert trained["masked_weights"] == trained["learned_parameters"] == 61_440
    assert trained["plots"][2]["title"] == "Sparsity"


def test_iterand_draws_pruned_weights_anew(tmp_path: Path) -> None:
    search(tmp_path / "kept")
    search(tmp_path / "redrawn", "--rerand-every", "5")
    kept, redrawn = buffers(tmp_path / "kept")["fixed"], buffers(tmp_path / "redrawn")["fixed"]
    changed = (kept != redrawn).float().mean()
    assert 0 < changed < 0.3


def test_learned_scales_move_beside_the_scores(tmp_path: Path) -> None:
    found = search(tmp_path, "--learnable-scale", "naive", "--scale-rate", "0.1", "--iterations", "2", "--validate-every", "2")
    assert found["learned_parameters"] == 61_440 + 4
    scales = buffers(tmp_path)["meta"][-4:]
    assert 0 < scales.abs().max() < 0.5
    assert len(buffers(tmp_path)["velocity1"]) == 4


def test_pruning_the_output_layer_masks_it_too(tmp_path: Path) -> None:
    found = search(tmp_path, "--prune-output", "--sparsity", "0.5")
    assert found["masked_weights"] == 61_440 + 320
    assert found["sparsity"]["classifier.weight"] == pytest.approx(0.5, abs=0.1)


def test_constant_weights_leave_only_the_mask(tmp_path: Path) -> None:
    search(tmp_path, "--constant", "1", "--prune-output", "--outer", "adamw", "--boil")
    fixed = buffers(tmp_path)["fixed"]
    assert len(fixed.unique()) <= 5 + 2  # one value a layer, and the 0 and 1 of biases and BatchNorm


def test_presets_hold_the_published_numbers() -> None:
    preset = LEARNING_PRESETS["omniglot"]
    assert (preset["inner_rate"], preset["warmup"], preset["test_steps"], preset["iterations"]) == (0.4, 1000, 3, 30_000)
    for name in LEARNING_PRESETS:
        for options in (MAMLOptions, MetaTicketOptions):
            options(**options.preset_values(name)).validate()
    assert "sparsity" not in MAMLOptions.preset_values("constant-random-mask")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sparsity", "1"], "--sparsity must be at least 0 and below 1"),
        (["--rerand-rate", "2"], "--rerand-rate must be in 0 .. 1"),
        (["--scale-rate", "0"], "--scale-rate must be above 0"),
        (["--constant", "1", "--rerand-every", "3"], "cannot be drawn anew"),
    ],
)
def test_bad_input_of_meta_ticket(words: list[str], said: str, capsys: Any) -> None:
    assert main(["search", "meta-ticket", *words]) == 2
    assert said in capsys.readouterr().err
