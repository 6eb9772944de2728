"""Peak memory of a call, in bytes, on a device that is checked first."""

from __future__ import annotations

from collections.abc import Callable

import torch

from biases import _memory
from biases.bench._device import measured_device


def peak_bytes(fn: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """The most bytes that ``fn()`` held at one moment, above what was held when it started.

    What ``fn`` returns counts; what existed before does not; what is freed inside counts back.

    On the CPU this counts the blocks that torch's CPU allocator hands out, as requested and without rounding:
    the storages of tensors and the workspaces that operators take as tensors. It does not count memory that a
    library (MKL, oneDNN, OpenMP) or Python takes from the system, numpy arrays, or blocks allocated before
    the call that it frees: those neither raise nor lower the count. On CUDA it counts the blocks of torch's
    caching allocator, in its rounded sizes (multiples of 512 bytes), and there freeing an older block does
    lower it.

    ``fn`` is called once. Call it once before if its first call fills caches that later ones reuse.

    Raises:
        ValueError: a device that cannot be measured.
        RuntimeError: on the CPU, where a torch profiler is already running.
    """
    return _memory.peak_bytes(fn, measured_device(device))
