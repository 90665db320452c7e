"""Region hashing and episode images on a GPU, at real sizes, against the same references. Not run yet: no GPU was at hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.kernels.cuda_regions import launch_fold_signs_cuda
from engine.kernels.cuda_source import cupy_available
from engine.kernels.episode import gather_episode, gather_episode_reference
from engine.kernels.regions import DTYPES, count_distinct, fold_signs, fold_signs_reference, seeds
from engine.runs.streams import stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

# Few long samples (several programs each), the search's 126 ablations x 200 patches, a stage of a C = 48 network, odd ones.
SHAPES = [(3, 16, 224, 224), (25200, 1, 3, 3), (256, 48, 32, 32), (5, 123, 17), (1, 1), (4, 0)]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-gpu-regions")).cuda()


def some_state(samples: int) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (samples, 2), generator=stream(0, "test-gpu-regions", 1)).cuda()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lanes", [1, 2])
def test_hash_equals_reference_and_cpu(shape: tuple[int, ...], dtype: torch.dtype, lanes: int) -> None:
    x, state = noise(*shape).to(dtype), some_state(shape[0])
    state = state[:, 0] if lanes == 1 else state
    gate = torch.arange(shape[0] if shape[0] < 200 else 2, device="cuda") % 2 == 0
    found = fold_signs(state, x, 3, gate, threshold=0.1)
    assert torch.equal(found, fold_signs_reference(state, x, 3, gate, 0.1))
    assert torch.equal(found.cpu(), fold_signs(state.cpu(), x.cpu(), 3, gate.cpu(), threshold=0.1))
    assert torch.equal(found, fold_signs(state, x, 3, gate, threshold=0.1))


def test_channels_last_is_hashed_where_it_lies() -> None:
    x, state = noise(256, 48, 32, 32), some_state(256)
    expected = fold_signs(state, x, 1)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert torch.equal(fold_signs(state, last, 1), expected)
    assert torch.cuda.max_memory_allocated() - before < last.numel()


def test_tiny_values_count_as_positive() -> None:
    x = torch.tensor([[1e-45, -1e-45, 0.0, -0.0, float("nan"), float("inf")]]).cuda()
    state = torch.zeros(1, dtype=torch.int64, device="cuda")
    assert fold_signs(state, x, 0).tolist() == fold_signs(state.cpu(), x.cpu(), 0).tolist()


def test_folding_and_counting_can_be_captured() -> None:
    """No synchronisation: a CUDA graph records both, and replays them on new activations."""
    x, gate = noise(600, 48, 8, 8), torch.tensor([True, False, True]).cuda()
    state = torch.zeros(600, dtype=torch.int64, device="cuda")
    count_distinct(fold_signs(state, x, 0, gate), 3)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hashes = fold_signs(state, x, 0, gate)
        counts = count_distinct(hashes, 3)
    x.copy_(x[:1].clone().expand_as(x))
    graph.replay()
    assert counts.tolist() == [1, 1, 1]
    assert torch.equal(hashes, fold_signs_reference(state, x, 0, gate))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 16, 224, 224), (25200, 1, 3, 3), (256, 48, 32, 32), (5, 123, 17)], ids=str)
def test_cuda_source_equals_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not cupy_available():
        pytest.skip("CuPy, which compiles csrc, is not installed")
    x, state, gate = noise(*shape).to(dtype), some_state(shape[0]), torch.arange(shape[0], device="cuda") % 3 != 0
    found = launch_fold_signs_cuda(state, x, seeds(5), 0.25, gate)
    assert torch.equal(found, fold_signs_reference(state, x, 5, gate, 0.25))


@pytest.mark.parametrize(
    ("bank", "count", "padding"),
    [((2000, 3, 84, 84), 400, 8), ((5000, 1, 28, 28), 2000, 0), ((50, 3, 224, 224), 16, 28)],
    ids=str,
)
def test_episode_equals_reference_and_cpu(bank: tuple[int, int, int, int], count: int, padding: int) -> None:
    generator = stream(0, "test-gpu-episode")
    size, spare = bank[2], 2 * padding + 1
    arguments = [
        torch.randint(0, 256, bank, generator=generator, dtype=torch.uint8),
        *(torch.randint(0, end, (count,), generator=generator) for end in (bank[0], spare, spare)),
        torch.rand(count, generator=generator) < 0.5,
        torch.rand(bank[1], generator=generator),
        torch.rand(bank[1], generator=generator) + 0.1,
    ]
    on_device = [tensor.cuda() for tensor in arguments]
    found = gather_episode(*on_device, padding, size)
    assert torch.equal(found, gather_episode_reference(*on_device, padding, size))
    assert torch.equal(found.cpu(), gather_episode(*arguments, padding, size))
    on_device[1] = on_device[1].clone()
    on_device[1][0] = bank[0]
    assert gather_episode(*on_device, padding, size)[0].isnan().all()
