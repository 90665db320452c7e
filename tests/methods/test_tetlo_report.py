"""What a TETLO search shows: nearest neighbours, and how the two models' errors go together."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torch import Tensor

from engine.data import ImageSet
from engine.learning.ordering import ordered_quadruples
from engine.methods.darts_base import Pass
from engine.methods.darts_data import Halves
from engine.methods.tetlo import Tetlo
from engine.methods.tetlo_options import TetloOptions
from engine.methods.tetlo_report import agreement, nearest, picture
from engine.runs.streams import stream
from engine.search import main

TINY: dict[str, Any] = {
    "device": "cpu",
    "cells": 2,
    "channels": 2,
    "batch": 8,
    "images": 16,
    "epochs": 3,
    "pairs": 20,
    "interval": 2,
}
WORDS = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]


def test_nearest_are_those_of_the_largest_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.methods.tetlo_report.CHUNK", 4)
    features = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    for i, row in enumerate(nearest(features).tolist()):
        c = torch.cosine_similarity(features[i], features, dim=1)
        order = [k for k in c.argsort(descending=True).tolist() if k != i]
        assert row == order[:4]


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_shows_every_image_and_whether_its_class_is_right(channels: int) -> None:
    images = torch.randint(256, (4, channels, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels, names = torch.tensor([0, 0, 1, 1]), ("<a&b>", "c")
    data = ImageSet("toy", images, labels, names, {"train": (0, 1)}, {}, (0.5,) * channels, (0.5,) * channels)
    text = picture(data, [[0, 1, 2], [3, 2, 0]])
    root = ElementTree.fromstring(text)
    assert text.count("<image") == 6
    titles = [node.text for node in root.iter("{http://www.w3.org/2000/svg}title")][1:]
    assert titles == ["<a&b>", "<a&b>", "c", "c", "c", "<a&b>"]
    strokes = re.findall(r'stroke="([#\w]+)"', text)
    assert strokes[0] == strokes[3] == "none"
    assert strokes[1] == strokes[4] != strokes[2] == strokes[5]
    first = base64.b64decode(re.findall(r"base64,([^\"]+)", text)[2])
    pixels = torch.tensor(list(Image.open(io.BytesIO(first)).tobytes())).view(5, 7, channels).permute(2, 0, 1)
    assert torch.equal(pixels, images[2].long())


def test_agreement() -> None:
    def curve(*errors: tuple[float, float]) -> list[dict[str, Any]]:
        return [{"epoch": k, "auxiliary_accuracy": 1 - a, "similarity_error": b} for k, (a, b) in enumerate(errors)]

    assert agreement(curve((0.9, 0.5), (0.8, 0.4), (0.7, 0.3)))["similarity_correlation"] == pytest.approx(1)
    assert agreement(curve((0.9, 0.3), (0.8, 0.4), (0.6, 0.6)))["similarity_correlation"] == pytest.approx(-1)
    assert agreement(curve((0.9, 0.3), (0.8, 0.3), (0.6, 0.3)))["similarity_correlation"] is None
    assert agreement(curve((0.9, 0.3), (0.8, 0.4)))["similarity_correlation"] is None


def test_validation_measures_both_models() -> None:
    options = TetloOptions(**TINY)
    tetlo = Tetlo(options, Halves(options))
    tetlo.iterate(0, 0)
    right, wrong, ordered, count = 0, 0, 0, 0
    for step, batch in enumerate(tetlo.data.plain_validation()):
        where = Pass("validation", 0, step)
        logits = tetlo.auxiliary.model(tetlo.auxiliary.w, tetlo.a, batch.images, where).logits
        right += int((logits.argmax(1) == batch.labels).sum())
        count += len(batch.labels)
        features: Tensor = tetlo.main.model(tetlo.main.w, tetlo.a, batch.images, where).features
        c = torch.cosine_similarity(features[:, None], features[None], dim=2)
        quadruples = ordered_quadruples(batch.labels, 20, stream(0, "validation-pairs", step))
        for x, y, z, w in quadruples.places.T[quadruples.there].tolist():
            wrong += float(c[x, y]) <= float(c[z, w])
            ordered += 1
    found = tetlo.validate(0)
    assert found["auxiliary_accuracy"] == right / count
    assert found["similarity_error"] == pytest.approx(wrong / ordered)


@pytest.mark.parametrize("words", [[], ["--objective", "mtl", "--base", "prdarts", "--cells", "3"]])
def test_search_shows_its_neighbours(words: list[str], tmp_path: Path) -> None:
    run = [*WORDS, "--neighbours", "3", *words, "--quiet", "--out", str(tmp_path)]
    assert main(["tetlo", *run]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [len(row) for row in result["neighbours"]["images"]] == [5, 5, 5]
    assert 0 <= result["neighbours"]["same_class"] <= 1
    assert (tmp_path / "neighbours.svg").read_text().count("<image") == 15
    report = (tmp_path / "report.html").read_text()
    assert "Nearest neighbours among validation images" in report
    assert ("Errors on the validation half" in report) == (not words)
    assert ("similarity_correlation" in result) == (not words)
