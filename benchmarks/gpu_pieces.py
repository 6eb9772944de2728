"""The pieces of ``python -m benchmarks.gpu``, each a list of cells that are run, and stored, one by one."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks.gpu_subjects import SUBJECTS, Subject
from biases.bench import ceilings, interleaved, peak_bytes
from biases.bench.workloads import Setting, Workload

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("fused", "flex", "triton")
SPECIAL = ("flex", "triton")
DIRECTIONS = ("forward", "forward+backward")
MEMORY_BAR = 1.05
OPTIONAL = ("triton", "pytest", "hypothesis", "pytest_timeout", "rich", "scipy")
# A backend this many times slower than the floor is timed once and left out of the rounds.
HOPELESS = 20.0
# Calls in a sample, so that launching kernels is not what is measured.
SAMPLE_SECONDS, MOST_CALLS = 0.02, 20
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` to try the programme out.
        tiny: small shapes and few steps: no evidence of anything.
        seconds: left when it was made; a cell that may take long gets no more.
    """

    device: str
    tiny: bool
    seconds: float

    def shape(self, subject: Subject, length: int) -> dict[str, int]:
        """Sizes at which batch x heads fills the chip: 128 heads of 4096 queries, or as many queries in all."""
        if self.tiny:
            return {"batch": 2, "heads": 2, "length": length, "head_dim": 16}
        return {"batch": max(1, 8 * 4096 // length), "heads": 16, "length": length, "head_dim": 64}


Cell = Callable[[], Outcome]
Cells = Iterator[tuple[str, Cell]]


def guarded(run: Callable[[], Outcome], backend: str | None = None) -> Outcome:
    """What ``run`` found; ``status`` is ``"refused"`` where ``backend``, one that need not run everything, cannot run
    the problem, ``"wrong"`` where results differ from the specification, ``"error"`` where it raised anything else."""
    try:
        return run()
    except AssertionError as wrong:
        return {"status": "wrong", "message": str(wrong)}
    except Exception as error:
        if isinstance(error, ValueError) and backend in SPECIAL:
            return {"status": "refused", "message": str(error)}
        return {"status": "error", "message": f"{type(error).__name__}: {str(error)[:2000]}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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


def tests(plan: Plan) -> Cells:
    """The tests that need a GPU, a cell for each file of them."""
    for folder in ("properties", "tests"):
        for path in sorted((ROOT / folder).glob("test_*.py")):
            if "mark.gpu" in path.read_text():
                yield f"{folder}/{path.name}", partial(_pytest, path, plan)


def _pytest(path: Path, plan: Plan) -> Outcome:
    if importlib.util.find_spec("pytest") is None:
        return {"status": "skipped", "message": "pytest is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(path)]
        # Without pytest-timeout its option in pyproject.toml is unknown, which --strict-config would not forgive.
        command += ["-o", "addopts=", f"--junitxml={report}"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(30.0, plan.seconds / 3)
            )
        except subprocess.TimeoutExpired as late:
            return {"status": "error", "message": f"not finished after {late.timeout:.0f} seconds"}
        tail = (done.stdout + done.stderr)[-4000:]
        if not report.exists():
            return {"status": "error", "message": tail}
        found = ElementTree.parse(report).getroot().iter("testsuite")
        totals = [
            {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")} for suite in found
        ]
    counts = {name: sum(each[name] for each in totals) for name in ("tests", "failures", "errors", "skipped")}
    if counts["failures"] or counts["errors"] or done.returncode not in (0, 5):
        return {"status": "wrong", **counts, "message": tail}
    nothing = counts["tests"] == counts["skipped"]
    return {"status": "skipped" if nothing else "ok", **counts, "message": tail if nothing else ""}


def correctness(plan: Plan) -> Cells:
    """Every subject by every backend against the float64 specification, outputs and gradients, at lengths that are no
    multiple of a block. FlexAttention, whose kernels take long to compile, in bfloat16 alone; its tests have
    float32."""
    for dtype, backends in (("bfloat16", ("auto", *BACKENDS)), ("float32", ("fused", "triton"))):
        for subject in SUBJECTS:
            for backend in backends:
                sizes = {"batch": 2, "heads": 2 if plan.tiny else 4, "head_dim": 16 if plan.tiny else 64}
                length = (49 if plan.tiny else 900) if subject.image else (50 if plan.tiny else 1000)
                setting = Setting(**sizes, length=length, dtype=dtype, device=plan.device, direction="forward+backward")
                yield (
                    f"{subject.name}/{dtype}/{backend}",
                    partial(guarded, partial(_checked, subject, setting, backend), backend),
                )


def _checked(subject: Subject, setting: Setting, backend: str) -> Outcome:
    workload = subject.workload(setting, backend)
    workload.check()
    return {"status": "ok", "checked": workload.checked, "formulations": sorted(set(workload.formulations()))}


def latency(plan: Plan) -> Cells:
    """Times and peak memory beside the floor's, every backend that is right in the same rounds."""
    for length in (64, 256) if plan.tiny else (4096, 16384):
        for direction in DIRECTIONS:
            for subject in SUBJECTS:
                setting = Setting(
                    **plan.shape(subject, length), dtype="bfloat16", device=plan.device, direction=direction
                )
                name = f"{subject.name}/{length}/bfloat16/{direction}"
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


def ablation(plan: Plan) -> Cells:
    """Paired trainings of character models, a cell for each arm and seed, in the published size (6 layers, width 256,
    context 256) with fewer updates."""
    from biases.ablation import Grid, ModelConfig, TextUnavailable, TrainConfig, load_text, train_cell

    if plan.tiny:
        size: dict[str, Any] = {"layers": 1, "heads": 2, "dim": 16, "context": 16}
        train = TrainConfig(steps=2, batch=2, warmup=1, evaluate_every=2, evaluation_windows=2, truncated_positions=0)
    else:
        size, train = {}, TrainConfig(steps=1000, warmup=100, evaluate_every=250, evaluation_windows=256)
    arms = {name: ModelConfig(attention=name, **size) for name in ("standard", "ega-token", "alibi")}

    def trained(cell: Any) -> Outcome:
        try:
            text = load_text(cell.data)
        except TextUnavailable as missing:
            return {"status": "skipped", "message": str(missing)}
        result = train_cell(cell, text, device=plan.device)
        return {**result, "config": cell.config, "data": {"name": text.name, "sha256": text.sha256}}

    for cell in Grid(arms, seeds=(0,) if plan.tiny else (0, 1, 2, 3, 4), train=train).cells():
        yield f"{cell.arm}/seed{cell.seed}", partial(guarded, partial(trained, cell))


PIECES: dict[str, Callable[[Plan], Cells]] = {
    "environment": environment,
    "tests": tests,
    "correctness": correctness,
    "latency": latency,
    "ablation": ablation,
}
