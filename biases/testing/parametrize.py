"""The battery inside somebody's own pytest file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from biases._checks import fail, one_of
from biases.testing.check import check_attention
from biases.testing.properties import PROPERTIES
from biases.traits import Traits

_ARGUMENTS = tuple(inspect.signature(check_attention).parameters)
Entry = Callable[..., Any] | tuple[Callable[..., Any], Traits]


def parametrize_with_properties(
    subjects: Mapping[str, Entry],
    *,
    known_failures: Mapping[str, Mapping[str, str]] | None = None,
    **options: Any,
) -> Any:
    """A pytest decorator: one test for each subject and property, with the argument ``check`` to call.

    ::

        @parametrize_with_properties({"mine": (make_layer, Traits(causal=True))})
        def test_conformance(check):
            check()

    Properties of other kinds of subject are left out; one that does not apply is skipped with its reason. A known
    failure is strict: it is an expected failure where it fails, and fails the test where it passes or does not apply.

    The plug-in of this package adds options of pytest (``--biases-profile`` and others, see ``pytest --help``) that
    stand for arguments not given here, and a summary; a subject of which nothing ran makes the session exit with 3.

    Args:
        subjects: name -> factory, or (factory, traits).
        known_failures: subject -> property -> reason; ``--biases-known-failures`` adds to them.
        options: further arguments of :func:`~biases.testing.check_attention`; they win over the options of pytest.

    Raises:
        ValueError: no subjects, or known failures of a subject or property that is not there.
    """
    import pytest

    if not isinstance(subjects, Mapping):
        fail("subjects", "a mapping, name -> factory or (factory, traits)", type(subjects).__name__)
    if not subjects:
        fail("subjects", "at least one", "none")
    for name, entry in subjects.items():
        if not (callable(entry) or (isinstance(entry, tuple) and len(entry) == 2 and callable(entry[0]))):
            fail(f"subject {name!r}", "a factory or (factory, traits)", repr(entry))
    for option in options:
        one_of("argument of check_attention", option, _ARGUMENTS)
    known = {name: dict(reasons) for name, reasons in (known_failures or {}).items()}
    for name, reasons in known.items():
        if name not in subjects:
            fail(f"known failures of {name!r}", f"a subject among {sorted(subjects)}", repr(name))
        for each in reasons:
            if each not in PROPERTIES:
                fail(f"known failures of {name!r}", "names of properties", repr(each))
    cases = [
        pytest.param(_Check(name, entry, each, known.get(name, {}).get(each), options), id=f"{name}-{each}")
        for name, entry in subjects.items()
        for each in PROPERTIES
        if _fits(entry, each, options) or each in known.get(name, {})
    ]
    return pytest.mark.parametrize("check", cases)


def _fits(entry: Entry, each: str, options: Mapping[str, Any]) -> bool:
    """Whether the property is one of this kind of subject; those of other kinds are not listed."""
    factory = entry[0] if isinstance(entry, tuple) else entry
    return (options.get("kind") or getattr(factory, "kind", "layer")) in PROPERTIES[each].kinds


class _Check:
    """One property of one subject.

    Attributes:
        name: of the subject.
        biases_property: name of the property; the plug-in knows a check by this attribute.
    """

    def __init__(self, name: str, entry: Entry, each: str, reason: str | None, options: Mapping[str, Any]) -> None:
        self.name, self.biases_property = name, each
        self._make_layer = entry[0] if isinstance(entry, tuple) else entry
        self._traits = entry[1] if isinstance(entry, tuple) else None
        self._reason, self._options = reason, options
        self.bind({}, None, lambda status: None)

    def bind(self, defaults: Mapping[str, Any], reason: str | None, record: Callable[[str], None]) -> None:
        """Take what the session of pytest says.

        Args:
            defaults: arguments of the check for those not given in the test file.
            reason: of a known failure, where the test file names none.
            record: called with the status of each result.
        """
        self._defaults, self._further_reason, self._record = defaults, reason, record

    def __call__(self) -> None:
        """Raise ``AssertionError`` where the promise is broken."""
        import pytest

        __tracebackhide__ = True
        each = self.biases_property
        options = {**self._defaults, **self._options}
        if PROPERTIES[each].slow and not options.get("slow", False):
            self._record("not_applicable")
            pytest.skip("it takes seconds an example: ask for it by --biases-slow or slow=True")
        reason = self._reason or self._further_reason
        (result,) = check_attention(
            self._make_layer,
            self._traits,
            name=self.name,
            properties=[each],
            known_failures={each: reason} if reason else {},
            **options,
        )
        self._record(result.status)
        match result.status:
            case "passed":
                return
            case "xfailed":
                pytest.xfail(result.message)
            case "not_applicable":
                pytest.skip(result.message)
            case _:
                script = f"\n\nTo see it alone:\n{result.reproduce}" if result.reproduce else ""
                raise AssertionError(result.message + script)

    def __repr__(self) -> str:
        return f"check({self.name}: {self.biases_property})"
