"""What a call costs whatever the machine's mood: operations, operators, allocated bytes, kernels, graph breaks.

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
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from biases._calls import STAND_IN, replaced
from biases.attention import attend
from biases.bench.operators import Operator

Call = Callable[[], object]


def operations(call: Call, *, backward: bool) -> int:
    """Floating-point operations of the matrix products, convolutions and attention kernels that ``call()`` makes.

    An attention kernel of torch counts as dense, causal or not: 2 products a pair forward, 5 backward. A call of
    ``attend`` in which torch's counter sees no operation, as that of a kernel of our own, counts with its nominal
    operations (:meth:`biases.bench.operators.Operator.flops`). Elementwise work is not counted.
    """
    unseen = 0

    def watched(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        nonlocal unseen
        before = counter.operations
        token = STAND_IN.set(None)
        try:
            out = attend(q, k, v, **options)
        finally:
            STAND_IN.reset(token)
        if counter.operations == before:
            unseen += Operator(q, k, v, options, (), out if backward else None).flops()
        return out

    with _Counting() as counter, replaced(watched):
        call()
    return counter.operations + unseen


def operators(call: Call) -> int:
    """Operators that ``call()`` dispatches, views included."""
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
    """Counts operators, and operations by torch's own formulas.

    :class:`torch.utils.flop_counter.FlopCounterMode` cannot be used: the hooks with which it follows modules refuse
    :func:`torch.autograd.grad`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.operations = 0
        self._formulas = {**flop_registry, **_formulas()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        out = func(*args, **options)
        self.operators += 1
        formula = self._formulas.get(func.overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **options, out_val=out)
        return out


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


def _formulas() -> dict[Any, Any]:
    """Of operators that torch has no formula for."""
    found = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    }
    return {getattr(torch.ops.aten, name): formula for name, formula in found.items() if hasattr(torch.ops.aten, name)}


def _attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> int:
    """Logits and output of (B, H, L, D), (B, H, S, D) and (B, H, S, Dv)."""
    return 2 * q.shape[:3].numel() * k.shape[2] * (q.shape[3] + v.shape[3])


def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> int:
    """The logits again, and the gradients of values, weights, queries and keys."""
    return 2 * q.shape[:3].numel() * k.shape[2] * (3 * q.shape[3] + 2 * v.shape[3])
