"""What a call costs whatever the machine's mood: operators, allocated bytes, kernels, graph breaks.

Each count is equal between two runs with one version of torch, one kind of device and, on the CPU, one number of
threads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

Call = Callable[[], object]


def operators(call: Call) -> int:
    """Operators that ``call()`` dispatches, views included: another formulation of the same attention has others."""
    with _Counting() as counter:
        call()
    return counter.operators


def allocated_bytes(call: Call, device: torch.device) -> int:
    """The sum of all blocks that torch's allocator hands out during ``call()``, whether or not they are freed in it."""
    if device.type == "cuda":
        before = _cuda_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return _cuda_allocated(device) - before
    events = _events(call, [ProfilerActivity.CPU], profile_memory=True)
    changes = (event["args"] for event in events if event["name"] == "[memory]")
    return sum(each["Bytes"] for each in changes if each["Device Type"] == 0 and each["Bytes"] > 0)


def kernels(call: Call) -> int:
    """CUDA kernels that ``call()`` launches; copies and fills by the copy engine are not kernels."""
    call()
    torch.cuda.synchronize()

    def complete() -> None:
        call()
        torch.cuda.synchronize()

    events = _events(complete, [ProfilerActivity.CPU, ProfilerActivity.CUDA])
    return sum(event.get("cat") == "kernel" for event in events)


def graph_breaks(call: Call) -> int:
    """Where ``torch.compile`` would fall back to Python; nothing is compiled.

    Raises:
        RuntimeError: there was nothing to capture.
    """
    import torch._dynamo as dynamo

    dynamo.reset()
    try:
        found = dynamo.explain(call)()
    finally:
        dynamo.reset()
    if not found.graph_count:
        raise RuntimeError("expected at least one captured graph, got none")
    return found.graph_break_count


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


def _cuda_allocated(device: torch.device) -> int:
    return torch.cuda.memory_stats(device).get("allocated_bytes.all.allocated", 0)


def _events(call: Call, activities: Sequence[ProfilerActivity], **options: Any) -> list[dict[str, Any]]:
    """The events of a trace of ``call()``."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=list(activities), **options) as recorded:
        result = call()
    del result
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(trace))
        return json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
