"""What the battery says about one property of one subject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from biases._checks import fail, one_of

STATUSES = ("passed", "failed", "xfailed", "xpassed", "not_applicable", "error")
_RAN = ("passed", "failed", "xfailed", "xpassed")
BAD = ("failed", "xpassed", "error")
"""Of which one makes a check fail."""
COLUMNS = {
    "ran": "ran",
    "passed": "passed",
    "failed": "failed",
    "known": "xfailed",
    "xpassed": "xpassed",
    "error": "error",
    "n/a": "not_applicable",
}
"""Heading of a table -> key of :func:`summary`."""


@dataclass(frozen=True)
class Result:
    """The outcome of one property on one subject.

    Attributes:
        subject: name of the layer.
        property: name of the property.
        promise: what the property promises, in one sentence.
        status: ``"passed"``; ``"failed"``; ``"xfailed"``, a known failure that failed; ``"xpassed"``, a known
            failure that passed, which is a fault of the list; ``"not_applicable"``; ``"error"``, the layer
            could not be built, the check itself raised, or a known failure names no property that applies.
        examples: how many inputs the promise was put to the layer on, those tried while shrinking included.
        counterexample: the smallest failing example, as JSON values; ``None`` where there is none.
        message: why; empty where passed.
        reproduce: a Python script that fails with this message; empty where there is no counterexample.
        seconds: wall time.
        raised: whether the promise was broken by raising, and not by a wrong answer.
    """

    subject: str
    property: str
    promise: str
    status: str
    examples: int = 0
    counterexample: Mapping[str, Any] | None = None
    message: str = ""
    reproduce: str = ""
    seconds: float = 0.0
    raised: bool = False

    def __post_init__(self) -> None:
        one_of("Result status", self.status, STATUSES)
        if self.examples < 0:
            fail("Result examples", "a count of at least 0", self.examples)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.counterexample is not None:
            values["counterexample"] = dict(self.counterexample)
        return values


def summary(results: Iterable[Result]) -> dict[str, int]:
    """Count results: ``total``, ``ran`` (put to the test) and one entry for each status."""
    listed = list(results)
    counts = {status: sum(r.status == status for r in listed) for status in STATUSES}
    return {"total": len(listed), "ran": sum(r.status in _RAN for r in listed), **counts}


def exit_code(results: Iterable[Result]) -> int:
    """0: all well; 1: something failed; 3: nothing was checked, for one subject at least."""
    listed = list(results)
    if any(r.status in BAD for r in listed):
        return 1
    subjects = {r.subject for r in listed}
    checked = {r.subject for r in listed if r.status in _RAN}
    return 0 if subjects and subjects == checked else 3


def unchecked(results: Iterable[Result]) -> dict[str, list[str]]:
    """Subjects that were put to no property -> why those do not apply, a line for each reason with their names."""
    by_subject: dict[str, list[Result]] = {}
    for result in results:
        by_subject.setdefault(result.subject, []).append(result)
    found: dict[str, list[str]] = {}
    for subject, own in by_subject.items():
        if any(result.status in _RAN for result in own):
            continue
        reasons: dict[str, list[str]] = {}
        for result in own:
            if result.status == "not_applicable":
                reasons.setdefault(result.message, []).append(result.property)
        found[subject] = [f"{reason}: {', '.join(names)}" for reason, names in reasons.items()]
    return found


def as_document(results: Iterable[Result]) -> dict[str, Any]:
    """``{"schema": 1, "results": [...], "summary": {...}}``, for JSON."""
    listed = list(results)
    return {"schema": 1, "results": [result.as_dict() for result in listed], "summary": summary(listed)}
