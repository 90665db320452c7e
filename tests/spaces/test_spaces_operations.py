from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.errors import ConfigurationError
from engine.spaces import operations
from engine.spaces.norms import norm_factory
from engine.spaces.operations import OPERATIONS, Chain, FactorizedReduce, Identity, operation, register_operation

NONE = norm_factory("none")


@pytest.fixture
def table(monkeypatch):
    """A copy of the table of operations, thrown away at the end."""
    monkeypatch.setattr(operations, "OPERATIONS", dict(OPERATIONS))


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(OPERATIONS)),
    stride=st.sampled_from([1, 2]),
    channels=st.integers(2, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    odd=st.sampled_from(["pad", "unshifted"]),
)
def test_operations_keep_channels_and_round_sizes_up(name, stride, channels, height, width, odd):
    with torch.device("meta"):
        module = operation(name).build(channels, stride, NONE, odd)
        y = module(torch.empty(2, channels, height, width))
    assert y.shape == (2, channels, -(-height // stride), -(-width // stride))


def reduce(x: list[list[float]], odd: str) -> list:
    """FactorizedReduce with weights one: the first channel is the map at even places, the second the shifted map."""
    module = FactorizedReduce(1, 2, NONE, odd)
    for conv in module.convs:
        conv.weight.data.fill_(1)
    return module(torch.tensor([[x]]))[0].tolist()


def test_factorized_reduce_shifts_even_maps_by_one_pixel():
    x = [[1.0, 2, 3, 4], [5, 6, 7, 8]]
    assert reduce(x, "pad") == reduce(x, "unshifted") == [[[1, 3]], [[6, 8]]]


def test_factorized_reduce_at_odd_sizes():
    x = [[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert reduce(x, "pad") == [[[1, 3], [7, 9]], [[5, 0], [0, 0]]]
    assert reduce(x, "unshifted") == [[[1, 3], [7, 9]], [[1, 3], [7, 9]]]


def test_factorized_reduce_splits_odd_widths():
    assert [conv.out_channels for conv in FactorizedReduce(3, 5, NONE).convs] == [2, 3]


@pytest.mark.parametrize(("channels", "odd", "message"), [(1, "pad", "at least 2, got 1"), (2, "crop", "odd: 'crop'")])
def test_factorized_reduce_refuses(channels, odd, message):
    with pytest.raises(ConfigurationError, match=message):
        FactorizedReduce(2, channels, NONE, odd)


def test_skip_is_the_identity_at_stride_one_only():
    assert isinstance(operation("skip_connect").build(4, 1, NONE, "pad"), Identity)
    assert isinstance(operation("skip_connect").build(4, 2, NONE, "pad"), FactorizedReduce)
    assert [operation("skip_connect").reads_relu(stride) for stride in (1, 2)] == [False, True]


def test_unknown_operation_lists_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"^operation: unknown 'conv_7x7'; known are skip_connect, "):
        operation("conv_7x7")


@pytest.mark.usefixtures("table")
def test_registered_operation_is_found():
    register_operation("linear", lambda c, s, norm, odd: Chain([nn.Conv2d(c, c, 1, s), norm(c)]), reads_relu=False)
    assert not operation("linear").reads_relu(2)
    assert operation("linear").build(3, 2, NONE, "pad")(torch.ones(1, 3, 5, 5)).shape == (1, 3, 3, 3)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("name", ["skip_connect", "none", "my.conv", "", "keys", "forward"])
def test_names_that_cannot_be_registered(name):
    with pytest.raises(ConfigurationError, match=f"^operation '{name}' "):
        register_operation(name, lambda *_: Identity(), reads_relu=False)
