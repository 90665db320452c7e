from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vmap

from engine.kernels.masked import (
    DTYPES,
    mask,
    masked,
    masked_reference,
    pack,
    threshold,
    unpack,
)
from engine.runs.streams import stream

Masking = Callable[[Tensor, Tensor, Tensor | float], Tensor]


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-masked", address), dtype=torch.float64).to(dtype)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-300))


# The tiny golden network (8, 7, 6, 5) on 12 inputs at sparsity 0.3: (outputs, inputs, threshold, weights left).
GOLDEN = [
    (8, 12, -0.42668896123329975, 68),
    (7, 8, -0.5329108825206177, 40),
    (6, 7, -0.5932899778746834, 30),
    (5, 6, -0.5748239465332692, 21),
]


@pytest.mark.parametrize(("layer", "golden"), list(enumerate(GOLDEN, 1)))
def test_thresholds_of_the_original(layer: int, golden: tuple[int, int, float, int]) -> None:
    outputs, inputs, wanted, ones = golden
    place = torch.arange(outputs * inputs, dtype=torch.float64)
    scores = (math.sqrt(6 / inputs) * torch.cos(1.7 * place + 0.6 * layer)).view(outputs, inputs)
    sigma = threshold(scores, 0.3)
    assert sigma.item() == pytest.approx(wanted, rel=1e-14)
    assert mask(scores, sigma).sum() == ones


@given(st.integers(1, 60), st.floats(0, 1))
def test_threshold_prunes_the_fraction_that_was_asked_for(count: int, sparsity: float) -> None:
    scores = noise(count)
    assert (~mask(scores, threshold(scores, sparsity))).sum() == round(sparsity * (count - 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sigma", [1.0, 0.0, -1.0, 0.1, math.inf])
def test_ties_and_nan_stay(sigma: float, dtype: torch.dtype) -> None:
    knee = torch.tensor(sigma, dtype=dtype)
    beside = [torch.nextafter(knee.double().float(), torch.tensor(side)).to(dtype) for side in (-math.inf, math.inf)]
    scores = torch.stack([knee, *beside, torch.tensor(math.nan, dtype=dtype)])
    wanted = [not score < knee.item() for score in scores.tolist()]
    assert mask(scores, sigma).tolist() == wanted
    assert mask(scores, knee[None]).tolist() == wanted
    assert masked(torch.ones_like(scores), scores, sigma).tolist() == wanted


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), max_size=4), st.integers(0, 99))
def test_bits_hold_the_mask(shape: list[int], address: int) -> None:
    kept = noise(*shape, address=address) > 0 if shape else torch.tensor(address % 2 == 0)
    bits = pack(kept)
    assert len(bits) == -(-kept.numel() // 8)
    assert torch.equal(unpack(bits, tuple(shape)), kept)
    assert [bit for byte in bits.tolist() for bit in f"{byte:08b}"[::-1]][: kept.numel()] == [
        str(int(bit)) for bit in kept.flatten().tolist()
    ]


def test_bits_of_a_mask_that_is_not_contiguous() -> None:
    kept = (noise(5, 7) > 0).mT
    assert torch.equal(unpack(pack(kept), (7, 5)), kept)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (0, 5), (1, 1), (2, 3, 4, 5)], ids=str)
def test_equals_the_reference(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight, scores = noise(*shape, dtype=dtype).requires_grad_(), noise(*shape[-2:], address=1, dtype=dtype).requires_grad_()
    cotangent = noise(*shape, address=2, dtype=dtype)
    found, wanted = masked(weight, scores, 0.1), masked_reference(weight, scores, 0.1)
    assert torch.equal(found, wanted)
    pairs = zip(
        torch.autograd.grad(found, (weight, scores), cotangent),
        torch.autograd.grad(masked_reference(weight.double(), scores.double(), 0.1), (weight, scores), cotangent.double()),
        strict=True,
    )
    for gradient, reference in pairs:
        assert gradient.dtype == dtype
        assert error(gradient, reference.double()) <= (1e-6 if dtype in (torch.float32, torch.float64) else 1e-2)


def test_what_is_masked_is_zero_whatever_it_was() -> None:
    weight = torch.tensor([float("nan"), float("inf"), 2.0])
    assert masked(weight, torch.tensor([0.0, 0.0, 1.0]), 0.5).tolist() == [0, 0, 2]


def test_scores_may_be_more_exact_than_weights() -> None:
    weight = noise(3, 2, dtype=torch.bfloat16).requires_grad_()
    scores = noise(3, 2, address=1, dtype=torch.float32).requires_grad_()
    masked(weight, scores, 0.0).float().square().sum().backward()
    assert weight.grad is not None
    assert scores.grad is not None
    assert (weight.grad.dtype, scores.grad.dtype) == (torch.bfloat16, torch.float32)


def test_gradcheck_of_the_weight() -> None:
    scores = noise(4, 5, address=1)
    weight = noise(2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda weight: masked(weight, scores, 0.1), weight, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda weight: masked(weight, scores, 0.1).sin(), weight)


X, W, S = noise(3, 5, address=5), noise(4, 5, address=6), noise(4, 5, address=7)


def loss(masking: Masking) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda weight, scores: (X @ masking(weight, scores, 0.2).mT).tanh().square().sum()


def adapted(masking: Masking) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss after an inner step through the mask."""
    return lambda weight, scores: loss(masking)(weight - 0.3 * grad(loss(masking))(weight, scores), scores)


def by_autograd(masking: Masking) -> tuple[Tensor, ...]:
    weight, scores = noise(4, 5).requires_grad_(), noise(4, 5, address=1).requires_grad_()
    (step,) = torch.autograd.grad(loss(masking)(weight, scores), weight, create_graph=True)
    return torch.autograd.grad(loss(masking)(weight - 0.3 * step, scores), (weight, scores))


TRANSFORMS: dict[str, Callable[[Masking], Any]] = {
    "grad": lambda m: grad(loss(m), (0, 1))(noise(4, 5), noise(4, 5, address=1)),
    "jvp": lambda m: jvp(loss(m), (noise(4, 5), noise(4, 5, address=1)), (noise(4, 5, address=2), noise(4, 5, address=3)))[1],
    "jvp of the scores": lambda m: jvp(lambda s: loss(m)(noise(4, 5), s), (noise(4, 5),), (noise(4, 5, address=3),))[1],
    "jacrev": lambda m: jacrev(lambda s: m(noise(4, 5), s, 0.2))(noise(4, 5, address=1)),
    "hessian": lambda m: hessian(loss(m), (0, 1))(noise(4, 5), noise(4, 5, address=1))[0],
    "MAML": lambda m: grad(adapted(m), (0, 1))(noise(4, 5), noise(4, 5, address=1)),
    "MAML, tasks by vmap": lambda m: vmap(grad(adapted(m), (0, 1)), (0, None))(noise(3, 4, 5), noise(4, 5, address=1)),
    "scores by vmap": lambda m: vmap(grad(loss(m), 1), (None, 2))(noise(4, 5), noise(4, 5, 3, address=1)),
    "scores and weights by vmap": lambda m: vmap(grad(adapted(m), 1), (0, 2))(noise(3, 4, 5), noise(4, 5, 3, address=1)),
    "thresholds by vmap": lambda m: vmap(lambda t: m(W, S, t))(torch.tensor([0.1, -0.5, S[2, 3]], dtype=S.dtype)),
    "vmap in vmap": lambda m: vmap(vmap(lambda w, s: m(w, s, 0.2), (0, None)), (None, 0))(noise(2, 4, 5), noise(3, 4, 5)),
    "jvp of vmap": lambda m: jvp(lambda s: vmap(lambda w: loss(m)(w, s))(noise(2, 4, 5)), (S,), (noise(4, 5),))[1],
    "MAML, torch.autograd": by_autograd,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_under_transforms(name: str) -> None:
    found, wanted = TRANSFORMS[name](masked), TRANSFORMS[name](masked_reference)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


w, s = torch.zeros(4, 5), torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: threshold(torch.zeros(0, 3), 0.5), ValueError, "scores: expected at least one, got shape (0, 3)"),
        (lambda: threshold(s, 1.5), ValueError, "sparsity: expected 0 to 1, got 1.5"),
        (lambda: threshold(s.long(), 0.5), TypeError, "scores: expected torch.float32"),
        (lambda: mask(s, torch.zeros(2)), ValueError, "threshold: expected one element on cpu, got (2,)"),
        (lambda: pack(s), TypeError, "mask: expected torch.bool, got torch.float32 (4, 5)"),
        (lambda: unpack(s, (4, 5)), TypeError, "bits: expected torch.uint8, got torch.float32 (4, 5)"),
        (lambda: unpack(pack(s > 0), (5, 5)), ValueError, "bits: expected (4,) for a mask of shape (5, 5), got (3,)"),
        (lambda: masked(w, s[1:], 0.0), ValueError, "scores: expected the last axes of weight (4, 5), got (3, 5)"),
        (lambda: masked(w[0], s, 0.0), ValueError, "scores: expected the last axes of weight (5,), got (4, 5)"),
        (lambda: masked(w.long(), s, 0.0), TypeError, "weight: expected torch.float32"),
        (lambda: masked(w.to_sparse(), s, 0.0), ValueError, "weight: expected a strided tensor"),
        (lambda: masked(w, s.to("meta"), 0.0), ValueError, "scores: expected on cpu as weight is, got (4, 5) on meta"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()
