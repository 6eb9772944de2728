"""ALiBi and exponential decay: the bias against its equation, and what it does to the weights."""

from __future__ import annotations

import math

import pytest
import torch
from decayed_attention import F64, equal, head_counts, logits, normal, qkv, weights_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyBias, attend
from biases.decays import alibi_slopes, rmt_log_rates
from biases.testing.strategies import seeds

lengths = st.integers(1, 9)


def distances(length: int) -> Tensor:
    return torch.arange(length)[:, None] - torch.arange(length)


def past(length: int) -> Tensor:
    return distances(length) >= 0


def published_slopes(heads: int) -> list[float]:
    """2^-e, with e = 8 k / p for the largest power p of two up to the heads, then the odd multiples of 4 / p."""
    power = 1
    while 2 * power <= heads:
        power *= 2
    exponents = [8 * k / power for k in range(1, power + 1)]
    exponents += [4 * (2 * k - 1) / power for k in range(1, heads - power + 1)]
    return [2.0**-e for e in exponents]


@pytest.mark.parametrize("heads", range(1, 65))
def test_slopes_follow_the_published_rule(heads):
    """Slopes of every head count are those of the authors' code (arXiv 2108.12409 section 3, commit 4b92f28):
    positive, at most 1/2 and down to 2^-8 for powers of two, all different, falling within each of the two series."""
    slopes = alibi_slopes(heads)
    assert slopes.dtype == F64
    assert slopes.tolist() == pytest.approx(published_slopes(heads), rel=4e-16)
    power = 2 ** (heads.bit_length() - 1)
    assert (slopes > 0).all()
    assert slopes.max() < 1
    assert slopes.min() >= 2**-8
    assert (slopes[:power].diff() < 0).all()
    assert (slopes[power:].diff() < 0).all()
    assert len(set(slopes.tolist())) == heads


@pytest.mark.parametrize(
    ("heads", "printed"),
    [
        (3, [0.0625, 0.0039, 0.25]),
        (6, [0.25, 0.0625, 0.0156, 0.0039, 0.5, 0.125]),
        (12, [2.0**-k for k in range(1, 9)] + [0.7071, 0.3536, 0.1768, 0.0884]),
        (8, [2.0**-k for k in range(1, 9)]),
    ],
)
def test_slopes_have_the_published_values(heads, printed):
    """The values that the authors' code gives for 3, 6, 8 and 12 heads, to the four decimals noted."""
    assert alibi_slopes(heads).tolist() == pytest.approx(printed, abs=5e-5)


def test_geometric_slopes_are_another_rule():
    """2^(-8 k / n) for n = 12 is not the published rule: it is off by up to 0.69 (2^-1/2 against 2^-6)."""
    worst = (alibi_slopes(12) - alibi_slopes(12, "geometric")).abs().max().item()
    assert worst == pytest.approx(2**-0.5 - 2**-6, rel=1e-12)
    assert worst == pytest.approx(0.69, abs=0.005)


@given(st.integers(1, 6).map(lambda k: 2**k))
def test_the_rules_agree_for_powers_of_two(heads):
    """For n a power of two there is one series, whatever the rule beyond it (arXiv 2108.12409 section 3)."""
    assert torch.equal(alibi_slopes(heads), alibi_slopes(heads, "geometric"))


@given(st.integers(1, 32), st.sampled_from(["press", "geometric", "halving"]))
def test_balanced_slopes_cancel(half, rule):
    """Balanced ALiBi has n / 2 positive slopes and their opposites, sum 0 (arXiv 2502.18845 Eq. 4)."""
    slopes = alibi_slopes(2 * half, rule, balanced=True)
    assert slopes.shape == (2 * half,)
    assert (slopes > 0).sum() == half
    assert torch.equal(slopes[:half], -slopes[half:])
    assert torch.equal(slopes.sort().values, -slopes.sort(descending=True).values)


@given(st.integers(0, 20).map(lambda k: 2 * k + 1))
def test_an_odd_number_of_heads_cannot_be_balanced(heads):
    """Opposite pairs need an even number of heads; Swin-T has 3, RMT-L 7 (arXiv 2502.18845 Eq. 4)."""
    with pytest.raises(ValueError, match="expected an even number"):
        alibi_slopes(heads, balanced=True)


def test_halving_slopes_are_powers_of_two():
    """SWAT's slopes are 2^-k, k = 1..n / 2 for each direction (arXiv 2502.18845 Eq. 4)."""
    assert alibi_slopes(8, "halving", balanced=True).tolist() == [
        0.5,
        0.25,
        0.125,
        0.0625,
        -0.5,
        -0.25,
        -0.125,
        -0.0625,
    ]


@given(lengths, lengths, st.integers(-9, 9), st.booleans(), seeds())
def test_dense_equals_the_equation_pair_by_pair(rows, keys, offset, symmetric, seed):
    """-m (i - j) or -m |i - j|, and log gamma times the same, a one-sided decay being 0 for later keys
    (arXiv 2108.12409 section 3; 2309.11523 Eq. 1-3)."""
    slopes = normal(seed, 1, 2)[0].abs()
    bias = ALiBi(slopes, symmetric=symmetric).dense(rows, keys, offset=offset)
    decay = ExponentialDecay(-slopes, symmetric=symmetric).dense(rows, keys, offset=offset)
    for h in range(2):
        for i in range(rows):
            for j in range(keys):
                distance = abs(i + offset - j) if symmetric else i + offset - j
                assert bias[0, h, i, j].item() == -slopes[h].item() * distance
                later = distance < 0
                assert decay[0, h, i, j].item() == (-math.inf if later else -slopes[h].item() * distance)


@given(lengths, st.integers(-50, 50), st.booleans())
def test_bias_depends_on_the_distance_alone(length, shift, symmetric):
    """Moving all positions by a constant changes nothing (arXiv 2108.12409 section 3)."""
    bias = ALiBi(3, symmetric=symmetric)
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    assert torch.equal(bias.values(i, j, F64), bias.values(i + shift, j + shift, F64))


@given(lengths, head_counts, seeds())
def test_under_a_softmax_the_key_term_is_enough(length, heads, seed):
    """Causal ALiBi equals adding m j, as the row constant -m i cancels under the softmax (arXiv 2108.12409; the
    authors' issue 9)."""
    q, k, v = qkv(seed, heads, length)
    slopes = torch.tensor(published_slopes(heads), dtype=F64)
    keys = slopes[:, None] * torch.arange(length)
    raw = (logits(q, k) + keys[:, None, :]).masked_fill(~past(length), -torch.inf)
    expected = raw.softmax(-1) @ v
    equal(attend(q, k, v, bias=ALiBi(heads), causal=True), expected, scale=4.0)
    equal(attend(q, k, v, bias=KeyBias(keys[None]), causal=True), expected, scale=4.0)


@given(st.integers(2, 9), head_counts, seeds())
def test_under_a_sigmoid_the_true_difference_counts(length, heads, seed):
    """A sigmoid keeps row constants: the weight is sigmoid(s - m (i - j)) (arXiv 2502.18845 Eq. 3)."""
    q, k, v = qkv(seed, heads, length)
    slopes = torch.tensor(published_slopes(heads), dtype=F64)[:, None, None]
    weights = torch.sigmoid(logits(q, k) - slopes * distances(length)) * past(length)
    out = attend(q, k, v, bias=ALiBi(heads), causal=True, weights="sigmoid")
    equal(out, weights @ v, scale=4.0 * length)


def test_under_a_sigmoid_the_key_term_is_not_enough():
    """The shortcut m j is wrong under a sigmoid: weights are off by more than 0.1 (measured 0.29 by its critics)."""
    length, heads = 8, 4
    keys = alibi_slopes(heads)[:, None] * torch.arange(length)
    true = weights_of(heads, length, bias=ALiBi(heads), causal=True, weights="sigmoid")
    shortcut = weights_of(heads, length, bias=KeyBias(keys[None]), causal=True, weights="sigmoid")
    assert (true - shortcut).abs().max() > 0.1


@given(st.integers(2, 9), head_counts, st.sampled_from(["auto", "reference"]))
def test_weights_of_equal_keys_fall_by_exp_minus_m_a_token(length, heads, backend):
    """With equal keys, the weight falls with distance by the ratio exp(-m), and so strictly (arXiv 2108.12409)."""
    weights = weights_of(heads, length, bias=ALiBi(heads), causal=True, backend=backend)
    ratio = torch.exp(-alibi_slopes(heads))
    for i in range(1, length):
        row = weights[:, i, : i + 1]
        assert (row.diff(dim=-1) > 0).all()
        equal(row[:, :-1], row[:, 1:] * ratio[:, None])


@given(st.integers(2, 9))
def test_a_slope_of_zero_has_no_locality(length):
    """m = 0 is attention without a bias: equal keys get equal weights."""
    weights = weights_of(1, length, bias=ALiBi(torch.zeros(1, dtype=F64)), causal=True)[0]
    equal(weights, past(length).double() / torch.arange(1.0, length + 1, dtype=F64)[:, None])


@given(lengths, head_counts, seeds())
def test_symmetric_alibi_is_flip_equivariant(length, heads, seed):
    """-m |i - j| is symmetric, so attention without order otherwise commutes with reversing the sequence."""
    bias = ALiBi(heads, symmetric=True)
    dense = bias.dense(length, length)
    assert torch.equal(dense, dense.mT)
    q, k, v = qkv(seed, heads, length)
    flipped = attend(q.flip(2), k.flip(2), v.flip(2), bias=bias).flip(2)
    equal(flipped, attend(q, k, v, bias=bias), scale=4.0)


def test_causal_alibi_is_not_flip_equivariant():
    """Signed distances change sign under a flip, so a bidirectional layer with them is not equivariant."""
    q, k, v = qkv(0, 2, 6)
    bias = ALiBi(torch.tensor([0.5, 0.25], dtype=F64))
    flipped = attend(q.flip(2), k.flip(2), v.flip(2), bias=bias).flip(2)
    assert (flipped - attend(q, k, v, bias=bias)).abs().max() > 0.1


@given(st.integers(2, 9), st.floats(0.01, 0.5))
def test_sigmoid_weights_are_monotone_with_the_sign_of_the_slope(length, slope):
    """Positive m favours near keys, negative m far ones, strictly (arXiv 2502.18845 Eq. 4, where s = -m)."""
    bias = ALiBi(torch.tensor([slope, -slope], dtype=F64), allow_negative=True)
    near, far = weights_of(2, length, bias=bias, causal=True, weights="sigmoid")
    last = length - 1
    assert (near[last].diff() > 0).all()
    assert (far[last].diff() < 0).all()


@given(lengths, st.floats(0.05, 0.95), seeds())
def test_the_decay_bounds_unnormalised_sigmoid_rows(length, gamma, seed):
    """0 < B < gamma^|i - j|, so a row of sigmoid weights sums to less than (1 + gamma) / (1 - gamma), whatever the
    window."""
    q, k, _ = qkv(seed, 1, length)
    decay = ExponentialDecay.from_rates(torch.tensor([gamma], dtype=F64), symmetric=True, placement="weights")
    units = torch.eye(length, dtype=F64).expand(2, 1, length, length)
    weights = attend(q, k, units, decay=decay, weights="sigmoid")
    assert (weights > 0).all()
    assert (weights < gamma ** distances(length).abs()).all()
    assert (weights.sum(-1) < (1 + gamma) / (1 - gamma)).all()


@given(lengths, seeds(), st.sampled_from(["logits", "weights", "weights-renormalised"]))
def test_a_one_sided_decay_is_causal_by_itself(length, seed, placement):
    """D_nm = 0 for n < m (arXiv 2309.11523 Eq. 1-2): later keys have no weight, wherever the decay is placed. Without
    renormalisation the softmax has still been taken over them."""
    q, k, v = qkv(seed, 2, length)
    decay = ExponentialDecay(rmt_log_rates(2), placement=placement)
    power = torch.exp(rmt_log_rates(2)[:, None, None] * distances(length).clamp(min=0)) * past(length)
    weights = logits(q, k).softmax(-1) * power
    if placement != "weights":
        weights = weights / weights.sum(-1, keepdim=True)
    equal(attend(q, k, v, decay=decay), weights @ v, scale=4.0)
