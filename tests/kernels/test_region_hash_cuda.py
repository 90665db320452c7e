"""csrc/regions.cu, bit for bit, without a GPU: compiled as C++, 32 threads that meet at every vote and shuffle play a warp."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.kernels.regions import GOLDEN, fold_signs_reference, seeds
from engine.runs.streams import stream

SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "regions.cu"
WARPS = 2

HOST = r"""
#include <algorithm>
#include <barrier>
#include <cstring>
#include <thread>
#include <vector>
#define __device__
#define __global__
using std::min;
struct Index { int x, y; };
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

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, int blocks, int splits, int threads, bool warps, Arguments... arguments) {
  for (int y = 0; y < splits; ++y)
    for (int x = 0; x < blocks; ++x)
      for (int first = 0; first < threads; first += warps ? 32 : 1) {
        Warp shared;
        auto run = [&](int thread) {
          warp = &shared, threadIdx = {thread, 0}, blockIdx = {x, y}, blockDim = {threads, 1};
          kernel(arguments...);
        };
        if (!warps) { run(first); continue; }
        std::vector<std::thread> lanes;
        for (int lane = 0; lane < 32; ++lane) lanes.emplace_back(run, first + lane);
        for (auto& lane : lanes) lane.join();
      }
}

extern "C" void host_fold_signs(int bfloat16, const void* x, const unsigned char* gate, u64* partial, const u64* state, u64* out,
                                int samples, int neurons, long long stride, int groups, int words_per_split, float threshold,
                                u64 seed0, u64 seed1, u64 length, int lanes, int splits, int warps) {
  const int blocks = (samples + warps - 1) / warps, per_group = samples / groups, size = samples * lanes;
  if (bfloat16)
    launch(fold_signs_bfloat16, blocks, splits, 32 * warps, true, static_cast<const unsigned short*>(x), gate, partial, samples,
           neurons, stride, per_group, words_per_split, threshold, seed0, seed1, lanes);
  else
    launch(fold_signs_float32, blocks, splits, 32 * warps, true, static_cast<const float*>(x), gate, partial, samples, neurons,
           stride, per_group, words_per_split, threshold, seed0, seed1, lanes);
  launch(finish_signs, (size + 127) / 128, 1, 128, false, partial, gate, state, out, size, lanes, splits, per_group, length);
}
"""

Fold = Callable[[Tensor, Tensor, int, float, Tensor | None, int], Tensor]


@pytest.fixture(scope="module")
def fold(tmp_path_factory: pytest.TempPathFactory) -> Fold:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++, which plays the GPU, is not on PATH")
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.cpp").write_text(HOST)
    library = folder / "host.so"
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-Wno-unknown-pragmas", f"-I{SOURCE.parent}"]
    subprocess.run([compiler, *flags, str(folder / "host.cpp"), "-o", str(library)], check=True, capture_output=True, text=True)
    function = ctypes.CDLL(str(library)).host_fold_signs
    function.restype = None
    function.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 5,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_longlong,
        ctypes.c_int,
        ctypes.c_int,
    ]
    function.argtypes += [ctypes.c_float, *[ctypes.c_uint64] * 3, *[ctypes.c_int] * 3]

    def call(state: Tensor, x: Tensor, salt: int, threshold: float, gate: Tensor | None, words_per_split: int) -> Tensor:
        (samples, neurons), lanes = x.shape, 1 if state.ndim == 1 else 2
        splits = max(1, -(-neurons // (64 * words_per_split)))
        partial, out = torch.full((splits, samples, lanes), -1), torch.full_like(state, -1)
        pointers = [tensor.data_ptr() for tensor in (partial, state, out)]
        flags = None if gate is None else gate.data_ptr()
        groups = 1 if gate is None else len(gate)
        function(
            int(x.dtype == torch.bfloat16), x.data_ptr(), flags, *pointers, samples, neurons, x.stride(0), groups,
            words_per_split, threshold, *seeds(salt), neurons * GOLDEN % 2**64, lanes, splits, WARPS,
        )  # fmt: skip
        return out

    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("shape", [(4, 9), (3, 64), (1, 130), (2, 2100)], ids=str)
def test_source_computes_the_reference(fold: Fold, shape: tuple[int, int], dtype: torch.dtype, lanes: int) -> None:
    wide = torch.randn(shape[0], shape[1] + 3, generator=stream(0, "test-region-hash-cuda")).to(dtype)
    x, state = (
        wide[:, : shape[1]],
        torch.randint(-(2**63), 2**63 - 1, (shape[0], 2), generator=stream(0, "test-region-hash-cuda", 1)),
    )
    state = state[:, 0].contiguous() if lanes == 1 else state
    gate = torch.tensor([True, False]) if shape[0] % 2 == 0 else None
    assert torch.equal(fold(state, x, 5, 0.25, gate, 32), fold_signs_reference(state, x, 5, gate, 0.25))
    assert torch.equal(fold(state, x, 5, -1.0, None, 64), fold_signs_reference(state, x, 5, None, -1.0))
