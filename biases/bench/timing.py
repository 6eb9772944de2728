"""Interleaved timing: every case is run once a round, so that all of them see the same machine.

A time by itself says little on a shared machine: it may double from one hour to the next. The ratio of two
cases timed in the same round is far more stable, because most of what slowed one slowed the other; only ratios
travel. They too need cores to themselves: where other processes compete, a case of many small parallel regions
waits at each of them, and its ratio to one large kernel grows several times over. Quartiles far apart tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from biases._checks import fail, positive_int
from biases.bench._device import measured_device

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)``."""

MINIMUM_ROUNDS = 3


@dataclass(frozen=True)
class Ratio:
    """Median of the per-round ratios of two cases, with their quartiles.

    Attributes:
        value: the median ratio; 1 = as fast as the floor.
        low: first quartile.
        high: third quartile.
        rounds: number of rounds that have both.
    """

    value: float
    low: float
    high: float
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "rounds": self.rounds}


@dataclass(frozen=True)
class Samples:
    """The times of one case.

    Attributes:
        seconds: one time a round, in the order of the rounds; empty if the case raised.
        error: the exception that the case raised, as ``"Type: message"``; ``None`` if it raised none.
    """

    seconds: tuple[float, ...] = ()
    error: str | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return self._quantile(0.5)

    @property
    def low(self) -> float:
        """First quartile, seconds."""
        return self._quantile(0.25)

    @property
    def high(self) -> float:
        """Third quartile, seconds."""
        return self._quantile(0.75)

    def ratio_to(self, floor: Samples) -> Ratio:
        """The ratio to another case of the same :func:`interleaved` call, round by round.

        Raises:
            ValueError: one of the two has no samples, or they were not timed in the same rounds.
        """
        self._require_samples()
        floor._require_samples()
        if len(self.seconds) != len(floor.seconds):
            fail("samples of the floor", f"{len(self.seconds)} rounds", len(floor.seconds))
        ratios = np.divide(self.seconds, floor.seconds)
        low, value, high = (float(x) for x in np.quantile(ratios, (0.25, 0.5, 0.75)))
        return Ratio(value=value, low=low, high=high, rounds=len(ratios))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the summaries are ``None`` where there are no samples."""
        timed = bool(self.seconds)
        return {
            "seconds": list(self.seconds),
            "median": self.median if timed else None,
            "low": self.low if timed else None,
            "high": self.high if timed else None,
            "error": self.error,
        }

    def _quantile(self, q: float) -> float:
        self._require_samples()
        return float(np.quantile(self.seconds, q))

    def _require_samples(self) -> None:
        if not self.seconds:
            fail("samples", "at least one time", f"none (error: {self.error})")


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    warmup: int = 3,
    device: str | torch.device = "cpu",
    seconds: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Samples]:
    """Time the cases in rounds, A B C then B C A then C A B.

    The order is rotated so that no case is always the first of a round. On the CPU a time is that of the wall
    clock (``time.perf_counter``); on CUDA it is the time between two events on the current stream, which
    includes the waits for kernels to be launched. Freeing what a case returns is not timed.

    Args:
        cases: name -> a callable without arguments.
        rounds: timed rounds, at least 1.
        warmup: calls of each case before the first timed round; their times are dropped.
        device: where the cases run: the CPU or a CUDA device.
        seconds: a budget that counts from the start of the warm-up. Once it is spent no further round is
            begun, but a round begun is completed and 3 rounds (or ``rounds`` if fewer) are always run.
        progress: called as ``progress("timing", done, rounds)`` after each round.

    Returns:
        Name -> samples, in the order given. A case that raises has no samples but its error, and is left out
        of the following rounds; the others go on.

    Raises:
        ValueError: no cases, rounds below 1, a negative warm-up or budget, or a device that cannot be
            measured.
    """
    chosen = measured_device(device)
    _validate(cases, rounds, warmup, seconds)
    clock = _cuda_seconds if chosen.type == "cuda" else _wall_seconds
    times: dict[str, list[float]] = {name: [] for name in cases}
    errors: dict[str, str] = {}
    begin = perf_counter()

    def measure(names: Sequence[str], keep: bool) -> None:
        for name in names:
            if name in errors:
                continue
            try:
                elapsed = clock(cases[name], chosen)
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"
                continue
            if keep:
                times[name].append(elapsed)

    for _ in range(warmup):
        measure(list(cases), keep=False)
    for done in range(rounds):
        spent = seconds is not None and perf_counter() - begin >= seconds
        live = [name for name in cases if name not in errors]
        if not live or (spent and done >= MINIMUM_ROUNDS):
            break
        first = done % len(live)
        measure(live[first:] + live[:first], keep=True)
        if progress is not None:
            progress("timing", done + 1, rounds)
    return {
        name: Samples(error=errors[name]) if name in errors else Samples(seconds=tuple(times[name])) for name in cases
    }


def _validate(cases: Mapping[str, object], rounds: int, warmup: int, seconds: float | None) -> None:
    if not cases:
        fail("cases", "at least one", "none")
    positive_int("rounds", rounds)
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        fail("warmup", "an integer of at least 0", repr(warmup))
    if seconds is not None and not seconds >= 0:
        fail("seconds", "None or a budget of at least 0 seconds", repr(seconds))


def _wall_seconds(fn: Callable[[], object], device: torch.device) -> float:
    begin = perf_counter()
    result = fn()
    elapsed = perf_counter() - begin
    del result
    return elapsed


def _cuda_seconds(fn: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        result = fn()
        end.record()
        torch.cuda.synchronize()
        del result
        return begin.elapsed_time(end) / 1e3
