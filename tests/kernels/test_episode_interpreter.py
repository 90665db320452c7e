"""Triton against the reference on CPU tensors, in a process of its own: the mode is read when kernels are decorated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.kernels.episode import gather_episode_reference
from engine.runs.streams import stream

pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") != "1":

    def test_every_case_passes_in_a_process_that_interprets() -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

else:
    from engine.kernels.triton_episode import launch_gather_episode

    def case(bank: tuple[int, int, int, int], count: int, padding: int, size: int) -> dict[str, Any]:
        generator = stream(0, "test-episode-interpreter")
        spare = [length + 2 * padding - size + 1 for length in bank[2:]]
        return {
            "images": torch.randint(1, 256, bank, generator=generator, dtype=torch.uint8),
            "index": torch.randint(0, bank[0], (count,), generator=generator),
            "tops": torch.randint(0, spare[0], (count,), generator=generator),
            "lefts": torch.randint(0, spare[1], (count,), generator=generator),
            "flips": torch.rand(count, generator=generator) < 0.5,
            "mean": torch.rand(bank[1], generator=generator),
            "std": torch.rand(bank[1], generator=generator) + 0.1,
            "padding": padding,
            "size": size,
        }

    CASES = [
        ((5, 3, 9, 7), 6, 2, 7),
        ((3, 1, 5, 5), 2, 0, 5),
        ((3, 2, 4, 6), 3, 5, 3),
        ((2, 1, 1, 1), 2, 1, 3),
        ((4, 3, 40, 40), 2, 4, 40),
        ((4, 3, 5, 5), 0, 0, 5),
    ]

    @pytest.mark.parametrize(("bank", "count", "padding", "size"), CASES, ids=str)
    def test_kernel_equals_reference(bank: tuple[int, int, int, int], count: int, padding: int, size: int) -> None:
        arguments = case(bank, count, padding, size)
        assert torch.equal(launch_gather_episode(**arguments), gather_episode_reference(**arguments))

    def test_bytes_are_normalised_as_torch_does() -> None:
        arguments = case((1, 3, 16, 16), 1, 0, 16)
        arguments["images"] = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
        assert torch.equal(launch_gather_episode(**arguments), gather_episode_reference(**arguments))

    @pytest.mark.parametrize(
        ("name", "value"), [("index", -1), ("index", 5), ("tops", -1), ("tops", 7), ("lefts", -(2**40)), ("lefts", 5)]
    )
    def test_windows_out_of_range_are_nan_and_the_others_stay(name: str, value: int) -> None:
        arguments = case((5, 3, 9, 7), 4, 2, 7)
        expected = gather_episode_reference(**arguments)
        arguments[name] = arguments[name].clone()
        arguments[name][2] = value
        found = launch_gather_episode(**arguments)
        assert found[2].isnan().all()
        assert torch.equal(found[[0, 1, 3]], expected[[0, 1, 3]])

    def test_vectors_need_not_be_contiguous() -> None:
        arguments = case((5, 3, 9, 7), 4, 2, 7)
        expected = gather_episode_reference(**arguments)
        for name in ("index", "tops", "lefts", "flips", "mean", "std"):
            arguments[name] = torch.stack([arguments[name]] * 2, 1)[:, 0]
        assert torch.equal(launch_gather_episode(**arguments), expected)
