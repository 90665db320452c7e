"""What a machine with a GPU would run, rehearsed on the CPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from bench.device import main, seconds
from bench.mixed_edge import FUSED, LAID, PASSES, PUBLISHED, SHARED, calls

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "device.sh"


def test_kernels_leave_a_row_for_each_pass_and_formulation(tmp_path: Path) -> None:
    assert main(["kernels", "--out", str(tmp_path), "--device", "cpu", "--smoke"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "kernels.jsonl").read_text().splitlines()]
    assert {(row["pass"], row["method"]) for row in rows} == {(p, m) for p in PASSES for m in (PUBLISHED, LAID, SHARED, FUSED)}
    for row in rows:
        assert row["floor_seconds"] == row["bytes"] / row["ceilings"]["bytes_per_second"]
        assert row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]


@pytest.mark.parametrize("kind", PASSES)
def test_formulations_agree(kind: str) -> None:
    made = [
        [t.double() for t in call()]
        for layout in ("contiguous", "channels_last")
        for call in calls(kind, 4, 6, 2, layout, 3).values()
    ]
    assert len(made) == 4
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for other in made[1:] for a, b in zip(made[0], other, strict=True))


def test_calls_take_turns() -> None:
    order: list[int] = []
    assert len(seconds([lambda: order.append(0), lambda: order.append(1)], "cpu", 3)) == 3
    assert order[-3:] == [0, 1, 0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--out", str(tmp_path)]) == 2
    assert "torch finds no usable GPU; rehearse with --device cpu --smoke" in capsys.readouterr().err


def test_the_script_is_sound_and_asks_for_a_folder() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stderr.startswith("usage: ")) == (2, True)
