"""Profiling a target: the trace, the operators, the attention."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, schedule, tensorboard_trace_handler
from torch.profiler import profile as torch_profile

from biases._checks import positive_int
from biases._files import write_atomically
from biases._memory import _quiet_profiler
from biases.bench.machine import facts
from biases.bench.profile.attribution import MICRO, STEP, Attention, attribute, is_kernel
from biases.bench.profile.marks import Marker
from biases.bench.profile.targets import Target


@dataclass(frozen=True)
class Operator:
    """All calls of an operator, on the host, in all steps. ``ProfilerStep*`` is the steps themselves, whose own time is
    that between operators.

    Attributes:
        name: as torch records it.
        calls: how many.
        self_seconds: without, ``total_seconds``: with the operators inside.
        self_bytes: allocated less freed, without the operators inside, on the host.
        device_seconds, device_bytes: the same of the device, for what it launched itself; ``None`` on the CPU.
        share: its own part of the time that :class:`Attention` states its share of; ``None`` where there is none.
    """

    name: str
    calls: int
    self_seconds: float
    total_seconds: float
    self_bytes: int
    device_seconds: float | None
    device_bytes: int | None
    share: float | None


@dataclass(frozen=True)
class Kernel:
    """All runs of a kernel, copy or fill on the device, in all steps."""

    name: str
    calls: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """A profile, its trace being written.

    Attributes:
        name: of the target; ``level`` and ``configuration`` say how it was run.
        step_seconds: of each step, on the host, under the profiler.
        attention: see :class:`Attention`.
        operators, kernels: those with the most time of their own first.
        trace: the file, for Perfetto and TensorBoard.
        machine: see :func:`biases.bench.facts`.
    """

    name: str
    level: str
    configuration: Mapping[str, Any]
    step_seconds: tuple[float, ...]
    attention: Attention
    operators: tuple[Operator, ...]
    kernels: tuple[Kernel, ...]
    trace: Path
    machine: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"schema": 1, **asdict(self), "trace": str(self.trace)}


def profile(target: Target, folder: Path, *, steps: int = 3, warmup: int = 1, pattern: str | None = None) -> Profile:
    """Run ``target`` under the profiler, and write its trace and its result, ``WORKER.*.pt.trace.json`` and
    ``WORKER.json``, into ``folder``; every profile has a WORKER of its own, which TensorBoard tells them by.

    Args:
        target: what to run, see :func:`find`.
        folder: made if it is not there.
        steps: recorded.
        warmup: steps with the profiler on that are not recorded, after a first one without it.
        pattern: see :func:`attribute`.

    Raises:
        ValueError: steps or warmup below 1.
        OSError: the files cannot be written.
    """
    configuration = {
        **target.configuration,
        "steps": positive_int("steps", steps),
        "warmup": positive_int("warmup", warmup),
        "threads": torch.get_num_threads(),
        "attention_pattern": pattern,
    }
    stated: dict[str, Any] = {"name": target.name, "level": target.level}
    stated |= {"configuration": configuration, "machine": facts()}
    recorded = _recorded(target, steps, warmup, json.dumps(stated))
    events = recorded.events()
    attention = attribute(events, pattern, device=target.device)
    on_device = attention.device_seconds is not None
    averages = recorded.key_averages()
    worker = _worker(target)
    result = Profile(
        **stated,
        step_seconds=tuple(
            MICRO * event.time_range.elapsed_us()
            for event in events
            if event.name == STEP and event.device_type == DeviceType.CPU
        ),
        attention=attention,
        operators=_operators(averages, attention.total_seconds, on_device),
        kernels=_kernels(averages, attention.total_seconds),
        trace=_write_trace(recorded, folder, worker),
    )
    content = json.dumps(result.as_dict(), indent=1) + "\n"
    write_atomically(folder / f"{worker}.json", content.encode())
    return result


def _recorded(target: Target, steps: int, warmup: int, stated: str) -> torch_profile:
    """The profiler after its steps; ``stated`` is JSON, for the trace."""
    cuda = target.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    marker = Marker()

    def step() -> None:
        marker.begin_pass()
        target.run()
        if cuda:
            torch.cuda.synchronize(target.device)

    with marker.active():
        # Compiles, fills caches, and finds how attention is computed.
        step()
        with (
            _quiet_profiler(),
            torch_profile(
                activities=activities,
                schedule=schedule(wait=0, warmup=warmup, active=steps, repeat=1),
                record_shapes=True,
                profile_memory=True,
            ) as recording,
        ):
            recording.preset_metadata_json("biases", stated)
            for _ in range(warmup + steps):
                step()
                recording.step()
    return recording


def _operators(averages: Iterable[FunctionEventAvg], total: float, on_device: bool) -> tuple[Operator, ...]:
    found = []
    for row in averages:
        if row.device_type != DeviceType.CPU:
            continue
        # The time of a range on the device is its extent there, kernels of others included.
        device = 0.0 if row.is_user_annotation else MICRO * row.self_device_time_total
        own = device if on_device else MICRO * row.self_cpu_time_total
        found.append(
            Operator(
                name=str(row.key),
                calls=row.count,
                self_seconds=MICRO * row.self_cpu_time_total,
                total_seconds=MICRO * row.cpu_time_total,
                self_bytes=row.self_cpu_memory_usage,
                device_seconds=device if on_device else None,
                device_bytes=row.self_device_memory_usage if on_device else None,
                share=own / total if total else None,
            )
        )
    return tuple(sorted(found, key=lambda each: each.share or 0.0, reverse=True))


def _kernels(averages: Iterable[FunctionEventAvg], total: float) -> tuple[Kernel, ...]:
    rows = [(str(row.key), row.count, MICRO * row.self_device_time_total) for row in averages if is_kernel(row)]
    kernels = (Kernel(name, calls, seconds, seconds / total) for name, calls, seconds in rows)
    return tuple(sorted(kernels, key=lambda each: each.seconds, reverse=True))


def _worker(target: Target) -> str:
    """A name of its own for a profile, that tells it from others of the same target, of the same second too."""
    configuration = target.configuration
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    parts = (target.level, *(configuration[name] for name in ("direction", "length", "dtype", "device")))
    return "-".join([*(re.sub(r"\W+", "-", str(part)) for part in parts), now, secrets.token_hex(4)])


def _write_trace(recorded: torch_profile, folder: Path, worker: str) -> Path:
    with TemporaryDirectory() as temporary:
        tensorboard_trace_handler(temporary, worker_name=worker)(recorded)
        (written,) = Path(temporary).iterdir()
        path = folder / written.name
        write_atomically(path, written.read_bytes())
    return path
