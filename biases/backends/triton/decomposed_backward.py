"""Kernels of the gradients of attention along the rows and then along the columns of a small map.

Nothing of the forward pass is kept but its inputs. The first kernel owns columns, as the forward pass does: it forms
both passes again and has the gradients of the queries, of the keys by the second pass, and of the result of the first.
The gradients of the keys by the first pass and of the values are sums over a row, so that a second kernel owns rows;
where one program holds the whole map, the first kernel does it all.
"""

import triton
import triton.language as tl

from biases.backends.triton.decomposed_kernels import (
    columns_of,
    first_pass,
    in_line,
    load_pixels,
    place,
    second_weights,
    start_of,
    store_pixels,
)
from biases.backends.triton.tiles import (
    BETWEEN,
    INSIDE,
    LOG2E,
    OUTSIDE,
    decay,
    load_slopes,
    logit_gradient,
    scores,
    sigmoid,
    slope_gradients,
    store_slope_gradients,
)


@triton.jit
def add_slopes(sums, ds, dt, dw, i, j, LEARNED: tl.constexpr):
    """What a tile adds to the sums of the slopes inside, between and outside."""
    of_inside, of_between, of_outside = sums
    if INSIDE & LEARNED:
        of_inside = slope_gradients(of_inside, ds, i, j)
    if BETWEEN & LEARNED:
        of_between = slope_gradients(of_between, dt, i, j)
    if OUTSIDE & LEARNED:
        of_outside = slope_gradients(of_outside, dw, i, j)
    return of_inside, of_between, of_outside


@triton.jit
def backward_columns(
    q, k, v, grad, dq, dk, dv, dk_second, dy_first, lse, deltas, d_inside, d_between, d_outside,
    inside, between, outside, first_bits, second_bits,
    q_strides, k_strides, v_strides, grad_strides, dq_strides, dk_strides, dv_strides, scale, heads, masks,
    KIND: tl.constexpr, LEARNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr, PIXELS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries of some columns; of keys and values as well where ``PROGRAMS`` is 1.

    Otherwise ``dk_second`` and ``dy_first`` receive what the other kernel needs: the gradients of the keys by the
    second pass and those of the result of the first pass, contiguous, with ``lse`` and ``deltas`` of the first pass
    (B, heads, ROWS, COLUMNS).
    """
    part, batch, head = place(heads, PROGRAMS)
    row, column, valid = columns_of(part, ROWS, COLUMNS, GROUP, PIXELS)
    dtype = v.dtype.element_ty
    k_map, v_map = start_of(k, batch, head, k_strides), start_of(v, batch, head, v_strides)
    q_tile = load_pixels(start_of(q, batch, head, q_strides), row, column, valid, q_strides, D, WIDTH)
    k_tile = load_pixels(k_map, row, column, valid, k_strides, D, WIDTH)
    grad_map = start_of(grad, batch, head, grad_strides)
    grad_tile = load_pixels(grad_map, row, column, valid, grad_strides, DV, V_WIDTH)
    y, row_sums = first_pass(
        q_tile, k_map, v_map, k_strides, v_strides, inside, between, outside, first_bits,
        row, column, batch, head, heads, masks, scale,
        KIND, ROWS, COLUMNS, PIXELS, D, DV, WIDTH, V_WIDTH, PRECISION,
    )  # fmt: skip
    none = tl.zeros([PIXELS], tl.float32)
    sums = ((none, none), (none, none), (none, none))

    s, u, p = second_weights(
        q_tile, k_tile, inside, between, outside, second_bits, row, column, valid, batch, head, heads, masks, scale,
        KIND, ROWS, PRECISION,
    )  # fmt: skip
    dp = tl.dot(grad_tile, tl.trans(y.to(dtype)), input_precision=PRECISION)
    dy = tl.dot(tl.trans(p.to(dtype)), grad_tile, input_precision=PRECISION)
    ds, dt = logit_gradient(s, u, p, dp, tl.sum(p * dp, 1)[:, None], KIND)
    sums = add_slopes(sums, ds, dt, p * dp, row[:, None], row[None, :], LEARNED)
    dq_sum = tl.dot(ds.to(dtype), k_tile, input_precision=PRECISION)
    dk_sum = tl.dot(tl.trans(ds.to(dtype)), q_tile, input_precision=PRECISION)

    delta = tl.sum(dy * y, 1)
    dy_tile = dy.to(dtype)
    i = column[:, None]
    for start in range(0, ROWS * COLUMNS, PIXELS):
        n = start + tl.arange(0, PIXELS)
        key_row, j, there = n // COLUMNS, (n % COLUMNS)[None, :], n < ROWS * COLUMNS
        k_tile = load_pixels(k_map, key_row, n % COLUMNS, there, k_strides, D, WIDTH)
        v_tile = load_pixels(v_map, key_row, n % COLUMNS, there, v_strides, DV, V_WIDTH)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * (scale * LOG2E)
        allowed = in_line(row[:, None], key_row[None, :], i, j, there[None, :], first_bits, batch, masks[0], COLUMNS)
        s, t = scores(s, allowed, i, j, 0, head, heads, inside, between, 0.0, 0.0, KIND, True, 0)
        u = sigmoid(s) if KIND == "sigmoid" else tl.exp2(t - row_sums[:, None])
        p = u
        if outside is not None:
            p = u * decay(i, j, 0, load_slopes(outside, head, heads), False)
        dp = tl.dot(dy_tile, tl.trans(v_tile), input_precision=PRECISION)
        ds, dt = logit_gradient(s, u, p, dp, delta[:, None], KIND)
        sums = add_slopes(sums, ds, dt, p * dp, i, j, LEARNED)
        dq_sum = tl.dot(ds.to(dtype), k_tile, dq_sum, input_precision=PRECISION)
        if PROGRAMS == 1:
            dk_sum = tl.dot(tl.trans(ds.to(dtype)), q_tile, dk_sum, input_precision=PRECISION)
            dv_sum = tl.dot(tl.trans(p.to(dtype)), dy_tile, input_precision=PRECISION)
            dk_map, dv_map = start_of(dk, batch, head, dk_strides), start_of(dv, batch, head, dv_strides)
            store_pixels(dk_map, dk_sum * scale, row, column, valid, dk_strides, D, WIDTH)
            store_pixels(dv_map, dv_sum, row, column, valid, dv_strides, DV, V_WIDTH)

    dq_map = start_of(dq, batch, head, dq_strides)
    store_pixels(dq_map, dq_sum * scale, row, column, valid, dq_strides, D, WIDTH)
    if PROGRAMS > 1:
        pixels = (batch * heads + head) * ROWS * COLUMNS
        store_pixels(dk_second + pixels * D, dk_sum, row, column, valid, (0, 0, COLUMNS * D, D, 1), D, WIDTH)
        store_pixels(dy_first + pixels * DV, dy, row, column, valid, (0, 0, COLUMNS * DV, DV, 1), DV, V_WIDTH)
        tl.store(deltas + pixels + row * COLUMNS + column, delta, mask=valid)
        tl.store(lse + pixels + row * COLUMNS + column, row_sums, mask=valid)
    programs = tl.num_programs(0)
    if INSIDE & LEARNED:
        store_slope_gradients(d_inside, sums[0], programs)
    if BETWEEN & LEARNED:
        store_slope_gradients(d_between, sums[1], programs)
    if OUTSIDE & LEARNED:
        store_slope_gradients(d_outside, sums[2], programs)


@triton.jit
def backward_rows(
    q, k, v, dk, dv, dk_second, dy_first, lse, deltas, inside, between, outside, first_bits,
    q_strides, k_strides, v_strides, dk_strides, dv_strides, scale, heads, masks,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr, PIXELS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values of ``GROUP`` rows. Tiles are keys x queries."""
    part, batch, head = place(heads, PROGRAMS)
    t = tl.arange(0, PIXELS)
    row, column = part * GROUP + t // COLUMNS, t % COLUMNS
    valid = (t < GROUP * COLUMNS) & (row < ROWS)
    dtype = v.dtype.element_ty
    pixels = (batch * heads + head) * ROWS * COLUMNS
    q_tile = load_pixels(start_of(q, batch, head, q_strides), row, column, valid, q_strides, D, WIDTH)
    k_tile = load_pixels(start_of(k, batch, head, k_strides), row, column, valid, k_strides, D, WIDTH)
    v_tile = load_pixels(start_of(v, batch, head, v_strides), row, column, valid, v_strides, DV, V_WIDTH)
    dy = load_pixels(dy_first + pixels * DV, row, column, valid, (0, 0, COLUMNS * DV, DV, 1), DV, V_WIDTH)
    row_sums = tl.load(lse + pixels + row * COLUMNS + column, mask=valid, other=float("inf"))
    delta = tl.load(deltas + pixels + row * COLUMNS + column, mask=valid, other=0.0)

    i, j = column[None, :], column[:, None]
    s = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * (scale * LOG2E)
    allowed = in_line(row[None, :], row[:, None], i, j, valid[:, None], first_bits, batch, masks[0], COLUMNS)
    s, t = scores(s, allowed, i, j, 0, head, heads, inside, between, 0.0, 0.0, KIND, True, 0)
    u = sigmoid(s) if KIND == "sigmoid" else tl.exp2(t - row_sums[None, :])
    p = u
    if outside is not None:
        p = u * decay(i, j, 0, load_slopes(outside, head, heads), False)
    dp = tl.dot(v_tile, tl.trans(dy), input_precision=PRECISION)
    ds, _ = logit_gradient(s, u, p, dp, delta[None, :], KIND)
    dv_sum = tl.dot(p.to(dtype), dy, input_precision=PRECISION)
    dk_sum = load_pixels(dk_second + pixels * D, row, column, valid, (0, 0, COLUMNS * D, D, 1), D, WIDTH)
    dk_sum = tl.dot(ds.to(dtype), q_tile, dk_sum, input_precision=PRECISION)
    store_pixels(start_of(dk, batch, head, dk_strides), dk_sum * scale, row, column, valid, dk_strides, D, WIDTH)
    store_pixels(start_of(dv, batch, head, dv_strides), dv_sum, row, column, valid, dv_strides, DV, V_WIDTH)
