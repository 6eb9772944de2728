"""How to compare."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from biases._checks import fail, positive_int


@dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        suite: folder of the asv-style suite, relative to the folder that it is run from or to the root of the
            repository; ``None`` looks for it in ``asv.conf.json``, then in ``benchmarks``. Both sides run the files of
            head.
        bench: only benchmarks whose name with parameters this regular expression is found in.
        deterministic_only: leave out what varies at base: times, samples, and a ``track_*`` that returns two numbers.
        threshold: ratio that matters, above 1.
        rounds: at most, for each benchmark; ``None`` takes 100, or what the number of benchmarks needs.
        seconds: for each benchmark; beyond the least rounds, no more than fit into so many.
        tolerance: relative increase of a deterministic quantity that passes; ``None`` takes 1 % of bytes and nothing of
            anything else.
        confidence: with which all intervals hold together.
        seed: of the order of the sides.
        python: the interpreter of the measured processes; ``None`` takes this one.
        prepare: a command that is run in both trees first, as to build extensions in place.
        out: folder for ``comparison.json``, which is written after every benchmark.
    """

    suite: str | None = None
    bench: str | None = None
    deterministic_only: bool = False
    threshold: float = 1.1
    rounds: int | None = None
    seconds: float = 5.0
    tolerance: float | None = None
    confidence: float = 0.95
    seed: int = 0
    python: str | None = None
    prepare: str | None = None
    out: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not self.threshold > 1:
            fail("threshold", "a ratio above 1", self.threshold)
        if self.rounds is not None:
            positive_int("rounds", self.rounds)
        if not self.seconds > 0:
            fail("seconds", "a number above 0", self.seconds)
        if self.tolerance is not None and not self.tolerance >= 0:
            fail("tolerance", "a number of at least 0", self.tolerance)
        if not 0.5 <= self.confidence < 1:
            fail("confidence", "a number of at least 0.5 and below 1", self.confidence)
        try:
            re.compile(self.bench or "")
        except re.error as error:
            fail("bench", "a regular expression", f"{self.bench!r} ({error})")
