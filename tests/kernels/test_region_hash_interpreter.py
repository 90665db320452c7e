"""Triton against the reference on CPU tensors, in a process of its own: the mode is read when kernels are decorated."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.kernels.regions import DTYPES, fold_signs, fold_signs_reference, rounded, seeds
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
    from engine.kernels.triton_regions import Tiling, choose_tiling, collapse, launch_fold_signs

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream(0, "test-region-hash-interpreter"))

    def some_state(samples: int, lanes: int) -> Tensor:
        state = torch.randint(-(2**63), 2**63 - 1, (samples, lanes), generator=stream(0, "test-region-hash-interpreter", 1))
        return state[:, 0] if lanes == 1 else state

    def walled(x: Tensor) -> Tensor:
        """The same values and strides amid ones: a read out of bounds would change the hash."""
        around = torch.ones(x.numel() + 2048, dtype=x.dtype)
        view = around[1024 : 1024 + x.numel()].as_strided(x.shape, x.stride(), 1024)
        return view.copy_(x)

    @pytest.mark.parametrize(
        "shape", [(6, 9), (33, 2), (1, 1, 1, 1), (4, 3, 5, 7), (3, 64), (2, 0), (0, 5), (5, 123, 17)], ids=str
    )
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("lanes", [1, 2])
    @pytest.mark.parametrize("gated", [False, True])
    def test_kernel_equals_reference(shape: tuple[int, ...], dtype: torch.dtype, lanes: int, gated: bool) -> None:
        x, state = walled(noise(*shape).to(dtype)), some_state(shape[0], lanes)
        gate = torch.tensor([True, False])[: 1 + (shape[0] % 2 == 0)] if gated else None
        found = launch_fold_signs(state, x, seeds(3), rounded(0.1, dtype), gate)
        assert torch.equal(found, fold_signs_reference(state, x, 3, gate, 0.1))
        assert torch.equal(found, fold_signs(state, x, 3, gate, threshold=0.1))

    @pytest.mark.parametrize("lanes", [1, 2])
    @pytest.mark.parametrize("tiling", [Tiling(1, 1, 1, 5), Tiling(2, 2, 3, 2), Tiling(4, 1, 5, 1), Tiling(2, 4, 2, 4)], ids=str)
    def test_cuts_give_the_same_bits(tiling: Tiling, lanes: int) -> None:
        x, state, gate = walled(noise(6, 300)), some_state(6, lanes), torch.tensor([False, True, True])
        assert torch.equal(launch_fold_signs(state, x, seeds(0), 0.0, gate, tiling), fold_signs_reference(state, x, 0, gate))

    def layouts() -> dict[str, Tensor]:
        x = noise(4, 6, 5, 7)
        wide = torch.full((8, 6, 5, 14), math.nan)
        wide[::2, :, :, 1::2] = x
        return {
            "channels_last": x.contiguous(memory_format=torch.channels_last),
            "sliced": wide[::2, :, :, 1::2],
            "padded rows": torch.cat([x, x], 1)[:, :6],
            "permuted": x.permute(0, 2, 3, 1).contiguous().permute(0, 2, 1, 3),
            "expanded": x[:, :1, :1].expand(-1, 6, 5, -1),
        }

    @pytest.mark.parametrize("name", layouts())
    def test_layouts(name: str) -> None:
        x, state = layouts()[name], some_state(4, 2)
        assert torch.equal(launch_fold_signs(state, x, seeds(1), 0.0, None), fold_signs_reference(state, x, 1))

    def test_layouts_that_two_strides_describe() -> None:
        found = {name: collapse(x) for name, x in layouts().items()}
        assert found["channels_last"] == (35, 1, 6)
        assert found["padded rows"] == (210, 0, 1)
        assert found["expanded"] == (7, 0, 1)
        assert found["sliced"] == (210, 0, 2)
        assert found["permuted"] is None

    @pytest.mark.parametrize("shape", [(3, 70), (2, 3, 5, 7)], ids=str)
    def test_neurons_that_do_not_exist_are_not_above_a_negative_threshold(shape: tuple[int, ...]) -> None:
        x, state = walled(noise(*shape)), some_state(shape[0], 2)
        assert torch.equal(launch_fold_signs(state, x, seeds(1), -1.0, None), fold_signs_reference(state, x, 1, None, -1.0))

    def test_special_values() -> None:
        tiny = torch.tensor([[5e-324, -5e-324, 0.0, -0.0, math.nan, math.inf, -math.inf]], dtype=torch.float64)
        for x in (tiny, torch.tensor([[1e-45, -1e-45, 0.0, -0.0, math.nan, math.inf, -math.inf]])):
            state = torch.zeros(1, dtype=torch.int64)
            assert torch.equal(launch_fold_signs(state, x, seeds(0), 0.0, None), fold_signs_reference(state, x, 0))

    def test_tilings_cover_every_word_once_and_fill_the_device() -> None:
        for samples in (1, 7, 500, 25200):
            for neurons in (0, 1, 64, 65, 2048, 49152, 10**6):
                for plain, itemsize in ((True, 4), (True, 8), (False, 4)):
                    cut = choose_tiling(samples, neurons, plain, itemsize)
                    words = max(1, math.ceil(neurons / 64))
                    assert (cut.splits - 1) * cut.words_per_split < words <= cut.splits * cut.words_per_split
                    assert cut.words_per_split % cut.block_w == 0
                    assert cut.block_b * cut.block_w == (32 if plain and itemsize == 4 else 16)
        assert choose_tiling(25200, 9, True, 4).splits == 1
        assert choose_tiling(1, 10**6, True, 4).splits > 100
