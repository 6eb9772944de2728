"""The pieces of ``python -m benchmarks.gpu``, each a list of cells that are run, and stored, one by one."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch

from benchmarks.gpu_ablation import ablation
from benchmarks.gpu_plan import Cells, Outcome, Plan, guarded
from benchmarks.gpu_properties import properties
from benchmarks.gpu_subjects import SUBJECTS, Subject
from benchmarks.gpu_tests import tests
from biases.bench import ceilings, interleaved, peak_bytes
from biases.bench.workloads import Setting, Workload

BACKENDS = ("fused", "flex", "triton")
DIRECTIONS = ("forward", "forward+backward")
MEMORY_BAR = 1.05
OPTIONAL = ("triton", "pytest", "hypothesis", "pytest_timeout", "rich", "scipy")
# A backend this many times slower than the floor is timed once and left out of the rounds.
HOPELESS = 20.0
# Calls in a sample, so that launching kernels is not what is measured.
SAMPLE_SECONDS, MOST_CALLS = 0.02, 20


def environment(plan: Plan) -> Cells:
    """Which of the packages used here are installed, and what the device can do at most."""

    def packages() -> Outcome:
        missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
        return {"status": "ok", "missing": missing}

    def rates(dtype: torch.dtype) -> Outcome:
        small = {"size": 64, "copy_bytes": 1 << 16} if plan.tiny else {}
        return {"status": "ok", **ceilings(plan.device, dtype, **small).as_dict()}

    yield "packages", packages
    for dtype in (torch.bfloat16, torch.float32):
        yield f"ceilings/{str(dtype).removeprefix('torch.')}", partial(guarded, partial(rates, dtype))


def correctness(plan: Plan) -> Cells:
    """Every subject by every backend against the float64 specification, outputs and gradients, at lengths that are no
    multiple of a block. FlexAttention, whose kernels take long to compile, in bfloat16 alone; its tests have
    float32."""
    for dtype, backends in (("bfloat16", ("auto", *BACKENDS)), ("float32", ("fused", "triton"))):
        for subject in SUBJECTS:
            for backend in backends:
                sizes = {"batch": 2, "heads": 2 if plan.tiny else 4, "head_dim": 16 if plan.tiny else 64}
                length = (49 if plan.tiny else 900) if subject.image else (50 if plan.tiny else 1000)
                length = subject.length(length)
                setting = Setting(**sizes, length=length, dtype=dtype, device=plan.device, direction="forward+backward")
                yield (
                    f"{subject.label}/{dtype}/{backend}",
                    partial(guarded, partial(_checked, subject, setting, backend), backend),
                )


def _checked(subject: Subject, setting: Setting, backend: str) -> Outcome:
    workload = subject.workload(setting, backend)
    workload.check()
    return {"status": "ok", "checked": workload.checked, "formulations": sorted(set(workload.formulations()))}


def latency(plan: Plan) -> Cells:
    """Times and peak memory beside the floor's, every backend that is right in the same rounds."""
    lengths = (64, 256) if plan.tiny else (4096, 16384)
    for length in lengths:
        subjects = [subject for subject in SUBJECTS if subject.side is None or length == lengths[0]]
        for direction in DIRECTIONS:
            for subject in subjects:
                shape = plan.shape(subject.length(length))
                setting = Setting(**shape, dtype="bfloat16", device=plan.device, direction=direction)
                name = f"{subject.label}/{setting.length}/bfloat16/{direction}"
                yield name, partial(guarded, partial(_measured, subject, setting, plan))


def _measured(subject: Subject, setting: Setting, plan: Plan) -> Outcome:
    found: dict[str, Outcome] = {}
    runs: dict[str, Callable[[], object]] = {}
    for backend in BACKENDS:
        prepared: list[Workload] = []
        found[backend] = guarded(partial(_prepared, subject, setting, backend, prepared), backend)
        if found[backend]["status"] == "ok":
            runs[backend] = prepared[0].run
            floor = prepared[0].floor
    if not runs:
        return {"status": "error", "message": "no backend ran it", "backends": found}
    assert floor is not None
    floor_seconds = _single(floor, setting)
    for backend in list(runs):
        seconds = _single(runs[backend], setting)
        if seconds > HOPELESS * floor_seconds:
            found[backend] |= {
                "status": "slow",
                "seconds": seconds,
                "message": f"{seconds / floor_seconds:.0f} x floor",
            }
            del runs[backend]
    calls = max(1, min(MOST_CALLS, math.ceil(SAMPLE_SECONDS / floor_seconds)))
    samples = interleaved(
        {name: partial(_repeat, run, calls) for name, run in {"floor": floor, **runs}.items()},
        rounds=3 if plan.tiny else 11,
        warmup=1,
        device=setting.device,
        seconds=4.0,
    )
    peaks = {name: peak_bytes(run, setting.device) for name, run in {"floor": floor, **runs}.items()}
    for name in runs:
        if samples[name].error is not None:
            found[name] |= {"status": "error", "message": samples[name].error}
            continue
        found[name] |= {"ratio": samples[name].ratio_to(samples["floor"]).as_dict(), "peak_bytes": peaks[name]}
        found[name]["seconds"] = samples[name].median / calls
        found[name]["memory_ratio"] = peaks[name] / peaks["floor"]
    return {
        "status": "ok",
        "subject": subject.label,
        "family": subject.family(setting),
        "setting": asdict(setting),
        "bars": {"ratio": (subject.bars or {}).get(setting.direction), "memory_ratio": MEMORY_BAR},
        "calls_per_sample": calls,
        "floor": {"seconds": samples["floor"].median / calls, "peak_bytes": peaks["floor"]},
        "backends": found,
    }


def _prepared(subject: Subject, setting: Setting, backend: str, prepared: list[Workload]) -> Outcome:
    workload = subject.workload(setting, backend)
    workload.check()
    prepared.append(workload)
    return {"status": "ok", "checked": workload.checked}


def _repeat(run: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        run()


def _single(run: Callable[[], object], setting: Setting) -> float:
    """Seconds of the second call."""
    run()
    on_cuda = torch.device(setting.device).type == "cuda"
    if on_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if on_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


PIECES: dict[str, Callable[[Plan], Cells]] = {
    "environment": environment,
    "tests": tests,
    "properties": properties,
    "correctness": correctness,
    "latency": latency,
    "ablation": ablation,
}
