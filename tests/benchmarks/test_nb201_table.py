from __future__ import annotations

import csv
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from engine.benchmarks.outcome import benchmark_lines, check_benchmark, open_benchmark, with_benchmark
from engine.benchmarks.table import Table, load_table
from engine.errors import ConfigurationError, MissingDataError
from engine.methods.options import CellOptions
from engine.spaces.nas_bench_201 import canonical, every_cell, parse, to_genotype, to_string
from engine.spaces.space import NAS_BENCH_201

NONE, SKIP, CONV1, CONV3, POOL = range(5)
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "nas_bench_201.json").read_text())["architectures"]

CELLS = [(3, 2, 4, 1, 3, 2), (CONV3, NONE, SKIP, NONE, NONE, SKIP), (NONE,) * 6]
ACCURACY = [[93.0, 71.5], [90.0, 61.0], [10.0, 1.0]]
EDGES = [f"{source}->{target}" for source, target in NAS_BENCH_201.edges]


def arrays(**changes):
    content = {
        "ops": np.array(CELLS, dtype=np.uint8),
        "op_names": np.array(NAS_BENCH_201.operations),
        "edge_order": np.array(EDGES),
        "test_acc_200ep": np.array(ACCURACY),
        "datasets": np.array(["cifar10", "ImageNet16-120"]),
    }
    return {name: value for name, value in (content | changes).items() if value is not None}


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "table.npz", **arrays())
    return tmp_path / "table.npz"


def write_csv(path, rows=None, columns=("index", "arch", "cifar10_test", "imagenet16_120_test")):
    rows = (
        [[i, to_string(c), *map(str, a)] for i, (c, a) in enumerate(zip(CELLS, ACCURACY, strict=True))] if rows is None else rows
    )
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def test_both_formats_say_the_same(npz, tmp_path):
    for table in (load_table(npz), load_table(write_csv(tmp_path / "table.csv"))):
        assert table.datasets == ("cifar10", "imagenet16-120")
        assert table.codes.tolist() == [list(cell) for cell in CELLS]
        assert table.accuracy.tolist() == ACCURACY


def test_exact_twin_and_unknown(npz):
    table = load_table(npz)
    assert table.lookup(CELLS[0]) == table.best("cifar10")
    assert table.lookup(CELLS[0]).accuracy == {"cifar10": 93.0, "imagenet16-120": 71.5}
    twin = table.lookup((NONE, NONE, NONE, CONV3, NONE, NONE))
    assert (twin.found, twin.source, twin.accuracy["cifar10"]) == ("twin", CELLS[1], 90.0)
    neighbour = table.lookup((3, 2, 4, 1, 3, 1))
    assert (neighbour.found, neighbour.source, dict(neighbour.accuracy)) == ("unknown", None, {})


def test_operations_may_come_in_another_order(tmp_path):
    order = [4, 3, 2, 1, 0]
    ops = np.array([[order.index(code) for code in cell] for cell in CELLS], dtype=np.uint8)
    np.savez(tmp_path / "t.npz", **arrays(ops=ops, op_names=np.array([NAS_BENCH_201.operations[code] for code in order])))
    assert load_table(tmp_path / "t.npz").codes.tolist() == [list(cell) for cell in CELLS]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ops": None}, "no array ops"),
        ({"ops": np.array(CELLS, dtype=np.uint8)[:, :5]}, "ops must be"),
        ({"ops": np.full((3, 6), 5, dtype=np.uint8)}, "ops must be"),
        ({"ops": np.array(CELLS, dtype=float)}, "ops must be"),
        ({"ops": np.array([CELLS[0]] * 3, dtype=np.uint8)}, "listed twice"),
        ({"ops": np.zeros((0, 6), dtype=np.uint8), "test_acc_200ep": np.zeros((0, 2))}, "no architectures"),
        ({"op_names": np.array(["none", "skip_connect", "conv", "nor_conv_3x3", "avg_pool_3x3"])}, "op_names or edge_order"),
        ({"edge_order": np.array(EDGES[::-1])}, "op_names or edge_order"),
        ({"test_acc_200ep": np.array(ACCURACY)[:2]}, "test_acc_200ep must be"),
        ({"test_acc_200ep": np.array(ACCURACY) * np.nan}, "not a number from 0 to 100"),
        ({"test_acc_200ep": np.array(ACCURACY) * 2}, "not a number from 0 to 100"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, changes, message):
    np.savez(tmp_path / "t.npz", **arrays(**changes))
    with pytest.raises(ConfigurationError, match=f"t.npz: .*{message}"):
        load_table(tmp_path / "t.npz")


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], ("arch", "cifar10_test"), "no architectures"),
        ([["|none~0|", "10"]], ("arch", "cifar10_test"), "architecture: "),
        ([[to_string(CELLS[0]), "x"]], ("arch", "cifar10_test"), "not a readable csv"),
        ([[to_string(CELLS[0])]], ("arch", "cifar10_test"), "not a readable csv"),
        ([[to_string(CELLS[0]), "90"]], ("cell", "cifar10_test"), "needs a column arch"),
        ([[to_string(CELLS[0]), "90"]], ("arch", "cifar10"), "needs a column arch"),
    ],
)
def test_csv_files_that_do_not_fit(tmp_path, rows, columns, message):
    with pytest.raises(ConfigurationError, match=f"t.csv: .*{message}"):
        load_table(write_csv(tmp_path / "t.csv", rows, columns))


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(MissingDataError, match="is not a file"):
        load_table(tmp_path / "none.npz")
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(ConfigurationError, match=r"an \.npz or a \.csv"):
        load_table(tmp_path / "t.txt")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"t\.csv: table: not a readable csv"):
        load_table(tmp_path / "t.csv")
    (tmp_path / "t.npz").write_bytes(b"PK")
    with pytest.raises(ConfigurationError, match=r"t\.npz"):
        load_table(tmp_path / "t.npz")


def test_a_whole_table_is_small_and_quick():
    cells = list(every_cell())[::2]
    tracemalloc.start()
    table = Table(np.array(cells, dtype=np.uint8), np.full((len(cells), 3), 50.0), ("cifar10", "cifar100", "imagenet16-120"))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 25e6
    asked = list(every_cell())[::10]
    start = time.process_time()
    for cell in asked:
        table.lookup(cell)
    assert (time.process_time() - start) / len(asked) < 1e-3


def test_the_published_half(shared_data):
    table = load_table(shared_data / "nasbench201" / "nasbench201_dev.npz")
    assert len(table) == 7810
    for row in GOLDEN:
        assert table.lookup(parse(row["arch"])).accuracy["cifar10"] == pytest.approx(row["cifar10_test"], abs=1e-3)
    keys = {canonical(tuple(cell)) for cell in table.codes.tolist()}
    for cell in list(every_cell())[::7]:
        answer = table.lookup(cell)
        assert (answer.found == "unknown") == (canonical(cell) not in keys)


def test_what_a_result_says(npz):
    options = CellOptions(space="nas-bench-201", benchmark=str(npz))
    check_benchmark(options)
    table = open_benchmark(options)
    known = with_benchmark({"genotype": to_genotype(CELLS[1])}, table)
    assert known["benchmark"]["distance"] == {"cifar10": 3.0, "imagenet16-120": 10.5}
    assert known["tables"][0]["rows"][0] == ["cifar10", 90.0, 93.0, 3.0]
    assert "cifar10 90.00 % (best 93.00 %, 3.00 below)" in benchmark_lines(known)[0]
    twin = with_benchmark({"genotype": to_genotype((NONE, NONE, NONE, CONV3, NONE, NONE))}, table)
    assert f"(its twin {to_string(CELLS[1])})" in benchmark_lines(twin)[0]
    unknown = with_benchmark({"genotype": to_genotype((CONV1,) * 6)}, table)
    assert unknown["benchmark"]["accuracy"] == {}
    assert "unknown, the table of 3 has neither it nor a twin" in benchmark_lines(unknown)[0]


def test_without_a_table_only_the_string_is_added():
    result = with_benchmark({"genotype": to_genotype(CELLS[0])}, None)
    assert result["architecture"] == to_string(CELLS[0])
    assert benchmark_lines(result) == []
    assert with_benchmark({"seconds": 1}, None) == {"seconds": 1}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (CellOptions(benchmark="table.npz"), ConfigurationError),
        (CellOptions(space="nas-bench-201", benchmark="no-such.npz"), MissingDataError),
    ],
)
def test_benchmarks_that_cannot_answer(options, error):
    with pytest.raises(error, match=r"^--benchmark: "):
        check_benchmark(options)
