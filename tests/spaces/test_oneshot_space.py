"""NAS-Bench-101's cells and NAS-Bench-1Shot1's spaces: fingerprints, discretisation, and the supernet against plain modules."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.runs.streams import stream
from engine.spaces.nas_bench_101 import CONV1, CONV3, INPUT, OUTPUT, POOL, Cell101, from_genotype, parse, to_text
from engine.spaces.one_shot import ONE_SHOT, OPERATIONS, OneShotSpace, one_shot_space
from engine.spaces.one_shot_supernet import OneShotCell, OneShotMixture, OneShotRelaxation, OneShotSupernet
from engine.spaces.supernet import initialise

# The first row of the published table.
FIRST = parse(
    "0100110 0010000 0001001 0000010 0000010 0000001 0000000",
    "input,conv3x3-bn-relu,maxpool3x3,conv3x3-bn-relu,conv3x3-bn-relu,conv1x1-bn-relu,output",
)


def test_the_published_fingerprint() -> None:
    assert FIRST.fingerprint() == "00005c142e6f48ac74fdcf73e3439874"
    assert from_genotype(FIRST.genotype()) == FIRST
    assert parse(*to_text(FIRST)) == FIRST


@st.composite
def cells(draw: st.DrawFn) -> Cell101:
    size = draw(st.integers(2, 7))
    bits = draw(st.lists(st.integers(0, 1), min_size=size * size, max_size=size * size))
    matrix = [[bits[i * size + j] if j > i else 0 for j in range(size)] for i in range(size)]
    matrix[0][-1] = 1  # so that the output is reached
    names = draw(st.lists(st.sampled_from(OPERATIONS), min_size=size - 2, max_size=size - 2))
    return Cell101(tuple(map(tuple, matrix)), (INPUT, *names, OUTPUT))


@given(cells())
def test_isomorphic_cells_and_vertices_that_lead_nowhere_do_not_count(cell: Cell101) -> None:
    assert cell.pruned().pruned() == cell.pruned()
    assert cell.pruned().fingerprint() == cell.fingerprint()
    assert from_genotype(cell.genotype()).fingerprint() == cell.fingerprint()
    size = len(cell.operations)
    for order in list(permutations(range(1, size - 1)))[:24]:
        place = (0, *order, size - 1)
        matrix = tuple(tuple(cell.matrix[i][j] for j in place) for i in place)
        if all(not matrix[i][j] for i in range(size) for j in range(i + 1)):
            assert Cell101(matrix, tuple(cell.operations[i] for i in place)).fingerprint() == cell.fingerprint()


@pytest.mark.parametrize(
    ("matrix", "operations", "said"),
    [
        ("01 00", "input,conv3x3-bn-relu,output", "square"),
        ("010 001 010", "input,conv3x3-bn-relu,output", "above the diagonal"),
        ("011 001 000", "input,conv5x5,output", "operations are input"),
        ("012 001 000", "input,conv3x3-bn-relu,output", "is not a matrix"),
        ("011 001 000", "output,conv3x3-bn-relu,input", "operations are input"),
        ("", "", "square"),
    ],
)
def test_what_is_no_cell(matrix: str, operations: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse(matrix, operations)


def test_a_cell_without_a_path_has_no_fingerprint() -> None:
    with pytest.raises(ConfigurationError, match="no path"):
        parse("010 000 000", "input,conv3x3-bn-relu,output").fingerprint()


def test_architecture_parameters() -> None:
    """alpha_ops (steps, 3), alpha_out (steps + 1), alpha_in from 3 inputs on in the first space, from 2 on in the others."""
    assert [ONE_SHOT[f"nas-bench-1shot1-{k}"].sizes for k in (1, 2, 3)] == [
        (12, 5, 3, 4),
        (12, 5, 2, 3, 4),
        (15, 6, 2, 3, 4, 5),
    ]
    with pytest.raises(ConfigurationError, match="known are nas-bench-1shot1-1"):
        one_shot_space("nas-bench-1shot1-4")


def test_discretisation() -> None:
    """By hand: block 4 and block 2 feed the output, block 3 leads nowhere, ties go to the earlier."""
    space = ONE_SHOT["nas-bench-1shot1-1"]
    operations = [[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.1, 0.2, 0.7]]
    cell = space.discretise(operations, [0.1, 0.1, 0.3, 0.1, 0.4], [[0.5, 0.1, 0.4], [0.3, 0.3, 0.2, 0.2]])
    assert cell.operations == (INPUT, CONV3, POOL, CONV1, CONV1, CONV1, OUTPUT)
    assert to_text(cell)[0] == "0110100 0010100 0000001 0000000 0000001 0000000 0000000"
    assert cell.pruned().operations == (INPUT, CONV3, POOL, CONV1, OUTPUT)


@pytest.mark.parametrize("space", ONE_SHOT.values(), ids=lambda space: space.name)
@given(data=st.data())
def test_discretised_cells_have_the_space_s_parents(space: OneShotSpace, data: st.DataObject) -> None:
    numbers = st.floats(0, 1)
    operations = data.draw(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=space.blocks, max_size=space.blocks))
    output = data.draw(st.lists(numbers, min_size=space.blocks + 1, max_size=space.blocks + 1))
    inputs = [data.draw(st.lists(numbers, min_size=i + 1, max_size=i + 1)) for i in space.chosen]
    cell = space.discretise(operations, output, inputs)
    parents = [sum(row[j] for row in cell.matrix) for j in range(7)]
    assert parents[6] == space.parents[-1]
    for i in range(space.blocks):
        used = any(cell.matrix[i + 1])
        assert parents[i + 1] == (space.parents[i] if used else 0)
    assert sum(parents) <= 9
    assert cell.fingerprint()


def plain(model: OneShotSupernet, x: Tensor, mixture: OneShotMixture, space: OneShotSpace) -> Tensor:
    """The published network, module by module, with the weights of the engine's."""

    def block(own: Any, y: Tensor) -> Tensor:
        kernel, norm = own.convolution.weight, own.norm
        y = F.conv2d(y, kernel, padding=kernel.shape[2] // 2)
        return F.relu(F.batch_norm(y, None, None, norm.weight, norm.bias, training=True))

    x = block(model.stem, x)
    for index, cell in enumerate(model.cells):
        assert isinstance(cell, OneShotCell)
        if index in model.halves:
            x = nn.MaxPool2d(2, 2, padding=1)(x)
        projected = block(cell.projections, x).chunk(space.blocks + 1, 1)
        states: list[Tensor] = []
        inputs = list(mixture.inputs)
        for i in range(space.blocks):
            sources = [projected[i], *states]
            if i != 0 and not (i == 1 and space.name.endswith("-1")):
                sources = [w * s for w, s in zip(inputs.pop(0), sources, strict=True)]
            y = sum(sources, torch.zeros_like(sources[0]))
            results = {POOL: nn.MaxPool2d(3, 1, padding=1)(y), CONV3: block(cell.conv3[i], y), CONV1: block(cell.conv1[i], y)}
            states.append(
                sum((w * results[n] for w, n in zip(mixture.operations[i], OPERATIONS, strict=True)), torch.zeros_like(y))
            )
        assert not inputs
        x = torch.cat([w * s for w, s in zip(mixture.output, [projected[-1], *states], strict=True)], 1)
    x = F.batch_norm(F.conv2d(F.relu(x), model.tail_norm.projection.weight), None, None, training=True)
    return F.linear(x.mean((2, 3)), model.classifier.weight, model.classifier.bias)


@pytest.mark.parametrize("space", ONE_SHOT.values(), ids=lambda space: space.name)
def test_the_supernet_is_the_published_one(space: OneShotSpace) -> None:
    """Logits, gradients of the architecture, and the Hessian product that a second-order step takes."""
    model = OneShotSupernet(space, cells=3, channels=3, outputs=5).double()
    initialise(model, stream(0, "oneshot"), kaiming=False)
    generator = stream(1, "oneshot")
    x = torch.randn(4, 3, 9, 9, generator=generator, dtype=torch.float64)
    relaxation = OneShotRelaxation(space)
    a = torch.randn(relaxation.shape, generator=generator, dtype=torch.float64).requires_grad_()
    weights = list(model.parameters())
    found = []
    for forward in (model, lambda x, mixture: plain(model, x, mixture, space)):
        logits = forward(x, relaxation(a))
        loss = F.cross_entropy(logits, torch.arange(4))
        (first,) = torch.autograd.grad(loss, a, retain_graph=True)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        (product,) = torch.autograd.grad(sum(g.sum() for g in gradients), a)  # type: ignore[arg-type]
        found.append((logits.detach(), first, product))
    for own, published in zip(*found, strict=True):
        torch.testing.assert_close(own, published, rtol=1e-9, atol=1e-9)
    assert found[0][2].abs().max() > 1e-3


def test_halves_and_channels() -> None:
    """Nine cells of 16 channels: maps of 32, 17 and 9 pixels, 64 channels at the end."""
    model = OneShotSupernet(ONE_SHOT["nas-bench-1shot1-2"], cells=9, channels=16, outputs=10)
    assert model.halves == (3, 6)
    sizes = []
    for cell in model.cells:
        cell.register_forward_hook(lambda module, inputs, y: sizes.append(y.shape[1:3]))
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 32, 32), OneShotRelaxation(ONE_SHOT["nas-bench-1shot1-2"])(torch.zeros(26))).shape == (
            2,
            10,
        )
    assert [tuple(size) for size in sizes[::3]] == [(80, 32), (160, 17), (320, 9)]
    assert model.classifier.in_features == 64
    first = OneShotSupernet(ONE_SHOT["nas-bench-1shot1-2"], cells=8, channels=16, outputs=10, of=9)
    assert first.halves == model.halves
