"""What was found of a workload: the rows of :func:`biases.bench.run.bench` and of
:func:`biases.bench.bench_attention`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from biases.bench.timing import Ratio, Samples

STATUSES = ("ok", "failed", "error", "skipped")


@dataclass(frozen=True)
class Row:
    """One subject at one setting: a workload, or a peer beside it.

    Attributes:
        name: of the workload.
        level: see :mod:`biases.bench.workloads`.
        setting: by name, without what the model has of its own.
        peer: the library, ``None`` for ours.
        causal: whether a token sees the tokens up to its own only; chooses the floor. ``None`` where no workload could
            be made.
        backend: that was asked for; empty for what is not run by ``attend``.
        formulations: what ``backend="auto"`` does, each once; the backend, where one was named.
        checked: what was compared with the specification, in words.
        status: ``"ok"``; ``"failed"`` (wrong results, hence not timed), ``"error"`` (it raised) or ``"skipped"``.
        message: why it is not ok; empty if it is.
        samples, floor: times, of the same rounds; empty where there are none.
        ratio: time over that of the floor, round by round.
        peak_bytes, floor_peak_bytes: the most that one run held above what there was before, results included.
        extra_bytes, floor_extra_bytes: the same without the results.
        tokens_per_second: at the median time.
        matmul_share: nominal operations a second over the measured rate of a plain matrix product, see
            :class:`~biases.bench.Ceilings`. A method that does less work than dense attention can exceed 1.
        copy_share: bytes that must be moved a second, over the measured rate of a plain copy.
    """

    name: str
    level: str
    setting: Mapping[str, Any]
    peer: str | None = None
    causal: bool | None = None
    backend: str = "auto"
    formulations: tuple[str, ...] = ()
    checked: str = ""
    status: str = "ok"
    message: str = ""
    samples: Samples = field(default_factory=Samples)
    floor: Samples = field(default_factory=Samples)
    ratio: Ratio | None = None
    peak_bytes: int | None = None
    extra_bytes: int | None = None
    floor_peak_bytes: int | None = None
    floor_extra_bytes: int | None = None
    tokens_per_second: float | None = None
    matmul_share: float | None = None
    copy_share: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = dict(vars(self))
        plain |= {"setting": dict(self.setting), "formulations": list(self.formulations)}
        plain |= {"samples": self.samples.as_dict(), "floor": self.floor.as_dict()}
        plain["ratio"] = None if self.ratio is None else self.ratio.as_dict()
        return plain


def raised(row: Row, error: Exception) -> Row:
    """The row of what raised ``error``."""
    return replace(row, status="error", message=f"{type(error).__name__}: {error}")


def exit_code(rows: list[Row]) -> int:
    """0 all well, 1 a wrong result or an error, 3 nothing was measured."""
    statuses = {row.status for row in rows}
    if statuses & {"failed", "error"}:
        return 1
    return 0 if "ok" in statuses else 3
