"""Peak memory of a call, in bytes, counted at the allocator.

Deterministic for a device and a number of threads, unlike the resident size of a process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

_keepers: list[Callable[[], object]] = []


def keeper(release: Callable[[], object]) -> Callable[[], object]:
    """Decorates a function that lets go of what is kept from one call to the next.

    It is called before every measurement, so that each one is charged with all that it needs.
    """
    _keepers.append(release)
    return release


def peak_bytes(fn: Callable[[], object], device: torch.device) -> int:
    """The most bytes that ``fn()`` held at one moment, above what was held when it started.

    :func:`biases.bench.peak_bytes` says what is counted.

    Raises:
        RuntimeError: on the CPU, where a torch profiler is already running.
    """
    for release in _keepers:
        release()
    return _cuda_peak(fn, device) if device.type == "cuda" else _cpu_peak(fn)


def _cuda_peak(fn: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = fn()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del result
    return max(peak, 0)


def _cpu_peak(fn: Callable[[], object]) -> int:
    with _quiet_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = fn()
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    del result
    on_cpu = (e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == 0)
    return _highest((e["args"]["Addr"], e["args"]["Bytes"]) for e in sorted(on_cpu, key=lambda e: e["ts"]))


def _highest(changes: Iterable[tuple[int, int]]) -> int:
    """Highest running total of (address, bytes) changes in the order of time, frees negative.

    The profiler's own running total will not do. It goes on from earlier profiles, and a block that outlived
    one of them leaves its size behind: a later, unrelated block at that address is then freed at the wrong
    size. So a free counts only for a block that was allocated here.
    """
    live: dict[int, int] = {}
    level = peak = 0
    for address, size in changes:
        if size > 0:
            live[address] = size
            level += size
            peak = max(peak, level)
        else:
            level -= live.pop(address, 0)
    return peak


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler from writing to stderr at each start and stop, unless a log level was asked for."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "99"
    try:
        yield
    finally:
        del os.environ[name]
