"""Workloads of the zoo, checked and then timed beside their floors and, if asked for, their peers.

The floor and the peers of a workload are timed in its rounds, so that all of them see the same machine. What differs
from the specification is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from biases._checks import one_of, positive_int
from biases.bench.ceilings import Ceilings, ceilings
from biases.bench.memory import peak_bytes
from biases.bench.operators import tensors_bytes
from biases.bench.peers import CannotRun, peers_of
from biases.bench.rows import Row
from biases.bench.timing import Samples, interleaved
from biases.bench.workloads import LEVELS, Setting, Workload, has_own_heads, prepare
from biases.registry import get

Progress = Callable[[str, int, int], None]
FLOOR = "floor"


@dataclass(frozen=True)
class Plan:
    """What to measure: every name at every setting.

    Attributes:
        level: one of :data:`biases.bench.workloads.LEVELS`.
        names: of the zoo.
        settings: see :class:`~biases.bench.workloads.Setting`.
        backend: of ``attend``.
        peers: whether released libraries are measured too.
        rounds: timed rounds of each.
        seconds: budget of the timed rounds of each, see :func:`biases.bench.interleaved`.

    Raises:
        ValueError: unknown level or name, rounds below 1.
    """

    level: str
    names: Sequence[str]
    settings: Sequence[Setting]
    backend: str = "auto"
    peers: bool = False
    rounds: int = 15
    seconds: float | None = None

    def __post_init__(self) -> None:
        one_of("level", self.level, LEVELS)
        kind = "layer" if self.level in ("operator", "layer") else "model"
        for name in self.names:
            one_of(f"kind of {name!r} at level {self.level!r}", get(name).kind, (kind,))
        positive_int("rounds", self.rounds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **vars(self),
            "names": list(self.names),
            "settings": [setting.as_dict() for setting in self.settings],
        }


def bench(plan: Plan, progress: Progress | None = None) -> Iterator[tuple[list[Row], Mapping[str, Ceilings]]]:
    """Measure, one workload after the other.

    Args:
        plan: what.
        progress: called as ``progress(what, done, total)`` before each workload.

    Yields:
        The rows of a workload, its own first, and the ceilings measured so far, by dtype.
    """
    rates: dict[str, Ceilings] = {}
    pairs = [(setting, name) for setting in plan.settings for name in plan.names]
    for done, (setting, name) in enumerate(pairs):
        if progress is not None:
            progress(f"{name}, {setting.length} tokens, {setting.direction}", done, len(pairs))
        if str(setting.dtype) not in rates:
            rates[str(setting.dtype)] = ceilings(setting.device, setting.torch_dtype)
        yield measure(plan, name, setting, rates[str(setting.dtype)]), rates


def measure(plan: Plan, name: str, setting: Setting, rates: Ceilings) -> list[Row]:
    """The rows of one workload and of its peers."""
    stated = setting.as_dict()
    if has_own_heads(plan.level, name):
        del stated["heads"], stated["head_dim"]
    blank = Row(name=name, level=plan.level, setting=stated, backend=plan.backend)
    try:
        workload = prepare(plan.level, name, setting, backend=plan.backend)
    except ValueError as unfit:
        return [replace(blank, status="skipped", message=str(unfit))]
    except Exception as error:
        return [_raised(blank, error)]
    ours = replace(blank, checked=workload.checked)
    ours = _checked(ours, workload.run, workload.check, setting, named=plan.backend != "auto")
    if ours.status == "ok":
        ours = replace(ours, formulations=tuple(dict.fromkeys(workload.formulations())))
    rows, runs = [ours], {name: workload.run}
    for peer in peers_of(plan.level, name) if plan.peers else []:
        row = replace(blank, peer=peer.name, backend="")
        try:
            run, check = peer.prepare(name, setting)
        except CannotRun as reason:
            rows.append(replace(row, status="skipped", message=str(reason)))
            continue
        except Exception as error:
            rows.append(_raised(row, error))
            continue
        runs[peer.name] = run
        rows.append(_checked(replace(row, checked=workload.checked), run, check, setting, named=False))
    return _timed(rows, runs, workload, plan, rates)


def _checked(row: Row, run: Callable[[], Any], check: Callable[[], None], setting: Setting, *, named: bool) -> Row:
    """The check, then the memory of a run; the check has filled what a first call caches."""
    held: list[int] = []

    def once() -> object:
        results = run()
        held.append(tensors_bytes(results))
        return results

    try:
        check()
        run()
        peak = peak_bytes(once, setting.device)
    except AssertionError as wrong:
        return replace(row, status="failed", message=str(wrong))
    except ValueError as error:
        # A backend asked for by name says so of a problem that it cannot run.
        return replace(row, status="skipped", message=str(error)) if named else _raised(row, error)
    except Exception as error:
        return _raised(row, error)
    return replace(row, peak_bytes=peak, extra_bytes=max(0, peak - held[0]))


def _timed(
    rows: list[Row], runs: Mapping[str, Callable[[], Any]], workload: Workload, plan: Plan, rates: Ceilings
) -> list[Row]:
    right = {row.peer or row.name: runs[row.peer or row.name] for row in rows if row.status == "ok"}
    if not right:
        return rows
    setting = workload.setting
    floor_bytes: tuple[int | None, int | None] = (None, None)
    if workload.floor is not None:
        floor = _checked(rows[0], workload.floor, lambda: None, setting, named=False)
        floor_bytes = (floor.peak_bytes, floor.extra_bytes)
        right = {FLOOR: workload.floor, **right}
    samples = interleaved(right, rounds=plan.rounds, device=setting.device, seconds=plan.seconds)
    floor_samples = samples.pop(FLOOR, Samples())
    return [
        _rated(row, samples[row.peer or row.name], floor_samples, floor_bytes, workload, rates)
        if row.status == "ok"
        else row
        for row in rows
    ]


def _rated(
    row: Row,
    samples: Samples,
    floor: Samples,
    floor_bytes: tuple[int | None, int | None],
    workload: Workload,
    rates: Ceilings,
) -> Row:
    """Times, and what they are relative to the floor, the tokens and the ceilings."""
    if samples.error is not None:
        return replace(row, status="error", message=samples.error)
    median, traffic = samples.median, workload.traffic
    return replace(
        row,
        samples=samples,
        floor=floor,
        ratio=samples.ratio_to(floor) if floor.seconds else None,
        floor_peak_bytes=floor_bytes[0],
        floor_extra_bytes=floor_bytes[1],
        tokens_per_second=workload.tokens / median,
        matmul_share=workload.flops() / median / rates.matmul_flops_per_second,
        copy_share=None if traffic is None else traffic / median / rates.copy_bytes_per_second,
    )


def _raised(row: Row, error: Exception) -> Row:
    return replace(row, status="error", message=f"{type(error).__name__}: {error}")
