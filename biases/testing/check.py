"""The battery: every property that applies to a layer, put to it under Hypothesis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from biases._checks import fail, one_of, positive_int
from biases.testing.properties import PROPERTIES, Property
from biases.testing.properties.base import Widths
from biases.testing.result import Result
from biases.testing.script import how_to_import, reproduce
from biases.testing.strategies import WIDTHS
from biases.testing.subject import BuildError, Case, NotApplicable, Subject
from biases.traits import Traits

Progress = Callable[[int, int, Result], None]


def check_attention(
    make_layer: Callable[..., Any],
    traits: Traits | None = None,
    *,
    name: str | None = None,
    max_examples: int = 25,
    seed: int = 0,
    properties: Iterable[str] | None = None,
    known_failures: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    deadline: float = 30.0,
    progress: Progress | None = None,
    widths: Widths = WIDTHS,
    how_to_build: str | None = None,
) -> list[Result]:
    """Check which promises an attention layer keeps.

    Args:
        make_layer: ``make_layer(dim, heads, **options)`` returning a callable (B, T, C) -> (B, T, C).
        traits: what the layer promises; by default its factory's attribute ``traits``, else ``Traits()``.
        name: name of the subject in the results; by default the factory's.
        max_examples: inputs tried for each property, those tried while shrinking not included.
        seed: of the search; the same seed tries the same inputs.
        properties: names of the properties to check; by default all.
        known_failures: property name -> reason. Strict: one that passes, or that names no property that
            applies, makes the run fail.
        options: keyword arguments of the factory.
        deadline: seconds after which the search for one property stops; a call under way is not interrupted.
        progress: called after each property with how many are done, how many there are, and the result.
        widths: pairs ``(dim, heads)`` that the layer can be built with.
        how_to_build: Python lines that bind ``make_layer``, for the scripts that reproduce failures; by
            default an import of the factory by its name.

    Returns:
        One result for each property, in the order of :data:`~biases.testing.properties.PROPERTIES`, then one
        for each known failure that names none.

    Raises:
        ValueError: an argument is out of its range, or a property is unknown.
    """
    chosen = _chosen(properties)
    known = dict(known_failures or {})
    positive_int("max_examples", max_examples)
    if not deadline > 0:
        fail("deadline", "a positive number of seconds", deadline)
    if not callable(make_layer):
        fail("make_layer", "a callable make_layer(dim, heads, **options)", type(make_layer).__name__)
    if not widths:
        fail("widths", "at least one pair (dim, heads)", widths)
    declared = traits if traits is not None else getattr(make_layer, "traits", None) or Traits()
    if not isinstance(declared, Traits):
        fail("traits", "Traits", type(declared).__name__)
    label = str(name or getattr(make_layer, "__name__", type(make_layer).__name__))
    subject = Subject(make_layer, declared, dict(options or {}))
    run = _Run(subject, label, max_examples, seed, deadline, widths, how_to_build or how_to_import(make_layer))
    stale = [each for each in known if each not in PROPERTIES]
    total = len(chosen) + len(stale)
    results: list[Result] = []

    def add(result: Result) -> None:
        results.append(result)
        if progress is not None:
            progress(len(results), total, result)

    for each in chosen:
        add(_judge(run.check(each), known.get(each.name)))
    for each_name in stale:
        message = f"known failure {each_name!r} ({known[each_name]}): expected the name of a property"
        add(Result(label, each_name, "", "error", message=message))
    return results


def replay(
    make_layer: Callable[..., Any],
    property: str,
    example: Mapping[str, Any],
    *,
    traits: Traits | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Put one example of one property to a layer.

    Args:
        make_layer: the factory, as for :func:`check_attention`.
        property: name of the property.
        example: a counterexample of a :class:`~biases.testing.result.Result`.
        traits, options: as given to :func:`check_attention`.

    Raises:
        AssertionError: the promise is broken; the message is that of the result.
        ValueError: the property is unknown.
    """
    one_of("property", property, PROPERTIES)
    declared = traits if traits is not None else getattr(make_layer, "traits", None) or Traits()
    _run_example(Subject(make_layer, declared, dict(options or {})), PROPERTIES[property], example)


def _chosen(names: Iterable[str] | None) -> list[Property]:
    if names is None:
        return list(PROPERTIES.values())
    listed = [names] if isinstance(names, str) else list(names)
    for each in listed:
        one_of("property", each, PROPERTIES)
    return [PROPERTIES[each] for each in PROPERTIES if each in listed]


def _run_example(subject: Subject, prop: Property, example: Mapping[str, Any]) -> None:
    with subject.isolated():
        try:
            prop.check(Case(subject, example))
        except AssertionError as error:
            raise AssertionError(_message(prop, example, str(error))) from error


def _message(prop: Property, example: Mapping[str, Any], detail: str) -> str:
    drawn = ", ".join(f"{key} {value}" for key, value in example.items())
    return f"{prop.name}: {prop.promise}\n{detail}\nexample: {drawn}\nchecked because: {_because(prop)}"


def _because(prop: Property) -> str:
    return prop.trait or "every attention layer must"


def _judge(result: Result, reason: str | None) -> Result:
    """Apply the known failure of this property, if there is one."""
    if reason is None:
        return result
    match result.status:
        case "failed":
            return replace(result, status="xfailed", message=f"known failure: {reason}\n{result.message}")
        case "passed":
            message = f"known failure ({reason}): expected it to fail, and it passed; take it off the list"
            return replace(result, status="xpassed", message=message)
        case "not_applicable":
            message = f"known failure ({reason}): the property does not apply: {result.message}"
            return replace(result, status="error", message=message)
        case _:
            return result


@dataclass(frozen=True)
class _Run:
    subject: Subject
    label: str
    max_examples: int
    seed: int
    deadline: float
    widths: Widths
    how_to_build: str

    def check(self, prop: Property) -> Result:
        started = time.perf_counter()
        base = Result(self.label, prop.name, prop.promise, "passed")
        reason = prop.applies(self.subject.traits)
        if reason is not None:
            return replace(base, status="not_applicable", message=reason)
        search = _Search(self, prop, started + self.deadline)
        search.run()
        return replace(
            base,
            status=search.status,
            examples=search.examples,
            counterexample=search.example,
            message=search.message,
            reproduce=self._script(prop, search.example),
            seconds=time.perf_counter() - started,
        )

    def _script(self, prop: Property, example: Mapping[str, Any] | None) -> str:
        return "" if example is None else reproduce(self.subject, prop.name, example, self.how_to_build)


class _Search:
    """One property's search; afterwards, what it found."""

    def __init__(self, run: _Run, prop: Property, until: float) -> None:
        self._run, self._prop, self._until = run, prop, until
        self._error: BaseException | None = None
        self.examples = 0
        self.example: dict[str, Any] | None = None
        self.status, self.message = "passed", ""

    def run(self) -> None:
        import hypothesis

        quiet = hypothesis.settings(
            max_examples=self._run.max_examples,
            database=None,
            deadline=None,
            derandomize=False,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),
            verbosity=hypothesis.Verbosity.quiet,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        )
        strategy = self._prop.strategy(self._run.widths)
        test = hypothesis.seed(self._run.seed)(quiet(hypothesis.given(strategy)(self._try)))
        try:
            test()
        except NotApplicable as found:
            self.status, self.message, self.example = "not_applicable", str(found), None
        except (AssertionError, BuildError, hypothesis.errors.Flaky) as found:
            if self._error is None:
                raise
            self._conclude(found)

    def _try(self, example: dict[str, Any]) -> None:
        if self.examples and time.perf_counter() > self._until:
            # Out of time: everything passes, so that shrinking ends, except what is to be reported.
            if self._error is not None and example == self.example:
                raise self._error
            return
        self.examples += 1
        try:
            _run_example(self._run.subject, self._prop, example)
        except (AssertionError, BuildError) as error:
            self.example, self._error = example, error
            raise

    def _conclude(self, found: BaseException) -> None:
        import hypothesis

        self.status = "error" if isinstance(self._error, BuildError) else "failed"
        self.message = str(self._error)
        if isinstance(self._error, BuildError):
            self.message += f"\nexample: {', '.join(f'{k} {v}' for k, v in (self.example or {}).items())}"
        if isinstance(found, hypothesis.errors.Flaky):
            self.message += "\nnot reproducible: the same example also passed, so that state is kept between calls"
