"""What the few-shot benchmark compares answers alike."""

from __future__ import annotations

import pytest

from bench import few_shot
from bench.registry import Settings


@pytest.mark.parametrize("name", few_shot.PEERS)
@pytest.mark.parametrize("shots", [1, 5])
def test_batched_and_loop_agree(name: str, shots: int) -> None:
    found = {key: call() for key, call in few_shot.calls(name, shots, "contiguous", 20).items()}
    expected = found.pop(few_shot.BASELINE)
    assert len(found) == 2
    for answer in found.values():
        assert float((answer == expected).double().mean()) > 0.995  # type: ignore[attr-defined]


def test_every_case_is_measured() -> None:
    settings = [tuple(case.configuration.items()) for case in few_shot.cases(Settings(scale="default"))]
    assert len(set(settings)) == 4
