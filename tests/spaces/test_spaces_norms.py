from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.runs.streams import stream
from engine.spaces.norms import NORMS, BatchStatistics, NoNorm, group_norm, is_stateless, norm_factory


def batch(*shape: int) -> torch.Tensor:
    return 3 + 2 * torch.randn(shape, generator=stream(0, "norms"), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 1, 3, 3), (12, 4, 5, 2), (6, 3, 1, 1)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_batch_statistics_are_those_of_each_group(shape, groups):
    x = batch(*shape)
    expected = torch.cat([F.batch_norm(part, None, None, training=True) for part in x.chunk(groups)])
    torch.testing.assert_close(BatchStatistics(shape[1])(x, groups), expected, rtol=1e-12, atol=1e-12)


def test_batch_statistics_of_a_single_value_are_zero():
    assert BatchStatistics(2)(batch(1, 2, 1, 1)).tolist() == [[[[0]], [[0]]]]


def test_batch_statistics_take_channels_last():
    x = batch(6, 4, 3, 3)
    y = BatchStatistics(4)(x.contiguous(memory_format=torch.channels_last), 2)
    torch.testing.assert_close(y, BatchStatistics(4)(x, 2), rtol=1e-12, atol=1e-12)


def test_running_statistics_belong_to_one_network():
    norm = norm_factory("batchnorm")(4).double()
    x = batch(6, 4, 3, 3)
    torch.testing.assert_close(norm(x), BatchStatistics(4)(x), rtol=1e-12, atol=1e-12)
    assert norm.running_mean.abs().min() > 0
    with pytest.raises(ValueError, match="groups=2"):
        norm(x, 2)


@pytest.mark.parametrize(("channels", "groups", "count"), [(48, 16, 16), (4, 16, 4), (1, 16, 1), (64, 32, 32)])
def test_group_norm_has_at_most_a_group_a_channel(channels, groups, count):
    x = batch(2, channels, 3, 3)
    norm = group_norm(channels, groups=groups)
    assert norm.num_groups == count
    assert torch.equal(norm(x, 2), F.group_norm(x, count))


def test_group_norm_that_cannot_divide_names_the_remedy():
    with pytest.raises(ConfigurationError, match=r"^channels: 24 cannot be divided into the 16 groups .* a multiple of 16$"):
        norm_factory("groupnorm16")(24)


def test_unknown_norm_lists_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"^norm: unknown 'layernorm'; known are groupnorm16, "):
        norm_factory("layernorm")


def test_what_owns_nothing_is_stateless():
    stateless = {name for name in NORMS if is_stateless(NORMS[name](16))}
    assert stateless == {"groupnorm16", "groupnorm32", "instancenorm", "batchstat", "batchstat-trained", "none"}
    x = batch(2, 4, 3, 3)
    assert NoNorm(4)(x) is x
