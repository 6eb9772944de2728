"""Shared by the suites: settings, prepared and checked workloads, samples on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from time import perf_counter
from typing import Any

import torch

from biases.bench.workloads import Setting, Workload, prepare

DIRECTIONS = ("forward", "forward+backward")
AXES = ("name", "length", "dtype", "device", "direction")
L2_BYTES = 1 << 28


def present(device: str) -> None:
    """Skip what this machine has no device for.

    Raises:
        NotImplementedError: asv's word for skipping.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise NotImplementedError("no CUDA device")


@lru_cache(maxsize=1)
def prepared(level: str, batch: int, heads: int, head_dim: int, *where: Any) -> Workload:
    """The workload at ``where``, the values of :data:`AXES`; asv asks for the same one before each timed call."""
    name, length, dtype, device, direction = where
    present(device)
    setting = Setting(
        batch=batch,
        heads=heads,
        length=length,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
        direction=direction,
    )
    return prepare(level, name, setting)


@lru_cache(maxsize=1)
def checked(level: str, batch: int, heads: int, head_dim: int, *where: Any) -> Workload:
    """The same, compared with its specification once in a process.

    Raises:
        AssertionError: the results are wrong; asv counts the benchmark as failed.
    """
    workload = prepared(level, batch, heads, head_dim, *where)
    workload.check()
    return workload


def cuda_samples(call: Callable[[], object], *, rounds: int = 30, warmup: int = 5, seconds: float = 3.0) -> list[float]:
    """Seconds between two events around each call, the L2 cache flushed before it; at least 5 samples.

    Args:
        call: what is timed.
        rounds: samples at most.
        warmup: calls before the first, dropped.
        seconds: a budget, from the end of the warm-up.
    """
    for _ in range(warmup):
        call()
    torch.cuda.synchronize()
    flush = torch.empty(L2_BYTES, dtype=torch.int8, device="cuda")
    begin, found = perf_counter(), list[float]()
    while len(found) < rounds and (len(found) < 5 or perf_counter() - begin < seconds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        result = call()
        end.record()
        torch.cuda.synchronize()
        del result
        found.append(start.elapsed_time(end) / 1e3)
    return found
