"""The fixed networks: sizes of the reference note, purity, and what a batch does to its neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, vmap

from engine.errors import ConfigurationError
from engine.spaces.networks import MLP, NETWORKS, WRN28, Conv4, ResNet12, SinusoidMLP, build_network


def weights(model: torch.nn.Module, kinds: tuple[type, ...] = (torch.nn.Conv2d, torch.nn.Linear)) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, kinds))


@pytest.mark.parametrize(("factor", "masked"), [(1, 245_760), (2, 581_632), (4, 1_523_712), (8, 4_489_216)], ids=lambda v: str(v))
def test_omniglot_mlp_has_the_published_weights(factor: int, masked: int) -> None:
    model = build_network("5-mlp", outputs=5, channels_in=1, size=28, factor=factor)
    assert weights(model.features) == masked
    assert model.classifier.weight.numel() == 320 * factor


def test_colour_mlp_has_the_published_weights() -> None:
    model = build_network("5-mlp", outputs=5, channels_in=3, size=32)
    assert [block.linear.weight.numel() for block in model.features] == [3145728, 524288, 131072, 32768]
    assert model.classifier.weight.numel() == 640


def test_convolutional_networks_have_the_published_weights() -> None:
    with torch.device("meta"):
        assert weights(ResNet12(5), (torch.nn.Conv2d,)) == 7_989_120
        assert round(weights(WRN28(5, k=10), (torch.nn.Conv2d,)) / 1e6, 2) == 36.45
        assert round(weights(WRN28(5, k=5), (torch.nn.Conv2d,)) / 1e6, 2) == 9.12
        assert ResNet12(5, widths=(64, 160, 320, 640)).classifier.in_features == 640


@given(st.sampled_from(sorted(NETWORKS)), st.integers(1, 3), st.sampled_from([1, 3]), st.sampled_from([16, 20]))
@settings(max_examples=15, deadline=None)
def test_every_network_takes_its_images(name: str, samples: int, channels: int, size: int) -> None:
    with torch.device("meta"):
        model = build_network(name, outputs=4, channels_in=channels, size=size)
        images = torch.empty(2 * samples, channels, size, size)
        assert model(images).shape == (2 * samples, 4)
        assert model.embed(images).shape == (2 * samples, model.classifier.in_features)


@pytest.mark.parametrize("model", [Conv4(3, channels_in=1, size=16, width=4), ResNet12(3, widths=(2, 2, 2, 2)), MLP(12, [5], 3)])
def test_networks_keep_no_state_unless_asked(model: torch.nn.Module) -> None:
    assert not list(model.buffers())


def test_running_statistics_are_kept_when_asked() -> None:
    model = Conv4(3, channels_in=1, size=16, width=4, running=True)
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    before = model.eval()(images[:2])
    model.train()(images)
    assert not torch.equal(model.eval()(images[:2]), before)
    torch.testing.assert_close(model(images)[:2], model(images[:2]))


def test_tasks_do_not_see_each_other_under_vmap() -> None:
    model = ResNet12(3, channels_in=1, widths=(3, 3, 3, 3)).double()
    params = dict(model.named_parameters())
    x = torch.rand(2, 4, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(parameters: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, (images,)).square().mean()

    together = vmap(grad(loss), in_dims=(None, 0))(params, x)
    for task in range(2):
        alone = grad(loss)(params, x[task])
        for name in params:
            torch.testing.assert_close(together[name][task], alone[name])


def test_wide_resnet_halves_the_image_twice() -> None:
    with torch.device("meta"):
        assert WRN28(5, k=1).features(torch.empty(2, 3, 32, 32)).shape == (2, 64, 8, 8)


def test_sinusoid_network_regresses_one_number() -> None:
    assert SinusoidMLP(2)(torch.zeros(10, 1)).shape == (10, 1)
    assert SinusoidMLP().hidden2.weight.shape == (40, 40)


def test_refusals() -> None:
    with pytest.raises(ConfigurationError, match="unknown 'resnet13'"):
        build_network("resnet13", outputs=5, channels_in=3, size=32)
    with pytest.raises(ConfigurationError, match="at least 16"):
        Conv4(5, size=8)
