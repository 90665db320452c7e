"""csrc/jacobian_gram.cu and its launcher without a GPU: compiled as C++, 256 threads that meet at every barrier play a block."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from aot import ROOT
from torch import Tensor

from engine.kernels import cuda_jacobian_gram, jacobian_gram
from engine.kernels.cuda_jacobian_gram import SHARED_BYTES, launch_jacobian_gram_cuda
from engine.kernels.jacobian_gram import jacobian_gram_reference
from engine.runs.streams import stream

HOST = r"""
#include <barrier>
#include <cmath>
#include <thread>
#include <utility>
#include <vector>
#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(threads)
struct Index { unsigned x; };
struct alignas(16) float4 { float x, y, z, w; };
thread_local Index threadIdx, blockIdx, blockDim;
constexpr int SHARED = SHARED_BYTES / 16;
float4 shared[SHARED];
std::barrier<> block(256);
std::barrier<> warps[8] = {std::barrier<>(32), std::barrier<>(32), std::barrier<>(32), std::barrier<>(32),
                           std::barrier<>(32), std::barrier<>(32), std::barrier<>(32), std::barrier<>(32)};
void __syncthreads() { block.arrive_and_wait(); }
void __syncwarp() { warps[threadIdx.x / 32].arrive_and_wait(); }

#include "jacobian_gram.cu"

template <typename Kernel, typename Pointers, std::size_t... P, std::size_t... N>
void launch(Kernel kernel, unsigned blocks, Pointers pointers, const i64* numbers, std::index_sequence<P...>,
            std::index_sequence<N...>) {
  std::vector<std::thread> threads;
  for (unsigned thread = 0; thread < 256; ++thread)
    threads.emplace_back([=] {
      threadIdx = {thread}, blockDim = {256};
      for (unsigned b = 0; b < blocks; ++b) {
        blockIdx = {b};
        for (int k = thread; k < SHARED; k += 256) shared[k] = {NAN, NAN, NAN, NAN};
        block.arrive_and_wait();
        kernel(std::get<P>(pointers)..., numbers[N]...);
        block.arrive_and_wait();
      }
    });
  for (auto& thread : threads) thread.join();
}

extern "C" void host_partial_gram(unsigned blocks, void** pointers, const i64* numbers) {
  launch(partial_gram, blocks, std::tuple((const float*)pointers[0], (const float*)pointers[1], (double*)pointers[2]), numbers,
         std::make_index_sequence<3>(), std::make_index_sequence<16>());
}
extern "C" void host_add_partials(unsigned blocks, void** pointers, const i64* numbers) {
  launch(add_partials, blocks, std::tuple((const double*)pointers[0], (double*)pointers[1]), numbers,
         std::make_index_sequence<2>(), std::make_index_sequence<4>());
}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++, which plays the GPU, is not on PATH")
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.cpp").write_text(HOST.replace("SHARED_BYTES", str(SHARED_BYTES)))
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    command = [compiler, *flags, str(folder / "host.cpp"), "-o", str(folder / "host.so")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(folder / "host.so"))


@pytest.fixture(autouse=True)
def played(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's launches go to the host; memory it did not fill reads as NaN."""

    def launch(
        function: Any, blocks: int, threads: int, arguments: Sequence[Tensor | int], shared_bytes: int = SHARED_BYTES
    ) -> None:
        assert threads == 256
        assert shared_bytes == SHARED_BYTES
        pointers = [a.data_ptr() for a in arguments if isinstance(a, Tensor)]
        numbers = [a for a in arguments if not isinstance(a, Tensor)]
        function(ctypes.c_uint(blocks), (ctypes.c_void_p * 8)(*pointers), (ctypes.c_longlong * 16)(*numbers))

    def function(source: str, name: str, shared_bytes: int = 0) -> Any:
        return getattr(host, f"host_{name}")

    monkeypatch.setattr(cuda_jacobian_gram, "launch", launch)
    monkeypatch.setattr(cuda_jacobian_gram, "cuda_function", function)
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: torch.full(shape, float("nan"), **options))


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-jacobian-gram-cuda", address))


def error(left: Tensor, right: Tensor) -> float:
    wanted = jacobian_gram_reference(left, right)
    return float((launch_jacobian_gram_cuda(left, right) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("groups", "rows", "shared", "positions", "outputs", "inputs"),
    [(1, 1, 1, 1, 1, 1), (2, 5, 5, 9, 33, 35), (1, 30, 15, 17, 8, 32), (1, 33, 33, 8, 6, 7), (1, 66, 22, 3, 5, 33)],
)
def test_equals_the_reference(groups: int, rows: int, shared: int, positions: int, outputs: int, inputs: int) -> None:
    assert error(noise(groups, rows, positions, outputs), noise(groups, shared, positions, inputs, address=1)) < 1e-6


@pytest.mark.parametrize("programs", [1, 3, 1024])
def test_splits_and_strides(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jacobian_gram, "TARGET_PROGRAMS", programs)
    left, right = noise(40, 5, 20, 1).permute(3, 2, 1, 0), noise(1, 20, 70, 10, address=1)[..., ::2].mT
    assert error(left, right) < 1e-6


def test_nothing_outside_the_factors_is_read() -> None:
    def guarded(x: Tensor) -> Tensor:
        larger = torch.full([size + 4 for size in x.shape], float("nan"))
        return larger[tuple(slice(2, -2) for _ in x.shape)].copy_(x)

    assert error(guarded(noise(1, 3, 5, 6)), guarded(noise(1, 3, 5, 7, address=1))) < 1e-6


def test_symmetric_repeatable_and_right_in_the_smallest_eigenvalue() -> None:
    left = noise(1, 1, 64, 20) + 2e-4 * noise(1, 6, 64, 20, address=1)
    right = noise(1, 1, 64, 20, address=2) + 2e-4 * noise(1, 6, 64, 20, address=3)
    found, again = (launch_jacobian_gram_cuda(left, right)[0] for _ in range(2))
    assert torch.equal(found, found.T)
    assert torch.equal(found, again)
    wanted = torch.linalg.eigvalsh(jacobian_gram_reference(left, right))[0]
    assert wanted[-1] / wanted[0] >= 1e6
    assert abs(torch.linalg.eigvalsh(found)[0] / wanted[0] - 1) < 1e-4
