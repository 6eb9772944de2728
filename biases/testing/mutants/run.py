"""Put the planted faults to the properties."""

from __future__ import annotations

import difflib
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from biases._checks import fail, one_of, positive_int
from biases.testing.check import check_attention
from biases.testing.mutants.base import MUTANTS, SOUND, Mutant, Sound
from biases.testing.properties import PROPERTIES
from biases.testing.result import Result

# Enough to see what else a fault breaks; a matrix at full strength takes minutes.
_FEW = 5


@dataclass(frozen=True)
class Row:
    """What the battery said about one subject of the mutants.

    Attributes:
        name: of the mutant, or of the sound subject.
        kind: of the subject.
        fault: what is wrong with it; empty for a sound subject.
        source: the published bug that it re-creates, if any.
        caught_by: the property that names the fault; empty for a sound subject.
        caught: whether that property failed, by a wrong answer unless raising is the fault; ``None`` where it was not
            asked.
        failed: every property that the subject failed, by an answer or by raising, in the order of the table.
        errors: every property that could not be checked.
        ran: how many properties were put to it.
        message: of the property that names the fault; for a sound subject, of the first that it failed.
        seconds: wall time.
    """

    name: str
    kind: str
    fault: str = ""
    source: str = ""
    caught_by: str = ""
    caught: bool | None = None
    failed: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    ran: int = 0
    message: str = ""
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with the subject."""
        return not self.caught_by

    @property
    def well(self) -> bool:
        """Whether the battery said of it what is true."""
        return not (self.failed or self.errors) if self.sound else self.caught is not False

    @property
    def also(self) -> tuple[str, ...]:
        """What failed besides the property that names the fault."""
        return tuple(each for each in self.failed if each != self.caught_by)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "sound": self.sound, "well": self.well}


Progress = Callable[[int, int, Row], None]


def run_mutants(
    names: Iterable[str] | None = None,
    properties: Iterable[str] | None = None,
    max_examples: int = 25,
    seed: int = 0,
    progress: Progress | None = None,
    slow: bool = False,
) -> list[Row]:
    """Put mutants, and the sound subjects that they are small changes of, to the properties.

    Args:
        names: of mutants and sound subjects; by default all of both.
        properties: put every subject to these, and to no others; by default, a mutant is put to the property that names
            its fault, and with few examples to those that name the faults of its neighbours, which are defined in the
            same module; a sound subject, with few examples, to all.
        max_examples: inputs tried for each property, but for the few.
        seed: of the search.
        progress: called after each subject with how many are done, how many there are, and its row.
        slow: whether to put mutants also to what takes seconds an example (compiling, exporting) without being named.

    Returns:
        One row for each subject, sound subjects first.

    Raises:
        ValueError: no such mutant or property, or an argument out of its range.
        ModuleNotFoundError: Hypothesis is not installed.
    """
    chosen, asked = plan(names, properties, max_examples)
    slow = slow or names is not None
    rows: list[Row] = []
    threads = torch.get_num_threads()
    try:
        # The tensors are far too small for threads to pay, and what faulty subjects make torch warn of is no news.
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for subject in chosen:
                rows.append(_row(subject, asked, max_examples, seed, slow))
                if progress is not None:
                    progress(len(rows), len(chosen), rows[-1])
    finally:
        torch.set_num_threads(threads)
    return rows


def exit_code(rows: Iterable[Row]) -> int:
    """0: every fault caught, and nothing sound failed; 1: not so; 3: nothing was put to the test."""
    listed = list(rows)
    if not all(row.well for row in listed):
        return 1
    return 0 if any(row.ran for row in listed) else 3


def plan(
    names: Iterable[str] | None, properties: Iterable[str] | None, max_examples: int
) -> tuple[list[Sound], list[str] | None]:
    """The subjects and properties that these arguments of :func:`run_mutants` speak of.

    Raises:
        ValueError: no such mutant or property, or an argument out of its range.
    """
    positive_int("max_examples", max_examples)
    known: dict[str, Sound] = {**SOUND, **MUTANTS}
    listed = list(known) if names is None else list(names)
    for each in listed:
        if each not in known:
            near = " or ".join(map(repr, difflib.get_close_matches(each, known)))
            hint = f" (did you mean {near}?)" if near else ""
            fail("mutant", f"one of the {len(known)} that `biases mutants` prints", f"{each!r}{hint}")
    asked = None if properties is None else list(properties)
    if asked is not None and not asked:
        fail("properties", "at least one", "none")
    for each in asked or ():
        one_of("property", each, PROPERTIES)
    return [subject for name, subject in known.items() if name in listed], asked


def _row(subject: Sound, asked: list[str] | None, max_examples: int, seed: int, slow: bool) -> Row:
    started = time.perf_counter()
    own = subject.caught_by if isinstance(subject, Mutant) else ""
    few = min(_FEW, max_examples)
    tried = bool(own) and (own in asked if asked is not None else slow or not PROPERTIES[own].slow)
    if asked is not None:
        results = _check(subject, asked, max_examples, seed)
    else:
        results = _check(subject, _others(subject, own), few, seed)
        results += _check(subject, [own], max_examples, seed) if tried else []
    failed = {result.property: result for result in results if result.status == "failed"}
    errors = {result.property: result for result in results if result.status == "error"}
    told = failed.get(own) or errors.get(own)
    if told is None and not own:
        told = next(iter([*failed.values(), *errors.values()]), None)
    row = Row(
        name=subject.name,
        kind=subject.kind,
        failed=tuple(each for each in PROPERTIES if each in failed),
        errors=tuple(each for each in PROPERTIES if each in errors),
        ran=sum(result.status != "not_applicable" for result in results),
        message=told.message if told else "",
        seconds=time.perf_counter() - started,
    )
    if not isinstance(subject, Mutant):
        return row
    caught = _caught(subject, failed.get(own)) if tried else None
    return replace(row, fault=subject.fault, source=subject.source, caught_by=own, caught=caught)


def _caught(subject: Mutant, result: Result | None) -> bool:
    """A subject that raises by accident is caught by whatever calls it; that says nothing of the property."""
    return result is not None and result.raised == subject.by_raising


def _others(subject: Sound, own: str) -> list[str]:
    if not own:
        return [name for name, each in PROPERTIES.items() if not each.slow]
    home = subject.make_layer.__module__
    names = {each.caught_by for each in MUTANTS.values() if each.make_layer.__module__ == home} - {own}
    return [name for name, each in PROPERTIES.items() if name in names and not each.slow]


def _check(subject: Sound, properties: list[str], max_examples: int, seed: int) -> list[Result]:
    return check_attention(
        subject.make_layer,
        subject.traits,
        name=subject.name,
        max_examples=max_examples,
        seed=seed,
        properties=properties,
        kind=subject.kind,
        forms=subject.forms,
    )
