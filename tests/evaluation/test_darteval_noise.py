"""Cells of S4 as networks: noise that is fresh in every pass, drawn by address, in the test too."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from engine.cli import main
from engine.evaluation.networks import make_network
from engine.evaluation.noise import has_units, noise_lanes
from engine.evaluation.supervised_options import SupervisedOptions
from engine.runs.streams import stream
from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.network import CellNetwork

TINY = ("--channels", "4", "--cells", "3", "--batch", "16", "--held-out", "0.05", "--device", "cpu", "--quiet")


def cell(*operations: str) -> CellGenotype:
    return CellGenotype(tuple(Connection(j, 2 + i, operations[2 * i + j]) for i in range(4) for j in (0, 1)), (2, 3, 4, 5))


MIXED = cell("noise", "sep_conv_3x3", "sep_conv_3x3", "noise", "noise", "noise", "sep_conv_3x3", "sep_conv_3x3")
GENOTYPE = Genotype("darts-s4", (("normal", MIXED), ("reduction", MIXED)))


def network(pool: int = 1, stem: str = "plain") -> CellNetwork:
    options = SupervisedOptions(channels=4, cells=3, pool=pool, stem=stem)  # type: ignore[arg-type]
    found = make_network(
        options, GENOTYPE, classes=5, channels_in=3, size=16, generator=stream(0, "weights"), noise=options.draws_noise
    )
    assert isinstance(found, CellNetwork)
    return found.eval()


@pytest.mark.parametrize(("pool", "stem"), [(1, "plain"), (2, "plain"), (1, "imagenet")])
def test_noise_is_repeated_by_its_address(pool: int, stem: str) -> None:
    model = network(pool, stem)
    assert has_units(model)
    images = torch.randn(2, 3, 33, 33, generator=stream(0, "images"))

    def logits(seed: int, step: int) -> torch.Tensor:
        return model.training_logits(images, noise_lanes(model, images, partial(stream, seed), ("train", step)))[0]

    with torch.no_grad():
        assert torch.equal(logits(0, 1), logits(0, 1))
        assert not torch.equal(logits(0, 1), logits(0, 2))
        assert not torch.equal(logits(0, 1), logits(1, 1))


def test_an_edge_of_noise_adds_normal_numbers() -> None:
    model = network()
    images = torch.zeros(8, 3, 16, 16)
    lane = noise_lanes(model, images, partial(stream, 0), ("train", 0))[0]
    terms = [edge["unit"].weight for edge in lane.edges if "unit" in edge]
    assert [tuple(weight.shape) for weight in terms if weight is not None] == [(8, 4, 16, 16)] * 4
    drawn = torch.stack([weight for weight in terms if weight is not None])
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(drawn[0], drawn[1])


def test_it_is_trained_and_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s4.json").write_text(GENOTYPE.to_json())
    words = ["train", "supervised", "--network", "s4.json", "--steps", "2", "--drop-path", "0.3", *TINY]
    assert main([*words, "--out", "a"]) == 0
    assert main([*words, "--out", "b"]) == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in "ab"]
    assert results[0]["error"] == results[1]["error"]
    assert (tmp_path / "a/weights.safetensors").read_bytes() == (tmp_path / "b/weights.safetensors").read_bytes()
    assert results[0]["genotype"]["space"] == "darts-s4"
    for other in (["train", "--network", "s4.json", *TINY[:4], "--steps", "2"], ["export", "a"]):
        assert main(other) == 2
        assert "draws noise in every pass" in capsys.readouterr().err
