"""What a test of a statement found: a verdict with the numbers that it rests on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from biases._checks import fail, one_of

HOLDS = "holds"
CONDITIONAL = "holds on condition"
FAILS = "fails"
INCONCLUSIVE = "inconclusive"
NOT_REPRODUCIBLE = "not reproducible from what is published"
VERDICTS = (HOLDS, CONDITIONAL, FAILS, INCONCLUSIVE, NOT_REPRODUCIBLE)
READABLE = 2000
"""Characters of JSON of a counterexample, at most."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a test of a statement found.

    Attributes:
        verdict: one of :data:`VERDICTS`.
        text: one to three sentences for a reader, with the numbers.
        conditions: under which it holds, with ``"holds on condition"``, or those to which ``"fails"`` is
            limited, if any; with no other verdict.
        error: largest deviation from the statement.
        tolerance: largest error that counts as rounding; together with ``error``.
        counterexample: plain JSON values, small enough to read.
        interval: of the mean over seeds, or what the text says, with ``seeds``, ``size`` and ``unit``.
        seeds: number of seeds, or of what else was ``repeated``.
        repeated: what ``seeds`` counts: ``"seeds"``, or ``"rounds"`` of a timing.
        size: of the study, such as ``"small"``.
        unit: of ``interval``.
        source: what was read or run: file and entry, or call.
        values: other numbers, plain JSON values.

    Raises:
        ValueError: a verdict without what it rests on: ``"holds"`` (conditions or not) needs an error within its
            tolerance, values or an interval; ``"fails"`` needs a counterexample, an interval or an error above its
            tolerance.
    """

    verdict: str
    text: str
    conditions: str = ""
    error: float | None = None
    tolerance: float | None = None
    counterexample: Mapping[str, Any] | None = None
    interval: tuple[float, float] | None = None
    seeds: int | None = None
    size: str = ""
    unit: str = ""
    repeated: str = "seeds"
    source: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("verdict", self.verdict, VERDICTS)
        if not self.text.strip():
            fail("evidence text", "one to three sentences", repr(self.text))
        if self.verdict != FAILS and (self.verdict == CONDITIONAL) != bool(self.conditions):
            expected = f"them with {CONDITIONAL!r}, and beside it with {FAILS!r} only"
            fail("evidence conditions", expected, repr(self.conditions))
        self._check_numbers()
        for name in ("counterexample", "values"):
            _plain(f"evidence {name}", getattr(self, name))
        if self.counterexample is not None and not 2 < len(json.dumps(self.counterexample)) <= READABLE:
            got = f"{len(json.dumps(self.counterexample))} characters"
            fail("evidence counterexample", f"something, in at most {READABLE} characters of JSON", got)
        if self.verdict in (HOLDS, CONDITIONAL):
            if self.exceeds:
                fail(f"evidence error of {self.verdict!r}", f"at most its tolerance {self.tolerance}", self.error)
            if self.error is None and not self.values and self.interval is None:
                fail(f"evidence of {self.verdict!r}", "error and tolerance, values or an interval", "none of them")
        if self.verdict == FAILS and not (self.counterexample or self.interval or self.exceeds):
            expected = "a counterexample, an interval or an error above its tolerance"
            fail(f"evidence of {FAILS!r}", expected, "none of them")

    @property
    def exceeds(self) -> bool:
        """Whether there is an error above its tolerance."""
        return self.error is not None and self.tolerance is not None and self.error > self.tolerance

    def _check_numbers(self) -> None:
        if (self.error is None) != (self.tolerance is None):
            fail("evidence error and tolerance", "both or neither", (self.error, self.tolerance))
        for name in ("error", "tolerance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                fail(f"evidence {name}", "a finite number of at least 0", value)
        if self.interval is not None:
            low, high = self.interval
            if not -math.inf < low <= high < math.inf:
                fail("evidence interval", "finite low <= high", self.interval)
            if self.seeds is None or not self.size or not self.unit:
                expected = "seeds, size and unit"
                fail("evidence with an interval", expected, (self.seeds, self.size, self.unit))
        if self.seeds is not None and self.seeds < 1:
            fail("evidence seeds", "at least 1", self.seeds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is missing is ``None`` or empty."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found["interval"] = None if self.interval is None else list(self.interval)
        found["counterexample"] = None if self.counterexample is None else dict(self.counterexample)
        found["values"] = dict(self.values)
        return found


def _plain(what: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        fail(what, "plain finite JSON values", error)


def counted(text: str, stated: Mapping[str, int], found: Mapping[str, int], *, conditions: str = "") -> Evidence:
    """Evidence of stated counts: they hold, under ``conditions`` if there are any, where every one was found."""
    wrong = {
        name: {"stated": number, "counted": found[name]} for name, number in stated.items() if found[name] != number
    }
    if wrong:
        return Evidence(verdict=FAILS, text=text, counterexample=wrong, values=found)
    verdict = CONDITIONAL if conditions else HOLDS
    return Evidence(verdict=verdict, text=text, conditions=conditions, values=found)


def decided(
    text: str,
    holds: bool,
    found: Mapping[str, Any],
    *,
    conditions: str = "",
    counterexample: Mapping[str, Any] | None = None,
    **more: Any,
) -> Evidence:
    """Evidence of a statement that is true or not: it holds, under ``conditions`` if there are any, with the values
    ``found``; where it fails, the counterexample is ``found`` unless another is given.

    Args:
        more: other fields of :class:`Evidence`.
    """
    if not holds:
        return Evidence(verdict=FAILS, text=text, counterexample=counterexample or found, **more)
    verdict = CONDITIONAL if conditions else HOLDS
    return Evidence(verdict=verdict, text=text, conditions=conditions, values=found, **more)
