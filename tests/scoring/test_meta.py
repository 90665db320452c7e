from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from engine.runs.streams import stream
from engine.scoring.meta import adaptation, metantk

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metantk.json").read_text())
SETTINGS: dict[str, dict[str, Any]] = {
    "maml_inf_1e-3": {"kernel": "maml"},
    "maml_lt1_1e-3": {"kernel": "maml", "time": 1.0, "reg": 1e-3},
    "maml_lt1e-3_1e-3": {"kernel": "maml", "time": 1e-3, "reg": 1e-3},
    "anil_inf_1e-3": {"kernel": "anil", "time": math.inf, "reg": 1e-3},
    "anil_lt1_1e-5": {"kernel": "anil", "time": 1.0, "reg": 1e-5},
    "anil_lt1e-2_1e-5": {"kernel": "anil", "time": 1e-2, "reg": 1e-5},
}
SHAPE = {"tasks": 3, "query": 5, "support": 5}


def gram(size: int, *address: int | str, batch: tuple[int, ...] = ()) -> Tensor:
    factor = torch.randn(*batch, size, 2 * size, generator=stream(0, "test-meta", *address), dtype=torch.float64)
    return factor @ factor.mT / size


def golden_kernels(case: str) -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(GOLDEN[case][key], dtype=torch.float64) for key in ("ntk", "nngp"))  # type: ignore[return-value]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("case", ["supernet", "single_path"])
def test_golden_metantk(case: str, setting: str) -> None:
    theta, nngp = golden_kernels(case)
    options = SETTINGS[setting]
    phi = metantk(theta, **SHAPE, **options, nngp=nngp if options["kernel"] == "anil" else None)
    expected = torch.tensor(GOLDEN[case][f"eigs_{setting}"], dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(phi), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kernel", ["maml", "anil"])
def test_blocks_of_equation_11(kernel: str) -> None:
    """The form S Theta S^T against the published block formula with explicit inverse and matrix exponential."""
    tasks, query, support, time, reg = 2, 3, 4, 0.3, 1e-2
    theta, nngp = gram(14, 0), gram(14, 1)
    phi = metantk(
        theta,
        tasks=tasks,
        query=query,
        support=support,
        kernel=kernel,  # type: ignore[arg-type]
        nngp=nngp if kernel == "anil" else None,
        time=time,
        reg=reg,
    )
    inner = nngp if kernel == "anil" else theta
    q = [slice(i * query, (i + 1) * query) for i in range(tasks)]
    s = [slice(tasks * query + i * support, tasks * query + (i + 1) * support) for i in range(tasks)]
    eye = torch.eye(support, dtype=torch.float64)
    gains = []
    for i in range(tasks):
        k_ss = inner[s[i], s[i]]
        gains.append(inner[q[i], s[i]] @ torch.linalg.inv(k_ss + reg * eye) @ (eye - torch.linalg.matrix_exp(-time * k_ss)))
    for i in range(tasks):
        for j in range(tasks):
            block = theta[q[i], q[j]] - gains[i] @ theta[s[i], q[j]] - theta[q[i], s[j]] @ gains[j].T
            block = block + gains[i] @ theta[s[i], s[j]] @ gains[j].T
            torch.testing.assert_close(phi[q[i], q[j]], block, rtol=1e-10, atol=1e-10)


def test_mtl_is_the_query_block_and_the_limit_of_no_time() -> None:
    theta = gram(10, 2)
    phi = metantk(theta, tasks=1, query=5, support=5, kernel="mtl")
    assert torch.equal(phi, theta[:5, :5])
    torch.testing.assert_close(metantk(theta, tasks=1, query=5, support=5, time=0.0), phi, rtol=0, atol=0)


def test_k_outputs_with_a_kronecker_kernel_is_the_collapsed_result_per_output() -> None:
    theta, outputs = gram(12, 3), 3
    full = torch.einsum("nm,kl->nkml", theta, torch.eye(outputs, dtype=torch.float64))
    phi = metantk(full, tasks=2, query=2, support=4, time=0.5)
    collapsed = metantk(theta, tasks=2, query=2, support=4, time=0.5)
    assert phi.shape == (4, 3, 4, 3)
    torch.testing.assert_close(phi, torch.einsum("nm,kl->nkml", collapsed, torch.eye(outputs, dtype=torch.float64)))


def test_a_shape_that_fits_both_is_read_as_outputs() -> None:
    full = gram(16, 10).reshape(4, 4, 4, 4)
    phi = metantk(full, tasks=1, query=2, support=2)
    assert phi.shape == (2, 4, 2, 4)
    assert torch.equal(phi, metantk(full[None], tasks=1, query=2, support=2)[0])


def test_k_outputs_couple_samples_and_outputs() -> None:
    """Against one explicit solve over flattened (sample, output) rows."""
    query, support, outputs = 2, 3, 2
    flat = gram((query + support) * outputs, 4)
    full = flat.reshape(query + support, outputs, query + support, outputs)
    phi = metantk(full, tasks=1, query=query, support=support, reg=1e-2).reshape(query * outputs, -1)
    cut = query * outputs
    gain = flat[:cut, cut:] @ torch.linalg.inv(flat[cut:, cut:] + 1e-2 * torch.eye(support * outputs, dtype=torch.float64))
    selector = torch.cat([torch.eye(cut, dtype=torch.float64), -gain], 1)
    torch.testing.assert_close(phi, selector @ flat @ selector.T)


@given(batch=st.lists(st.integers(1, 3), max_size=2), tasks=st.integers(1, 3), query=st.integers(1, 3), support=st.integers(1, 3))
def test_batch_items_are_what_they_are_alone(batch: list[int], tasks: int, query: int, support: int) -> None:
    size = tasks * (query + support)
    assume(batch != [size, size])  # read as a kernel with N outputs, see below
    theta = gram(size, 5, batch=tuple(batch))
    phi = metantk(theta, tasks=tasks, query=query, support=support, time=0.7)
    assert phi.shape == (*batch, tasks * query, tasks * query)
    assert torch.equal(phi, phi.mT)
    singles = [
        metantk(item, tasks=tasks, query=query, support=support, time=0.7) for item in theta.reshape(-1, *theta.shape[-2:])
    ]
    torch.testing.assert_close(phi.reshape(-1, *phi.shape[-2:]), torch.stack(singles), rtol=1e-12, atol=1e-12)


def test_one_nngp_serves_a_batch() -> None:
    theta, nngp = gram(10, 6, batch=(3,)), gram(10, 7)
    phi = metantk(theta, tasks=1, query=5, support=5, kernel="anil", nngp=nngp)
    torch.testing.assert_close(phi[1], metantk(theta[1], tasks=1, query=5, support=5, kernel="anil", nngp=nngp))


def test_float32_is_taken_and_float64_returned() -> None:
    theta = gram(10, 8)
    phi = metantk(theta.float(), tasks=1, query=5, support=5)
    assert phi.dtype == torch.float64
    torch.testing.assert_close(phi, metantk(theta, tasks=1, query=5, support=5), rtol=1e-3, atol=1e-3)


def test_a_nonfinite_item_spoils_only_itself() -> None:
    theta = gram(10, 9, batch=(2,))
    theta[1, 3, 3] = math.nan
    phi = metantk(theta, tasks=1, query=5, support=5)
    assert phi[1].isnan().all()
    torch.testing.assert_close(phi[0], metantk(theta[0], tasks=1, query=5, support=5))


@pytest.mark.parametrize("time", [math.inf, 1.0])
def test_singular_support_block_is_pseudo_inverted(time: float) -> None:
    factor = torch.randn(7, 2, generator=stream(0, "test-meta", "rank"), dtype=torch.float64)
    kernel = factor @ factor.T
    k_qs, k_ss = kernel[:3, 3:], kernel[3:, 3:]
    decay = torch.zeros_like(k_ss) if math.isinf(time) else torch.linalg.matrix_exp(-time * k_ss)
    expected = k_qs @ torch.linalg.pinv(k_ss, rtol=1e-12, hermitian=True) @ (torch.eye(4, dtype=torch.float64) - decay)
    torch.testing.assert_close(adaptation(k_qs, k_ss, time=time, reg=0.0), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("reg", "second"), [(0.0, 0.0), (0.5, 2.0)])
def test_a_zero_eigenvalue_counts_as_its_pseudo_inverse(reg: float, second: float) -> None:
    gain = adaptation(torch.ones(1, 2), torch.diag(torch.tensor([1.0, 0.0])), reg=reg)
    torch.testing.assert_close(gain, torch.tensor([[1 / (1 + reg), second]], dtype=torch.float64))


def test_zero_kernel_adapts_nothing() -> None:
    assert torch.equal(adaptation(torch.zeros(2, 3), torch.zeros(3, 3), reg=0.0), torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("theta", {"theta": torch.zeros(9, 9)}),
        ("theta", {"theta": torch.zeros(10, 9)}),
        ("theta", {"theta": torch.zeros(10, 2, 10, 3)}),
        ("theta", {"theta": torch.zeros(10)}),
        ("theta", {"theta": torch.zeros(10, 10, dtype=torch.int64)}),
        ("theta", {"theta": torch.zeros(10, 10, dtype=torch.complex128)}),
        ("nngp", {"kernel": "anil"}),
        ("nngp", {"nngp": torch.zeros(10, 10)}),
        ("nngp", {"kernel": "anil", "nngp": torch.zeros(9, 9)}),
        ("nngp", {"kernel": "anil", "nngp": torch.zeros(10, 2, 10, 2)}),
        ("nngp", {"theta": torch.zeros(2, 10, 10), "kernel": "anil", "nngp": torch.zeros(3, 10, 10)}),
        ("kernel", {"kernel": "reptile"}),
        ("tasks", {"tasks": 0}),
        ("time", {"time": -1.0}),
        ("time", {"time": math.nan}),
        ("reg", {"reg": -1e-3}),
        ("reg", {"reg": math.inf}),
    ],
)
def test_wrong_arguments_are_named(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}: "):
        metantk(**{"theta": torch.zeros(10, 10), "tasks": 1, "query": 5, "support": 5, **options})
