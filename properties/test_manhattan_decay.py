"""Manhattan decay (RMT, arXiv 2309.11523 Eq. 3-8) as a term: equation, separability, placement and rates."""

from __future__ import annotations

import math

import pytest
import torch
from decayed_attention import F64, equal, head_counts, logits, qkv, sides, weights_of
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from biases import ExponentialDecay, ManhattanDecay, attend, formulation
from biases.decays import rmt_log_rates
from biases.testing.strategies import seeds

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
