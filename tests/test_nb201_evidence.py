from __future__ import annotations

import json

import numpy as np
import pytest

from engine.errors import ConfigurationError, Interrupted, MissingDataError
from engine.evidence import main
from engine.runs import signals
from engine.spaces.nas_bench_201 import every_cell, parse
from engine.spaces.space import NAS_BENCH_201


@pytest.fixture
def table(tmp_path):
    cells = np.array(list(every_cell())[::25], dtype=np.uint8)
    convolutions = (cells == 3).sum(1, keepdims=True) + (cells == 2).sum(1, keepdims=True) / 2.0
    accuracy = np.where((cells == 0).all(1, keepdims=True), 10.0, 60 + 5 * convolutions)
    np.savez(
        tmp_path / "table.npz",
        official_index=np.arange(len(cells)),
        ops=cells,
        op_names=np.array(NAS_BENCH_201.operations),
        edge_order=np.array([f"{source}->{target}" for source, target in NAS_BENCH_201.edges]),
        test_acc_200ep=accuracy,
        datasets=np.array(["cifar10"]),
        zc_names=np.array(["nwot", "params"]),
        zc_index_cifar10=np.arange(3, 11),
        zc_scores_cifar10=np.stack([np.r_[np.inf, np.arange(7.0)], np.arange(8.0)], 1),
    )
    return tmp_path / "table.npz"


SMALL = [
    "--data",
    "digits",
    "--cells",
    "2",
    "--channels",
    "4",
    "--size",
    "6",
    "--batch",
    "4",
    "--tasks",
    "1",
    "--resamples",
    "20",
]


def command(table, out, *more):
    return ["--space", "nas-bench-201", "--benchmark", str(table), *SMALL, "--quiet", "--out", str(out), *more]


def test_evidence_end_to_end(table, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*command(table, out, "--sample", "12", "--seeds", "2")]) == 0
    result = json.loads((out / "result.json").read_text())
    assert (result["method"], result["architectures"], result["repeats"]) == ("correlate", 12, 2)
    scores = result["scores"]
    assert {"naswot", "metantk", "combined"} <= scores.keys()
    for name, found in scores.items():
        value, low, high = (float(part) for part in found["spearman"])
        assert np.isnan(value) or (-1 <= low <= high <= 1 and -1 <= value <= 1), name
        assert {"over_flops", "reliability", "not_ok"} <= found.keys() or name == "flops"
    assert scores["params"]["spearman"][0] > 0.5
    assert scores["params"]["reliability"] == 1.0
    assert {plot["kind"] for plot in result["plots"]} == {"scatter"}
    assert "Rank correlation with test accuracy" in (out / "report.html").read_text()
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [line["repeat"] for line in lines] == [0] * 12 + [1] * 12
    assert len({line["architecture"] for line in lines}) == 12
    assert all(len(parse(line["architecture"])) == 6 for line in lines)


@pytest.mark.parametrize("width", ["1", "2"])
def test_stopped_and_resumed_is_the_same(table, tmp_path, monkeypatch, width):
    arguments = ["--sample", "5", "--metrics", "naswot,ntk", "--architectures-at-once", width]
    assert main(command(table, tmp_path / "whole", *arguments)) == 0

    class Once(signals.Stop):
        checks = 0

        def check(self) -> None:
            self.checks += 1
            if self.checks == 2:
                raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(signals, "Stop", Once)
        with pytest.raises(Interrupted):
            main(command(table, tmp_path / "cut", *arguments))
    assert main([*command(table, tmp_path / "cut", *arguments), "--resume"]) == 0
    whole, cut = ([json.loads(line) for line in (tmp_path / name / "scores.jsonl").open()] for name in ("whole", "cut"))
    for line in [*whole, *cut]:
        del line["plain"], line["kernels"]  # CPU seconds
    assert cut == whole
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "cut")]
    assert results[0]["scores"] == results[1]["scores"]


def test_against_published_scores(table, tmp_path):
    out = tmp_path / "run"
    assert main(command(table, out, "--architectures", "published", "--metrics", "naswot,params")) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["architectures"] == 8
    assert result["published"].keys() >= {"naswot", "params"}


def test_dry_run(table, tmp_path, capsys):
    assert main([*command(table, tmp_path / "run", "--sample", "7"), "--dry-run"]) == 0
    assert "7 of 625" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--metrics", "snap"], ConfigurationError, "--metrics: unknown 'snap'; did you mean 'swap'"),
        (["--sample", "626"], ConfigurationError, "--sample: 626 architectures asked of a table of 625"),
        (["--target", "svhn"], ConfigurationError, "no data set 'svhn', only cifar10"),
        (["--sample", "2"], ConfigurationError, "--sample must be at least 3"),
        (["--benchmark", "no.npz"], MissingDataError, "--benchmark: no.npz is not a file"),
    ],
)
def test_what_cannot_be_done_is_said(table, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        main([*command(table, tmp_path / "run"), *options])
    assert not (tmp_path / "run").exists()


def test_a_table_is_needed(tmp_path):
    with pytest.raises(ConfigurationError, match="--benchmark: name a table"):
        main(["--data", "digits", "--out", str(tmp_path / "run")])
