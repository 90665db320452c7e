"""The recipe's numbers: schedules, drop-path, augmentation, the optimiser, presets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.data.image_set import ImageSet
from engine.data.loading import load
from engine.errors import ConfigurationError
from engine.evaluation.augment import PIPELINES, augment, colour_jitter, random_affine, reflect_crop
from engine.evaluation.drop_path import drop_path_lanes, droppable
from engine.evaluation.options import PRESETS, RFSOptions
from engine.evaluation.schedule import cosine, drop_path_probability, step_decay
from engine.evaluation.sgd import SGD
from engine.runs.streams import stream
from engine.spaces.cells import Cell
from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.network import CellNetwork, build_network

CONNECTIONS = (Connection(0, 2, "sep_conv_3x3"), Connection(1, 2, "skip_connect"), Connection(2, 3, "avg_pool_3x3BN"))
CELL = CellGenotype(CONNECTIONS, (2, 3))
GENOTYPE = Genotype("few-shot-cell", (("normal", CELL), ("reduction", CELL)))


def network(cells: int = 3) -> CellNetwork:
    return build_network(GENOTYPE, channels=8, classes=4, cells=cells)


def options(preset: str) -> RFSOptions:
    return RFSOptions(**RFSOptions.preset_values(preset))


def test_cosine_rises_then_falls_to_zero() -> None:
    rates = [cosine(progress, warmup=0.15) for progress in (0.0, 0.075, 0.15, 0.575, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


def test_step_decay_at_the_published_epochs() -> None:
    assert [step_decay(epoch, (60, 80)) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_drop_path_ramp() -> None:
    assert [drop_path_probability(0.2, epoch, 100, ramp=True) for epoch in (0, 50, 99)] == pytest.approx([0, 0.1, 0.198])
    assert drop_path_probability(0.1, 3, 60, ramp=False) == 0.1


def test_published_presets() -> None:
    mini, tiered = options("paper-mini-8"), options("paper-tiered-5")
    assert (mini.channels, mini.cells, mini.batch, mini.budget, mini.rate) == (48, 8, 40, "100epochs", 0.02)
    assert (mini.milestone_epochs, mini.drop_path, mini.drop_path_ramp) == ([60, 80], 0.2, True)
    assert (tiered.batch, tiered.length, tiered.rate, tiered.milestone_epochs) == (64, (60.0, "epochs"), 0.01, [30, 40, 50])
    assert (tiered.drop_path, tiered.drop_path_ramp) == (0.1, False)
    assert (tiered.support_views, tiered.tasks, tiered.queries) == (5, 1000, 50)
    assert (mini.momentum, mini.weight_decay, mini.nesterov, mini.label_smoothing) == (0.9, 5e-4, False, 0.0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    found = options(name)
    found.validate()
    assert PRESETS[name].keys() == {key for key in PRESETS[name] if hasattr(found, key)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget", "600"),
        ("budget", "0s"),
        ("budget", "1.5epochs"),
        ("tests", "5x1"),
        ("tests", "1w1s"),
        ("classifiers", "forest"),
        ("milestones", "6o"),
        ("drop_path", 1.0),
        ("penalty", 0.0),
        ("steps", 0),
        ("split", "alphabets"),
        ("rotations", True),
    ],
)
def test_unusable_options(field: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=field.replace("_", "-")):
        RFSOptions(**{field: value}).validate()


def test_affine_without_freedom_is_the_identity() -> None:
    images = torch.randint(256, (3, 2, 9, 9), dtype=torch.uint8)
    moved = random_affine(images, stream(0, "a"), degrees=0, scale=0, stretch=0, shift=0)
    torch.testing.assert_close(moved, images.float(), atol=1e-3, rtol=0)


def test_affine_shifts_by_pixels() -> None:
    images = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 13:15, 13:15] = 255
    moved = random_affine(images, stream(0, "a"), degrees=0, scale=0, stretch=0, shift=2.0)
    places = torch.arange(28.0)
    mass = moved.sum((1, 2, 3))
    centre = (moved.sum((1, 2)) * places).sum(-1) / mass - 13.5
    assert 1.7 < float(centre.abs().max()) <= 2.01
    assert float(centre.std()) == pytest.approx(4 / 12**0.5, rel=0.15)


def test_affine_turns_about_the_centre() -> None:
    images = torch.zeros(64, 1, 21, 21, dtype=torch.uint8)
    images[:, :, 10, 14:20] = 255
    moved = random_affine(images, stream(0, "a"), degrees=90, scale=0, stretch=0, shift=0)[:, 0]
    grid = torch.arange(21.0) - 10
    x, y = (moved.sum(1) * grid).sum(-1) / moved.sum((1, 2)), (moved.sum(2) * grid).sum(-1) / moved.sum((1, 2))
    torch.testing.assert_close((x**2 + y**2).sqrt(), torch.full((64,), 6.5), atol=0.3, rtol=0)


def test_colours_of_other_images_than_rgb() -> None:
    """Grey images have a brightness and no hue; of images with two channels nobody knows the colours."""
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(8, 1, 16, 16)
    made = ImageSet("made", grey, torch.zeros(8, dtype=torch.int64), ("a",), {"train": (0,)}, {}, (0.5,), (0.5,))
    for name in PIPELINES:
        assert augment(made, grey, name, stream(0, "a")).shape == grey.shape
    two = ImageSet("made", grey.expand(8, 2, 16, 16), made.labels, ("a",), {"train": (0,)}, {}, (0.5, 0.5), (0.5, 0.5))
    with pytest.raises(ConfigurationError, match=r"--augmentation rfs changes colours, but made has 2 channels"):
        augment(two, two.images, "rfs", stream(0, "a"))


def test_reflected_crop_keeps_size_and_type_and_moves() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(50, 3, 16, 16)
    assert reflect_crop(images[..., :3, :3], stream(0, "a"), padding=4).shape[-2:] == (3, 3)
    cropped = reflect_crop(images, stream(0, "a"), padding=4)
    assert cropped.shape == images.shape
    assert cropped.dtype == torch.uint8
    assert not torch.equal(cropped, images)
    assert len({tuple(image.flatten().tolist()) for image in cropped}) > 25


def test_colour_jitter_statistics() -> None:
    images = torch.full((4000, 3, 2, 2), 100, dtype=torch.uint8)
    changed = colour_jitter(images, stream(0, "a"), strength=0.4)
    level = changed.mean((1, 2, 3))  # contrast and saturation leave a flat grey image alone
    assert float(level.min()) >= 60
    assert float(level.max()) <= 140
    assert float(level.mean()) == pytest.approx(100, abs=1.5)
    assert float(level.std()) == pytest.approx(80 / 12**0.5, rel=0.05)


def test_saturation_zero_would_be_grey() -> None:
    red = torch.zeros(500, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 200
    changed = colour_jitter(red, stream(0, "a"), strength=0.4)
    spread = changed.amax(1) - changed.amin(1)
    assert float(spread.min()) < 150 < 190 < float(spread.max())


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_give_normalised_images_by_address(name: str) -> None:
    data = load("digits", size=16)
    images = data.images[:20].expand(-1, 3, -1, -1) if name in ("rfs", "imagenet") else data.images[:20]
    mean, std = data.mean * images.shape[1], data.std * images.shape[1]
    shown = replace(data, images=images, labels=data.labels[:20], mean=mean, std=std)
    first, again = (augment(shown, images, name, stream(1, "augment", 5)) for _ in range(2))
    other = augment(shown, images, name, stream(1, "augment", 6))
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "none")
    assert -3 < float(first.mean()) < 3


def test_sgd_is_torchs() -> None:
    for nesterov in (False, True):
        mine, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
        theirs.load_state_dict(mine.state_dict())
        own = SGD(mine, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
        peer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
        for step in range(4):
            x = torch.randn(5, 3, generator=stream(0, "x", step))
            mine(x).square().sum().backward()
            own.step(0.1)
            peer.zero_grad()
            theirs(x).square().sum().backward()
            peer.step()
        torch.testing.assert_close(mine.weight, theirs.weight)
        torch.testing.assert_close(mine.bias, theirs.bias)


def test_drop_path_leaves_identities_alone() -> None:
    cell = network().cells[0]
    assert isinstance(cell, Cell)
    assert droppable(cell, network().lanes["normal"]) == {(0, "sep_conv_3x3"), (4, "avg_pool_3x3BN")}
    reduction = network().cells[1]
    assert isinstance(reduction, Cell)
    assert (1, "skip_connect") in droppable(reduction, network().lanes["reduction"])


def test_drop_path_of_nothing_is_the_plain_pass() -> None:
    net = network().eval()
    images = torch.randn(6, 3, 8, 8)
    torch.testing.assert_close(net.training_logits(images, drop_path_lanes(net, images, 0.0, stream(0, "d")))[0], net(images))


def test_drop_path_keeps_the_expected_sum_and_drops_by_image() -> None:
    net = network(cells=1).eval()
    images = torch.randn(1, 3, 8, 8).expand(4000, -1, -1, -1)
    with torch.no_grad():
        dropped = net.pooled(images[:1], net.lanes)
        rows = net.training_logits(images, drop_path_lanes(net, images, 0.3, stream(0, "d")))[0]
    assert dropped.shape == (1, 16)
    patterns = rows.round(decimals=4).unique(dim=0)
    assert len(patterns) == 4  # two operations, each there or not
    plain = net(images[:1]).detach()
    torch.testing.assert_close(rows.mean(0, keepdim=True), plain, atol=0.05, rtol=0.05)
