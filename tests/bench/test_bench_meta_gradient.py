"""The outer gradients that are compared are the same."""

from __future__ import annotations

import pytest
import torch

from bench import meta_gradient


@pytest.mark.parametrize("method", ["maml", "meta-ticket"])
def test_outer_gradients_agree(method: str) -> None:
    calls = meta_gradient.calls("small", method, "contiguous", 3)
    expected = calls.pop(meta_gradient.BASELINE)()
    assert isinstance(expected, dict)
    for name, call in calls.items():
        found = call().gradients  # type: ignore[attr-defined]
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5, msg=lambda text, at=(name, key): f"{at}: {text}")


def test_operations_of_the_reference_note() -> None:
    assert meta_gradient.products("omniglot 5-mlp", 4) == pytest.approx(0.35e9, rel=0.05)
    assert meta_gradient.products("colour 5-mlp", 4) == pytest.approx(5.43e9, rel=0.05)


def test_the_note_says_how_fast_products_run() -> None:
    note = meta_gradient._note("small", "maml", 1e-3, smoke=True)
    assert "GFLOP/s" in note
    assert "ms a task" in note
