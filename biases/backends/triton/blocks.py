"""Block sizes by head width: how much of a problem a program holds on the chip at once.

Chosen for an H100 (228 KiB of shared memory and 64 Ki registers an SM) so that tiles and their prefetched successors
fit, and so that the accumulators of a program stay in registers. They are not the result of a search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from biases._checks import fail

WIDEST = 256
NARROWEST = 16


@dataclass(frozen=True)
class Blocks:
    """Launch parameters of a kernel.

    Attributes:
        queries, keys: rows of a tile on either side, powers of two of at least 16.
        warps: warps a program.
        stages: tiles in flight.
    """

    queries: int
    keys: int
    warps: int
    stages: int


# Half precision, by padded head width. One program holds its queries and streams keys and values: 128 queries keep two
# groups of four warps busy with 64-row matrix instructions; at width 256 half as many, as the accumulator of the output
# alone takes 64 Ki registers otherwise.
_FORWARD_HALF = {
    64: Blocks(128, 64, 4, 3),
    128: Blocks(128, 64, 8, 3),
    256: Blocks(64, 64, 8, 2),
}
# float32 has no tensor-core instruction that keeps its precision, and tiles take twice the bytes.
_FORWARD_SINGLE = {
    64: Blocks(32, 32, 4, 2),
    128: Blocks(32, 16, 4, 2),
    256: Blocks(16, 16, 4, 2),
}
# The backward passes hold two accumulators (keys, values) or one (queries), and two tiles of pairs instead of one.
_KEYS_HALF = {
    64: Blocks(64, 128, 8, 2),
    128: Blocks(64, 64, 8, 2),
    256: Blocks(32, 64, 8, 1),
}
_KEYS_SINGLE = {
    64: Blocks(32, 32, 4, 1),
    128: Blocks(16, 32, 4, 1),
    256: Blocks(16, 16, 4, 1),
}
_QUERIES_HALF = {
    64: Blocks(128, 64, 8, 2),
    128: Blocks(64, 64, 8, 2),
    256: Blocks(64, 32, 8, 1),
}
_QUERIES_SINGLE = {
    64: Blocks(32, 32, 4, 1),
    128: Blocks(32, 16, 4, 1),
    256: Blocks(16, 16, 4, 1),
}
_TABLES = {
    "forward": (_FORWARD_HALF, _FORWARD_SINGLE),
    "keys": (_KEYS_HALF, _KEYS_SINGLE),
    "queries": (_QUERIES_HALF, _QUERIES_SINGLE),
}


def padded(width: int) -> int:
    """The power of two, at least 16, to which a width is padded on the chip."""
    return max(NARROWEST, 1 << (width - 1).bit_length())


def blocks(kernel: str, width: int, bytes_each: int) -> Blocks:
    """The launch parameters of a kernel.

    Args:
        kernel: ``"forward"``, ``"keys"`` (gradients of keys and values) or ``"queries"`` (gradients of queries).
        width: the larger of the widths of keys and values.
        bytes_each: bytes of one number of the inputs, 2 or 4.

    Raises:
        ValueError: a width over 256.
    """
    if not 1 <= width <= WIDEST:
        fail("Triton kernels, head width", f"1 to {WIDEST}", width)
    return _TABLES[kernel][bytes_each // 4][max(64, padded(width))]


def precision(dtype: torch.dtype) -> str:
    """How products are computed: exactly for float32, but for the user's own choice of TensorFloat-32, made by
    torch.set_float32_matmul_precision or torch.backends.cuda.matmul.fp32_precision."""
    if dtype != torch.float32:
        return "ieee"
    # Once the attribute was set, torch.get_float32_matmul_precision may raise.
    chosen = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if chosen is None:
        chosen = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "tf32" if chosen == "tf32" else "ieee"


def places(*present: object) -> int:
    """Which of the places inside, between and outside there is something, as the kernels take it: 1, 2 and 4."""
    return sum(1 << n for n, x in enumerate(present) if x is not None and x is not False)
