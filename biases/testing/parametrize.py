"""The battery inside somebody's own pytest file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from biases._checks import fail
from biases.testing.check import check_attention
from biases.testing.properties import PROPERTIES
from biases.traits import Traits

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

    A property that does not apply is skipped with its reason. A known failure is strict: it is an expected failure
    where it fails, and fails the test where it passes or does not apply.

    Args:
        subjects: name -> factory, or (factory, traits).
        known_failures: subject -> property -> reason.
        options: further arguments of :func:`~biases.testing.check_attention`.

    Raises:
        ValueError: no subjects, or known failures of a subject or property that is not there.
    """
    import pytest

    if not subjects:
        fail("subjects", "at least one", "none")
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
    ]
    return pytest.mark.parametrize("check", cases)


class _Check:
    """One property of one subject."""

    def __init__(self, name: str, entry: Entry, each: str, reason: str | None, options: Mapping[str, Any]) -> None:
        make_layer, traits = entry if isinstance(entry, tuple) else (entry, None)
        self.make_layer, self.traits = make_layer, traits
        self.name, self.property, self.reason = name, each, reason
        self.options = options

    def __call__(self) -> None:
        """Raise ``AssertionError`` where the promise is broken."""
        import pytest

        __tracebackhide__ = True
        known = {} if self.reason is None else {self.property: self.reason}
        (result,) = check_attention(
            self.make_layer,
            self.traits,
            name=self.name,
            properties=[self.property],
            known_failures=known,
            **self.options,
        )
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
        return f"check({self.name}: {self.property})"
