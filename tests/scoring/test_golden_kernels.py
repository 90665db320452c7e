"""Every kernel, condition number and region count of tests/golden/metantk.json, from the closed-form networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden_recipe import golden, golden_images, golden_patches, golden_supernet, golden_thin_supernet
from torch import Tensor
from torch.overrides import TorchFunctionMode

from engine.scoring.condition import condition_number
from engine.scoring.kernels import gram, nngp, ntk
from engine.scoring.meta import metantk
from engine.scoring.regions import linear_regions
from engine.scoring.result import Score
from engine.spaces.mixture import Mixture, full, uniform, without
from engine.spaces.operations import gated_relu
from engine.spaces.space import FEW_SHOT

GOLDEN = golden()
ABLATIONS = list(GOLDEN["ablations_round0"])
SETTINGS: dict[str, dict[str, Any]] = {
    "maml_inf_1e-3": {"kernel": "maml", "time": math.inf, "reg": 1e-3},
    "maml_lt1_1e-3": {"kernel": "maml", "time": 1.0, "reg": 1e-3},
    "maml_lt1e-3_1e-3": {"kernel": "maml", "time": 1e-3, "reg": 1e-3},
    "anil_inf_1e-3": {"kernel": "anil", "time": math.inf, "reg": 1e-3},
    "anil_lt1_1e-5": {"kernel": "anil", "time": 1.0, "reg": 1e-5},
    "anil_lt1e-2_1e-5": {"kernel": "anil", "time": 1e-2, "reg": 1e-5},
}
PRECISIONS = {torch.float64: 1e-9, torch.float32: 1e-4}


def kept(operations: list[list[int | None]]) -> Tensor:
    """``alive`` with one operation an edge."""
    alive = torch.zeros_like(full(FEW_SHOT))
    for kind, row in enumerate(operations):
        for edge, operation in enumerate(row):
            if operation is not None:
                alive[kind, edge, operation] = True
    return alive


def single_path() -> Tensor:
    return kept(GOLDEN["single_path_keep_op_index"])


def edge_pruned() -> Tensor:
    rows = [[None if e in (2 + kind, 5, 7) else o for e, o in enumerate(row)] for kind, row in enumerate(single_path_rows())]
    return kept(rows)


def single_path_rows() -> list[list[int]]:
    return GOLDEN["single_path_keep_op_index"]


def candidate(case: str) -> tuple[int, int, int]:
    kind, edge, operation = map(int, case.split(","))
    return kind, edge, operation


def kernels(alive: Tensor, dtype: torch.dtype = torch.float64, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Theta and the head's part of it."""
    x = golden_images(dtype).repeat(groups, 1, 1, 1)
    parts = gram(golden_supernet(dtype), (x, uniform(alive, dtype=dtype)), _part, groups=groups)
    return parts["body"] + parts["head"], parts["head"]


def _part(name: str, parameter: object) -> str | None:
    return {"classifier.weight": "head", "classifier.bias": None}.get(name, "body")


def near(found: Tensor, wanted: object, tolerance: float) -> None:
    reference = torch.as_tensor(wanted, dtype=torch.float64)
    assert found.shape == reference.shape
    assert (found - reference).abs().max() <= tolerance * reference.abs().max()


def check(theta: Tensor, head: Tensor, wanted: dict[str, Any], tolerance: float) -> None:
    """Whatever the golden case holds, entry by entry."""
    compared = 0
    adapted = {tag: metantk(theta, tasks=3, query=5, support=5, nngp=_inner(head, s), **s) for tag, s in SETTINGS.items()}
    for tag, phi in adapted.items():
        assert _value(condition_number(phi)) == pytest.approx(wanted[f"cond_{tag}"], rel=tolerance)
        compared += 1
        if f"eigs_{tag}" in wanted:
            near(torch.linalg.eigvalsh(phi), wanted[f"eigs_{tag}"], tolerance)
            compared += 1
    assert _value(condition_number(theta)) == pytest.approx(wanted["ntk_cond"], rel=tolerance)
    for name, kernel in (("ntk", theta), ("nngp", head)):
        assert float(kernel.trace()) == pytest.approx(wanted[f"{name}_trace"], rel=tolerance)
        if name in wanted:
            near(kernel, wanted[name], tolerance)
            near(torch.linalg.eigvalsh(kernel), wanted[f"{name}_eigs"], tolerance)
            compared += 2
    assert compared + 3 == len(wanted) - ("sum_logits" in wanted)


def _inner(head: Tensor, setting: dict[str, Any]) -> Tensor | None:
    return head if setting["kernel"] == "anil" else None


def _value(score: Score | list[Score]) -> float:
    assert isinstance(score, Score)
    assert score.status == "ok"
    return score.value


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", ["supernet", "single_path"])
def test_kernels(case: str, dtype: torch.dtype) -> None:
    alive = full(FEW_SHOT) if case == "supernet" else single_path()
    check(*kernels(alive, dtype), GOLDEN[case], PRECISIONS[dtype])


@pytest.mark.parametrize("case", ABLATIONS)
def test_ablations_one_by_one(case: str) -> None:
    alive = without(full(FEW_SHOT), [candidate(case)])[0]
    check(*kernels(alive), GOLDEN["ablations_round0"][case], PRECISIONS[torch.float64])


def test_ablations_in_one_batch() -> None:
    theta, head = ablations(torch.float64)
    for index, case in enumerate(ABLATIONS):
        check(theta[index], head[index], GOLDEN["ablations_round0"][case], PRECISIONS[torch.float64])


def test_ablations_in_one_batch_in_float32() -> None:
    """1e-4 wherever float32 sees the same rectifiers open as float64. Where a pre-activation is smaller than float32 resolves,
    one opens in one precision only, a derivative jumps, and no float32 computation of that network comes closer.
    """
    theta, head = ablations(torch.float32)
    flipped = flips()
    for index, case in enumerate(ABLATIONS):
        tolerance = 1e-3 if flipped[index] else PRECISIONS[torch.float32]
        check(theta[index], head[index], GOLDEN["ablations_round0"][case], tolerance)
    assert int((flipped > 0).sum()) <= 3
    assert int(flipped.max()) <= 3, "a few of the millions of signs, not an error of the forward pass"


def flips() -> Tensor:
    """How many rectifiers of each ablation open in float32 and not in float64, or the other way round."""
    alive = without(full(FEW_SHOT), [candidate(case) for case in ABLATIONS])
    signs = []
    for dtype in PRECISIONS:
        with Signs(len(ABLATIONS)) as seen, torch.no_grad():
            golden_supernet(dtype)(golden_images(dtype).repeat(len(ABLATIONS), 1, 1, 1), uniform(alive, dtype=dtype))
        signs.append(seen.signs)
    return sum(((a != b).sum(1) for a, b in zip(*signs, strict=True)), torch.zeros(len(ABLATIONS), dtype=torch.int64))


class Signs(TorchFunctionMode):
    """Records which rectifiers open, (groups, ...) a call."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.signs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is gated_relu:
            self.signs.append((args[0] > 0).view(self.groups, -1))
        return func(*args, **(kwargs or {}))


def ablations(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    alive = without(full(FEW_SHOT), [candidate(case) for case in ABLATIONS])
    return kernels(alive, dtype, len(ABLATIONS))


def test_public_functions_give_the_same_kernels() -> None:
    """Channels last, in chunks, and with all outputs, whose sum is the collapsed kernel."""
    model = golden_supernet().to(memory_format=torch.channels_last)
    x = golden_images().contiguous(memory_format=torch.channels_last)
    inputs = (x, uniform(single_path(), dtype=torch.float64))
    near(ntk(model, inputs), GOLDEN["single_path"]["ntk"], 1e-9)
    near(ntk(model, inputs, chunk=16), GOLDEN["single_path"]["ntk"], 1e-9)
    few = (x[:6], inputs[1])
    near(ntk(model, few, "all").sum((1, 3)), [row[:6] for row in GOLDEN["single_path"]["ntk"][:6]], 1e-9)
    near(nngp(model, inputs), GOLDEN["single_path"]["nngp"], 1e-9)


def test_logits() -> None:
    for case, alive in (("supernet", full(FEW_SHOT)), ("single_path", single_path())):
        with torch.no_grad():
            y = golden_supernet()(golden_images(), uniform(alive, dtype=torch.float64))
        near(y.sum(1), GOLDEN[case]["sum_logits"], 1e-9)


def test_edges_without_operations_against_autograd() -> None:
    """The golden file has no numbers for this case, so a few samples are asked one by one."""
    model, mixture, x = golden_supernet(), uniform(edge_pruned(), dtype=torch.float64), golden_images()[:3]
    weights = [p for name, p in model.named_parameters() if name != "classifier.bias"]
    rows = []
    for sample in x:
        found = torch.autograd.grad(model(sample[None], mixture).sum(), weights, allow_unused=True)
        rows.append(torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for w, g in zip(weights, found, strict=True)]))
    jacobian = torch.stack(rows)
    near(ntk(model, (x, mixture)), jacobian @ jacobian.T, 1e-10)


REGIONS: dict[str, Tensor] = {
    "supernet": full(FEW_SHOT),
    "rm_0_3_2": without(full(FEW_SHOT), [(0, 3, 2)])[0],
    "all_skip": kept([[1] * 9, [1] * 9]),
}


def _on(mixture: Mixture) -> Any:
    return lambda model, x: model(x, mixture)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", REGIONS)
def test_linear_regions(case: str, dtype: torch.dtype) -> None:
    mixture = uniform(REGIONS[case], dtype=dtype)
    found = linear_regions(golden_thin_supernet(dtype), golden_patches(dtype), forward=_on(mixture))
    assert found == Score(GOLDEN["linear_regions"][case][str(dtype).removeprefix("torch.")]["regions"], "ok", "linear_regions")


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_linear_regions_in_one_batch(dtype: torch.dtype) -> None:
    mixture = uniform(torch.stack(list(REGIONS.values())), dtype=dtype)
    batches = [batch.repeat(len(REGIONS), 1, 1, 1) for batch in golden_patches(dtype)]
    found = linear_regions(golden_thin_supernet(dtype), batches, groups=len(REGIONS), forward=_on(mixture))
    assert isinstance(found, list)
    name = str(dtype).removeprefix("torch.")
    assert [score.value for score in found] == [GOLDEN["linear_regions"][case][name]["regions"] for case in REGIONS]
