"""csrc/jacobian_gram_hopper.cu and its launcher without a GPU: compiled for it, and played by 256 threads of the host.

Bulk copies, their barriers and the tensor core's products are played from their definitions: what is copied must be aligned,
what is awaited must have arrived, and fragments lie where the instruction has them.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aot import ROOT, compile_cuda, nvcc
from torch import Tensor

from engine.kernels import cuda_jacobian_gram, jacobian_gram
from engine.kernels.cuda_jacobian_gram import (
    HOPPER_SHARED_BYTES,
    SHARED_BYTES,
    chosen_launcher,
    copies_in_bulk,
    launch_jacobian_gram_hopper,
)
from engine.kernels.jacobian_gram import jacobian_gram_reference
from engine.runs.streams import stream

HOST = r"""
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>
#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(threads)
#define HOST_PRIMITIVES
typedef unsigned long long u64;
struct Index { unsigned x; };
struct alignas(16) float4 { float x, y, z, w; };
thread_local Index threadIdx, blockIdx, blockDim;
constexpr int SHARED = SHARED_BYTES / 16;
alignas(16) float4 shared[SHARED];
std::barrier<> block(256);
std::barrier<> warps[8] = {std::barrier<>(32), std::barrier<>(32), std::barrier<>(32), std::barrier<>(32),
                           std::barrier<>(32), std::barrier<>(32), std::barrier<>(32), std::barrier<>(32)};
std::atomic<int> faults{0};
void __syncthreads() { block.arrive_and_wait(); }
void __syncwarp() { warps[threadIdx.x / 32].arrive_and_wait(); }

std::atomic_ref<u64> missing(u64* barrier) { return std::atomic_ref<u64>(*barrier); }
void barrier_begin(u64* barrier) { missing(barrier) = 0; }
void barrier_expect(u64* barrier, unsigned bytes) { missing(barrier) += bytes; }
void bulk_copy(float* to, const float* from, unsigned bytes, u64* barrier) {
  faults += (u64)to % 16 || (u64)from % 16 || bytes % 16 || bytes == 0;
  std::memcpy(to, from, bytes);
  missing(barrier) -= bytes;
}
void barrier_wait(u64* barrier, unsigned) {
  __syncwarp();
  faults += missing(barrier) != 0;
}

struct Fragments { double a[32][8], b[32][4]; } fragments[8];
void multiply(double (&c)[4], const double (&a)[8], const double (&b)[4]) {
  const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  Fragments& own = fragments[threadIdx.x / 32];
  std::memcpy(own.a[lane], a, sizeof a);
  std::memcpy(own.b[lane], b, sizeof b);
  __syncwarp();
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned row = g + 8 * (i / 2), column = 2 * t + i % 2;
      c[i] += own.a[row % 8 * 4 + k % 4][row / 8 + 2 * (k / 4)] * own.b[column * 4 + k % 4][k / 4];
    }
  __syncwarp();
}

namespace hopper {
#include "jacobian_gram_hopper.cu"
}
namespace any {
#include "jacobian_gram.cu"
}
using i64 = long long;

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

extern "C" int fault_count() { return faults; }
extern "C" void host_partial_gram_hopper(unsigned blocks, void** pointers, const i64* numbers) {
  const float *left = (const float*)pointers[0], *right = (const float*)pointers[1];
  launch(hopper::partial_gram_hopper, blocks, std::tuple(left, right, (double*)pointers[2]), numbers,
         std::make_index_sequence<3>(), std::make_index_sequence<14>());
}
extern "C" void host_add_partials(unsigned blocks, void** pointers, const i64* numbers) {
  launch(any::add_partials, blocks, std::tuple((const double*)pointers[0], (double*)pointers[1]), numbers,
         std::make_index_sequence<2>(), std::make_index_sequence<4>());
}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++, which plays the GPU, is not on PATH")
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.cpp").write_text(HOST.replace("SHARED_BYTES", str(HOPPER_SHARED_BYTES)))
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    command = [compiler, *flags, str(folder / "host.cpp"), "-o", str(folder / "host.so")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(folder / "host.so"))


@pytest.fixture
def played(host: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The launcher's launches go to the host; memory it did not fill reads as NaN."""

    def launch(function: Any, blocks: int, threads: int, arguments: Sequence[Tensor | int], shared_bytes: int = 0) -> None:
        assert threads == 256
        pointers = [a.data_ptr() for a in arguments if isinstance(a, Tensor)]
        numbers = [a for a in arguments if not isinstance(a, Tensor)]
        function(ctypes.c_uint(blocks), (ctypes.c_void_p * 8)(*pointers), (ctypes.c_longlong * 16)(*numbers))
        assert host.fault_count() == 0

    def function(source: str, name: str, shared_bytes: int = 0) -> Any:
        assert shared_bytes in (0, HOPPER_SHARED_BYTES)
        assert f" {name}(" in (ROOT / "csrc" / source).read_text()
        return getattr(host, f"host_{name}")

    monkeypatch.setattr(cuda_jacobian_gram, "launch", launch)
    monkeypatch.setattr(cuda_jacobian_gram, "cuda_function", function)
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: torch.full(shape, float("nan"), **options))


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-jacobian-gram-hopper", address))


def error(left: Tensor, right: Tensor) -> float:
    assert copies_in_bulk(left)
    assert copies_in_bulk(right)
    wanted = jacobian_gram_reference(left, right)
    return float((launch_jacobian_gram_hopper(left, right) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("groups", "rows", "shared", "positions", "outputs", "inputs"),
    [(1, 1, 1, 1, 4, 4), (2, 5, 5, 17, 36, 8), (1, 30, 15, 33, 8, 32), (1, 34, 17, 3, 4, 36)],
)
def test_equals_the_reference(
    played: None, groups: int, rows: int, shared: int, positions: int, outputs: int, inputs: int
) -> None:
    assert error(noise(groups, rows, positions, outputs), noise(groups, shared, positions, inputs, address=1)) < 1e-6


@pytest.mark.parametrize("programs", [1, 1024])
def test_splits_and_strides(played: None, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jacobian_gram, "TARGET_PROGRAMS", programs)
    left, right = noise(20, 5, 1, 40).permute(2, 1, 0, 3), noise(1, 5, 40, 72, address=1)[:, :, ::2, 4:]
    assert error(left, right) < 1e-6


def test_repeats_bit_by_bit_and_keeps_the_smallest_eigenvalue(played: None) -> None:
    left = noise(1, 1, 64, 20) + 2e-4 * noise(1, 6, 64, 20, address=1)
    right = noise(1, 1, 64, 20, address=2) + 2e-4 * noise(1, 6, 64, 20, address=3)
    found, again = (launch_jacobian_gram_hopper(left, right)[0] for _ in range(2))
    assert torch.equal(found, found.T)
    assert torch.equal(found, again)
    wanted = torch.linalg.eigvalsh(jacobian_gram_reference(left, right))[0]
    assert wanted[-1] / wanted[0] >= 1e6
    assert abs(torch.linalg.eigvalsh(found)[0] / wanted[0] - 1) < 1e-4


def test_rows_that_cannot_be_copied_in_bulk_are_told() -> None:
    x = noise(1, 2, 8, 16)
    assert copies_in_bulk(x)
    assert copies_in_bulk(x[..., 4:12])
    assert not any(copies_in_bulk(y) for y in (x.mT, x[..., 1:13], x[..., :6], noise(1, 2, 8, 10)))


@pytest.mark.parametrize(
    ("capability", "memory", "aligned", "chosen"),
    [
        ((9, 0), 232448, True, "hopper"),
        ((9, 0), 232448, False, "any"),
        ((8, 0), 166912, True, "any"),
        ((10, 0), 232448, True, "any"),
        ((8, 9), 101376, True, None),
    ],
)
def test_the_device_decides(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], memory: int, aligned: bool, chosen: str | None
) -> None:
    properties = SimpleNamespace(shared_memory_per_block_optin=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    x = noise(1, 2, 3, 8 if aligned else 7)
    assert chosen_launcher(x, x) == chosen
    assert SHARED_BYTES < HOPPER_SHARED_BYTES <= 232448


def test_it_compiles_to_tensor_core_products_without_spills(tmp_path: Any) -> None:
    compiler = nvcc()
    if compiler is None:
        pytest.skip("nvcc is neither on PATH nor in /usr/local/cuda/bin")
    source = ROOT / "csrc" / "jacobian_gram_hopper.cu"
    found = compile_cuda(source, 90, tmp_path)
    assert set(found) == {"partial_gram_hopper"}
    made = found["partial_gram_hopper"]
    assert made["spills"] == 0
    assert made["registers"] <= 168
    text = tmp_path / "hopper.ptx"
    subprocess.run([compiler, "-std=c++17", "-arch=sm_90", "-ptx", str(source), "-o", str(text)], check=True, capture_output=True)
    ptx = text.read_text()
    assert ptx.count("mma.sync.aligned.m16n8k16.row.col.f64") >= 6
    assert "cp.async.bulk.shared::cluster.global.mbarrier" in ptx
