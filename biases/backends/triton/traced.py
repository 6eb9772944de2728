"""What functions that are being compiled may ask: the answers of Triton and of the driver, as constants.

A module of its own, as marking a function imports the compiler, which takes seconds.
"""

from __future__ import annotations

import torch

from biases.backends.triton import support


@torch.compiler.assume_constant_result
def why_unsupported(kind: str, index: int | None) -> str | None:
    """:func:`biases.backends.triton.support.why_unsupported`, asked once a compilation."""
    return support.why_unsupported(kind, index)
