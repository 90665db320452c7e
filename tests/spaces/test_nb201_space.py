from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.runs.drawing import draw_cell
from engine.spaces.cost import count
from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.mixture import uniform
from engine.spaces.nas_bench_201 import canonical, every_cell, from_genotype, is_disconnected, parse, to_genotype, to_string
from engine.spaces.network import build_network
from engine.spaces.space import NAS_BENCH_201
from engine.spaces.supernet import Supernet

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "nas_bench_201.json").read_text())["architectures"]
NONE, SKIP, CONV1, CONV3, POOL = range(5)
codes = st.tuples(*[st.integers(0, 4)] * 6)


def cost_of(cell):
    return count(to_genotype(cell), channels=16, cells=15, size=32, classes=10, tail=True)


@given(codes)
def test_strings_and_genotypes_there_and_back(cell):
    assert parse(to_string(cell)) == cell
    assert from_genotype(to_genotype(cell)) == cell
    assert from_genotype(Genotype.from_json(to_genotype(cell).to_json())) == cell


@given(st.text(alphabet="|~+012 noresk_c1x3avgp", max_size=90) | st.text(max_size=20))
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigurationError, match=r"^architecture: "):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "|none~0|+|none~0|none~1|",
        "|none~0|+|none~0|none~0|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~3|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|conv~2|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|\n",
    ],
)
def test_nearly_right_strings_are_refused(text):
    with pytest.raises(ConfigurationError, match=r"^architecture: "):
        parse(text)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: str(row["index"]))
def test_parameters_and_flops_are_the_published_ones(row):
    cell = parse(row["arch"])
    cost = cost_of(cell)
    assert cost.parameters == row["parameters"]
    if cell[0] == NONE:
        return  # the published column also counts what reads the empty first node, which is not computed here
    # The published column adds to the multiply-adds 3 a number out of a norm and a ReLU, 9 a number out of a pool
    made = 5 * (16 * 32**2 + 32 * 16**2 + 64 * 8**2)
    kinds = Counter(cell)
    assert cost.macs + 3 * made * (kinds[CONV1] + kinds[CONV3]) + 9 * made * kinds[POOL] + 160_832 == row["flops"]


def test_counts_of_functions():
    keys = {canonical(cell) for cell in every_cell()}
    assert len(keys) == 5044
    assert sum(map(is_disconnected, every_cell())) == 341


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((CONV3, NONE, SKIP, NONE, NONE, SKIP), (NONE, NONE, NONE, CONV3, NONE, NONE), True),
        ((NONE, CONV3, NONE, CONV1, NONE, SKIP), (CONV3, NONE, NONE, CONV1, SKIP, NONE), True),
        ((CONV3, NONE, NONE, SKIP, NONE, NONE), (NONE, NONE, NONE, SKIP, NONE, NONE), True),
        ((POOL, SKIP, NONE, NONE, POOL, POOL), (POOL, NONE, NONE, POOL, POOL, NONE), True),
        # one convolution read twice, and two of their own
        ((CONV3, NONE, SKIP, NONE, SKIP, SKIP), (CONV3, NONE, NONE, CONV3, SKIP, NONE), False),
        ((SKIP, NONE, NONE, SKIP, SKIP, NONE), (NONE, NONE, NONE, SKIP, NONE, NONE), False),
    ],
)
def test_same_function(one, other, same):
    assert (canonical(one) == canonical(other)) == same


def naive(network, cell, x):
    """The benchmark's network written out, with batch statistics and the given network's weights."""
    weights = dict(network.named_parameters())

    def norm(x, name):
        return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)

    x = norm(F.conv2d(x, weights["stem.weight"], padding=1), "stem_norm")
    for index in range(3):
        prefix = f"cells.{index}"
        if index:
            body = f"{prefix}.reduction.body"
            y = norm(F.conv2d(F.relu(x), weights[f"{body}.1.weight"], stride=2, padding=1), f"{body}.2")
            y = norm(F.conv2d(F.relu(y), weights[f"{body}.4.weight"], padding=1), f"{body}.5")
            x = y + F.conv2d(F.avg_pool2d(x, 2), weights[f"{prefix}.reduction.shortcut.weight"])
        states = [x] + [torch.zeros_like(x) for _ in range(3)]
        for edge, ((source, target), code) in enumerate(zip(NAS_BENCH_201.edges, cell, strict=True)):
            if code == SKIP:
                states[target] = states[target] + states[source]
            elif code == POOL:
                pooled = F.avg_pool2d(states[source], 3, 1, 1, count_include_pad=False)
                states[target] = states[target] + pooled
            elif code != NONE:
                name = f"{prefix}.edges.{edge}.{NAS_BENCH_201.operations[code]}"
                kernel = weights[f"{name}.0.weight"]
                y = F.conv2d(F.relu(states[source]), kernel, padding=kernel.shape[-1] // 2)
                states[target] = states[target] + norm(y, f"{name}.1")
        x = states[3]
    x = F.relu(norm(x, "tail_norm")).mean((2, 3))
    return F.linear(x, weights["classifier.weight"], weights["classifier.bias"])


@pytest.mark.parametrize(
    "cell", [(3, 2, 4, 1, 3, 2), (1, 0, 4, 0, 3, 1), (0, 3, 3, 0, 0, 4), (0, 0, 0, 0, 0, 0), (2, 0, 0, 0, 0, 0)]
)
def test_forward_is_the_benchmarks(cell):
    torch.manual_seed(0)
    network = build_network(to_genotype(cell), channels=4, classes=3, cells=3, tail=True).double()
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(network(x), naive(network, cell, x), rtol=1e-10, atol=1e-12)


def test_odd_sides_are_rounded_up():
    network = build_network(to_genotype((3, 3, 3, 3, 3, 3)), channels=2, classes=2, cells=3, tail=True)
    assert network(torch.randn(2, 3, 7, 5)).shape == (2, 2)


def test_supernet_mixes_none():
    supernet = Supernet(NAS_BENCH_201, cells=3, channels=16, outputs=2).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    alive = torch.zeros(1, 6, 5, dtype=torch.bool)
    alive[0, :, NONE] = True
    alive[0, 3, SKIP] = True
    both = uniform(torch.stack([alive, alive & False]), dtype=torch.float64)
    got = supernet(x.repeat(2, 1, 1, 1), both)
    assert not torch.allclose(got[:2], got[2:])
    assert torch.allclose(got[:2], supernet(x, uniform(alive, dtype=torch.float64)))


def test_cells_with_one_input_keep_their_channels():
    with pytest.raises(ConfigurationError, match="keeps its 3 channels, not 16; give the network a stem"):
        Supernet(NAS_BENCH_201, cells=3, channels=16, outputs=2, stem=False)


def test_several_operations_on_an_edge_have_no_string():
    cell = CellGenotype((Connection(0, 1, "skip_connect"), Connection(0, 1, "nor_conv_1x1")), (3,))
    with pytest.raises(ConfigurationError, match="edge 0->1 carries several operations"):
        from_genotype(Genotype("nas-bench-201", (("cell", cell),)))


def test_other_outputs_are_not_of_the_space():
    with pytest.raises(ConfigurationError, match=r"concat \[2, 3\], expected \[3\]"):
        NAS_BENCH_201.check(Genotype("nas-bench-201", (("cell", CellGenotype((), (2, 3))),)))


def test_drawing_has_one_input():
    picture = draw_cell(to_genotype((3, 2, 4, 1, 3, 2)), "cell")
    assert "k−1" in picture
    assert "k−2" not in picture
