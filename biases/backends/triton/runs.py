"""Which tiles of queries x keys a program visits."""

import triton
import triton.language as tl


@triton.jit
def place(length, heads, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """Block, batch and head of this program. Under causality the last blocks of queries have most work: they start."""
    blocks = tl.cdiv(length, BLOCK)
    program = tl.program_id(0)
    block = program % blocks
    if LAST_FIRST:
        block = blocks - 1 - block
    return block, (program // blocks // heads).to(tl.int64), (program // blocks % heads).to(tl.int64)


@triton.jit
def key_bounds(first, last, keys, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, KEYS: tl.constexpr):
    """Where five runs of tiles of keys begin and end, for queries at positions ``first .. last``.

    Run 0 holds the edge of the window, 1 the past, 2 the diagonal, 3 the future, 4 the last keys: of the odd runs all
    pairs may attend and lie on one side.
    """
    past = tl.minimum(keys, tl.maximum(first + 1, 0)) // KEYS * KEYS
    begin = 0
    edge = 0
    if WINDOW:
        begin = tl.maximum(first - window + 1, 0) // KEYS * KEYS
        past = tl.maximum(past, begin)
        edge = tl.minimum(tl.maximum(begin, tl.cdiv(tl.maximum(last - window + 1, 0), KEYS) * KEYS), past)
    if CAUSAL:
        end = tl.minimum(keys, tl.maximum(last + 1, 0))
        diagonal, future = end, end
    else:
        end = keys
        diagonal = tl.minimum(tl.maximum(past, tl.cdiv(tl.maximum(last, 0), KEYS) * KEYS), keys)
        future = tl.maximum(diagonal, keys // KEYS * KEYS)
    return begin, edge, past, diagonal, future, end


@triton.jit
def query_bounds(first, last, queries, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, QUERIES: tl.constexpr):
    """Where five runs of tiles of queries begin and end, for keys ``first .. last`` in the coordinates of the queries.

    Run 1 holds queries before the keys, 2 the diagonal, 3 queries after the keys, 4 the edge of the window; of the odd
    runs all pairs may attend and lie on one side. Run 0 is empty.
    """
    diagonal = tl.minimum(tl.cdiv(tl.maximum(last, 0), QUERIES) * QUERIES, tl.cdiv(queries, QUERIES) * QUERIES)
    begin = 0
    if CAUSAL:
        begin = tl.maximum(first, 0) // QUERIES * QUERIES
        before = begin
    else:
        before = tl.minimum(tl.maximum(first + 1, 0) // QUERIES * QUERIES, diagonal)
    diagonal = tl.maximum(diagonal, before)
    end = tl.maximum(queries, diagonal)
    after = end
    if WINDOW:
        end = tl.minimum(queries, tl.maximum(last + window, 0))
        after = tl.maximum(diagonal, tl.maximum(first + window, 0) // QUERIES * QUERIES)
        after = tl.minimum(after, tl.maximum(end, diagonal))
    return begin, begin, before, diagonal, after, end
