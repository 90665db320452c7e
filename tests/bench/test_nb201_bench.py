from __future__ import annotations

import json

import numpy as np
import pytest

from bench.proxies import cases
from bench.registry import Settings, find
from bench.studies.te_nas import main as te_nas
from engine.spaces.nas_bench_201 import every_cell
from engine.spaces.space import NAS_BENCH_201


def test_all_at_once_is_one_call_each() -> None:
    (case,) = cases(Settings(scale="smoke"))
    for layout in ("contiguous", "channels_last"):
        calls = case.build(layout, case.samples)
        together, alone = calls["all at once"](), calls["all, one call each"]()
        assert {name: found.value for name, found in together.items()} == pytest.approx(
            {name: found.value for name, found in alone.items()}, rel=1e-3, abs=1e-4
        )


def test_proxies_are_measured() -> None:
    rows = list(find("proxies", "cpu").rows(Settings(scale="smoke", rounds=2, methods=("all at once",))))
    assert [row.method for row in rows] == ["grasp", "all at once"]
    assert rows[1].ratio.median > 0


def test_te_nas_study(tmp_path, capsys) -> None:
    cells = np.array(list(every_cell())[::3], dtype=np.uint8)
    np.savez(
        tmp_path / "table.npz",
        ops=cells,
        op_names=np.array(NAS_BENCH_201.operations),
        edge_order=np.array([f"{source}->{target}" for source, target in NAS_BENCH_201.edges]),
        test_acc_200ep=cells.mean(1, keepdims=True) * 10.0,
        datasets=np.array(["cifar10"]),
    )
    words = (
        f"--benchmark {tmp_path / 'table.npz'} --out {tmp_path} --data digits --seeds 1 --cells 2 --batch 3 --region-images 20"
    )
    assert te_nas(words.split()) == 0
    printed = capsys.readouterr().out
    assert "published mean 93.90; best of the table" in printed
    results = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in ("te-nas-0", "te-nas-none-0")}
    # four operations an edge, then three, then two; five where "none" competes
    assert [result["evaluations"] for result in results.values()] == [3 * 6 * (4 + 3 + 2), 3 * 6 * (5 + 4 + 3 + 2)]
    assert "none" not in results["te-nas-0"]["architecture"]
    first = printed[printed.index("seed  TE-NAS") :].splitlines()
    assert te_nas([*words.split(), "--without-none", "--json", str(tmp_path / "rows.jsonl")]) == 0
    again = capsys.readouterr().out
    again = again[again.index("seed  TE-NAS") :].splitlines()
    assert again == [line for line in first if not line.startswith('"none" competes')]
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert (row["architecture"], row["search"]) == (results["te-nas-0"]["architecture"], 'without "none"')
