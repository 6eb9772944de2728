"""Kernel of attention over pairs: the gradients by keys and values.

A program owns one block of keys of one head and visits the tiles of queries that may see them. Tiles are transposed,
keys x queries, so that no product needs its weights turned.
"""

import triton
import triton.language as tl

from biases.backends.triton.runs import place, query_bounds
from biases.backends.triton.tiles import (
    BETWEEN,
    INSIDE,
    LOG2E,
    attendable,
    decay,
    load_keys,
    load_rows,
    load_slopes,
    logit_gradient,
    scores,
    sigmoid,
    store_rows,
)


@triton.jit
def keys_run(
    dk, dv, d_inside, d_between, k, v, q, grad, q_strides, grad_strides, lse, deltas, inside, between, outside,
    key_inside, key_between, first, j, head, heads, queries, keys, offset, window, scale, begin, end,
    KIND: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, WITH_KEYS: tl.constexpr, LEARNED: tl.constexpr,
    RUN: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A run of tiles of queries, added to the gradients of a block of keys."""
    mixed: tl.constexpr = RUN % 2 == 0
    middle = first if RUN == 1 else first + KEYS - 1
    for start in range(begin, end, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        i = (rows + offset)[None, :]
        q_tile = load_rows(q, start, queries, q_strides[2], q_strides[3], QUERIES, D, WIDTH, True)
        grad_tile = load_rows(grad, start, queries, grad_strides[2], grad_strides[3], QUERIES, DV, V_WIDTH, True)
        s = tl.dot(k, tl.trans(q_tile), input_precision=PRECISION) * (scale * LOG2E)
        s, t = scores(
            s, attendable(i, j, keys, window, CAUSAL, WINDOW), i, j, middle, head, heads, inside, between,
            key_inside[:, None], key_between[:, None], KIND, mixed, WITH_KEYS,
        )  # fmt: skip
        delta = tl.zeros([QUERIES], tl.float32)
        if KIND == "sigmoid":
            u = sigmoid(s)
        else:
            u = tl.exp2(t - tl.load(lse + rows, mask=rows < queries, other=float("inf"))[None, :])
            delta = tl.load(deltas + rows, mask=rows < queries, other=0.0)
        p = u
        if outside is not None:
            p = u * decay(i, j, middle, load_slopes(outside, head, heads), not mixed)
        dv = tl.dot(p.to(grad_tile.dtype), grad_tile, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(grad_tile), input_precision=PRECISION)
        ds, dt = logit_gradient(s, u, p, dp, delta[None, :], KIND)
        dk = tl.dot(ds.to(q_tile.dtype), q_tile, dk, input_precision=PRECISION)
        if INSIDE & LEARNED:
            d_inside += tl.sum(ds, 1)
        if BETWEEN & LEARNED:
            d_between += tl.sum(dt, 1)
    return dk, dv, d_inside, d_between


@triton.jit
def backward_keys(
    q, k, v, grad, dk, dv, lse, deltas, d_key_inside, d_key_between, inside, between, outside, key_inside, key_between,
    q_strides, k_strides, v_strides, grad_strides, dk_strides, dv_strides, inside_strides, between_strides,
    scale, heads, queries, keys, offset, window,
    KIND: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, WITH_KEYS: tl.constexpr, LEARNED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, and (B, H, S) of the numbers of the keys.

    ``LEARNED``: sum of the places where the latter are wanted.
    """
    block, batch, head = place(keys, heads, KEYS, False)
    q += batch * q_strides[0] + head * q_strides[1]
    k += batch * k_strides[0] + head * k_strides[1]
    v += batch * v_strides[0] + head * v_strides[1]
    grad += batch * grad_strides[0] + head * grad_strides[1]
    dk += batch * dk_strides[0] + head * dk_strides[1]
    dv += batch * dv_strides[0] + head * dv_strides[1]
    lse += (batch * heads + head) * queries
    deltas += (batch * heads + head) * queries
    if key_inside is not None:
        key_inside += batch * inside_strides[0] + head * inside_strides[1]
    if key_between is not None:
        key_between += batch * between_strides[0] + head * between_strides[1]

    first = block * KEYS
    bounds = query_bounds(first - offset, first + KEYS - 1 - offset, queries, window, CAUSAL, WINDOW, QUERIES)
    columns = first + tl.arange(0, KEYS)
    k_tile = load_rows(k, first, keys, k_strides[2], k_strides[3], KEYS, D, WIDTH, True)
    v_tile = load_rows(v, first, keys, v_strides[2], v_strides[3], KEYS, DV, V_WIDTH, True)
    inside_tile = load_keys(key_inside, first, keys, inside_strides[2], KEYS)
    between_tile = load_keys(key_between, first, keys, between_strides[2], KEYS)
    k_sum = tl.zeros([KEYS, WIDTH], tl.float32)
    v_sum = tl.zeros([KEYS, V_WIDTH], tl.float32)
    inside_sum = tl.zeros([KEYS], tl.float32)
    between_sum = tl.zeros([KEYS], tl.float32)
    for run in tl.static_range(2 if CAUSAL else 1, 5 if WINDOW else 4):
        k_sum, v_sum, inside_sum, between_sum = keys_run(
            k_sum, v_sum, inside_sum, between_sum, k_tile, v_tile, q, grad, q_strides, grad_strides, lse, deltas,
            inside, between, outside, inside_tile, between_tile, first, columns[:, None], head, heads, queries, keys,
            offset, window, scale, bounds[run], bounds[run + 1],
            KIND, CAUSAL, WINDOW, WITH_KEYS, LEARNED, run, QUERIES, KEYS, D, DV, WIDTH, V_WIDTH, PRECISION,
        )  # fmt: skip
    store_rows(dk, k_sum * scale, first, keys, dk_strides[2], dk_strides[3], KEYS, D, WIDTH)
    store_rows(dv, v_sum, first, keys, dv_strides[2], dv_strides[3], KEYS, DV, V_WIDTH)
    at = (batch * heads + head) * keys + columns
    if INSIDE & LEARNED:
        tl.store(d_key_inside + at, inside_sum, mask=columns < keys)
    if BETWEEN & LEARNED:
        tl.store(d_key_between + at, between_sum, mask=columns < keys)
