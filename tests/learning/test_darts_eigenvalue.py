"""The dominant eigenvalue against dense Hessians, and the rule of early stopping."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.eigenvalue import hessian_product, largest_eigenvalue, stop_epoch
from engine.runs.streams import stream
from engine.spaces.darts import searched_space
from engine.spaces.darts_supernet import DartsSupernet, SoftmaxRelaxation
from engine.spaces.supernet import initialise


@pytest.mark.parametrize("size", [1, 2, 30])
def test_largest_of_a_known_matrix(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    m = torch.randn(size, size, generator=generator, dtype=torch.float64)
    m = m + m.T - 5 * torch.eye(size, dtype=torch.float64)  # the largest in size is negative, and is not what is asked for
    wanted = float(torch.linalg.eigvalsh(m)[-1])
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    assert largest_eigenvalue(lambda v: m @ v, start, size) == pytest.approx(wanted, rel=1e-9)
    few = largest_eigenvalue(lambda v: m @ v, start, 2)
    assert few <= wanted + 1e-9


def test_ends_where_the_krylov_space_does() -> None:
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return 3 * v

    assert largest_eigenvalue(product, torch.ones(4, 5), 10) == pytest.approx(3)
    assert len(calls) == 1


def test_hessian_of_the_architecture_is_the_dense_one() -> None:
    space = searched_space("darts-s2")
    model = DartsSupernet(space, cells=2, channels=2, outputs=3).double()
    initialise(model, stream(0, "weights"), kaiming=False)
    relaxation = SoftmaxRelaxation(space)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = 0.5 * torch.randn(relaxation.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(a: Tensor) -> Tensor:
        return F.cross_entropy(model(x, relaxation(a)), torch.tensor([0, 1, 2, 0]))

    columns = [3, 4]  # S2 has two operations; the Hessian is zero elsewhere
    product = hessian_product(loss, a)
    rows = []
    for k, e, o in [(k, e, o) for k in range(2) for e in range(14) for o in columns]:
        v = torch.zeros_like(a)
        v[k, e, o] = 1
        rows.append(product(v)[..., columns].reshape(-1))
    dense = torch.stack(rows)
    torch.testing.assert_close(dense, dense.T, rtol=1e-8, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss(a.requires_grad_()), a)
    h, v = 1e-5, torch.randn(a.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ahead, behind = (torch.autograd.grad(loss(a + s * h * v), a)[0] for s in (1, -1))
    torch.testing.assert_close(product(v), (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-8)
    found = largest_eigenvalue(product, torch.randn(a.shape, dtype=torch.float64), 60)
    assert found == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-8)
    assert bool(gradient.any())


def test_search_stops_where_the_eigenvalue_has_grown() -> None:
    calm = [1.0] * 30
    assert stop_epoch(calm) is None
    growing = [1.0] * 14 + [1.2**i for i in range(16)]
    stops = [stop_epoch(growing[: n + 1]) for n in range(30)]
    first = next(n for n, found in enumerate(stops) if found is not None)
    assert stops[first] == first - 2 - 4
    window = [sum(growing[e - 2 : e + 3]) / 5 for e in (first - 2, first - 6)]
    assert window[0] > 1.3 * window[1]
    before = [sum(growing[e - 2 : e + 3]) / 5 for e in (first - 3, first - 7)]
    assert before[0] <= 1.3 * before[1]
    # Not before the tenth epoch, however steep.
    assert [stop_epoch([2.0**i for i in range(n)]) for n in (16, 17)] == [None, 10]
    assert stop_epoch([-1.0] * 20) is None
