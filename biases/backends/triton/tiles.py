"""Parts of kernels that work on one tile of queries x keys; all logarithms are to base 2, in which the GPU computes."""

# Triton reads the source of a kernel, not its annotations: a plain annotation of an argument would fix its type.
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Places of terms, as in the docstring of ``plan``; sets of them are sums.
INSIDE = tl.constexpr(1)
BETWEEN = tl.constexpr(2)
OUTSIDE = tl.constexpr(4)


@triton.jit
def load_rows(
    base, first, count, row_stride, channel_stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    CHECKED: tl.constexpr,
):  # fmt: skip
    """Rows ``first .. first + ROWS - 1`` of a (count, WIDTH) matrix, (ROWS, PADDED), zero outside of it.

    Offsets have 64 bits. ``CHECKED`` is needed where rows may lie beyond the last.
    """
    rows = first + tl.arange(0, ROWS)
    channels = tl.arange(0, PADDED)
    at = base + rows.to(tl.int64)[:, None] * row_stride + channels.to(tl.int64)[None, :] * channel_stride
    if CHECKED:
        x = tl.load(at, mask=(rows[:, None] < count) & (channels[None, :] < WIDTH), other=0.0)
    elif WIDTH < PADDED:
        x = tl.load(at, mask=channels[None, :] < WIDTH, other=0.0)
    else:
        x = tl.load(at)
    return x


@triton.jit
def store_rows(
    base, x, first, count, row_stride, channel_stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """Store (ROWS, PADDED) as rows ``first`` and following of a (count, WIDTH) matrix, nothing outside of it."""
    rows = first + tl.arange(0, ROWS)
    channels = tl.arange(0, PADDED)
    at = base + rows.to(tl.int64)[:, None] * row_stride + channels.to(tl.int64)[None, :] * channel_stride
    inside = (rows[:, None] < count) & (channels[None, :] < WIDTH)
    tl.store(at, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def load_slopes(slopes, head, heads):
    """Slopes of the signed and of the absolute distance of one head, to base 2; zeros where there are none."""
    signed, absolute = 0.0, 0.0
    if slopes is not None:
        signed = tl.load(slopes + head) * LOG2E
        absolute = tl.load(slopes + heads + head) * LOG2E
    return signed, absolute


@triton.jit
def load_keys(key_bias, first, count, stride, ROWS: tl.constexpr):
    """Numbers of the keys ``first .. first + ROWS - 1``, to base 2; zeros beyond the last and where there are none."""
    if key_bias is None:
        x = tl.zeros([ROWS], tl.float32)
    else:
        j = first + tl.arange(0, ROWS)
        x = tl.load(key_bias + j.to(tl.int64) * stride, mask=j < count, other=0.0) * LOG2E
    return x


@triton.jit
def linear(i, j, middle, slopes, SEPARABLE: tl.constexpr):
    """``-a (i - j) - b |i - j|`` for query positions ``i`` and key positions ``j`` along different axes of a tile.

    Where all keys lie on one side of all queries with ``middle`` between them, |i - j| = |i - middle| + |middle - j|:
    a number for each query plus one for each key (``SEPARABLE``).
    """
    signed, absolute = slopes
    if SEPARABLE:
        left = (i - middle).to(tl.float32)
        right = (middle - j).to(tl.float32)
        x = (-signed * left - absolute * tl.abs(left)) + (-signed * right - absolute * tl.abs(right))
    else:
        distance = (i - j).to(tl.float32)
        x = -signed * distance - absolute * tl.abs(distance)
    return x


@triton.jit
def decay(i, j, middle, slopes, SEPARABLE: tl.constexpr):
    """``2 ** linear(...)``; where separable, one exponential for each query and each key instead of each pair."""
    signed, absolute = slopes
    if SEPARABLE:
        left = (i - middle).to(tl.float32)
        right = (middle - j).to(tl.float32)
        x = tl.exp2(-signed * left - absolute * tl.abs(left)) * tl.exp2(-signed * right - absolute * tl.abs(right))
    else:
        distance = (i - j).to(tl.float32)
        x = tl.exp2(-signed * distance - absolute * tl.abs(distance))
    return x


@triton.jit
def sigmoid(s):
    """``sigma`` of logits to base 2; exactly 0 for ``-inf``."""
    return 1.0 / (1.0 + tl.exp2(-s))


@triton.jit
def online(t, top, total, acc):
    """Exponentials of a tile against the largest logit so far, and what was summed before scaled to match.

    ``t``, (M, N); ``top`` and ``total``, (M,): largest logit and sum of exponentials; ``acc``, (M, D).
    """
    largest = tl.maximum(top, tl.max(t, 1))
    # A row that has seen no key has nothing to scale, and -inf - -inf would be NaN.
    against = tl.where(largest == float("-inf"), 0.0, largest)
    scaled = tl.exp2(top - against)
    u = tl.exp2(t - against[:, None])
    return u, largest, total * scaled + tl.sum(u, 1), acc * scaled[:, None]


@triton.jit
def finish(acc, top, total):
    """Rows divided by their sums, and their log-sum-exp to base 2: 0 and +inf for a row without keys."""
    empty = total == 0.0
    lse = tl.where(empty, float("inf"), top + tl.log2(tl.where(empty, 1.0, total)))
    return acc / tl.where(empty, 1.0, total)[:, None], lse


@triton.jit
def logit_gradient(s, u, p, dp, delta, KIND: tl.constexpr):
    """Gradients of ``s`` and of ``t``, natural units.

    Args: logits ``s`` to base 2, weights ``u`` before and ``p`` after the decay outside, ``dp = dO . v``, and
    ``delta = dO . O`` broadcastable to the tile.
    """
    if KIND == "sigmoid":
        ds = dp * p * (1.0 - u)
        dt = ds
    else:
        dt = p * dp - u * delta
        ds = dt * (1.0 - sigmoid(s)) if KIND == "log-sigmoid" else dt
    return ds, dt


@triton.jit
def attendable(i, j, keys, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Which pairs may attend: keys that exist, at or before the query, inside its window."""
    allowed = j < keys
    if CAUSAL:
        allowed = allowed & (j <= i)
    if WINDOW:
        allowed = allowed & (i - j < window)
    return allowed


@triton.jit
def scores(
    s, allowed, i, j, middle, head, heads, inside, between, key_inside, key_between,
    KIND: tl.constexpr, MIXED: tl.constexpr, WITH_KEYS: tl.constexpr,
):  # fmt: skip
    """Logits ``s`` and ``t`` to base 2 from ``scale q . k``, with ``-inf`` where a pair may not attend.

    All pairs of a tile that is not ``MIXED`` may attend, and are separated by ``middle``. ``WITH_KEYS``: sum of the
    places (``INSIDE``, ``BETWEEN``) where keys have numbers.
    """
    if inside is not None:
        s += linear(i, j, middle, load_slopes(inside, head, heads), not MIXED)
    if INSIDE & WITH_KEYS:
        s += key_inside
    if MIXED:
        s = tl.where(allowed, s, float("-inf"))
    t = s
    if KIND == "log-sigmoid":
        t = tl.minimum(s, 0.0) - tl.log2(1.0 + tl.exp2(-tl.abs(s)))
    if between is not None:
        t += linear(i, j, middle, load_slopes(between, head, heads), not MIXED)
    if BETWEEN & WITH_KEYS:
        t += key_between
    return s, t


@triton.jit
def slope_gradients(sums, gradient, i, j):
    """What a tile adds to the gradients, row by row, of a slope of the signed and of one of the absolute distance."""
    distance = (i - j).to(tl.float32)
    signed, absolute = sums
    return signed - tl.sum(gradient * distance, 1), absolute - tl.sum(gradient * tl.abs(distance), 1)


@triton.jit
def store_slope_gradients(to, sums, programs):
    """Store the sums of this program, one for each of two slopes."""
    signed, absolute = sums
    tl.store(to + tl.program_id(0), tl.sum(signed, 0))
    tl.store(to + programs + tl.program_id(0), tl.sum(absolute, 0))
