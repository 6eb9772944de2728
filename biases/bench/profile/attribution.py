"""What of a profile is attention.

Attention is what runs inside its operators: calls of ``attend`` and of the kernel of ``attend_decomposed`` as
:mod:`biases.bench.profile.marks` marks them, calls of ``scaled_dot_product_attention``, and what a pattern names. Its
backward is what autograd runs for the nodes that were created inside them.

A node is told by its sequence number. Autograd numbers the nodes of a thread in the order of their creation; an
operator records the number that the next node gets, a node's backward records the node's own. So the nodes of an
operator are those from the first number recorded inside it up to the first one recorded after it.

Compiled code is one operator and one node, whatever is in it, and torch's fused layers for inference hold projections
too: where there are some outside attention, the share is not attributable. Nor is it where no attention is known, but
something was run that it is written out of.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, FunctionEventAvg

ATTENTION = re.compile(
    r"biases::attend(_decomposed)? \(.+\)|aten::_?(scaled_dot_product|flash|efficient|cudnn)_(\w+_)?attention\w*"
)
STEP = "ProfilerStep*"
ENGINE = "autograd::engine::evaluate_function: "
OPAQUE = {
    re.compile(r"Torch-Compiled Region|CompiledFunction"): (
        "compiled code is one operator, of which nothing tells how much is attention"
    ),
    re.compile(r"^aten::(_native_multi_head_attention|_transformer_encoder_layer_fwd)$"): (
        "the fused layer of torch for inference holds projections too; name it by --attention to count all of it"
    ),
}
"""Names -> why nothing tells how much of such an operator is attention."""
MAY_BE = re.compile(r"aten::(badd)?bmm|aten::_?(safe_)?softmax|(?!(aten|autograd|biases|profiler|torch)::)\w+::\w+")
"""What attention is written out of, and operators of others."""
UNKNOWN = "no operator is known to be attention, but {} may be part of it; name what is by --attention"
MICRO = 1e-6  # the profiler's unit of time, in seconds


@dataclass(frozen=True)
class Attention:
    """The attention of all steps of a profile.

    Attributes:
        share: of the time of the steps, or on CUDA of the time of the device; ``None``: not attributable.
        reason: why it is not.
        operators: forward, the outermost ones: name -> calls.
        seconds: of the host inside the operators and their backward; a device may finish later.
        forward_seconds, backward_seconds: the two parts of it.
        device_seconds: of the device, for what was launched there; ``None`` on the CPU.
        total_seconds: what ``share`` is of.
    """

    share: float | None
    reason: str
    operators: Mapping[str, int]
    seconds: float
    forward_seconds: float
    backward_seconds: float
    device_seconds: float | None
    total_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def attribute(events: Iterable[FunctionEvent], pattern: str | None = None, *, device: str = "cpu") -> Attention:
    """The attention in ``events``, those of ``torch.profiler.profile.events()`` of one or several steps.

    Args:
        events: every step being marked as the profiler does with a schedule.
        pattern: regular expression for the names of further operators, or ranges of ``record_function``, that are
            attention; it must match all of a name.
        device: where the steps ran; on CUDA nothing is said without its kernels.
    """
    everything = list(events)
    host = [event for event in everything if event.device_type == DeviceType.CPU and not event.is_async]
    further = re.compile(pattern) if pattern is not None else None
    named = outermost(
        event for event in host if ATTENTION.fullmatch(event.name) or (further and further.fullmatch(event.name))
    )
    roots = outermost([*named, *_backward_of(named, host)])
    inside = {id(event) for root in roots for event in subtree(root)}
    backward = [root for root in roots if _in_backward(root)]
    seconds, backward_seconds = elapsed(roots), elapsed(backward)
    kernels = [event for event in everything if is_kernel(event)]
    if kernels or device.startswith("cuda"):
        device_seconds, total = sum(map(launched, roots)) if kernels else None, elapsed(kernels)
    else:
        device_seconds, total = None, elapsed(event for event in host if event.name == STEP)
    if not total:
        reason = "no kernels were recorded" if device.startswith("cuda") else "no time was recorded"
    else:
        reason = _why_unknown([event for event in host if id(event) not in inside], bool(roots))
    part = seconds if device_seconds is None else device_seconds
    return Attention(
        share=None if reason else part / total,
        reason=reason,
        operators=dict(Counter(root.name for root in roots if not _in_backward(root))),
        seconds=seconds,
        forward_seconds=seconds - backward_seconds,
        backward_seconds=backward_seconds,
        device_seconds=device_seconds,
        total_seconds=total,
    )


def outermost(events: Iterable[FunctionEvent]) -> list[FunctionEvent]:
    """Those that lie in no other, each once."""
    found = {id(event): event for event in events}
    return [event for event in found.values() if not any(id(above) in found for above in ancestors(event))]


def ancestors(event: FunctionEvent) -> Iterator[FunctionEvent]:
    above = event.cpu_parent
    while above is not None:
        yield above
        above = above.cpu_parent


def subtree(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The event and all that lie in it."""
    waiting = [event]
    while waiting:
        current = waiting.pop()
        yield current
        waiting += current.cpu_children


def is_kernel(event: FunctionEvent | FunctionEventAvg) -> bool:
    """Whether it took time on the device: kernels, copies, fills."""
    return event.device_type == DeviceType.CUDA and not event.is_user_annotation


def elapsed(events: Iterable[FunctionEvent]) -> float:
    """Seconds, of events that do not overlap."""
    return MICRO * math.fsum(event.time_range.elapsed_us() for event in events)


def launched(root: FunctionEvent) -> float:
    """Seconds of the device for what was launched inside ``root``."""
    # A range of record_function has its shadow on the device among its kernels.
    launchers = (event for event in subtree(root) if not event.is_user_annotation)
    return MICRO * math.fsum(kernel.duration for event in launchers for kernel in event.kernels)


def _why_unknown(outside: Sequence[FunctionEvent], known: bool) -> str:
    """Why what lies outside attention may hold some; empty where it holds none. ``known``: whether some is known."""
    names = dict.fromkeys(event.name for event in outside)
    for pattern, reason in OPAQUE.items():
        if any(map(pattern.search, names)):
            return reason
    operators = dict.fromkeys(event.name for event in outside if not event.is_user_annotation)
    suspects = [] if known else list(filter(MAY_BE.fullmatch, operators))
    return UNKNOWN.format(", ".join(suspects[:3])) if suspects else ""


def _backward_of(named: Sequence[FunctionEvent], host: Sequence[FunctionEvent]) -> list[FunctionEvent]:
    """What autograd ran for the nodes created in ``named``; the engine's own part of it is included."""
    recorded = sorted(
        (event.thread, event.time_range.start, event.sequence_nr)
        for event in host
        if event.sequence_nr >= 0 and not _of_backward(event)
    )
    nodes: list[tuple[int, float, float]] = []
    for root in named:
        first = bisect_left(recorded, (root.thread, root.time_range.start, -1))
        after = bisect_left(recorded, (root.thread, root.time_range.end, -1))
        if first < after:
            followed = after < len(recorded) and recorded[after][0] == root.thread
            nodes.append((root.thread, recorded[first][2], recorded[after][2] if followed else math.inf))
    nodes.sort()

    def is_one(event: FunctionEvent) -> bool:
        at = bisect_right(nodes, (event.fwd_thread, event.sequence_nr, math.inf)) - 1
        return at >= 0 and nodes[at][0] == event.fwd_thread and nodes[at][1] <= event.sequence_nr < nodes[at][2]

    found = [event for event in host if event.fwd_thread and event.sequence_nr >= 0 and is_one(event)]
    engine = (event.cpu_parent for event in found)
    return [*found, *(above for above in engine if above is not None and above.name.startswith(ENGINE))]


def _of_backward(event: FunctionEvent) -> bool:
    return bool(event.fwd_thread) or event.name.startswith(ENGINE)


def _in_backward(event: FunctionEvent) -> bool:
    """Whether it runs for a node; attention that is computed again in a backward does."""
    return _of_backward(event) or any(map(_of_backward, ancestors(event)))
