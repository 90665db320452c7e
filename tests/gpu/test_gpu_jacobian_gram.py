"""The Jacobian Gram on a GPU, at real sizes, against the same reference. Not run yet: no GPU was at hand."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from engine.kernels.jacobian_gram import add_jacobian_gram, depthwise_windows, jacobian_gram_reference
from engine.kernels.sample_gradient import ConvGeometry
from engine.runs.streams import stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

# (G, R, R', Q, O, I): layers of the C = 48 network with 30 samples, 5 outputs a sample, a linear head, an odd one.
SHAPES = [
    (2, 30, 30, 1024, 48, 48),
    (1, 30, 30, 64, 192, 960),
    (1, 150, 30, 64, 96, 96),
    (4, 150, 30, 1, 5, 192),
    (3, 17, 17, 123, 5, 33),
    (1, 1, 1, 1, 1, 1),
]


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-gpu-jacobian-gram", address)).cuda()


def gram(left: Tensor, right: Tensor, precision: str = "ieee") -> Tensor:
    total = torch.zeros(left.shape[0], left.shape[1], left.shape[1], dtype=torch.float64, device="cuda")
    add_jacobian_gram(total, left, right, float32_precision=precision)  # type: ignore[arg-type]
    return total


def error(found: Tensor, left: Tensor, right: Tensor) -> float:
    wanted = jacobian_gram_reference(left, right)
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("planar", [False, True])
def test_dense(shape: tuple[int, ...], dtype: torch.dtype, planar: bool) -> None:
    groups, rows, shared, positions, outputs, inputs = shape
    left, right = noise(groups, rows, positions, outputs).to(dtype), noise(groups, shared, positions, inputs, address=1).to(dtype)
    if planar:
        left, right = left.mT.contiguous().mT, right.mT.contiguous().mT
    found = gram(left, right)
    assert error(found, left, right) < 1e-5
    assert torch.equal(found, gram(left, right))
    assert error(gram(left, right, "tf32"), left, right) < 3e-3


def test_ieee_does_not_follow_torchs_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    left, right = noise(1, 30, 256, 48), noise(1, 30, 256, 48, address=1)
    assert error(gram(left, right), left, right) < 1e-6


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_depthwise(stride: int, kernel: int, layout: torch.memory_format) -> None:
    geometry = ConvGeometry((48, 1, kernel, kernel), (stride, stride), (kernel - 1, kernel - 1), (2, 2), 48)
    x = noise(30, 48, 32, 32).contiguous(memory_format=layout)
    y = torch.conv2d(x, noise(48, 1, kernel, kernel, address=1), None, stride, kernel - 1, 2, 48)
    cotangent = noise(*y.shape, address=2).contiguous(memory_format=layout)
    left, right = cotangent.permute(0, 2, 3, 1).unflatten(0, (2, 15)), depthwise_windows(x, geometry).unflatten(0, (2, 15))
    found = gram(left, right)
    assert error(found, left, right) < 1e-5
    assert torch.equal(found, gram(left, right))


def ill_conditioned() -> tuple[Tensor, Tensor, Tensor]:
    """Factors, and eigenvalues of a kernel whose condition number is above 1e6."""
    left = noise(1, 1, 1024, 48) + 2e-4 * noise(1, 30, 1024, 48, address=1)
    right = noise(1, 1, 1024, 48, address=2) + 2e-4 * noise(1, 30, 1024, 48, address=3)
    wanted = torch.linalg.eigvalsh(jacobian_gram_reference(left, right))[0]
    assert wanted[-1] / wanted[0] >= 1e6
    return left, right, wanted


def test_condition_number_of_an_ill_conditioned_kernel() -> None:
    left, right, wanted = ill_conditioned()
    found = torch.linalg.eigvalsh(gram(left, right))[0]
    assert abs(found[0] / wanted[0] - 1) < 1e-3
    assert abs((found[-1] / found[0]) / (wanted[-1] / wanted[0]) - 1) < 1e-3


def test_gradients_are_not_written_to_memory() -> None:
    left, right = noise(1, 30, 256, 192), noise(1, 30, 256, 960, address=1)
    gram(left, right)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gram(left, right)
    assert torch.cuda.max_memory_allocated() - before < 4 * 30 * 192 * 960 / 2


@pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy, which loads the CUDA source, is not installed")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cuda_source(shape: tuple[int, ...]) -> None:
    from engine.kernels.cuda_jacobian_gram import launch_jacobian_gram_cuda

    groups, rows, shared, positions, outputs, inputs = shape
    left, right = noise(groups, rows, positions, outputs), noise(groups, shared, positions, inputs, address=1)
    found = launch_jacobian_gram_cuda(left, right)
    assert error(found, left, right) < 1e-5
    assert torch.equal(found, launch_jacobian_gram_cuda(left, right))


@pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy, which loads the CUDA source, is not installed")
def test_cuda_source_keeps_the_smallest_eigenvalue() -> None:
    from engine.kernels.cuda_jacobian_gram import launch_jacobian_gram_cuda

    left, right, wanted = ill_conditioned()
    assert abs(torch.linalg.eigvalsh(launch_jacobian_gram_cuda(left, right))[0, 0] / wanted[0] - 1) < 1e-3


@pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy, which loads the CUDA source, is not installed")
@pytest.mark.parametrize("shape", [(2, 5, 5, 17, 36, 8), (1, 60, 30, 256, 192, 960), (3, 33, 33, 64, 48, 48)], ids=str)
def test_hopper_source(shape: tuple[int, ...]) -> None:
    from engine.kernels.cuda_jacobian_gram import chosen_launcher, launch_jacobian_gram_hopper

    groups, rows, shared, positions, outputs, inputs = shape
    left, right = noise(groups, rows, positions, outputs), noise(groups, shared, positions, inputs, address=1)
    if chosen_launcher(left, right) != "hopper":
        pytest.skip("the device is not of compute capability 9")
    found = launch_jacobian_gram_hopper(left, right)
    assert error(found, left, right) < 1e-5
    assert torch.equal(found, launch_jacobian_gram_hopper(left, right))
