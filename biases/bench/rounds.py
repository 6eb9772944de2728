"""Workloads checked, and then timed together.

What is measured together is timed in the same rounds, floors included, so that all of it sees the same machine. What
differs from the specification is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from biases.bench.ceilings import Ceilings
from biases.bench.memory import peak_bytes
from biases.bench.operators import tensors_bytes
from biases.bench.rows import Row, raised
from biases.bench.timing import Progress, Samples, interleaved
from biases.bench.workloads import Workload


def together(
    entries: Sequence[tuple[Row, Workload]],
    rates: Ceilings,
    *,
    rounds: int,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Check workloads of one setting, then time what was right, floors included, in the same rounds.

    Args:
        entries: each workload with what is known of its row; a row that is not ``"ok"`` stays as it is. A floor that
            several workloads share is timed once.
        rates: of the device, in the dtype of the setting.
        rounds: timed rounds.
        seconds: a budget for them, see :func:`biases.bench.interleaved`.
        progress: called as ``progress(what, done, total)``; ``what`` is ``"checking"``, then ``"timing"``.

    Returns:
        The rows, in their order.
    """
    rows: list[Row] = []
    for row, workload in entries:
        rows.append(_checked(row, workload) if row.status == "ok" else row)
        if progress is not None:
            progress("checking", len(rows), len(entries))
    right = {n: workload for n, (_, workload) in enumerate(entries) if rows[n].status == "ok"}
    if not right:
        return rows
    device = entries[0][1].setting.device
    floors = [each for each in dict.fromkeys(workload.floor for workload in right.values()) if each is not None]
    runs = {str(n): run for n, run in enumerate([*floors, *(workload.run for workload in right.values())])}
    weights = {floor: _floor_bytes(floor, device) for floor in floors}
    samples = interleaved(runs, rounds=rounds, device=device, seconds=seconds, progress=progress)
    times = list(samples.values())
    floor_times = dict(zip(floors, times, strict=False))
    for (n, workload), sample in zip(right.items(), times[len(floors) :], strict=True):
        row = rows[n]
        if workload.floor is not None:
            peak, extra = weights[workload.floor]
            row = replace(row, floor=floor_times[workload.floor], floor_peak_bytes=peak, floor_extra_bytes=extra)
        rows[n] = _rated(row, sample, workload, rates)
    return rows


def _checked(row: Row, workload: Workload) -> Row:
    """The check, then the memory of a run; the check has filled what a first call caches."""
    try:
        workload.check()
        workload.run()
        peak, extra = _bytes(workload.weighed or workload.run, workload.setting.device)
        formulations = tuple(dict.fromkeys(workload.formulations()))
    except AssertionError as wrong:
        return replace(row, status="failed", message=str(wrong))
    except ValueError as error:
        # A backend asked for by name says so of a problem that it cannot run.
        named = row.backend not in ("", "auto")
        return replace(row, status="skipped", message=str(error)) if named else raised(row, error)
    except Exception as error:
        return raised(row, error)
    return replace(row, peak_bytes=peak, extra_bytes=extra, formulations=formulations)


def _bytes(run: Callable[[], Any], device: str | torch.device) -> tuple[int, int]:
    """The most bytes that a run held, with its results and without."""
    held: list[int] = []

    def once() -> object:
        results = run()
        held.append(tensors_bytes(results))
        return results

    peak = peak_bytes(once, device)
    return peak, max(0, peak - held[0])


def _floor_bytes(floor: Callable[[], Any], device: str | torch.device) -> tuple[int | None, int | None]:
    """Those of a floor; none where it raises, as its samples will say."""
    try:
        floor()
        return _bytes(floor, device)
    except Exception:
        return None, None


def _rated(row: Row, samples: Samples, workload: Workload, rates: Ceilings) -> Row:
    """Times, and what they are relative to the floor, the tokens and the ceilings."""
    if samples.error is not None:
        return replace(row, status="error", message=samples.error)
    median, traffic = samples.median, workload.traffic
    return replace(
        row,
        samples=samples,
        ratio=samples.ratio_to(row.floor) if row.floor.seconds else None,
        tokens_per_second=workload.tokens / median,
        matmul_share=workload.flops() / median / rates.matmul_flops_per_second,
        copy_share=None if traffic is None else traffic / median / rates.copy_bytes_per_second,
    )
