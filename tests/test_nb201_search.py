from __future__ import annotations

import json

import numpy as np
import pytest

from engine.search import main
from engine.spaces.genotype import Genotype
from engine.spaces.nas_bench_201 import every_cell, from_genotype, parse
from engine.spaces.space import NAS_BENCH_201

SMALL = ["--space", "nas-bench-201", "--data", "digits", "--quiet", "--cells", "2", "--size", "6"]
PRUNING = ["--repeats", "1"]
METHODS = {
    "metantk-nas": [*PRUNING, "--ways", "2", "--region-images", "20"],
    "te-nas": [*PRUNING, "--batch", "3", "--region-images", "20"],
    "linear-regions": [*PRUNING, "--region-images", "20"],
    "random": [],
}


@pytest.mark.parametrize("method", METHODS)
def test_search_ends_with_the_true_accuracy(tmp_path, method, capsys):
    cells = np.array(list(every_cell()), dtype=np.uint8)
    np.savez(
        tmp_path / "table.npz",
        ops=cells,
        op_names=np.array(NAS_BENCH_201.operations),
        edge_order=np.array([f"{source}->{target}" for source, target in NAS_BENCH_201.edges]),
        test_acc_200ep=cells.sum(1, keepdims=True) / 1.0,
        datasets=np.array(["cifar10"]),
    )
    out = tmp_path / "run"
    assert main([method, *SMALL, *METHODS[method], "--benchmark", str(tmp_path / "table.npz"), "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    cell = parse(result["architecture"])
    assert from_genotype(Genotype.load(out / "genotype.json")) == cell
    assert result["benchmark"]["found"] == "exact"
    assert result["benchmark"]["accuracy"]["cifar10"] == sum(cell)
    assert result["benchmark"]["distance"]["cifar10"] == 24 - sum(cell)
    assert f"{result['architecture']}: cifar10 {sum(cell):.2f} % (best 24.00 %" in capsys.readouterr().out
    assert (out / "cell_cell.svg").exists()
