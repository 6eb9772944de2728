"""What :func:`biases.bench.bench_attention` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from biases.bench.ceilings import Ceilings
from biases.bench.timing import Ratio, Samples

FLOORS = {False: "floor", True: "floor-causal"}
"""Whether causal -> the name of the floor."""


@dataclass(frozen=True)
class Measurement:
    """The measurements of one case or floor.

    Attributes:
        name: of the case, or ``"floor"`` or ``"floor-causal"``.
        causal: whether a query sees the keys up to its own only; chooses the floor.
        status: ``"ok"``; ``"failed"`` (wrong results, hence not timed) or ``"error"`` (it raised).
        message: what was wrong; empty if ok.
        samples: the times; empty unless ok.
        peak_bytes: the most that building and one call held beyond q, k and v, outputs included.
        ratio: time over that of the floor, of the same rounds; ``None`` for a floor.
        floor_peak_bytes: that of the floor.
        tokens_per_second: batch times length over the median time.
        matmul_share: nominal operations (see :func:`biases.bench.nominal_flops`) per second over the measured
            rate of a plain matrix product. A method that does less work than dense attention can exceed 1.
    """

    name: str
    causal: bool
    status: str
    message: str = ""
    samples: Samples = field(default_factory=Samples)
    peak_bytes: int | None = None
    ratio: Ratio | None = None
    floor_peak_bytes: int | None = None
    tokens_per_second: float | None = None
    matmul_share: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = dict(vars(self))
        plain["samples"] = self.samples.as_dict()
        plain["ratio"] = None if self.ratio is None else self.ratio.as_dict()
        return plain


@dataclass(frozen=True)
class BenchResult:
    """One run.

    Attributes:
        configuration: the arguments of the run, the seed included, by name.
        machine: see :func:`biases.bench.facts`.
        ceilings: measured in this run.
        floors: stock attention without a bias, ``"floor"`` and ``"floor-causal"``.
        cases: in the order given.
    """

    configuration: Mapping[str, Any]
    machine: Mapping[str, Any]
    ceilings: Ceilings
    floors: Mapping[str, Measurement]
    cases: tuple[Measurement, ...]

    @property
    def ok(self) -> bool:
        """Whether every case and floor was right and was timed."""
        return all(m.status == "ok" for m in (*self.floors.values(), *self.cases))

    def floor_of(self, case: Measurement) -> Measurement:
        """The floor that the case's ratio refers to."""
        return self.floors[FLOORS[case.causal]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "schema": 1,
            "configuration": dict(self.configuration),
            "machine": dict(self.machine),
            "ceilings": self.ceilings.as_dict(),
            "floors": {name: floor.as_dict() for name, floor in self.floors.items()},
            "cases": [case.as_dict() for case in self.cases],
        }
