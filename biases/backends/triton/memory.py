"""Where kernels put their results, and on which device they are launched."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def empty(like: Tensor, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a result: contiguous, on the device of ``like`` and, unless told otherwise, in its dtype."""
    return like.new_empty(shape, dtype=like.dtype if dtype is None else dtype)


def on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
