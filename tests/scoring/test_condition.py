from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.runs.streams import stream
from engine.scoring.condition import PUBLISHED_NAN, condition_number, published_condition
from engine.scoring.meta import metantk
from engine.scoring.result import STATUSES, Score

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metantk.json").read_text())


def with_spectrum(values: list[float]) -> Tensor:
    size = len(values)
    noise = torch.randn(size, size, generator=stream(0, "test-condition", size), dtype=torch.float64)
    basis, _ = torch.linalg.qr(noise)
    matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
    return (matrix + matrix.T) / 2


def one(kernel: Tensor, floor: float | None = None) -> Score:
    score = condition_number(kernel, floor=floor)
    assert isinstance(score, Score)
    return score


@pytest.mark.parametrize("case", ["supernet", "single_path"])
def test_golden_conditions(case: str) -> None:
    golden = GOLDEN[case]
    theta, nngp = (torch.tensor(golden[key], dtype=torch.float64) for key in ("ntk", "nngp"))
    for kernel, key in ((theta, "ntk_eigs"), (nngp, "nngp_eigs")):
        expected = torch.tensor(golden[key], dtype=torch.float64)
        torch.testing.assert_close(torch.linalg.eigvalsh(kernel), expected, rtol=1e-9, atol=0)
        assert float(one(kernel)) == pytest.approx(golden[key][-1] / golden[key][0], rel=1e-9)
    assert float(one(theta)) == pytest.approx(golden["ntk_cond"], rel=1e-9)
    for key in (key for key in golden if key.startswith("cond_")):
        _, kind, time, reg = key.split("_")
        phi = metantk(
            theta,
            tasks=3,
            query=5,
            support=5,
            kernel=kind,  # type: ignore[arg-type]
            nngp=nngp if kind == "anil" else None,
            time=float(time.removeprefix("lt")),
            reg=float(reg),
        )
        assert float(one(phi)) == pytest.approx(golden[key], rel=1e-9)
        assert one(phi).ok


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_known_spectra(values: list[float]) -> None:
    score = one(with_spectrum(values))
    assert score.ok
    assert float(score) == pytest.approx(max(values) / min(values), rel=1e-6)


@given(st.floats(-1e3, 1e-17), st.integers(1, 5))
def test_a_smallest_eigenvalue_at_or_below_rounding_is_singular(smallest: float, others: int) -> None:
    score = one(with_spectrum([smallest, *[1.0] * others]))
    assert score.status == "singular"
    assert float(score) == math.inf


@pytest.mark.parametrize("kernel", [torch.zeros(3, 3), -torch.eye(3), torch.ones(4, 4)])
def test_kernels_without_an_inverse(kernel: Tensor) -> None:
    assert one(kernel).status == "singular"
    assert one(-torch.eye(3), floor=0.5).status == "singular"


def test_float32_kernels_are_singular_at_their_own_rounding() -> None:
    kernel = with_spectrum([1e-8, 1.0, 1.0])
    assert one(kernel).ok
    assert one(kernel.float()).status == "singular"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_entries(bad: float) -> None:
    kernel = torch.eye(3, dtype=torch.float64)
    kernel[0, 0] = bad
    score = one(kernel)
    assert score.status == "nonfinite"
    assert math.isnan(float(score))
    assert one(kernel, floor=0.1).status == "nonfinite"


def test_the_floor_clamps_only_when_it_is_needed() -> None:
    assert one(with_spectrum([-1.0, 1.0]), floor=1e-2) == Score(100.0, "clamped", "condition_number")
    assert one(with_spectrum([1e-3, 1.0]), floor=1e-2) == Score(100.0, "clamped", "condition_number")
    assert one(with_spectrum([0.1, 1.0]), floor=1e-2).ok


def test_a_batch_is_a_list_of_what_its_items_give_alone() -> None:
    bad = torch.full((3, 3), math.nan, dtype=torch.float64)
    items = [with_spectrum([1.0, 2.0, 3.0]), bad, with_spectrum([-1.0, 2.0, 3.0]), with_spectrum([0.5, 1.0, 9.0])]
    scores = condition_number(torch.stack(items))
    assert isinstance(scores, list)
    assert [score.status for score in scores] == ["ok", "nonfinite", "singular", "ok"]
    assert repr(scores) == repr([one(item) for item in items])
    assert condition_number(torch.zeros(0, 3, 3)) == []


def test_kernels_with_outputs_are_flattened() -> None:
    flat = with_spectrum([1.0, 2.0, 3.0, 4.0, 5.0, 8.0])
    full = flat.reshape(3, 2, 3, 2)
    assert one(full) == one(flat)
    assert condition_number(torch.stack([full, full])) == [one(flat)] * 2


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e306])
def test_scale_does_not_matter(scale: float) -> None:
    score = one(with_spectrum([1.0, 2.0, 4.0]) * scale)
    assert score.ok
    assert float(score) == pytest.approx(4.0, rel=1e-8)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_asymmetry_is_refused_above_rounding(scale: float) -> None:
    kernel = with_spectrum([1.0, 2.0, 3.0])
    kernel[0, 1] += 1e-8
    assert one(scale * kernel).ok
    kernel[0, 1] += 1e-3
    with pytest.raises(ValueError, match=r"not symmetric.*item 1"):
        condition_number(torch.stack([torch.eye(3, dtype=torch.float64), scale * kernel]))


@pytest.mark.parametrize(
    "kernel",
    [torch.zeros(3), torch.zeros(3, 4), torch.zeros(2, 3, 3, 2), torch.zeros(0, 0), torch.zeros(3, 3, dtype=torch.int64)],
)
def test_what_is_not_a_kernel_is_refused(kernel: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^kernel: "):
        condition_number(kernel)


@pytest.mark.parametrize("floor", [0.0, -1.0, 1.5, math.nan])
def test_wrong_floors_are_refused(floor: float) -> None:
    with pytest.raises(ValueError, match=r"^floor: "):
        condition_number(torch.eye(2), floor=floor)


scores = st.builds(
    lambda value, status: Score(value, status if math.isfinite(value) else "nonfinite"), st.floats(), st.sampled_from(STATUSES)
)


@given(st.lists(scores, min_size=1), st.sampled_from(["smallest", "largest"]))
def test_ranking_puts_no_doubtful_score_before_a_good_one(items: list[Score], best: str) -> None:
    ordered = sorted(items, key=lambda score: score.rank_key(best))  # type: ignore[arg-type]
    severities = [STATUSES.index(score.status) for score in ordered]
    assert severities == sorted(severities)
    good = [score.value for score in ordered if score.ok]
    assert good == sorted(good, reverse=best == "largest")


def test_scores_check_themselves() -> None:
    with pytest.raises(ValueError, match=r"finite"):
        Score(math.inf)
    with pytest.raises(ValueError, match=r"status"):
        Score(1.0, "good")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"best"):
        Score(1.0).rank_key("lowest")  # type: ignore[arg-type]
    assert float(Score(2)) == 2.0


def test_published_special_values() -> None:
    """Reference note, section 4: a negative smallest eigenvalue keeps its sign, NaN counts as 100000, infinity as the largest."""
    nan = torch.full((2, 2), math.nan, dtype=torch.float64)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    rank_one = torch.diag(torch.tensor([0.0, 2.0], dtype=torch.float64))
    found = published_condition(torch.stack([with_spectrum([2.0, 8.0]), with_spectrum([-1e-3, 5.0]), nan, zero, rank_one]))
    assert [score.value for score in found] == pytest.approx(
        [4.0, -5000.0, PUBLISHED_NAN, PUBLISHED_NAN, math.nextafter(math.inf, 0)]
    )
    assert [score.status for score in found] == ["ok", "singular", "nonfinite", "singular", "singular"]
