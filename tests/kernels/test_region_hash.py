from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kernels.regions import DTYPES, count_distinct, fold_signs, fold_signs_reference
from engine.runs.streams import stream
from engine.scoring.regions import linear_regions


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-region-hash", address)).to(dtype)


def some_state(samples: int, lanes: int) -> Tensor:
    state = torch.randint(-(2**63), 2**63 - 1, (samples, lanes), generator=stream(0, "test-region-hash", "state"))
    return state[:, 0] if lanes == 1 else state


def hash_by_the_book(bits: list[bool], salt: int, lane: int, state: int) -> int:
    """The formula of the module's docstring in unbounded integers, from the bit string."""
    g, size = 0x9E3779B97F4A7C15, 2**64

    def mix(z: int) -> int:
        z %= size
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % size
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % size
        return z ^ (z >> 31)

    words = [sum(2**i for i, bit in enumerate(bits[start : start + 64]) if bit) for start in range(0, len(bits), 64)]
    seed = mix((2 * salt + lane + 1) * g)
    return mix(state + len(bits) * g + sum(mix(word ^ mix(seed + (k + 1) * g)) for k, word in enumerate(words)))


SIZES = st.integers(0, 200)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), SIZES, st.integers(0, 2**62 - 1), st.sampled_from([1, 2]))
def test_reference_and_cpu_path_follow_the_formula(samples: int, neurons: int, salt: int, lanes: int) -> None:
    x, state = noise(samples, neurons), some_state(samples, lanes)
    expected = [
        [hash_by_the_book((row > 0).tolist(), salt, lane, int(old)) for lane, old in enumerate(states)]
        for row, states in zip(x, state.reshape(samples, lanes), strict=True)
    ]
    for fold in (fold_signs, fold_signs_reference):
        found = fold(state, x, salt)
        assert found.shape == state.shape
        assert [[value % 2**64 for value in row] for row in found.reshape(samples, lanes).tolist()] == expected


def test_known_hash() -> None:
    """Hashes written down today are comparable tomorrow."""
    alternating = torch.tensor([[1.0, -1.0] * 50])
    assert fold_signs(torch.zeros(1, 2, dtype=torch.int64), alternating, 3).tolist() == [KNOWN]


KNOWN = [8663869776218631975, -144075832509737678]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(5, 9), (4, 3, 5, 7), (2, 1, 1, 1), (6, 64), (2, 130), (3, 0), (0, 8), (2, 5, 123, 17)]),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 2]),
    st.sampled_from([0.0, 0.1, 6.0, -1.0]),
    st.booleans(),
)
def test_cpu_path_equals_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, lanes: int, threshold: float, gated: bool
) -> None:
    x, state = 3 * noise(*shape, dtype=dtype), some_state(shape[0], lanes)
    gate = torch.tensor([True, False])[: 1 + (shape[0] % 2 == 0)] if gated else None
    found = fold_signs(state, x, 7, gate, threshold=threshold)
    assert torch.equal(found, fold_signs_reference(state, x, 7, gate, threshold))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_strictly_above_the_threshold(dtype: torch.dtype) -> None:
    smallest = torch.tensor(torch.finfo(dtype).smallest_normal, dtype=dtype)
    values = torch.stack([-smallest, -smallest * 0, smallest * 0, smallest, smallest * math.nan, smallest * math.inf])
    assert (
        fold_signs(torch.zeros(1).long(), values[None], 0).tolist()
        == fold_signs(torch.zeros(1).long(), torch.tensor([[-1.0, -1, -1, 1, -1, 1]]), 0).tolist()
    )
    at = torch.tensor([[0.1]]).to(dtype)
    assert torch.equal(*(fold_signs(torch.zeros(1).long(), value, 0, threshold=0.1) for value in (at, at - 1)))


def test_memory_format_does_not_matter() -> None:
    x, state = noise(4, 6, 5, 7), some_state(4, 2)
    expected = fold_signs(state, x, 1)
    wide = torch.full((8, 6, 5, 14), math.nan)
    wide[::2, :, :, 1::2] = x
    for same in (
        x.contiguous(memory_format=torch.channels_last),
        wide[::2, :, :, 1::2],
        x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1),
    ):
        assert torch.equal(fold_signs(state, same, 1), expected)


def test_state_may_have_any_strides() -> None:
    x, state, gate = noise(4, 10), some_state(4, 2), torch.tensor([True, False])
    found = fold_signs(state.mT.contiguous().mT, x, 1, gate)
    assert found.is_contiguous()
    assert torch.equal(found, fold_signs(state, x, 1, gate))


def test_gate_leaves_dead_groups_alone() -> None:
    x, state = noise(6, 10), some_state(6, 1)
    before = state.clone()
    found = fold_signs(state, x, 1, torch.tensor([True, False, True]))
    whole = fold_signs(state, x, 1)
    assert torch.equal(found[2:4], state[2:4])
    assert torch.equal(found[[0, 1, 4, 5]], whole[[0, 1, 4, 5]])
    assert not (whole == state).any()
    assert torch.equal(state, before)


def test_first_lane_is_the_64_bit_hash_and_the_second_another() -> None:
    x, state = noise(5, 100), some_state(5, 2)
    found = fold_signs(state, x, 9)
    assert torch.equal(found[:, 0], fold_signs(state[:, 0], x, 9))
    assert not (
        fold_signs(torch.zeros(5, 2).long(), x, 9).unbind(1)[0] == fold_signs(torch.zeros(5, 2).long(), x, 9).unbind(1)[1]
    ).any()


def test_order_salt_place_and_length_count() -> None:
    zero, a, b = torch.zeros(1).long(), noise(1, 70), noise(1, 70, address=1)
    c = torch.cat([a[:, 64:], a[:, :64]], 1)
    two_words = torch.cat([a[:, :64], b[:, :64]], 1)
    hashes = [
        fold_signs(fold_signs(zero, a, 0), b, 1),
        fold_signs(fold_signs(zero, b, 0), a, 1),
        fold_signs(fold_signs(zero, b, 1), a, 0),
        fold_signs(fold_signs(zero, a, 1), b, 1),
        fold_signs(fold_signs(zero, b, 1), a, 1),
        fold_signs(zero, a, 0),
        fold_signs(zero, c, 0),
        fold_signs(zero, two_words, 0),
        fold_signs(zero, two_words.roll(64, 1), 0),
        *(fold_signs(zero, -torch.ones(1, n), 0) for n in (0, 1, 64, 65)),
    ]
    assert len({int(h) for h in hashes}) == len(hashes)


def test_sparse_patterns_do_not_collide_and_bits_are_fair() -> None:
    """All patterns of at most two active neurons among 150, over three words: the pairs that a weak mix would confuse."""
    places = [(i, i) for i in range(150)] + list(itertools.combinations(range(150), 2))
    x = torch.zeros(1 + len(places), 150)
    for row, pair in zip(x[1:], places, strict=True):
        row[list(pair)] = 1.0
    hashes = fold_signs(torch.zeros(len(x)).long(), x, 0)
    assert count_distinct(hashes, 1).tolist() == [len(x)]
    ones = torch.stack([(hashes >> bit) & 1 for bit in range(64)], 1).double()
    five_sigma = 5 / (2 * math.sqrt(len(x)))
    assert (ones.mean(0) - 0.5).abs().max() < five_sigma
    assert abs((ones[1:151] - ones[0]).abs().mean() - 0.5) < 5 / (2 * math.sqrt(150 * 64))


def test_counts_equal_the_exact_patterns_of_a_network() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        for address, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * noise(*parameter.shape, address=address))
    samples = noise(300, 1, 1, 1, address=9) + 0.01 * noise(300, 1, 3, 3, address=10)
    first = model[0](samples)
    state = fold_signs(torch.zeros(300).long(), first, 0)
    state = fold_signs(state, model[2](F.relu(first)), 1)
    exact = [score.value for score in linear_regions(model, samples, groups=3)]  # type: ignore[union-attr]
    assert count_distinct(state, 3).tolist() == exact
    assert all(1 < count < 100 for count in exact)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 6), st.sampled_from([1, 2]), st.data())
def test_count_distinct(groups: int, samples: int, lanes: int, data: st.DataObject) -> None:
    values = st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1])
    rows = data.draw(st.lists(st.tuples(*[values] * lanes), min_size=groups * samples, max_size=groups * samples))
    state = torch.tensor(rows, dtype=torch.int64).reshape((-1,) if lanes == 1 else (-1, 2))
    expected = [len(set(rows[g * samples : (g + 1) * samples])) for g in range(groups)]
    found = count_distinct(state, groups)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


@pytest.mark.parametrize("gated", [False, True])
def test_operator_is_registered_soundly(gated: bool) -> None:
    gate = torch.tensor([True, False]) if gated else None
    torch.library.opcheck(torch.ops.engine.fold_signs.default, (some_state(4, 2), noise(4, 3, 5), 2, 0.0, gate))


def test_vmap_equals_loop() -> None:
    x, state, gate = noise(3, 4, 70), some_state(4, 2), torch.tensor([[True, False], [False, False], [True, True]])
    mapped = torch.vmap(lambda x, g: fold_signs(state, x, 1, g), in_dims=(0, 0))(x, gate)
    assert torch.equal(mapped, torch.stack([fold_signs(state, *pair, gate=g) for *pair, g in zip(x, [1] * 3, gate, strict=True)]))
    last = torch.vmap(lambda s: fold_signs(s, x[0], 1), in_dims=1, out_dims=1)(state)
    assert torch.equal(last, torch.stack([fold_signs(state[:, i], x[0], 1) for i in range(2)], 1))


def test_compiles_whole() -> None:
    x, state = noise(4, 70).requires_grad_(), some_state(4, 1)
    compiled = torch.compile(lambda s, x: fold_signs(s, x.relu(), 3) ^ 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(state, x), fold_signs(state, x, 3) ^ 1)


def test_importing_loads_no_triton() -> None:
    code = "import sys, engine.kernels.regions, engine.kernels.episode; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


Z, X = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Z.int(), X, 0), TypeError, "state: expected torch.int64, got torch.int32 (4,)"),
        ((Z.reshape(2, 2, 1), X, 0), ValueError, "state: expected shape (B,) or (B, 2), got (2, 2, 1)"),
        ((Z.reshape(1, 4), X, 0), ValueError, "state: expected shape (B,) or (B, 2), got (1, 4)"),
        ((Z, X.long(), 0), TypeError, "x: expected torch.float32"),
        ((Z, X[:3], 0), ValueError, "x: expected (B, ...) with the B = 4 samples of state, got shape (3, 3)"),
        ((Z, X[:, 0], 0), ValueError, "got shape (4,)"),
        ((Z, X.to("meta"), 0), ValueError, "x: expected on cpu as state is, got (4, 3) on meta"),
        ((Z, X, 1.0), TypeError, "salt: expected an int, got float"),
        ((Z, X, -1), ValueError, "salt: expected 0 <= salt < 2^62, got -1"),
        ((Z, X, 2**62), ValueError, "salt: expected 0 <= salt < 2^62"),
        ((Z, X, 0, torch.ones(2)), TypeError, "gate: expected torch.bool, got torch.float32 (2,)"),
        (
            (Z, X, 0, torch.ones(3).bool()),
            ValueError,
            "gate: expected shape (G,) with G >= 1 dividing the 4 samples, got shape (3,)",
        ),
        ((Z, X, 0, torch.ones(0).bool()), ValueError, "got shape (0,)"),
        ((Z, X, 0, torch.ones(2, 1).bool()), ValueError, "got shape (2, 1)"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fold_signs(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [0, 3, -1])
def test_bad_groups_are_named(groups: int) -> None:
    with pytest.raises(ValueError, match=f"groups: expected a positive divisor of the 4 samples .* got {groups}"):
        count_distinct(Z, groups)
