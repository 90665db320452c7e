"""The studies of scores, at a size that takes seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bench.studies import random_cells
from bench.studies.precision import main as precision
from bench.studies.precision import measured, products, split, table, tf32
from bench.studies.variance import changed, decisions, spreads
from bench.studies.variance import main as variance
from bench.studies.wide import main as wide
from engine.scoring.kernels import ntk
from engine.scoring.result import Score
from engine.spaces.nas_bench_201 import NAS_BENCH_201, is_disconnected, parse


def test_variance_study(tmp_path, capsys):
    words = "--draws 6 --edges 2 --operations 3 --cells 2 --size 6 --region-images 20"
    assert variance([*words.split(), "--json", str(tmp_path / "rows.jsonl")]) == 0
    assert "decisions changed (by chance)" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert len(rows) == 2 * 2 * 3  # pairings, repeats 1 and 3, metrics and their sum
    assert {row["pairing"] for row in rows} == {"paired", "unpaired"}
    assert all(0 <= row["changed"] <= 1 and row["by_chance"] == pytest.approx(2 / 3) for row in rows)
    errors = {(r["pairing"], r["repeats"]): r["standard_error"] for r in rows if r["metric"] == "condition"}
    assert errors["paired", 1] == pytest.approx(errors["paired", 3] * 3**0.5)


def test_standard_error_and_true_spread():
    generator = np.random.default_rng(0)
    truth = generator.normal(size=400) * 0.5
    delta = truth + generator.normal(size=(30, 400)) * 2
    error, spread = spreads(delta, 4)
    assert error == pytest.approx(1.0, abs=0.1)
    assert spread == pytest.approx(0.5, abs=0.1)
    assert spreads(generator.normal(size=(30, 400)), 1)[1] < 0.1


def test_changed_decisions_of_noise_and_of_truth():
    generator = np.random.default_rng(0)
    edges = np.repeat(np.arange(60), 2)
    noise = generator.normal(size=(40, 120))
    assert changed([noise], edges, 3, generator) == pytest.approx(0.5, abs=0.1)
    assert changed([np.zeros((8, 120))], edges, 3, generator) == pytest.approx(0.5, abs=0.05)  # ties tell nothing
    truth = np.tile([0.0, 1.0], 60)
    assert changed([truth + 0.01 * noise], edges, 3, generator) == 0.0
    # two sides, one repeat: the chance that the difference changes its sign between two draws
    wrong = norm.cdf(-1 / 2**0.5)
    assert changed([truth + noise], edges, 1, generator) == pytest.approx(2 * wrong * (1 - wrong), abs=0.07)


def test_decisions_add_ranks():
    edges = np.array([0, 0, 1, 1])
    means = [np.array([0.1, 0.2, 0.4, 0.3]), np.array([9.0, 1.0, 5.0, 2.0])]
    generator = np.random.default_rng(0)
    assert decisions(means[:1], edges, generator).tolist() == [0, 3]
    assert decisions(means[1:], edges, generator).tolist() == [1, 3]
    assert decisions(means, edges, generator).tolist() == [1, 3]  # 1 + 4 against 2 + 1


def test_precision_study(tmp_path, capsys):
    assert precision(["--networks", "4", "--size", "6", "--json", str(tmp_path / "rows.jsonl")]) == 0
    assert "pairs swapped" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    errors = {(row["kernel"], row["arithmetic"]): row["median_error"] for row in rows}
    for kernel in ("ntk", "metantk"):
        assert errors[kernel, "float32"] < 1e-4
        assert errors[kernel, "split TF32"] < 1e-4
        assert min(errors[kernel, "TF32"], errors[kernel, "bf16"]) > 10 * errors[kernel, "float32"]


def test_the_study_s_kernel_is_the_engine_s(monkeypatch):
    import argparse

    from bench.studies import precision as module

    kept = []
    plain = module.tangent_kernel
    monkeypatch.setattr(
        module, "tangent_kernel", lambda net, x, kind: kept.append((net, x, kind, plain(net, x, kind))) or kept[-1][3]
    )
    measured(argparse.Namespace(data="digits", data_root=None, networks=2, cells=2, channels=16, size=6, seed=0))
    for net, x, kind, theta in kept:
        if kind == "float64":
            assert torch.allclose(theta, ntk(net.double(), x.double()), rtol=1e-10)
            net.float()


def test_operands():
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-12), 0.0, 3.0e38])
    assert tf32(x).tolist() == [1.0, 1 + 2**-10, 1.0, 1 + 2**-9, -1.0, 0.0, pytest.approx(3.0e38, rel=1e-3)]
    y = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    bounds = {"float32": 0.0, "split TF32": 2**-21, "TF32": 2**-11, "bf16": 2**-8}
    for arithmetic, bound in bounds.items():
        found = sum(part.double() for part in split(y, arithmetic))
        assert float(((found - y) / y).abs().max()) <= bound
    a, b = split(y, "split TF32"), split(y.flip(0), "split TF32")
    assert len(products(a, b)) == 3
    assert len(products(a[:1], b[:1])) == 1


def test_cells_without_an_exact_score_are_left_out():
    scores = [Score(4.0), Score(2.0), Score(float("inf"), "singular"), Score(8.0)]
    other = [Score(4.4), Score(2.0), Score(1.0), Score(float("inf"), "singular")]
    found = {(kernel, "float64"): scores for kernel in ("ntk", "metantk")}
    found |= {(kernel, name): other for kernel in ("ntk", "metantk") for name in ("float32", "split TF32", "TF32", "bf16")}
    first = next(iter(table(found)))
    assert (first.cells, first.not_ok, first.spearman, first.pairs_swapped) == (3, 1, 1.0, 0.0)
    assert first.median_error == pytest.approx(0.1)


def test_wide_networks_become_kernel_regression(tmp_path, capsys):
    words = "--widths 8 256 --seeds 2 --tasks 2 --steps 25"
    assert wide([*words.split(), "--json", str(tmp_path / "rows.jsonl")]) == 0
    assert "they shrink as width to the power of -" in capsys.readouterr().out
    narrow, broad = (json.loads(line) for line in (tmp_path / "rows.jsonl").open())
    for name in ("prediction", "unseen_prediction", "kernels"):
        assert broad[name] < narrow[name] / 2, name
        assert broad[name] < 0.05, name
    assert broad["rate"] <= 1 + 1e-9


def test_random_cells_are_all_scored(tmp_path, capsys):
    assert random_cells.main(["--count", "12", "--json", str(tmp_path / "rows.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "0 failures" in printed
    row = next(line for line in printed.splitlines() if line.startswith("naswot"))
    assert sum(map(int, row.split()[1:])) == 12
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert [(row["space"], row["cells"], row["failures"]) for row in rows] == [(s.name, 3, []) for s in random_cells.SPACES]
    assert all(sum(row["statuses"]["ntk"].values()) == 3 for row in rows)


def test_random_cells_of_every_space_are_now_and_then_degenerate():
    for space in random_cells.SPACES:
        found = list(random_cells.cells(space, 400, 0))
        assert sum(times for _, _, times in found) == 400
        assert len({label for label, _, _ in found}) == len(found)
        if space is NAS_BENCH_201:
            assert any(is_disconnected(parse(label)) for label, _, _ in found)
            continue
        cells = [cell for _, genotype, _ in found for _, cell in genotype.cells]
        assert any(set(cell.concat) - {target for _, target, _ in cell.connections} for cell in cells), space.name


def test_a_failing_score_is_named(monkeypatch, capsys):
    def broken(network, data, names):
        if "naswot" in names:
            raise RuntimeError("no such thing")
        return {name: Score(1.0) for name in names}

    monkeypatch.setattr(random_cells, "scores", broken)
    assert random_cells.main(["--count", "4"]) == 1
    printed = capsys.readouterr().out
    assert "few-shot-cell 0: RuntimeError: no such thing" in printed
    assert "4 failures" in printed
