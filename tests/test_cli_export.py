"""The export command: what is written computes what the trained network computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.cli import main
from engine.evaluation.trained import load_trained
from engine.runs.streams import stream

TINY = ["--steps", "2", "--batch", "8", "--channels", "4", "--cells", "2", "--device", "cpu", "--quiet", "--tasks", "5"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    assert main(["train", *TINY, "--network", "metanas-og-v2", "--out", str(place / "cell")]) == 0
    words = [word for word in TINY if word not in ("--tasks", "5")]
    tower = ["--network", "darts-v2", "--size", "32", "--auxiliary", "0.4", "--out", str(place / "tower")]
    assert main(["train", "supervised", *words, *tower]) == 0
    assert main(["train", *TINY, "--network", "res5", "--out", str(place / "res5")]) == 0
    return place


@pytest.mark.parametrize("name", ["cell", "tower", "res5"])
def test_a_program_computes_the_same_for_any_batch(
    runs: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net.pt2"
    assert main(["export", str(runs / name), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    trained = load_trained(runs / name)
    images = torch.randn(5, *trained.shape, generator=stream(0, "images"))
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(out).module()(images), trained.network(images), atol=1e-5, rtol=1e-5)


def test_onnx_computes_the_same(runs: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "net.onnx"
    assert main(["export", str(runs / "cell"), "--to", "onnx", "--out", str(out)]) == 0
    trained = load_trained(runs / "cell")
    images = torch.randn(5, *trained.shape, generator=stream(0, "images"))
    (logits,) = runtime.InferenceSession(str(out)).run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), trained.network(images), atol=1e-4, rtol=1e-4)


def test_onnx_without_its_extra_says_how_to_get_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["export", str(runs / "cell"), "--to", "onnx"]) == 2
    assert "nas-engine[onnx]" in capsys.readouterr().err


def broken(runs: Path, place: Path, **changes: str) -> Path:
    """A copy of a run with some of its files changed."""
    place.mkdir()
    for path in (runs / "cell").glob("*.*"):
        (place / path.name).write_bytes(path.read_bytes())
    for name, content in changes.items():
        path = place / {"config": "config.toml", "result": "result.json", "weights": "weights.safetensors"}[name]
        path.write_text(content)
    return place


def test_what_is_no_trained_network(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (runs / "cell/config.toml").read_text()
    result = json.loads((runs / "cell/result.json").read_text())
    cases = [
        ({"config": 'method = "darts"'}, "not a training"),
        ({"config": "method ="}, "not a TOML file"),
        ({"config": config + 'space = "os:system"\n'}, "may not import code"),
        ({"result": "{}"}, "no finished training"),
        ({"result": json.dumps(result | {"input": [1, 10**9, 8]})}, "no finished training"),
        ({"result": json.dumps(result | {"train_classes": 3})}, "not the weights of this network"),
        ({"weights": "nonsense"}, "cannot read the weights"),
    ]
    for number, (changes, said) in enumerate(cases):
        assert main(["export", str(broken(runs, tmp_path / str(number), **changes))]) == 2
        assert said in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere")]) == 2
    assert main(["export", str(runs / "cell"), "--out", str(tmp_path / "no/where.pt2")]) == 2
    assert "--out" in capsys.readouterr().err
