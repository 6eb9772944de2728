"""What is kept from call to call on CUDA: no graph may own it, and every stream may read it."""

from __future__ import annotations

import torch


def capturing(device: torch.device) -> bool:
    """Whether what is done on ``device`` now is captured into a CUDA graph rather than run.

    A tensor made then holds nothing before the graph is replayed, and one that is thrown away later would leave the
    graph reading freed memory: neither may be kept.
    """
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def finished(device: torch.device) -> None:
    """Wait for what has been begun on the current stream of ``device``, after which any stream may read it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
