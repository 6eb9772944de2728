"""Kernels of attention over pairs: the forward pass, and the gradients by queries.

A program owns one block of queries of one head and visits the tiles of keys that causality and window leave to it.
Tiles whose pairs may all attend lie wholly in the past or in the future of their queries; there neither masks nor
exponentials of distances are needed pair by pair.
"""

import triton
import triton.language as tl

from biases.backends.triton.runs import key_bounds, place
from biases.backends.triton.tiles import (
    BETWEEN,
    INSIDE,
    LOG2E,
    OUTSIDE,
    attendable,
    decay,
    finish,
    load_keys,
    load_rows,
    load_slopes,
    logit_gradient,
    online,
    scores,
    sigmoid,
    slope_gradients,
    store_rows,
    store_slope_gradients,
)


@triton.jit
def forward_run(
    acc, top, total, q, k, v, k_strides, v_strides, inside, between, outside, key_inside, key_between, key_strides,
    i, head, heads, keys, window, scale, begin, end,
    KIND: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, WITH_KEYS: tl.constexpr, RUN: tl.constexpr,
    KEYS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A run of tiles of keys, added to the running sums of a block of queries."""
    mixed: tl.constexpr = RUN % 2 == 0
    for start in range(begin, end, KEYS):
        j = (start + tl.arange(0, KEYS))[None, :]
        middle = start if RUN == 3 else start + KEYS - 1
        k_tile = load_rows(k, start, keys, k_strides[2], k_strides[3], KEYS, D, WIDTH, mixed)
        v_tile = load_rows(v, start, keys, v_strides[2], v_strides[3], KEYS, DV, V_WIDTH, mixed)
        s = tl.dot(q, tl.trans(k_tile), input_precision=PRECISION) * (scale * LOG2E)
        s, t = scores(
            s, attendable(i, j, keys, window, CAUSAL, WINDOW), i, j, middle, head, heads, inside, between,
            load_keys(key_inside, start, keys, key_strides[0], KEYS)[None, :],
            load_keys(key_between, start, keys, key_strides[1], KEYS)[None, :],
            KIND, mixed, WITH_KEYS,
        )  # fmt: skip
        if KIND == "sigmoid":
            p = sigmoid(s)
        else:
            p, top, total, acc = online(t, top, total, acc)
        if outside is not None:
            p *= decay(i, j, middle, load_slopes(outside, head, heads), not mixed)
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc, input_precision=PRECISION)
    return acc, top, total


@triton.jit
def forward(
    q, k, v, out, lse, inside, between, outside, key_inside, key_between,
    q_strides, k_strides, v_strides, out_strides, inside_strides, between_strides,
    scale, heads, queries, keys, offset, window,
    KIND: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, WITH_KEYS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output (B, H, L, DV), and log-sum-exp to base 2 (B, H, L), of which the sigmoid has none."""
    block, batch, head = place(queries, heads, QUERIES, CAUSAL)
    q += batch * q_strides[0] + head * q_strides[1]
    k += batch * k_strides[0] + head * k_strides[1]
    v += batch * v_strides[0] + head * v_strides[1]
    out += batch * out_strides[0] + head * out_strides[1]
    if key_inside is not None:
        key_inside += batch * inside_strides[0] + head * inside_strides[1]
    if key_between is not None:
        key_between += batch * between_strides[0] + head * between_strides[1]

    start = block * QUERIES
    last = tl.minimum(start + QUERIES, queries) - 1 + offset
    bounds = key_bounds(start + offset, last, keys, window, CAUSAL, WINDOW, KEYS)
    i = (start + offset + tl.arange(0, QUERIES))[:, None]
    q_tile = load_rows(q, start, queries, q_strides[2], q_strides[3], QUERIES, D, WIDTH, True)
    acc = tl.zeros([QUERIES, V_WIDTH], tl.float32)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for run in tl.static_range(0 if WINDOW else 1, 3 if CAUSAL else 5):
        acc, top, total = forward_run(
            acc, top, total, q_tile, k, v, k_strides, v_strides, inside, between, outside, key_inside, key_between,
            (inside_strides[2], between_strides[2]), i, head, heads, keys, window, scale, bounds[run], bounds[run + 1],
            KIND, CAUSAL, WINDOW, WITH_KEYS, run, KEYS, D, DV, WIDTH, V_WIDTH, PRECISION,
        )  # fmt: skip
    if KIND != "sigmoid":
        acc, sums = finish(acc, top, total)
        rows = start + tl.arange(0, QUERIES)
        tl.store(lse + (batch * heads + head) * queries + rows, sums, mask=rows < queries)
    store_rows(out, acc, start, queries, out_strides[2], out_strides[3], QUERIES, DV, V_WIDTH)


@triton.jit
def queries_run(
    dq, sums, q, grad, lse, delta, k, v, k_strides, v_strides, inside, between, outside, key_inside, key_between,
    key_strides, i, head, heads, keys, window, scale, begin, end,
    KIND: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, WITH_KEYS: tl.constexpr, LEARNED: tl.constexpr,
    RUN: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A run of tiles of keys, added to the gradients of a block of queries and to the sums of the slopes."""
    mixed: tl.constexpr = RUN % 2 == 0
    of_inside, of_between, of_outside = sums
    for start in range(begin, end, KEYS):
        j = (start + tl.arange(0, KEYS))[None, :]
        middle = start if RUN == 3 else start + KEYS - 1
        k_tile = load_rows(k, start, keys, k_strides[2], k_strides[3], KEYS, D, WIDTH, mixed)
        v_tile = load_rows(v, start, keys, v_strides[2], v_strides[3], KEYS, DV, V_WIDTH, mixed)
        s = tl.dot(q, tl.trans(k_tile), input_precision=PRECISION) * (scale * LOG2E)
        s, t = scores(
            s, attendable(i, j, keys, window, CAUSAL, WINDOW), i, j, middle, head, heads, inside, between,
            load_keys(key_inside, start, keys, key_strides[0], KEYS)[None, :],
            load_keys(key_between, start, keys, key_strides[1], KEYS)[None, :],
            KIND, mixed, WITH_KEYS,
        )  # fmt: skip
        u = sigmoid(s) if KIND == "sigmoid" else tl.exp2(t - lse[:, None])
        p = u
        if outside is not None:
            p = u * decay(i, j, middle, load_slopes(outside, head, heads), not mixed)
        dp = tl.dot(grad, tl.trans(v_tile), input_precision=PRECISION)
        ds, dt = logit_gradient(s, u, p, dp, delta[:, None], KIND)
        dq = tl.dot(ds.to(k_tile.dtype), k_tile, dq, input_precision=PRECISION)
        if INSIDE & LEARNED:
            of_inside = slope_gradients(of_inside, ds, i, j)
        if BETWEEN & LEARNED:
            of_between = slope_gradients(of_between, dt, i, j)
        if OUTSIDE & LEARNED:
            of_outside = slope_gradients(of_outside, p * dp, i, j)
    return dq, (of_inside, of_between, of_outside)


@triton.jit
def backward_queries(
    q, k, v, out, grad, dq, lse, deltas, d_inside, d_between, d_outside,
    inside, between, outside, key_inside, key_between,
    q_strides, k_strides, v_strides, out_strides, grad_strides, dq_strides, inside_strides, between_strides,
    scale, heads, queries, keys, offset, window,
    KIND: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, WITH_KEYS: tl.constexpr, LEARNED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries; ``deltas = dO . O`` (B, H, L) for the other kernel; sums for each slope and program.

    ``LEARNED``: sum of the places whose slopes' gradients are wanted.
    """
    block, batch, head = place(queries, heads, QUERIES, CAUSAL)
    q += batch * q_strides[0] + head * q_strides[1]
    k += batch * k_strides[0] + head * k_strides[1]
    v += batch * v_strides[0] + head * v_strides[1]
    dq += batch * dq_strides[0] + head * dq_strides[1]
    grad += batch * grad_strides[0] + head * grad_strides[1]
    if key_inside is not None:
        key_inside += batch * inside_strides[0] + head * inside_strides[1]
    if key_between is not None:
        key_between += batch * between_strides[0] + head * between_strides[1]

    start = block * QUERIES
    last = tl.minimum(start + QUERIES, queries) - 1 + offset
    bounds = key_bounds(start + offset, last, keys, window, CAUSAL, WINDOW, KEYS)
    i = (start + offset + tl.arange(0, QUERIES))[:, None]
    q_tile = load_rows(q, start, queries, q_strides[2], q_strides[3], QUERIES, D, WIDTH, True)
    grad_tile = load_rows(grad, start, queries, grad_strides[2], grad_strides[3], QUERIES, DV, V_WIDTH, True)
    sums_of_rows = tl.zeros([QUERIES], tl.float32)
    delta = tl.zeros([QUERIES], tl.float32)
    if KIND != "sigmoid":
        out += batch * out_strides[0] + head * out_strides[1]
        out_tile = load_rows(out, start, queries, out_strides[2], out_strides[3], QUERIES, DV, V_WIDTH, True)
        delta = tl.sum(grad_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
        rows = start + tl.arange(0, QUERIES)
        at = (batch * heads + head) * queries + rows
        tl.store(deltas + at, delta, mask=rows < queries)
        sums_of_rows = tl.load(lse + at, mask=rows < queries, other=float("inf"))
    acc = tl.zeros([QUERIES, WIDTH], tl.float32)
    none = tl.zeros([QUERIES], tl.float32)
    sums = ((none, none), (none, none), (none, none))
    for run in tl.static_range(0 if WINDOW else 1, 3 if CAUSAL else 5):
        acc, sums = queries_run(
            acc, sums, q_tile, grad_tile, sums_of_rows, delta, k, v, k_strides, v_strides, inside, between, outside,
            key_inside, key_between, (inside_strides[2], between_strides[2]), i, head, heads, keys, window, scale,
            bounds[run], bounds[run + 1],
            KIND, CAUSAL, WINDOW, WITH_KEYS, LEARNED, run, KEYS, D, DV, WIDTH, V_WIDTH, PRECISION,
        )  # fmt: skip
    store_rows(dq, acc * scale, start, queries, dq_strides[2], dq_strides[3], QUERIES, D, WIDTH)
    programs = tl.num_programs(0)
    if INSIDE & LEARNED:
        store_slope_gradients(d_inside, sums[0], programs)
    if BETWEEN & LEARNED:
        store_slope_gradients(d_between, sums[1], programs)
    if OUTSIDE & LEARNED:
        store_slope_gradients(d_outside, sums[2], programs)
