"""DropBlock as RFS trains its ResNet-12: squares, rates, schedule, addresses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from engine.data.loading import load
from engine.errors import ConfigurationError
from engine.evaluation.drop_block import RAMP, drop_block_logits, drop_squares
from engine.evaluation.fitting import build
from engine.evaluation.options import RFSOptions
from engine.evaluation.training import Trainer
from engine.runs.streams import stream
from engine.spaces.darts import PUBLISHED
from engine.spaces.networks import ResNet12

OWN = RFSOptions(network="resnet12", drop_block=0.1, steps=4, batch=4)


def small() -> ResNet12:
    return ResNet12(3, channels_in=1, widths=(4, 4, 4, 4), running=True)


def test_squares_are_dropped_and_the_rest_is_scaled() -> None:
    dropped = drop_squares(torch.ones(40, 8, 10, 10), 0.1, stream(0, "d"))
    kept = dropped > 0
    share = float(kept.double().mean())
    assert 0.9 < share < 0.93  # overlaps lose a little of the rate
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 1 / share))
    holes = (~kept).float()
    squares = F.conv2d(holes.flatten(0, 1)[:, None], torch.ones(1, 1, 5, 5)) == 25  # places where a whole square is dropped
    covered = F.max_pool2d(F.pad(squares.float(), (4, 4, 4, 4)), 5, stride=1)
    assert torch.equal(covered[:, 0].view_as(holes), holes)  # every hole is made of squares of side 5


def test_small_maps_lose_whole_channels() -> None:
    x = torch.rand(500, 6, 2, 2) + 1
    dropped = drop_squares(x, 0.2, stream(0, "d"))
    gone = (dropped == 0).flatten(2)
    assert torch.equal(gone.any(2), gone.all(2))
    assert float(gone.double().mean()) == pytest.approx(0.2, abs=0.03)


def test_nothing_left_of_a_batch_leaves_it_as_it_is() -> None:
    x = torch.rand(2, 3, 2, 2)
    assert torch.equal(drop_squares(x, 1.0, stream(0, "d")), x)


def test_the_schedule_rises_over_40000_steps() -> None:
    network, images = small().eval(), torch.randn(1, 1, 32, 32, generator=stream(0, "x")).expand(64, -1, -1, -1)
    maps: list[torch.Tensor] = []
    network.layer4.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    with torch.no_grad():
        for step in (0, RAMP // 2, RAMP, 10 * RAMP):
            drop_block_logits(network, images, 0.5, step, stream(0, "d"))
    zeros = [float((x == 0).double().mean()) for x in maps]
    assert zeros[0] < 0.01
    assert zeros[1] == pytest.approx(0.25, abs=0.07)
    assert zeros[2] == zeros[3]
    assert zeros[2] == pytest.approx(0.5, abs=0.09)


def test_draws_belong_to_their_step() -> None:
    network, images = small().eval(), torch.randn(4, 1, 32, 32, generator=stream(0, "x"))
    first, again, other = (drop_block_logits(network, images, 0.3, 5, stream(0, "drop-block", n)) for n in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_trainer_drops_in_training_only() -> None:
    data = load("digits", size=16)
    network = small()
    network.classifier = torch.nn.Linear(4, 24)
    trainer = Trainer(OWN, data, network.train())
    images, _ = trainer.batch(0)
    plain, dropped = network(images), trainer._logits(images, 0)[0]
    assert not torch.equal(plain, dropped)
    trainer.step(0)
    assert bool(network.layer1.conv1.weight.isfinite().all())


def test_other_networks_refuse_it() -> None:
    with pytest.raises(ConfigurationError, match="--drop-block is for resnet12"):
        replace(OWN, network="res5").validate()
    with pytest.raises(ConfigurationError, match="--compile"):
        replace(OWN, compile=True).validate()
    with pytest.raises(ConfigurationError, match="--auxiliary: res5 has no auxiliary tower"):
        replace(OWN, network="res5", drop_block=0.0, auxiliary=0.4).validate()


def test_a_compiled_pass_takes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch.compile's tracing alone: code generation needs a compiler and half a minute."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: plain(function, backend="eager"))
    own = RFSOptions(network="darts-v2", channels=2, cells=1, steps=2, batch=4, auxiliary=0.0)
    data, weights = load("digits"), []
    for compiled in (False, True):
        trainer = Trainer(replace(own, compile=compiled), data, build(own, PUBLISHED["darts-v2"], data).train())
        trainer.step(0)
        weights.append(trainer.network.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
