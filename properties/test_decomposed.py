"""``attend_decomposed`` (RMT, arXiv 2309.11523 Eq. 6): against its specification, against loops over pixels and against
attention over the whole map, and what it refuses."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from decomposed_maps import F64, PLACEMENTS, decay_of, equal, normal, orders, placements, qkv, sides
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biases import ALiBi, ExponentialDecay, ManhattanDecay, attend
from biases.attention import pair_weights
from biases.axial import ORDERS, attend_decomposed, decomposed_weights
from biases.positions import Rotary
from biases.testing import assert_within
from biases.testing.strategies import seeds

DTYPES = (torch.float32, torch.bfloat16, torch.float16, F64)
NORMALISED = ("softmax", "sigmoid-normalised")


def full_attention(q: Tensor, k: Tensor, v: Tensor, decay: ExponentialDecay | None = None, **options: Any) -> Tensor:
    """Attention over the whole map, with the Manhattan decay of the same rates."""
    height, width = q.shape[2:4]
    over_map = None
    if decay is not None:
        over_map = ManhattanDecay(height, width, -decay.slopes, placement=decay.placement)
    out = attend(*(x.flatten(2, 3) for x in (q, k, v)), decay=over_map, **options)
    return out.unflatten(2, (height, width))


@dataclass
class Drawn:
    """A problem: leaves in the drawn dtype, and options."""

    leaves: tuple[Tensor, Tensor, Tensor]
    options: dict[str, Any]

    def call(self, backend: str, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Output, and gradients of a fixed direction."""
        leaves = [x.to(dtype).requires_grad_() for x in self.leaves]
        out = attend_decomposed(*leaves, backend=backend, **self.options)
        direction = self.direction().to(dtype)
        return out.detach(), torch.autograd.grad(out, leaves, direction)

    def direction(self) -> Tensor:
        shape = (*self.leaves[0].shape[:4], self.leaves[2].shape[-1])
        return normal(7, *shape).to(self.leaves[0].dtype)


@st.composite
def problems(draw: st.DrawFn) -> Drawn:
    batch, heads = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    dim, value_dim = draw(st.sampled_from([4, 6])), draw(st.sampled_from([4, 3]))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(seeds())
    weights = draw(st.sampled_from(["softmax", "sigmoid", "sigmoid-normalised", "linear"]))
    placement = draw(st.sampled_from(["weights"] if weights == "linear" else [None, *PLACEMENTS]))
    generator = torch.Generator().manual_seed(seed)

    def mask(length: int) -> Tensor | None:
        count = draw(st.sampled_from([0, *(n for n in (1, 2, batch) if batch % n == 0)]))
        if not count:
            return None
        own = torch.eye(length, dtype=torch.bool)
        return (torch.rand(count, length, length, generator=generator) < 0.6) | own

    options = {
        "weights": weights,
        "decay": None if placement is None else decay_of(heads, placement),
        "bias": draw(st.sampled_from([(), ALiBi(heads), (ALiBi(heads, symmetric=True),)])),
        "masks": (mask(height), mask(width)),
        "rotation": Rotary(dim) if draw(st.booleans()) else None,
        "order": draw(orders),
        "scale": draw(st.sampled_from([None, 0.3])),
    }
    widths = (dim, dim, value_dim)
    leaves = tuple(normal(seed + n, batch, heads, height, width, d, dtype=dtype) for n, d in enumerate(widths))
    return Drawn(leaves, options)


@settings(max_examples=150)
@given(problems())
def test_fast_paths_equal_the_specification(drawn):
    """Forward and backward, over weights, placements, biases, masks, rotations, orders, dtypes and odd sizes."""
    dtype = drawn.leaves[0].dtype
    exact, exact_grads = drawn.call("reference", F64)
    low, low_grads = drawn.call("dense", dtype)
    out, grads = drawn.call("auto", dtype)
    assert out.dtype == dtype
    slack = 32.0 if dtype == F64 else 1.0
    values = drawn.leaves[2].double().abs().max().item()
    assert_within(out, exact, low, magnitude=slack * max(values, exact.abs().max().item()))
    # Gradients of logits are differences of dO . v, a sum over channels.
    products = drawn.direction().double().abs().sum(-1).max().item() * values
    scale = slack * max(products, *(grad.abs().max().item() for grad in exact_grads))
    for name, *three in zip("qkv", grads, exact_grads, low_grads, strict=True):
        assert_within(*three, what=f"gradient of {name}", magnitude=scale)


@given(problems())
def test_the_reference_is_the_dense_computation(drawn):
    """E v is what the two passes give: the specification's weights over pairs are those of consecutive passes."""
    exact, _ = drawn.call("reference", F64)
    passes, _ = drawn.call("dense", F64)
    equal(passes, exact, drawn.leaves[2].double().abs().max().item())


def line_weights(logits: list[float], gammas: list[float], weights: str, placement: str) -> list[float]:
    """One row of weights over a line, with the decay placed as named."""
    if placement == "logits":
        logits = [s + math.log(g) for s, g in zip(logits, gammas, strict=True)]
    row = [math.exp(s) for s in logits] if weights == "softmax" else [1 / (1 + math.exp(-s)) for s in logits]
    if weights in NORMALISED:
        row = [w / sum(row) for w in row]
    if placement != "logits":
        row = [w * g for w, g in zip(row, gammas, strict=True)]
    if placement == "weights-renormalised":
        row = [w / sum(row) for w in row]
    return row


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["softmax", "sigmoid", "sigmoid-normalised"]),
    placements,
    orders,
    st.booleans(),
    seeds(),
)
def test_effective_weights_are_the_formula_pixel_by_pixel(height, width, weights, placement, order, rotated, seed):
    """E[(i, j), (i', j')] = A^H_j[i, i'] A^W_i'[j, j'], the row pass of row i' using the query at (i', j); with the
    columns first A^W_i[j, j'] A^H_j'[i, i'], the column pass of column j' using the query at (i, j'). A rotation turns
    the two channels by a radian for each step along the axis of the pass."""
    gamma, dim = 0.7, 2
    q, k = (normal(seed + n, 1, 1, height, width, dim) for n in range(2))

    def content(i: int, j: int, i2: int, j2: int) -> float:
        query, key = (complex(*x[0, 0, y, u].tolist()) for x, y, u in ((q, i, j), (k, i2, j2)))
        turn = cmath.exp(1j * (i2 - i + j2 - j)) if rotated else 1.0
        return (query.conjugate() * key * turn).real / dim**0.5

    def along_row(i: int, j: int) -> list[float]:
        logits, gammas = zip(*((content(i, j, i, u), gamma ** abs(j - u)) for u in range(width)), strict=True)
        return line_weights(logits, gammas, weights, placement)

    def along_column(i: int, j: int) -> list[float]:
        logits, gammas = zip(*((content(i, j, t, j), gamma ** abs(i - t)) for t in range(height)), strict=True)
        return line_weights(logits, gammas, weights, placement)

    pixels = list(product(range(height), range(width)))
    expected = torch.empty(len(pixels), len(pixels), dtype=F64)
    for (a, (i, j)), (b, (t, u)) in product(enumerate(pixels), enumerate(pixels)):
        if order == "width-first":
            expected[a, b] = along_column(i, j)[t] * along_row(t, j)[u]
        else:
            expected[a, b] = along_row(i, j)[u] * along_column(i, u)[t]
    decay = ExponentialDecay.from_rates(torch.tensor([gamma], dtype=F64), symmetric=True, placement=placement)
    options = {"weights": weights, "decay": decay, "order": order, "rotation": Rotary(dim) if rotated else None}
    equal(decomposed_weights(q, k, **options)[0, 0], expected)
    v = normal(seed + 2, 1, 1, height, width, 3)
    out = attend_decomposed(q, k, v, **options)
    equal(out.flatten(2, 3), (expected @ v.flatten(2, 3)), v.abs().max().item())


@given(sides, sides, orders, st.sampled_from(["logits", "weights-renormalised"]), st.sampled_from(NORMALISED), seeds())
def test_normalised_weights_are_row_stochastic(height, width, order, placement, weights, seed):
    """Rows of E sum to 1 and are positive: outputs are averages of values, and constants are kept."""
    q, k, v = qkv(seed, 2, height, width)
    options = {"weights": weights, "decay": decay_of(2, placement), "order": order}
    effective = decomposed_weights(q, k, **options)
    assert (effective > 0).all()
    equal(effective.sum(-1), torch.ones_like(effective[..., 0]))
    out = attend_decomposed(q, k, v, **options)
    slack = 200 * torch.finfo(F64).eps * v.abs().max()
    assert (out <= v.amax((2, 3), keepdim=True) + slack).all()
    assert (out >= v.amin((2, 3), keepdim=True) - slack).all()
    constant = v[:, :, :1, :1].expand_as(v)
    equal(attend_decomposed(q, k, constant, **options), constant)


@given(st.integers(2, 4), st.integers(2, 4), orders, seeds())
def test_as_printed_the_rows_sum_to_less_than_one(height, width, order, seed):
    """Decay after the softmax without renormalisation (Eq. 6): each pass takes weight away."""
    q, k, _ = qkv(seed, 2, height, width)
    sums = decomposed_weights(q, k, decay=decay_of(2, "weights"), order=order).sum(-1)
    assert (sums < 1).all()
    assert (sums > 0).all()


@given(sides, sides, st.sampled_from(["softmax", "sigmoid"]), placements, seeds())
def test_the_other_order_is_the_transposed_map(height, width, weights, placement, seed):
    q, k, v = qkv(seed, 2, height, width)
    options = {"weights": weights, "decay": decay_of(2, placement)}
    turned = attend_decomposed(*(x.transpose(2, 3) for x in (q, k, v)), order="width-first", **options)
    equal(attend_decomposed(q, k, v, order="height-first", **options), turned.transpose(2, 3), v.abs().max().item())


def without_content(case: str, height: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv(seed, 2, height, width)
    return {
        "zero queries": lambda: (torch.zeros_like(q), k, v),
        "equal keys": lambda: (q, k[:, :, :1, :1].expand_as(k), v),
        "split": lambda: (*splitting(seed, height, width), v),
    }[case]()


def splitting(seed: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Queries and keys with q_ij . k_i'j' = f(i, i') + g(j, j') + c(i, j): channels of rows, of columns, and one of
    the query alone."""
    rows, columns = (normal(seed + n, 2, 2, 2, length, 3) for n, length in ((10, height), (11, width)))
    own = normal(seed + 12, 2, 2, height, width, 1)
    down = rows[:, :, :, :, None].expand(-1, -1, -1, -1, width, -1)
    across = columns[:, :, :, None].expand(-1, -1, -1, height, -1, -1)
    q = torch.cat([down[:, :, 0], across[:, :, 0], own], -1)
    k = torch.cat([down[:, :, 1], across[:, :, 1], torch.ones_like(own)], -1)
    return q, k


@given(st.sampled_from(["zero queries", "equal keys", "split"]), sides, sides, orders, st.booleans(), seeds())
def test_it_is_attention_over_the_map_where_content_splits(case, height, width, order, decayed, seed):
    """exp(f + g + c) is a product over the axes up to a factor of the row, and so is Manhattan decay: then E is the
    softmax over the map, and the order of the passes does not matter."""
    q, k, v = without_content(case, height, width, seed)
    decay = decay_of(2) if decayed else None
    out = attend_decomposed(q, k, v, decay=decay, order=order)
    equal(out, full_attention(q, k, v, decay), 4 * v.abs().max().item())


@given(st.integers(1, 6), st.booleans(), orders, st.sampled_from(["logits", "weights-renormalised"]), seeds())
def test_it_is_attention_over_the_map_on_a_single_line(length, upright, order, placement, seed):
    """Along an axis of length 1 each pixel attends to itself alone."""
    q, k, v = qkv(seed, 2, *((length, 1) if upright else (1, length)))
    decay = decay_of(2, placement)
    equal(attend_decomposed(q, k, v, decay=decay, order=order), full_attention(q, k, v, decay), v.abs().max().item())


def weights_over_the_map(q: Tensor, k: Tensor, decay: ExponentialDecay | None = None) -> Tensor:
    height, width = q.shape[2:4]
    over_map = None if decay is None else ManhattanDecay(height, width, -decay.slopes)
    return pair_weights(q.flatten(2, 3), k.flatten(2, 3), decay=over_map)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("queries", ["any", "one for all"])
@pytest.mark.parametrize("decayed", [False, True])
def test_in_general_it_is_not_and_the_order_matters(seed, queries, decayed):
    """That the decay is the same in both forms does not make the attention the same, even where all queries are equal:
    the paper's claim that the decomposition preserves the prior (arXiv 2309.11523) is one about the decay."""
    q, k, _ = qkv(seed, 1, 3, 4)
    if queries == "one for all":
        q = q[:, :, :1, :1].expand_as(q)
    decay = decay_of(1) if decayed else None
    full = weights_over_the_map(q, k, decay)
    across, down = (decomposed_weights(q, k, decay=decay, order=order) for order in ORDERS)
    apart = [(across - full).abs().max(), (down - full).abs().max(), (across - down).abs().max()]
    assert min(apart) > 0.02, apart


@given(st.integers(2, 4), st.integers(2, 4), orders)
def test_sigmoid_weights_are_halved_twice(height, width, order):
    """Without normalisation two passes at q = 0 weigh every pair by sigma(0)^2 = 1/4, attention over the map by 1/2."""
    zero = torch.zeros(1, 1, height, width, 2, dtype=F64)
    effective = decomposed_weights(zero, zero, weights="sigmoid", order=order)
    over_map = pair_weights(zero.flatten(2, 3), zero.flatten(2, 3), weights="sigmoid")
    assert torch.equal(effective, torch.full_like(effective, 0.25))
    assert torch.equal(over_map, 2 * effective)


@given(st.integers(1, 4), st.integers(1, 4), orders, st.sampled_from(["weights", "decay"]), seeds())
def test_sigmoid_weights_divided_by_their_sum_agree_without_content(height, width, order, how, seed):
    """Row sums remove the factor: the normalised sigmoid, or a decay placed after it with renormalisation, at q = 0."""
    _, k, v = qkv(seed, 2, height, width)
    q = torch.zeros_like(k)
    if how == "weights":
        decay, weights = None, "sigmoid-normalised"
    else:
        decay, weights = decay_of(2, "weights-renormalised"), "sigmoid"
    out = attend_decomposed(q, k, v, weights=weights, decay=decay, order=order)
    equal(out, full_attention(q, k, v, decay, weights=weights), v.abs().max().item())


@given(st.integers(1, 4), st.integers(1, 4), seeds())
def test_without_decay_rate_it_is_plain_axial_attention(height, width, seed):
    """gamma = 1: log gamma = 0 adds nothing."""
    q, k, v = qkv(seed, 2, height, width)
    none = ExponentialDecay(torch.zeros(2, dtype=F64), symmetric=True)
    equal(attend_decomposed(q, k, v, decay=none), attend_decomposed(q, k, v), v.abs().max().item())


def test_an_empty_batch_is_an_empty_batch():
    q, k, v = (torch.zeros(0, 2, 3, 5, d) for d in (4, 4, 6))
    for backend in ("auto", "dense", "reference"):
        assert attend_decomposed(q, k, v, decay=decay_of(2), backend=backend).shape == (0, 2, 3, 5, 6)


def test_the_inputs_need_not_be_contiguous():
    q, k, v = (normal(n, 2, 3, 5, 2, 4).transpose(1, 3) for n in range(3))
    assert q.shape == (2, 2, 5, 3, 4)
    decay = decay_of(2)
    packed = attend_decomposed(*(x.contiguous() for x in (q, k, v)), decay=decay)
    equal(attend_decomposed(q, k, v, decay=decay), packed)


Q = torch.zeros(2, 2, 3, 5, 4)
FLAT = torch.zeros(1, 5, 5)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "flat queries": ({"q": Q.flatten(2, 3)}, r"q: expected shape \(B, heads, H, W, D\)"),
    "keys of another map": ({"k": Q.transpose(2, 3)}, r"k: expected shape \(2, 2, 3, 5\)"),
    "values of other heads": ({"v": Q[:, :1]}, r"v: expected shape \(2, 2, 3, 5\)"),
    "keys of another width": ({"k": Q[..., :3]}, "k: expected width 4"),
    "values of another dtype": ({"v": Q.double()}, "v: expected torch.float32"),
    "unknown order": ({"order": "width"}, "did you mean 'width-first'"),
    "unknown backend": ({"backend": "flux"}, "backend: expected one of"),
    "unknown weights": ({"weights": "relu"}, "weights: expected one of"),
    "scale of zero": ({"scale": 0.0}, "scale: expected a positive finite number"),
    "rotation that is none": ({"rotation": 3}, "rotation: expected None or a function"),
    "one mask": ({"masks": torch.ones(1, 5, 5, dtype=torch.bool)}, "masks: expected a pair"),
    "additive mask": ({"masks": (None, FLAT)}, "along the width: expected a boolean tensor"),
    "mask of the other axis": ({"masks": (FLAT.bool(), None)}, r"along the height: expected shape \(B', 3, 3\)"),
    "masks that do not go round": ({"masks": (None, FLAT.bool().repeat(3, 1, 1))}, "with B' dividing 2"),
    "no masks at all": ({"masks": (None, FLAT.bool()[:0])}, "with B' dividing 2"),
    "decay over the map": ({"decay": ManhattanDecay(3, 5, 2)}, "ManhattanDecay: expected L = S = 3 x 5"),
    "decay of other heads": ({"decay": decay_of(3)}, "heads: expected 1 or 2, got 3"),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", WRONG)
def test_errors_state_expected_and_got(name, backend):
    changed, message = WRONG[name]
    arguments = {"q": Q, "k": Q, "v": Q, "backend": backend, **changed}
    with pytest.raises(ValueError, match=message) as raised:
        attend_decomposed(**arguments)
    assert ", got " in str(raised.value)
