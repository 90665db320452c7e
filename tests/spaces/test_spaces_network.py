from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_recipe import golden, golden_images, golden_supernet
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.runs.streams import stream
from engine.scoring.score import EpisodeBatch, score
from engine.spaces.cells import Cell
from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.mixture import Mixture, full
from engine.spaces.network import CellNetwork, build_network
from engine.spaces.space import FEW_SHOT
from engine.spaces.supernet import Supernet, initialise

TASK = {"channels": 4, "classes": 7, "cells": 3}


def chosen(*picks: tuple[int, int, str], concat: tuple[int, ...] = (2, 3, 4)) -> Genotype:
    """The same connections in both kinds of cell."""
    cell = CellGenotype(tuple(Connection(*pick) for pick in picks), concat)
    return Genotype(FEW_SHOT.name, (("normal", cell), ("reduction", cell)))


# Two edges into one node, one into another, none into the last; two operations on an edge.
RAGGED = chosen((0, 2, "sep_conv_3x3"), (1, 2, "skip_connect"), (2, 3, "max_pool_3x3BN"), (2, 3, "conv_3x3"))


def alive_of(genotype: Genotype) -> Tensor:
    alive = torch.zeros_like(full(FEW_SHOT))
    for k, kind in enumerate(FEW_SHOT.kinds):
        for source, target, name in genotype[kind].connections:
            alive[k, FEW_SHOT.edges.index((source, target)), FEW_SHOT.operations.index(name)] = True
    return alive


def images(count: int, *size: int) -> Tensor:
    return torch.randn(count, 3, *size, generator=stream(0, "images"), dtype=torch.float64)


def from_supernet(supernet: Supernet, genotype: Genotype, **options) -> CellNetwork:
    """The genotype's network with the supernet's weights: parameters have the same names."""
    network = build_network(genotype, **options).double()
    network.load_state_dict({name: supernet.state_dict()[name] for name in network.state_dict()})
    return network


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_is_the_supernet_with_weights_one(size):
    supernet = Supernet(FEW_SHOT, cells=3, channels=8, outputs=7).double()
    initialise(supernet, stream(0, "weights"))
    network = from_supernet(supernet, RAGGED, cells=3, channels=8, classes=7, norm="groupnorm16", tail=True)
    alive = alive_of(RAGGED)
    expected = supernet(images(2, *size), Mixture(alive.double(), alive))
    torch.testing.assert_close(network(images(2, *size)), expected, rtol=1e-12, atol=1e-12)


KERNELS = {
    "inf_1e-3": {},
    "lt1_1e-3": {"time": 1.0},
    "lt1e-3_1e-3": {"time": 1e-3},
    "lt1_1e-5": {"time": 1.0, "reg": 1e-5},
    "lt1e-2_1e-5": {"time": 1e-2, "reg": 1e-5},
}


def test_golden_single_path():
    """Built from its genotype, with the golden supernet's weights, and scored in one call."""
    numbers = golden()
    keep = numbers["single_path_keep_op_index"]
    alive = [[[o == keep[k][e] for o in range(8)] for e in range(9)] for k in range(2)]
    options = {"cells": 5, "channels": 16, "classes": 5, "norm": "groupnorm16", "tail": True}
    network = from_supernet(golden_supernet(), FEW_SHOT.genotype(alive), **options)
    x = golden_images()
    expected = numbers["single_path"]
    assert float(score(network, x, "ntk")) == pytest.approx(expected["ntk_cond"], rel=1e-9)
    for kernel, tag in (("maml", "inf_1e-3"), ("maml", "lt1e-3_1e-3"), ("anil", "inf_1e-3"), ("anil", "lt1e-2_1e-5")):
        found = score(network, EpisodeBatch(x[:15], x[15:], 3), kernel=kernel, **KERNELS[tag])
        assert float(found) == pytest.approx(expected[f"cond_{kernel}_{tag}"], rel=1e-9)


def test_evaluation_network_by_hand():
    """Stem and norm, one cell, mean over the map, linear: no norm or ReLU before the pooling."""
    network = build_network(chosen((1, 3, "skip_connect"), concat=(3,)), channels=4, classes=7, cells=1).double()
    x = images(3, 5, 6)
    state = network.state_dict()
    stem = F.batch_norm(F.conv2d(x, state["stem.weight"], None, 1, 1), None, None, training=True)
    node = F.batch_norm(F.conv2d(stem.relu(), state["cells.0.preprocess1.0.weight"]), None, None, training=True)
    torch.testing.assert_close(network.features(x), node.mean((2, 3)), rtol=1e-12, atol=1e-12)
    logits = F.linear(node.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])
    torch.testing.assert_close(network(x), logits, rtol=1e-12, atol=1e-12)


def test_batch_norm_has_parameters_and_running_statistics():
    network = build_network(RAGGED, **TASK)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(norm.affine and norm.track_running_stats for norm in norms)
    before = network.eval()(images(2, 8, 8).float())
    network.train()(5 * images(8, 8, 8).float())
    assert not torch.allclose(network.eval()(images(2, 8, 8).float()), before)


def test_nothing_is_built_that_was_not_chosen_and_nothing_multiplied():
    network = build_network(RAGGED, **TASK)
    cell = network.cells[0]
    assert isinstance(cell, Cell)
    names = [sorted(edge) for edge in cell.edges]
    assert names == [
        ["sep_conv_3x3"],
        ["skip_connect"] if "skip_connect" in cell.edges[1] else [],
        [],
        [],
        *[names[4]],
        *[[]] * 4,
    ]
    assert names[4] == ["conv_3x3", "max_pool_3x3BN"]
    loss = network(images(2, 8, 8).float()).sum()
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [following for following, _ in node.next_functions]
    assert not [node for node in seen if "Mul" in node.name() or "addcmul" in node.name().lower()]
    used = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    assert all(gradient is not None for gradient in used)


def test_no_connection_at_all():
    network = build_network(chosen(), **TASK)
    assert network(images(2, 9, 5).float()).shape == (2, 7)


def test_concat_of_some_nodes_decides_the_width():
    genotype = replace(RAGGED, cells=(("normal", replace(RAGGED["normal"], concat=(3, 2))), ("reduction", RAGGED["reduction"])))
    network = build_network(genotype, channels=4, classes=7, cells=2)
    assert network.classifier.in_features == 3 * 8
    assert network(images(2, 8, 8).float()).shape == (2, 7)
    assert build_network(genotype, channels=4, classes=7, cells=1).classifier.in_features == 2 * 4


@pytest.mark.parametrize(
    ("genotype", "options", "message"),
    [
        (replace(RAGGED, space="mine"), {}, "its space 'mine' is not among few-shot-cell"),
        (replace(RAGGED, space="os:path"), {}, "its space 'os:path' is not among"),
        (chosen((0, 2, "conv_9x9")), {}, "operation 'conv_9x9' is not in the space"),
        (RAGGED, {"norm": "layernorm"}, "unknown 'layernorm'"),
        (RAGGED, {"classes": 0}, "outputs"),
        (RAGGED, {"cells": 0}, "cells and channels"),
        (RAGGED, {"channels": 20, "norm": "groupnorm16"}, "20 cannot be divided"),
    ],
)
def test_what_cannot_be_built(genotype, options, message):
    with pytest.raises(ConfigurationError, match=message):
        build_network(genotype, **{**TASK, **options})


def test_space_may_be_given():
    space = replace(FEW_SHOT, name="mine")
    network = build_network(replace(RAGGED, space="mine"), space=space, **TASK)
    assert network.space is space
    with pytest.raises(ConfigurationError, match="belongs to the space 'few-shot-cell', expected 'mine'"):
        build_network(RAGGED, space=space, **TASK)


def test_operation_that_is_not_registered():
    space = replace(FEW_SHOT, operations=("none", "conv_9x9"))
    with pytest.raises(ConfigurationError, match=r"^operation: unknown 'conv_9x9'"):
        build_network(chosen((0, 2, "conv_9x9")), space=space, **TASK)


def test_load(tmp_path):
    path = tmp_path / "weights.safetensors"
    trained, fresh = (build_network(RAGGED, **TASK) for _ in range(2))
    trained(images(4, 8, 8).float())
    save_file(trained.state_dict(), path)
    assert fresh.load(path) is fresh
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    double = build_network(RAGGED, **TASK).double().load(path)
    assert double.stem.weight.dtype == torch.float64


def damaged(network: CellNetwork, change: str) -> dict[str, Tensor]:
    state = {name: value + 1 for name, value in network.state_dict().items()}
    if change == "missing":
        del state["classifier.bias"]
    elif change == "extra":
        state["tail_norm.weight"] = torch.ones(3)
    elif change == "shape":
        state["classifier.bias"] = torch.ones(8)
    else:
        state["classifier.bias"] = torch.ones(7, dtype=torch.int64)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "'classifier.bias' is missing"),
        ("extra", "'tail_norm.weight' is not part of it"),
        ("shape", r"'classifier.bias' is \(8,\), expected \(7,\)"),
        ("type", "'classifier.bias' is of type I64, expected torch.float32"),
    ],
)
def test_load_refuses_the_weights_of_another_network(tmp_path, change, message):
    network = build_network(RAGGED, **TASK)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    save_file(damaged(network, change), path)
    with pytest.raises(ConfigurationError, match=f"weights.safetensors: not the weights of this network: {message}$"):
        network.load(path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}extra"])
def test_load_refuses_other_files(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"weights.safetensors: "):
        build_network(RAGGED, **TASK).load(path)
    with pytest.raises(ConfigurationError, match=r"none.safetensors: cannot read the weights"):
        build_network(RAGGED, **TASK).load(tmp_path / "none.safetensors")
