"""The battery: every property that applies to a layer, put to it under Hypothesis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from biases._checks import fail, one_of, positive_int
from biases.testing.properties import PROPERTIES, Property
from biases.testing.properties.base import Widths
from biases.testing.result import Result
from biases.testing.script import how_to_import, reproduce
from biases.testing.search import Search, need_hypothesis, run_example
from biases.testing.strategies import WIDTHS
from biases.testing.subject import Subject, told
from biases.traits import Traits

Progress = Callable[[int, int, Result], None]
DTYPES = ("float64", "float32", "bfloat16", "float16")
# Seconds for the call under way after the search should have ended; for a whole search once a call had to be stopped;
# and, halved at each one that is stopped in turn, at least.
_GRACE, _SHORT, _LEAST = 10.0, 2.0, 0.5
# A slow property compiles, which may take a minute where the machine is busy.
_SLOW_EXAMPLES, _SLOW_GRACE = 3, 120.0


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
    widths: Widths | None = None,
    how_to_build: str | None = None,
    kind: str | None = None,
    forms: Mapping[str, Callable[..., Any]] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    slow: bool = False,
) -> list[Result]:
    """Check which promises an attention layer, or another part of attention, keeps.

    Args:
        make_layer: ``make_layer(dim, heads, **options)`` returning a callable (B, T, C) -> (B, T, C), or what another
            ``kind`` asks for; see :mod:`biases.testing.kinds`.
        traits: what the layer promises; by default its factory's attribute ``traits``, else ``Traits()``.
        name: name of the subject in the results; by default the factory's.
        max_examples: inputs tried for each property, those tried while shrinking not included.
        seed: of the search; the same seed tries the same inputs.
        properties: names of the properties to check; by default all.
        known_failures: property name -> reason. Strict: one that passes, or that names no property that
            applies, makes the run fail.
        options: keyword arguments of the factory.
        deadline: seconds after which the search for one property stops. A call that has not ended 10 seconds later is
            stopped, and is an error; once one had to be, 2 seconds are enough for a property, and fewer where one after
            the other has to be stopped.
        progress: called after each property with how many are done, how many there are, and the result.
        widths: pairs ``(dim, heads)`` that the layer can be built with; by default its factory's attribute ``widths``.
        how_to_build: Python lines that bind ``make_layer``, for the scripts that reproduce failures; by
            default an import of the factory by its name.
        kind: one of :data:`biases.testing.kinds.KINDS`; by default its factory's attribute ``kind``, else a layer.
        forms: name -> another factory of the same computation; by default its factory's attribute ``forms``.
        device: where layers and inputs are put.
        dtype: of the checks that are about behaviour, a torch dtype or its name; by default float64 where the
            subject takes it, else float32.
        slow: whether to check also what takes seconds an example: compiling and exporting.

    Returns:
        One result for each property, in the order of :data:`~biases.testing.properties.PROPERTIES`, then one
        for each known failure that names none.

    Raises:
        ValueError: an argument is out of its range or of another kind, or a property is unknown.
        ModuleNotFoundError: Hypothesis is not installed.
    """
    chosen = _chosen(properties)
    known = _known(known_failures)
    positive_int("max_examples", max_examples)
    if not deadline > 0:
        fail("deadline", "a positive number of seconds", deadline)
    subject = _subject(make_layer, traits, options, kind=kind, forms=forms, device=device, dtype=dtype)
    sizes = widths if widths is not None else getattr(make_layer, "widths", WIDTHS)
    _check_widths(sizes)
    label = str(name or getattr(make_layer, "__name__", type(make_layer).__name__))
    need_hypothesis()
    asked = frozenset() if properties is None else frozenset(each.name for each in chosen)
    build = how_to_build or how_to_import(make_layer)
    run = _Run(subject, label, max_examples, seed, deadline, sizes, build, slow, asked)
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
    kind: str | None = None,
    forms: Mapping[str, Callable[..., Any]] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
) -> None:
    """Put one example of one property to a layer.

    Args:
        make_layer: the factory, as for :func:`check_attention`.
        property: name of the property.
        example: a counterexample of a :class:`~biases.testing.result.Result`.
        traits, options, kind, forms, device, dtype: as given to :func:`check_attention`.

    Raises:
        AssertionError: the promise is broken; the message is that of the result.
        BuildError: the layer could not be built (:mod:`biases.testing.subject`).
        NotApplicable: the promise cannot be put to this layer on this example.
        ValueError: the property is unknown, or an argument is of another kind.
    """
    one_of("property", property, PROPERTIES)
    subject = _subject(make_layer, traits, options, kind=kind, forms=forms, device=device, dtype=dtype)
    run_example(subject, PROPERTIES[property], example)


def _subject(
    make_layer: Callable[..., Any],
    traits: Traits | None,
    options: Mapping[str, Any] | None,
    *,
    kind: str | None,
    forms: Mapping[str, Callable[..., Any]] | None,
    device: torch.device | str,
    dtype: torch.dtype | str | None,
) -> Subject:
    """The subject that the arguments, and the attributes of the factory, speak of."""
    if not callable(make_layer):
        fail("make_layer", "a callable make_layer(dim, heads, **options)", type(make_layer).__name__)
    declared = traits if traits is not None else getattr(make_layer, "traits", None) or Traits()
    if not isinstance(declared, Traits):
        fail("traits", "Traits", type(declared).__name__)
    others = forms if forms is not None else getattr(make_layer, "forms", None) or {}
    if options is not None and not isinstance(options, Mapping):
        fail("options", "a mapping, keyword -> value", type(options).__name__)
    if not isinstance(others, Mapping):
        fail("forms", "a mapping, name -> factory", type(others).__name__)
    for name, each in others.items():
        if not callable(each):
            fail(f"forms[{name!r}]", "a factory", type(each).__name__)
    chosen = kind if kind is not None else getattr(make_layer, "kind", None) or "layer"
    place, precision = _device(device), _dtype(dtype)
    return Subject(make_layer, declared, dict(options or {}), chosen, dict(others), place, precision)


def _device(device: torch.device | str) -> torch.device:
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        fail("device", "a device that torch can use here", f"{device!r} ({str(error).splitlines()[0]})")
    return chosen


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    one_of("dtype", dtype, DTYPES)
    return getattr(torch, dtype)


def _chosen(names: Iterable[str] | None) -> list[Property]:
    if names is None:
        return list(PROPERTIES.values())
    listed = [names] if isinstance(names, str) else list(names)
    for each in listed:
        one_of("property", each, PROPERTIES)
    return [PROPERTIES[each] for each in PROPERTIES if each in listed]


def _known(failures: Mapping[str, str] | None) -> dict[str, str]:
    expected = "a mapping, name of a property -> reason"
    if failures is not None and not isinstance(failures, Mapping):
        fail("known_failures", expected, type(failures).__name__)
    known = dict(failures or {})
    for name, reason in known.items():
        if not isinstance(reason, str) or not reason:
            fail(f"known_failures[{name!r}]", "a reason, in words", repr(reason))
    return known


def _check_widths(widths: object) -> None:
    pairs = widths if isinstance(widths, Sequence) else ()
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        fail("widths", "at least one pair (dim, heads), as in [(64, 4)]", repr(widths))
    for dim, heads in pairs:
        positive_int("widths dim", dim)
        positive_int("widths heads", heads)


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


@dataclass
class _Run:
    subject: Subject
    label: str
    max_examples: int
    seed: int
    deadline: float
    widths: Widths
    how_to_build: str
    slow: bool
    asked: frozenset[str]
    hung: int = 0

    def check(self, prop: Property) -> Result:
        started = time.perf_counter()
        base = Result(self.label, prop.name, prop.promise, "passed")
        try:
            result = self._search(prop, base)
        except Exception as error:
            # One property that cannot be checked must not keep the others from being.
            result = replace(base, status="error", message=f"{prop.name}: the check raised {told(error)}")
        return replace(result, seconds=time.perf_counter() - started)

    def _search(self, prop: Property, base: Result) -> Result:
        reason = prop.applies(self.subject.traits, self.subject.kind)
        if reason is None and prop.slow and not self.slow and prop.name not in self.asked:
            reason = "it takes seconds an example: ask for it by slow=True, --slow or its name"
        if reason is not None:
            return replace(base, status="not_applicable", message=reason)
        search = Search(self.subject, prop, time.perf_counter() + self.deadline)
        limit = self.deadline + (_SLOW_GRACE if prop.slow else _GRACE)
        if self.hung:
            limit = max(_SHORT / 2 ** (self.hung - 1), _LEAST)
        count = min(self.max_examples, _SLOW_EXAMPLES) if prop.slow else self.max_examples
        search.run(count, self.seed, self.widths, limit)
        if search.hung:
            self.hung += 1
        elif search.examples:
            self.hung = min(self.hung, 1)
        return replace(
            base,
            status=search.status,
            examples=search.examples,
            counterexample=search.example,
            message=search.message,
            reproduce=self._script(prop, search.example),
            raised=search.raised,
        )

    def _script(self, prop: Property, example: Mapping[str, Any] | None) -> str:
        return "" if example is None else reproduce(self.subject, prop.name, example, self.how_to_build)
