"""One benchmark on two sides, A B B A: interleaved at the level of samples."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from biases.bench.compare.side import Side, SideError

SAMPLE_SECONDS = 0.01
LONGEST_SAMPLE_SECONDS = 0.5
WARMUP_SECONDS = 0.1
TIMEOUT_SECONDS = 120.0
# Further samples of a quantity that was the same twice at base, before head is blamed for not being so.
WITNESSES = 10
TIME_UNITS = ("s", "sec", "second", "seconds", "ms", "milliseconds", "us", "microseconds", "ns", "nanoseconds")


@dataclass(frozen=True)
class Budget:
    """How long to measure one benchmark. The number of rounds follows from the warm-up, never from the ratios.

    Attributes:
        rounds: at most.
        least: at least; even.
        seconds: beyond the least rounds no more than fit into so many.
        fixed_only: whether what turns out to vary is given no rounds.
    """

    rounds: int
    least: int
    seconds: float
    fixed_only: bool = False

    def count(self, of_a_round: float) -> int:
        """An even number of rounds, so that each side is as often the first."""
        fits = int(self.seconds / of_a_round) if of_a_round > 0 else self.rounds
        count = max(self.least, min(self.rounds, fits))
        return count + count % 2


@dataclass
class Measured:
    """What the sides answered.

    Attributes:
        status: side -> ``"ok"``, ``"skipped"`` or ``"failed"``; only the sides that have the benchmark.
        message: side -> why it was skipped or failed.
        trace: side -> the end of the traceback of a failure.
        values: side -> a value a round, in the same rounds; empty unless both sides are ok, and of what varies where
            only fixed quantities are measured.
        varies: whether the values are samples of something that varies, rather than one fixed quantity.
        fixed_at_base: what a quantity was at base each time, where head has no such number: there it varies, or it is
            skipped. ``None`` otherwise.
        number: calls a sample.
    """

    status: dict[str, str] = field(default_factory=dict)
    message: dict[str, str] = field(default_factory=dict)
    trace: dict[str, str] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    varies: bool = False
    fixed_at_base: float | None = None
    number: int = 1

    @property
    def complete(self) -> bool:
        """Whether both sides have it and neither has failed."""
        return len(self.status) == 2 and set(self.status.values()) == {"ok"}


def may_be_fixed(benchmark: dict[str, Any]) -> bool:
    """Whether an entry of a listing can be a quantity that is the same each time: a ``track_*``, but not of a time."""
    return benchmark["kind"] == "track" and benchmark["unit"].lower() not in TIME_UNITS


class Pair:
    """Two sides that measure in turn.

    Args:
        base: one side; :meth:`start` starts it.
        head: the other.
        timeout: seconds for one request, where the benchmark does not say.
        seed: of the order of the sides and of Python's hashes.
    """

    def __init__(self, base: Side, head: Side, timeout: float | None, seed: int) -> None:
        self.sides = {"base": base, "head": head}
        self.timeout = timeout or TIMEOUT_SECONDS
        self.random = random.Random(seed)
        self._hash_seed = 0

    def start(self) -> None:
        """New processes with one new hash seed; which of them comes first is drawn.

        Raises:
            ValueError: the interpreter cannot be run.
        """
        self._hash_seed = self.random.randrange(1, 2**32)
        for side in self.order():
            self.sides[side].start(self._hash_seed)
        for each in self.sides.values():
            each.wait()

    def stop(self) -> None:
        """End both processes."""
        for side in self.sides.values():
            side.stop()

    def order(self) -> list[str]:
        return self.random.sample(["base", "head"], 2)

    def measure(self, benchmark: dict[str, Any], present: Collection[str], budget: Budget) -> Measured:
        """Measure one benchmark of a listing.

        Args:
            benchmark: its entry.
            present: the sides whose listings have it. One alone runs it once, to see whether it fails.
            budget: of rounds.
        """
        if benchmark["kind"] == "peakmem":
            # The peak of a process counts what earlier benchmarks took.
            self.start()
        session = _Session(self, benchmark)
        for side in self.order():
            if self.sides[side].process is None:
                self.sides[side].start(self._hash_seed)
                self.sides[side].wait()
            if side in present:
                session.open(side)
        if session.found.complete:
            session.run(budget)
        session.look_at_base()
        session.close()
        return session.found


class _Session:
    """One benchmark, prepared on the sides that have it."""

    def __init__(self, pair: Pair, benchmark: dict[str, Any]) -> None:
        self.pair, self.benchmark = pair, benchmark
        self.timeout = benchmark["timeout"] or pair.timeout
        self.found = Measured()
        self.first: dict[str, float] = {}
        self.seen: dict[str, list[float]] = {}
        self.sampled: set[str] = set()
        self.asked = 0

    def ask(self, side: str, do: str, **arguments: Any) -> dict[str, Any] | None:
        """The reply; ``None`` where the side was skipped or failed, now or before."""
        if self.found.status.get(side, "ok") != "ok":
            return None
        try:
            reply = self.pair.sides[side].ask({"do": do, **arguments}, self.timeout)
        except SideError as error:
            reply = {"status": "failed", "message": str(error)}
        self.found.status[side] = reply.get("status", "ok")
        if "status" not in reply:
            return reply
        self.found.message[side] = reply["message"]
        self.found.trace[side] = reply.get("trace", "")
        self.found.values = {}
        return None

    def open(self, side: str) -> None:
        """Set up, warm up or take a first value, and check what was measured."""
        prepared = self.ask(side, "prepare", name=self.benchmark["name"])
        timed = self.benchmark["kind"] == "time"
        first = self.ask(side, "warm", seconds=WARMUP_SECONDS) if timed else self.ask(side, "sample", number=1)
        self.ask(side, "verify")
        if prepared is not None and first is not None:
            self.asked = max(self.asked, prepared["number"])
            self.first[side] = first["value"]
            self._see(side, first)

    def run(self, budget: Budget) -> None:
        """As many rounds as the budget allows; of a quantity that is fixed, or reported only, one value is enough."""
        if self.benchmark["kind"] == "peakmem":
            self.found.values = {side: [value] for side, value in self.first.items()}
        elif self.benchmark["kind"] == "time":
            self.found.varies = True
            self._choose_number()
            self._rounds(budget.count(self.found.number * sum(self.first.values())))
        else:
            begin = time.perf_counter()
            self._again(self.pair.order())
            of_a_round = time.perf_counter() - begin
            if self._varying() == {"head"}:
                self._again(self.pair.order() * WITNESSES)
            if not self.found.complete:
                return
            varying = self._varying()
            self.found.varies = bool(varying)
            if not varying:
                self.found.values = {side: [value] for side, value in self.first.items()}
            elif varying == {"head"}:
                self.found.values = dict(self.seen)
                self.found.fixed_at_base = self.first["base"]
            elif not budget.fixed_only:
                self._rounds(budget.count(of_a_round))

    def look_at_base(self) -> None:
        """Whether what head skips is a fixed quantity of base."""
        status = self.found.status
        skipped = status.get("head") == "skipped" and status.get("base") == "ok"
        if not skipped or not may_be_fixed(self.benchmark):
            return
        self._again(["base"] * WITNESSES)
        if status["base"] == "ok" and "base" not in self._varying():
            self.found.fixed_at_base = self.first["base"]

    def _see(self, side: str, reply: dict[str, Any]) -> None:
        self.seen.setdefault(side, []).append(reply["value"])
        if reply.get("sampled"):
            self.sampled.add(side)

    def _again(self, sides: Iterable[str]) -> None:
        """One sample more of each."""
        for side in sides:
            reply = self.ask(side, "sample", number=1)
            if reply is not None:
                self._see(side, reply)

    def _varying(self) -> set[str]:
        """The sides that gave samples, or not the same number each time."""
        if not may_be_fixed(self.benchmark):
            return set(self.seen)
        return {side for side, values in self.seen.items() if side in self.sampled or len(set(values)) > 1}

    def _choose_number(self) -> None:
        """Calls a sample, the same for both sides: so many that the faster one is timed for long enough."""
        fast, slow = (max(pick(self.first.values()), 1e-9) for pick in (min, max))
        longest = int(LONGEST_SAMPLE_SECONDS / slow)
        self.found.number = self.asked or max(1, min(math.ceil(SAMPLE_SECONDS / fast), longest))

    def _rounds(self, count: int) -> None:
        values: dict[str, list[float]] = {"base": [], "head": []}
        for _ in range(count // 2):
            order = self.pair.order()
            for side in order + order[::-1]:
                reply = self.ask(side, "sample", number=self.found.number)
                if reply is None:
                    return
                values[side].append(reply["value"])
        self.found.values = values

    def close(self) -> None:
        """Tear down; a failure in that is one of the benchmark, as some check their results there."""
        for side in list(self.found.status):
            if self.found.status[side] == "ok":
                self.ask(side, "finish")
            elif self.pair.sides[side].process is not None:
                with contextlib.suppress(SideError):
                    self.pair.sides[side].ask({"do": "finish"}, self.timeout)
