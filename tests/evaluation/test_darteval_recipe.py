"""The supervised recipe's parts: cutout, windows, hue, schedules, clipping, image splits, intervals, presets."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.data.image_set import ImageSet
from engine.data.loading import load
from engine.errors import ConfigurationError
from engine.evaluation import samples
from engine.evaluation.augment import cutout, hue_shift, random_resized_crop
from engine.evaluation.fitting import build
from engine.evaluation.intervals import wilson
from engine.evaluation.samples import divided, load_samples
from engine.evaluation.schedule import epoch_cosine, epoch_linear
from engine.evaluation.summary import shot_plots
from engine.evaluation.supervised import count_answers
from engine.evaluation.supervised_options import SUPERVISED_PRESETS, SupervisedOptions
from engine.evaluation.supervised_summary import confusion_tables
from engine.evaluation.training import Trainer
from engine.runs.streams import stream


def options(preset: str) -> SupervisedOptions:
    return SupervisedOptions(**SupervisedOptions.preset_values(preset))


@pytest.mark.parametrize("name", SUPERVISED_PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    found = options(name)
    found.validate()
    assert SUPERVISED_PRESETS[name].keys() == SupervisedOptions.preset_values(name).keys()


def test_published_presets() -> None:
    darts, imagenet = options("paper-darts"), options("paper-imagenet")
    assert (darts.cells, darts.channels, darts.batch, darts.length) == (20, 36, 96, (600.0, "epochs"))
    assert (darts.rate, darts.weight_decay, darts.momentum, darts.nesterov, darts.clip) == (0.025, 3e-4, 0.9, False, 5.0)
    assert (darts.drop_path, darts.drop_path_ramp, darts.auxiliary, darts.cutout) == (0.2, True, 0.4, 16)
    assert (darts.label_smoothing, darts.train_on, darts.test_on) == (0.0, "train+val", "test")
    assert (imagenet.cells, imagenet.channels, imagenet.batch, imagenet.rate) == (14, 48, 1024, 0.5)
    assert (imagenet.weight_decay, imagenet.label_smoothing, imagenet.drop_path) == (3e-5, 0.1, 0.0)
    text, table = options("paper-prdarts"), options("paper-prdarts-table")
    assert (text.batch, text.drop_path, table.batch, table.drop_path) == (128, 0.2, 96, 0.3)
    assert options("paper-pdarts-cifar100").weight_decay == 5e-4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_on": "train+val"}, "--test-on val"),
        ({"held_out": 1.0}, "--held-out"),
        ({"clip": 0.0}, "--clip"),
        ({"auxiliary": -0.1}, "--auxiliary"),
        ({"stem": "imagenet", "pool": 2}, "--pool"),
    ],
)
def test_unusable_options(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        SupervisedOptions(**changes).validate()  # type: ignore[arg-type]


def test_cutout_is_one_square_clipped_at_the_border() -> None:
    images = torch.ones(3000, 2, 12, 10)
    holes = cutout(images, stream(0, "c"), side=4) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes[:, 0].sum((1, 2)), rows * columns)
    assert (int(rows.min()), int(rows.max())) == (2, 4)
    # A square of side 4 covers 2, 3, 4 ... 4, 3 of 12 rows for centres 0, 1, 2 ... 10, 11.
    assert float(rows.double().mean()) == pytest.approx((2 + 3 + 9 * 4 + 3) / 12, abs=0.05)
    assert torch.equal(images, torch.ones_like(images))


def test_random_windows_show_a_part_of_the_image() -> None:
    ramp = torch.linspace(0, 255, 32).to(torch.uint8).expand(500, 1, 32, 32)
    cut = random_resized_crop(ramp, stream(0, "w"))
    assert cut.shape == ramp.shape
    spans = cut[:, 0, 0, -1] - cut[:, 0, 0, 0]
    assert float(spans.max()) > 200
    assert float(spans.min()) < 120
    assert float(cut.min()) >= 0
    assert float(cut.max()) <= 255
    assert float(cut.mean()) == pytest.approx(127.5, abs=4)


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=3, max_size=3), st.integers(0, 50))
def test_hue_turns_as_in_hsv(colour: list[int], seed: int) -> None:
    image = torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1)
    turned = hue_shift(image, stream(seed, "h"), strength=0.2).flatten() / 255
    turn = 0.2 * (2 * float(torch.rand(1, 1, 1, generator=stream(seed, "h"))) - 1)
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    wanted = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    torch.testing.assert_close(turned, torch.tensor(wanted), atol=2e-5, rtol=0)


def test_schedules_of_the_published_code() -> None:
    assert [epoch_cosine(epoch, 600) for epoch in (0, 300, 599)] == pytest.approx([1.0, 0.5, 6.85e-6], rel=1e-2)
    shares = [epoch_linear(epoch, 250) for epoch in (0, 3, 4, 5, 100, 244, 245, 249)]
    wanted = [1 / 5, 4 / 5 * 242 / 245, 241 / 245, 240 / 245, 145 / 245, 1 / 245, 5 / 1225, 1 / 1225]
    assert shares == pytest.approx(wanted)
    assert [epoch_linear(epoch, 4) for epoch in range(4)] == [1.0, 0.75, 0.5, 0.25]


def pictures(splits: dict[str, list[int]]) -> ImageSet:
    """Ten images of two classes, every one different."""
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    classes = {"train": (0, 1), "val": (0, 1), "test": (0, 1)}
    parts = {name: torch.tensor(index) for name, index in splits.items()}
    return ImageSet("cifar10", images, torch.arange(10) % 2, ("even", "odd"), classes, parts, (0.1,), (0.3,))


def test_parts_of_a_set_that_is_split_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures({"train": [0, 1, 2, 3], "val": [4, 5], "test": [6, 7, 8, 9]})
    monkeypatch.setattr(samples, "load", lambda *_, **__: data)
    own = SupervisedOptions(data="cifar10")
    assert sorted(load_samples(own).members("train").order.tolist()) == [0, 1, 2, 3]
    assert sorted(load_samples(own).members("test").order.tolist()) == [4, 5]
    whole = load_samples(replace(own, train_on="train+val", test_on="test"))
    assert sorted(whole.members("train").order.tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(whole.members("test").order.tolist()) == [6, 7, 8, 9]


def test_a_set_that_is_split_by_class_is_divided_by_image() -> None:
    data = load("digits")
    found = load_samples(SupervisedOptions(seed=3))
    parts = divided(data, 0.2)
    assert found.sample_splits.keys() == parts.keys()
    assert all(torch.equal(found.sample_splits[name], index) for name, index in parts.items())  # whatever the seed
    train, test = (set(index.tolist()) for index in parts.values())
    assert not train & test
    assert train | test == set(data.members("train").order.tolist())
    counts = [found.members(split).counts for split in ("train", "test")]
    assert torch.equal(counts[1], (0.2 * (counts[0] + counts[1])).round().long())
    with pytest.raises(ConfigurationError, match="--held-out"):
        load_samples(SupervisedOptions(held_out=1e-6))


def test_clipping_bounds_the_step() -> None:
    own = SupervisedOptions(network="res5", steps=2, batch=8, rate=1.0, schedule="epoch-cosine", weight_decay=0.0)
    data = load_samples(own)
    moved = []
    for clip in (None, 1e-3):
        network = build(own, None, data).train()
        before = [p.detach().clone() for p in network.parameters()]
        Trainer(replace(own, clip=clip, nesterov=False), data, network).step(0)
        moved.append(
            float(sum((p.detach() - b).square().sum() for p, b in zip(network.parameters(), before, strict=True)).sqrt())
        )
    assert moved[0] > 0.1
    assert moved[1] == pytest.approx(1e-3, rel=1e-3)


class Knowing(nn.Module):
    """Reads the class off the brightness."""

    def __init__(self, flipped: bool) -> None:
        super().__init__()
        self.flipped = flipped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        odd = (255 * (0.3 * x.mean((1, 2, 3)) + 0.1)).round() % 2
        return torch.stack([odd, 1 - odd] if self.flipped else [1 - odd, odd], 1)


def test_answers_are_counted_by_class() -> None:
    data = pictures({"train": [0, 1], "test": [2, 3, 4, 5, 7, 9]})
    assert count_answers(Knowing(False), data)[0].tolist() == [[2, 0], [0, 4]]
    taken, first = count_answers(Knowing(True), data)
    assert taken.tolist() == [[0, 2], [4, 0]]
    assert first == 6
    matrix, worst = confusion_tables(taken, ["even", "odd"])
    assert matrix["rows"] == [["even", "0", "100"], ["odd", "100", "0"]]
    assert worst["rows"][0] == ["even", "odd", "100 %"]


def test_wilson_interval() -> None:
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == pytest.approx(1.0)
    low, high = wilson(5000, 10000)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * 1.96 * 0.005, rel=1e-3)


def test_accuracy_by_shots_is_drawn_with_intervals() -> None:
    def test(kind: str, mean: float) -> dict[str, object]:
        return {"kind": kind, "accuracies": [{"classifier": "logistic", "mean": mean, "interval": 0.01}]}

    (plot,) = shot_plots([test("5-way 1-shot", 0.5), test("5-way 5-shot", 0.7), test("20-way 1-shot within an alphabet", 0.3)])
    assert [series["name"] for series in plot["series"]] == ["5-way", "20-way within an alphabet"]
    assert plot["series"][0]["x"] == [1, 5]
    assert plot["series"][0]["y"] == [50.0, 70.0]
    assert plot["series"][0]["low"] == pytest.approx([49.0, 69.0])
    assert shot_plots([test("5-way 1-shot", 0.5)]) == []
