"""CUDA C++ kernels from csrc/, compiled by CuPy's NVRTC when first used and launched on torch's current stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


def cupy_available() -> bool:
    """Whether CuPy is installed; nothing is imported."""
    return find_spec("cupy") is not None


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may ask for: 227 KiB on sm_90, 163 on sm_80, 99 on sm_86, sm_89 and sm_120."""
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack the name
    return properties.shared_memory_per_block_optin


@cache
def cuda_function(source: str, name: str, shared_bytes: int = 0) -> Any:
    """The kernel ``name`` of csrc/``source``, allowed ``shared_bytes`` of dynamic shared memory.

    CuPy compiles it when it first runs on a device and keeps the result on disk.
    """
    import cupy

    text = files("engine.csrc").joinpath(source).read_text()
    function = cupy.RawModule(code=text, options=("--std=c++17",)).get_function(name)
    if shared_bytes:
        function.max_dynamic_shared_size_bytes = shared_bytes
    return function


def launch(function: Any, blocks: int, threads: int, arguments: Sequence[Tensor | int], shared_bytes: int = 0) -> None:
    """Launch on the device of the first argument, a tensor, and torch's current stream there.

    Tensors are passed as pointers whatever their strides, integers as 64 bits: kernels declare them ``long long``.
    """
    import cupy

    first = arguments[0]
    assert isinstance(first, Tensor)
    stream = torch.cuda.current_stream(first.device).cuda_stream
    values = tuple(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    with cupy.cuda.Device(first.device.index), cupy.cuda.ExternalStream(stream):
        function((blocks,), (threads,), values, shared_mem=shared_bytes)
