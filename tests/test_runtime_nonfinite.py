"""A NaN in any product of any training loop ends the run at its step, or the step is undone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from bench.faults import WORDS
from engine.errors import NumericalError
from engine.search import main
from engine.train import main as train

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution"}
LOOPS = ["darts", "tetlo", "metanas", "lamanas", "maml", "meta-ticket", "rfs"]
TRAINING = "rfs --network res3 --steps 6 --batch 8 --tasks 3 --queries 2 --tests 5w1s --classifiers centroid"


class Poison(TorchDispatchMode):
    """Writes a NaN into what the product number ``call`` returns."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in PRODUCTS:
            self.left -= 1
            if self.left == 0:
                result.view(-1)[:1].fill_(torch.nan) if result.is_contiguous() else result.fill_(torch.nan)
        return result


def run(loop: str, out: Path, *words: str) -> int:
    common = ["--quiet", "--device", "cpu", "--out", str(out), *words]
    return train([*TRAINING.split(), *common]) if loop == "rfs" else main([loop, *WORDS[loop].split(), *common])


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    return [float(value)] if isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity") else []


@pytest.mark.parametrize("loop", LOOPS)
def test_a_nan_is_found_at_its_step_and_the_run_goes_on_without_it(loop: str, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match=r"^step \d: .*not finite"), Poison(20):
        run(loop, tmp_path)
    kept = load_file(tmp_path / "nonfinite.safetensors")
    assert not all(tensor.isfinite().all() for tensor in kept.values())
    bad = [line for line in lines(tmp_path) if line["event"] == "nonfinite"]
    assert len(bad) == 1
    assert run(loop, tmp_path, "--resume") == 0  # the NaN came from outside, so the step is good this time
    assert "nonfinite" not in [line["event"] for line in lines(tmp_path)]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_step_is_undone_and_the_result_is_finite(loop: str, tmp_path: Path) -> None:
    with Poison(20):
        assert run(loop, tmp_path, "--nonfinite", "skip") == 0
    assert len([line for line in lines(tmp_path) if line["event"] == "nonfinite"]) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert all(math.isfinite(n) for name in ("accuracy", "validation_loss", "genotype") for n in numbers(result.get(name)))
