"""Kernels of attention along the rows and then along the columns of a small map.

A program owns some whole columns of one map and head. The first pass attends, for their pixels, along the rows of the
map, all of whose keys it visits; its result stays on the chip and is what the second pass attends over, inside the
columns of the program alone. A map of at most ``PIXELS`` pixels is one program's.

Strides are those of (B, heads, ROWS, COLUMNS, channels). Bit j of the number of place i in a mask says whether i may
attend to j.
"""

import triton
import triton.language as tl

from biases.backends.triton.tiles import LOG2E, decay, finish, load_slopes, online, scores, sigmoid


@triton.jit
def load_pixels(base, row, column, valid, strides, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
    """The channels of some pixels, (PIXELS, PADDED), zero for those that are not ``valid``."""
    channels = tl.arange(0, PADDED).to(tl.int64)
    at = base + (row.to(tl.int64) * strides[2] + column.to(tl.int64) * strides[3])[:, None]
    at += channels[None, :] * strides[4]
    return tl.load(at, mask=valid[:, None] & (channels[None, :] < CHANNELS), other=0.0)


@triton.jit
def store_pixels(base, x, row, column, valid, strides, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
    """Store (PIXELS, PADDED) as the channels of some pixels, nothing for those that are not ``valid``."""
    channels = tl.arange(0, PADDED).to(tl.int64)
    at = base + (row.to(tl.int64) * strides[2] + column.to(tl.int64) * strides[3])[:, None]
    at += channels[None, :] * strides[4]
    tl.store(at, x.to(base.dtype.element_ty), mask=valid[:, None] & (channels[None, :] < CHANNELS))


@triton.jit
def start_of(base, batch, head, strides):
    """Where one map of one head begins."""
    return base + batch * strides[0] + head * strides[1]


@triton.jit
def place(heads, PROGRAMS: tl.constexpr):
    """Part of the map, map and head of this program."""
    program = tl.program_id(0)
    line = program // PROGRAMS
    return program % PROGRAMS, (line // heads).to(tl.int64), (line % heads).to(tl.int64)


@triton.jit
def columns_of(part, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, PIXELS: tl.constexpr):
    """Row and column of the pixels of ``GROUP`` columns, and which there are."""
    t = tl.arange(0, PIXELS)
    row, column = t // GROUP, part * GROUP + t % GROUP
    return row, column, (row < ROWS) & (column < COLUMNS)


@triton.jit
def in_line(line, other_line, at, other_at, valid, bits, batch, masks, LENGTH: tl.constexpr):
    """Which ``valid`` pixels at ``other_at`` of ``other_line`` those at ``at`` of ``line`` may attend to."""
    allowed = (line == other_line) & valid
    if bits is not None:
        word = tl.load(bits + batch % masks * LENGTH + at, mask=at < LENGTH, other=0)
        # Places beyond the line, which are not valid, must not shift by more than there are bits.
        allowed = allowed & (((word >> tl.minimum(other_at, 31)) & 1) != 0)
    return allowed


@triton.jit
def first_pass(
    q, k, v, k_strides, v_strides, inside, between, outside, bits, row, column, batch, head, heads, masks, scale,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PIXELS: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of some pixels along their rows, and its log-sum-exp to base 2."""
    acc = tl.zeros([PIXELS, V_WIDTH], tl.float32)
    top = tl.full([PIXELS], float("-inf"), tl.float32)
    total = tl.zeros([PIXELS], tl.float32)
    i = column[:, None]
    for start in range(0, ROWS * COLUMNS, PIXELS):
        n = start + tl.arange(0, PIXELS)
        key_row, j, valid = n // COLUMNS, (n % COLUMNS)[None, :], n < ROWS * COLUMNS
        k_tile = load_pixels(k, key_row, n % COLUMNS, valid, k_strides, D, WIDTH)
        v_tile = load_pixels(v, key_row, n % COLUMNS, valid, v_strides, DV, V_WIDTH)
        s = tl.dot(q, tl.trans(k_tile), input_precision=PRECISION) * (scale * LOG2E)
        allowed = in_line(row[:, None], key_row[None, :], i, j, valid[None, :], bits, batch, masks[0], COLUMNS)
        s, t = scores(s, allowed, i, j, 0, head, heads, inside, between, 0.0, 0.0, KIND, True, 0)
        if KIND == "sigmoid":
            p = sigmoid(s)
        else:
            p, top, total, acc = online(t, top, total, acc)
        if outside is not None:
            p *= decay(i, j, 0, load_slopes(outside, head, heads), False)
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc, input_precision=PRECISION)
    if KIND != "sigmoid":
        acc, top = finish(acc, top, total)
    return acc, top


@triton.jit
def second_weights(
    q, k, inside, between, outside, bits, row, column, valid, batch, head, heads, masks, scale,
    KIND: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weights of the second pass inside the columns of a program, before and after the decay outside, and logits."""
    i, j = row[:, None], row[None, :]
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
    allowed = in_line(column[:, None], column[None, :], i, j, valid[None, :], bits, batch, masks[1], ROWS)
    s, t = scores(s, allowed, i, j, 0, head, heads, inside, between, 0.0, 0.0, KIND, True, 0)
    if KIND == "sigmoid":
        u = sigmoid(s)
    else:
        top = tl.max(t, 1)
        u = tl.exp2(t - tl.where(top == float("-inf"), 0.0, top)[:, None])
        total = tl.sum(u, 1)
        u = u / tl.where(total == 0.0, 1.0, total)[:, None]
    p = u
    if outside is not None:
        p = u * decay(i, j, 0, load_slopes(outside, head, heads), False)
    return s, u, p


@triton.jit
def forward(
    q, k, v, out, inside, between, outside, first_bits, second_bits, q_strides, k_strides, v_strides, out_strides,
    scale, heads, masks,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
    PIXELS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Both passes: (B, heads, ROWS, COLUMNS, DV)."""
    part, batch, head = place(heads, PROGRAMS)
    row, column, valid = columns_of(part, ROWS, COLUMNS, GROUP, PIXELS)
    k_map = start_of(k, batch, head, k_strides)
    q_tile = load_pixels(start_of(q, batch, head, q_strides), row, column, valid, q_strides, D, WIDTH)
    y, _ = first_pass(
        q_tile, k_map, start_of(v, batch, head, v_strides), k_strides, v_strides, inside, between, outside, first_bits,
        row, column, batch, head, heads, masks, scale,
        KIND, ROWS, COLUMNS, PIXELS, D, DV, WIDTH, V_WIDTH, PRECISION,
    )  # fmt: skip
    k_tile = load_pixels(k_map, row, column, valid, k_strides, D, WIDTH)
    _, _, p = second_weights(
        q_tile, k_tile, inside, between, outside, second_bits, row, column, valid, batch, head, heads, masks, scale,
        KIND, ROWS, PRECISION,
    )  # fmt: skip
    dtype = v.dtype.element_ty
    result = tl.dot(p.to(dtype), y.to(dtype), input_precision=PRECISION)
    store_pixels(start_of(out, batch, head, out_strides), result, row, column, valid, out_strides, DV, V_WIDTH)
