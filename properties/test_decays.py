"""ALiBi, exponential and Manhattan decay: the bias against its equation, and what it does to the weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyBias, ManhattanDecay, attend, formulation
from biases.decays import alibi_slopes, rmt_log_rates
from biases.testing import assert_close_to, make_tensor
from biases.testing.strategies import seeds

F64 = torch.float64
lengths = st.integers(1, 9)
head_counts = st.integers(1, 4)
sides = st.integers(1, 4)

# gamma of each head in the stages of RMT with a = 2, to five decimals, by b - a (arXiv 2309.11523 Tables 10 and 12).
RMT_RATES = (
    (4, "0.75 0.875 0.9375 0.96875"),
    (5, "0.75 0.875 0.9375 0.96875 0.98438"),
    (6, "0.75 0.9375 0.98438"),
    (6, "0.75 0.86199 0.92381 0.95794 0.97678 0.98718 0.99292"),
    (6, "0.75 0.85135 0.91161 0.94744 0.96875 0.98142 0.98895 0.99343"),
    (6, "0.75 0.83506 0.89118 0.92821 0.95263 0.96875 0.97938 0.9864 0.99103 0.99408"),
    (6, "0.75 0.81425 0.86199 0.89746 0.92381 0.94339 0.95794 0.96875 0.97678 0.98275 0.98718 0.99048 0.99292 0.99474"),
    (
        6,
        "0.75 0.80722 0.85135 0.88537 0.91161 0.93184 0.94744 0.95947 0.96875 0.9759 0.98142 0.98567 0.98895 0.99148 "
        "0.99343 0.99493",
    ),
    (
        6,
        "0.75 0.79694 0.83506 0.86603 0.89118 0.91161 0.92821 0.94169 0.95263 0.96153 0.96875 0.97462 0.97938 0.98325 "
        "0.9864 0.98895 0.99103 0.99271 0.99408 0.99519",
    ),
)


def normal(seed: int, *shape: int) -> Tensor:
    return make_tensor(shape, "normal", seed, F64)


def qkv(seed: int, heads: int, length: int, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(normal(seed + n, 2, heads, length, dim) for n in range(3))


def equal(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Equal up to the rounding of a few hundred operations at magnitude ``scale``."""
    assert_close_to(actual, expected, scale=scale, ulps=300)


def weights_of(heads: int, length: int, **options) -> Tensor:
    """The weights (H, L, L) that ``attend`` gives to keys that are all alike: values are the unit vectors."""
    same = torch.ones(1, heads, length, 2, dtype=F64)
    units = torch.eye(length, dtype=F64).expand(1, heads, length, length)
    return attend(same, same, units, **options)[0]


def logits(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / math.sqrt(q.shape[-1])


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


def grid_distance(height: int, width: int) -> Tensor:
    """|dy| + |dx| in raster order, y major, counted pair by pair."""
    cells = [(y, x) for y in range(height) for x in range(width)]
    return torch.tensor([[abs(y - b) + abs(x - a) for b, a in cells] for y, x in cells])


@given(sides, sides, head_counts)
def test_manhattan_log_decay_is_the_equation(height, width, heads):
    """log D = (|dy| + |dx|) log gamma (arXiv 2309.11523 Eq. 4): symmetric, zero on the diagonal, falling strictly with
    the Manhattan distance and depending on nothing else."""
    tokens = height * width
    rates = rmt_log_rates(heads)
    dense = ManhattanDecay(height, width, heads).dense(tokens, tokens)[0]
    assert torch.equal(dense, rates[:, None, None] * grid_distance(height, width))
    assert torch.equal(dense, dense.mT)
    assert (dense.diagonal(dim1=1, dim2=2) == 0).all()
    assert (dense <= 0).all()


@given(sides, sides, head_counts)
def test_manhattan_decay_is_positive_definite(height, width, heads):
    """gamma^(Manhattan distance) is a product of two kernels gamma^|d|, each positive definite for gamma < 1."""
    tokens = height * width
    kernel = ManhattanDecay(height, width, heads).dense(tokens, tokens)[0].exp()
    assert torch.linalg.eigvalsh(kernel).min() > 1e-6


@given(sides, sides, head_counts)
def test_manhattan_decay_is_separable(height, width, heads):
    """D^2d = D^H (x) D^W, and the log decays of the axes add up (arXiv 2309.11523 Eq. 4 and 6)."""
    decay = ManhattanDecay(height, width, heads)
    whole = decay.dense(height * width, height * width)[0]
    down, across = (axis.dense(n, n)[0] for axis, n in zip(decay.axes(), (height, width), strict=True))
    for h in range(heads):
        equal(whole[h].exp(), torch.kron(down[h].exp().contiguous(), across[h].exp().contiguous()))
        rows, columns = torch.ones_like(down[h]), torch.ones_like(across[h])
        total = torch.kron(down[h].contiguous(), columns) + torch.kron(rows, across[h].contiguous())
        equal(whole[h], total, scale=float(height + width))


@given(sides, sides, head_counts, seeds())
@example(1, 7, 2, 0)
@example(7, 1, 2, 0)
def test_a_map_of_one_row_or_column_is_one_dimensional(height, width, heads, seed):
    """For H = 1 or W = 1 Manhattan decay is gamma^|i - j| (arXiv 2309.11523 Eq. 3), with a structured fast path."""
    tokens = height if width == 1 else width
    height, width = (tokens, 1) if width == 1 else (1, tokens)
    grid = ManhattanDecay(height, width, heads)
    line = ExponentialDecay(rmt_log_rates(heads), symmetric=True)
    assert torch.equal(grid.dense(tokens, tokens), line.dense(tokens, tokens))
    q, k, v = qkv(seed, heads, tokens)
    equal(attend(q, k, v, decay=grid), attend(q, k, v, decay=line), scale=4.0)
    assert formulation(q, k, v, decay=grid).name == "toeplitz"


@given(sides, sides, head_counts, seeds(), st.sampled_from(["auto", "reference"]))
def test_log_decay_before_the_softmax_is_decay_after_it_renormalised(height, width, heads, seed, backend):
    """softmax(S + log D) = rownorm(softmax(S) . D): RMT's code against the authors' reading of Eq. 5 (issue 21)."""
    tokens = height * width
    q, k, v = qkv(seed, heads, tokens)
    decay = rmt_log_rates(heads)[:, None, None] * grid_distance(height, width)
    before = (logits(q, k) + decay).softmax(-1)
    after = logits(q, k).softmax(-1) * decay.exp()
    equal(before, after / after.sum(-1, keepdim=True))
    for placement in ("logits", "weights-renormalised"):
        term = ManhattanDecay(height, width, heads, placement=placement)
        equal(attend(q, k, v, decay=term, backend=backend), before @ v, scale=4.0)
    printed = ManhattanDecay(height, width, heads, placement="weights")
    equal(attend(q, k, v, decay=printed, backend=backend), after @ v, scale=4.0)


@given(sides, st.integers(2, 4), head_counts, seeds())
def test_the_printed_decay_does_not_preserve_row_sums(height, width, heads, seed):
    """Eq. 5 and 6 of arXiv 2309.11523 as printed lack the renormalisation: every row sums to less than 1."""
    tokens = height * width
    q, k, _ = qkv(seed, heads, tokens)
    units = torch.eye(tokens, dtype=F64).expand(2, heads, tokens, tokens)
    rows = attend(q, k, units, decay=ManhattanDecay(height, width, heads, placement="weights")).sum(-1)
    assert (rows < 1).all()
    equal(attend(q, k, units, decay=ManhattanDecay(height, width, heads)).sum(-1), torch.ones_like(rows))


def test_the_printed_decay_is_far_from_the_code():
    """With gamma = 0.8 and 7 tokens in a row, rows of Eq. 5 sum to 0.5 to 0.85 only."""
    decay = ExponentialDecay.from_rates(torch.tensor([0.8], dtype=F64), symmetric=True, placement="weights")
    rows = weights_of(1, 7, decay=decay).sum(-1)
    assert rows.min() > 0.5
    assert rows.max() < 0.85


@given(sides, sides, seeds())
def test_without_decay_manhattan_attention_is_plain(height, width, seed):
    """gamma -> 1 gives softmax attention (arXiv 2309.11523 Eq. 5 with D = 1)."""
    tokens = height * width
    q, k, v = qkv(seed, 2, tokens)
    out = attend(q, k, v, decay=ManhattanDecay(height, width, torch.zeros(2, dtype=F64)))
    equal(out, logits(q, k).softmax(-1) @ v, scale=4.0)


@given(sides, sides, seeds(), st.sampled_from(["logits", "weights-renormalised"]))
def test_full_decay_makes_attention_the_identity(height, width, seed, placement):
    """gamma -> 0 leaves each token to itself: the output is the values."""
    q, k, v = qkv(seed, 2, height * width)
    rates = torch.full((2,), -200.0, dtype=F64)
    out = attend(q, k, v, decay=ManhattanDecay(height, width, rates, placement=placement))
    equal(out, v, scale=4.0)


@pytest.mark.parametrize(("span", "printed"), RMT_RATES)
def test_rates_of_the_rmt_stages(span, printed):
    """gamma_i = 1 - 2^(-a - (b - a) i / N), a = 2, gives the published tables (arXiv 2309.11523 Eq. 8)."""
    values = [float(word) for word in printed.split()]
    rates = rmt_log_rates(len(values), initial=2.0, span=float(span)).exp()
    assert rates.tolist() == pytest.approx(values, abs=5.01e-6)


@given(st.integers(1, 24), st.floats(0.5, 8.0), st.floats(0.5, 8.0))
def test_rates_grow_from_head_to_head(heads, initial, span):
    """Eq. 8 of arXiv 2309.11523: later heads look farther, from 1 - 2^-a on, and all rates are below 1."""
    rates = rmt_log_rates(heads, initial, span)
    expected = [math.log(1 - 2 ** (-initial - span * i / heads)) for i in range(heads)]
    assert rates.tolist() == pytest.approx(expected, rel=1e-9)
    assert (rates < 0).all()
    assert (rates.diff() > 0).all()


@given(st.integers(1, 24))
def test_without_a_span_all_heads_are_alike(heads):
    """heads_range = 0 gives every head gamma = 1 - 2^-a, 0.75 for a = 2."""
    assert rmt_log_rates(heads, 2.0, 0.0).exp().tolist() == pytest.approx([0.75] * heads, rel=1e-15)
