"""csrc/regions.cu, bit for bit, without a GPU: compiled as C++, 32 threads that meet at every vote and shuffle play a warp."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.kernels import cuda_regions
from engine.kernels.cuda_regions import launch_fold_signs_cuda
from engine.kernels.regions import fold_signs_reference, seeds
from engine.runs.streams import stream

SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "regions.cu"

HOST = r"""
#include <algorithm>
#include <barrier>
#include <cstring>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#define __device__
#define __global__
using std::min;
struct Index { int x; };
struct Warp { std::barrier<> meeting{32}; unsigned long long said[32]; };
thread_local Index threadIdx, blockIdx, blockDim;
thread_local Warp* warp;

template <typename T> void say(T value, unsigned long long (&heard)[32]) {
  warp->said[threadIdx.x % 32] = value;
  warp->meeting.arrive_and_wait();
  std::memcpy(heard, warp->said, sizeof heard);
  warp->meeting.arrive_and_wait();
}
unsigned __ballot_sync(unsigned, bool vote) {
  unsigned long long heard[32];
  unsigned result = 0;
  say(vote, heard);
  for (int lane = 0; lane < 32; ++lane) result |= static_cast<unsigned>(heard[lane]) << lane;
  return result;
}
unsigned long long __shfl_xor_sync(unsigned, unsigned long long value, int mask) {
  unsigned long long heard[32];
  say(value, heard);
  return heard[threadIdx.x % 32 ^ mask];
}
float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

#include "regions.cu"

template <typename T> T as(long long value) {
  if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(value);
  else return static_cast<T>(value);
}
template <typename... Types, std::size_t... At>
void play(void (*kernel)(Types...), int blocks, int threads, const long long* arguments, std::index_sequence<At...>) {
  for (int block = 0; block < blocks; ++block)
    for (int first = 0; first < threads; first += 32) {
      Warp shared;
      std::vector<std::thread> lanes;
      for (int lane = 0; lane < 32; ++lane)
        lanes.emplace_back([&, lane] {
          warp = &shared, threadIdx = {first + lane}, blockIdx = {block}, blockDim = {threads};
          kernel(as<Types>(arguments[At])...);
        });
      for (auto& lane : lanes) lane.join();
    }
}
template <typename... Types> void play(void (*kernel)(Types...), int blocks, int threads, const long long* arguments) {
  play(kernel, blocks, threads, arguments, std::index_sequence_for<Types...>{});
}
#define HOST(name) \
  extern "C" void host_##name(int blocks, int threads, const long long* arguments) { play(name, blocks, threads, arguments); }
HOST(fold_signs_float32)
HOST(fold_signs_bfloat16)
HOST(finish_signs)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++, which plays the GPU, is not on PATH")
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.cpp").write_text(HOST)
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-Wno-unknown-pragmas", f"-I{SOURCE.parent}"]
    done = subprocess.run([compiler, *flags, "host.cpp", "-o", "host.so"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "host.so"))


@pytest.fixture(autouse=True)
def played_on_the_host(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(name: str, blocks: int, threads: int, arguments: Sequence[Tensor | int]) -> None:
        values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        getattr(library, f"host_{name}")(blocks, threads, (ctypes.c_longlong * len(values))(*values))

    monkeypatch.setattr(cuda_regions, "cuda_function", lambda source, name: name)
    monkeypatch.setattr(cuda_regions, "launch", launch)
    monkeypatch.setattr(cuda_regions, "WARPS", 2)
    monkeypatch.setattr(cuda_regions, "FINISH_THREADS", 32)


def case(samples: int, neurons: int, lanes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """States and activations that lie between others, which must not be read."""
    wide = torch.full((samples, neurons + 3), 9.0, dtype=dtype)
    wide[:, :neurons] = torch.randn(samples, neurons, generator=stream(0, "test-region-hash-cuda"))
    state = torch.randint(-(2**63), 2**63 - 1, (samples, 2), generator=stream(0, "test-region-hash-cuda", 1))
    return state[:, 0] if lanes == 1 else state, wide[:, :neurons]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("shape", [(4, 9), (3, 64), (1, 130), (2, 2100)], ids=str)
def test_source_computes_the_reference(shape: tuple[int, int], dtype: torch.dtype, lanes: int) -> None:
    state, x = case(*shape, lanes, dtype)
    gate = torch.tensor([True, False]) if shape[0] % 2 == 0 else None
    found = launch_fold_signs_cuda(state, x, seeds(5), 0.25, gate)
    assert torch.equal(found, fold_signs_reference(state, x, 5, gate, 0.25))
    assert torch.equal(launch_fold_signs_cuda(state, x, seeds(5), -1.0, None), fold_signs_reference(state, x, 5, None, -1.0))


@pytest.mark.parametrize("warps", [1, 2, 5, 100])
def test_splits_give_the_same_bits(warps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_regions, "TARGET_WARPS", warps)
    state, x = case(2, 5 * 2048 + 70, 2, torch.float32)
    assert torch.equal(launch_fold_signs_cuda(state, x, seeds(0), 0.0, None), fold_signs_reference(state, x, 0))


@pytest.mark.parametrize("x", [torch.zeros(2, 3).double(), torch.zeros(2, 3, 4).mT, torch.zeros(2, 0)])
def test_what_it_does_not_take_is_named(x: Tensor) -> None:
    with pytest.raises(ValueError, match="x: expected float32 or bfloat16"):
        launch_fold_signs_cuda(torch.zeros(2, dtype=torch.int64), x, seeds(0), 0.0, None)
