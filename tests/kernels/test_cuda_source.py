from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.kernels.cuda_source import cuda_function, cupy_available, launch


class Kernel:
    def __init__(self, name: str) -> None:
        self.name, self.calls, self.max_dynamic_shared_size_bytes = name, [], 0

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.calls.append((arguments, options))


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for CuPy: no GPU is needed to see what it is asked for."""
    entered: list[Any] = []

    def context(value: Any) -> Any:
        entered.append(value)
        return nullcontext()

    def module(code: str, options: tuple[str, ...]) -> Any:
        assert 'extern "C" __global__' in code
        return SimpleNamespace(get_function=Kernel)

    stand = SimpleNamespace(RawModule=module, cuda=SimpleNamespace(Device=context, ExternalStream=context))
    monkeypatch.setitem(sys.modules, "cupy", stand)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    cuda_function.cache_clear()
    return entered


def test_kernels_come_from_the_packaged_sources_once(entered: list[Any]) -> None:
    kernel = cuda_function("jacobian_gram.cu", "partial_gram", 1000)
    assert (kernel.name, kernel.max_dynamic_shared_size_bytes) == ("partial_gram", 1000)
    assert cuda_function("jacobian_gram.cu", "partial_gram", 1000) is kernel
    with pytest.raises(FileNotFoundError):
        cuda_function("missing.cu", "partial_gram")


def test_launches_go_to_torchs_current_stream_with_pointers_in_order(entered: list[Any]) -> None:
    kernel, x = Kernel("k"), torch.zeros(4)[2:]
    launch(kernel, 3, 256, [x, 5, x, 7], 1000)
    assert kernel.calls == [(((3,), (256,), (x.data_ptr(), 5, x.data_ptr(), 7)), {"shared_mem": 1000})]
    assert entered == [x.device.index, 77]


def test_availability_imports_nothing() -> None:
    before = "cupy" in sys.modules
    assert isinstance(cupy_available(), bool)
    assert ("cupy" in sys.modules) == before
