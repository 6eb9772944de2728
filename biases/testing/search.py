"""One property put to one layer: a single example of it, and Hypothesis's search for one that breaks it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from biases.testing.case import Case
from biases.testing.properties.base import Property, Widths
from biases.testing.subject import BuildError, NotApplicable, Raised, Subject, told
from biases.testing.time_limit import TimeUp, time_limit


def need_hypothesis() -> None:
    """Import Hypothesis.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the extra that brings it.
    """
    try:
        import hypothesis  # noqa: F401
    except ModuleNotFoundError as error:
        text = f"checking needs hypothesis ({error}): pip install 'attention-biases[check]'"
        raise ModuleNotFoundError(text, name=error.name) from error


def run_example(subject: Subject, prop: Property, example: Mapping[str, Any]) -> None:
    """Put one example of a property to a layer.

    Raises:
        AssertionError: the promise is broken; the message has the promise, what was got, and the example.
        BuildError: the layer could not be built.
        NotApplicable: the promise cannot be put to this layer on this example.
    """
    with subject.isolated():
        try:
            prop.check(Case(subject, example))
        except AssertionError as error:
            raise AssertionError(_message(prop, subject.kind, example, str(error))) from error


def _message(prop: Property, kind: str, example: Mapping[str, Any], detail: str) -> str:
    because = prop.trait or f"every {'attention layer' if kind == 'layer' else kind} must"
    return f"{prop.name}: {prop.promise}\n{detail}\nexample: {_drawn(example)}\nchecked because: {because}"


def _drawn(example: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in example.items())


class Search:
    """A search for an example that breaks a property.

    Attributes:
        status: ``"passed"``; ``"failed"``; ``"error"``: the layer could not be built, or the check itself raised;
            ``"not_applicable"``: the promise could be put to the layer on no example. Set by :meth:`run`.
        message: why; empty where passed.
        examples: how many inputs the promise was put to the layer on, those tried while shrinking included.
        example: the smallest that breaks the promise, or ends in an error; ``None`` where there is none.
        raised: whether it is by raising that the subject broke the promise.
        hung: whether a call had to be stopped.
    """

    def __init__(self, subject: Subject, prop: Property, until: float) -> None:
        self._subject, self._prop, self._until = subject, prop, until
        self._error: Exception | None = None
        self._under_way: dict[str, Any] | None = None
        self.raised = self.hung = False
        self._tried, self._reason = False, ""
        self.examples = 0
        self.example: dict[str, Any] | None = None
        self.status, self.message = "passed", ""

    def run(self, max_examples: int, seed: int, widths: Widths, limit: float) -> None:
        """Search until a counterexample is smallest, ``max_examples`` were tried, or time is up.

        After ``limit`` seconds a call under way is stopped.

        Raises:
            Exception: the search failed for a reason that is not the layer's.
        """
        import hypothesis

        quiet = hypothesis.settings(
            max_examples=max_examples,
            database=None,
            deadline=None,
            derandomize=False,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),
            verbosity=hypothesis.Verbosity.quiet,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        )
        strategy = self._prop.strategy(widths, self._subject.traits)
        test = hypothesis.seed(seed)(quiet(hypothesis.given(strategy)(self._try)))
        try:
            with time_limit(limit):
                test()
        except TimeUp:
            self._stopped(limit)
        except Exception as found:
            if self._error is None:
                raise
            self._conclude(self._error, flaky=isinstance(found, hypothesis.errors.Flaky))
        else:
            if not self.examples:
                self.status, self.message = "not_applicable", self._reason

    def _try(self, example: dict[str, Any]) -> None:
        if self._tried and time.perf_counter() > self._until:
            # Out of time: everything passes, so that shrinking ends, except what is to be reported.
            if self._error is not None and example == self.example:
                raise self._error
            return
        self._tried, self._under_way = True, example
        try:
            run_example(self._subject, self._prop, example)
        except NotApplicable as found:
            # Of this example only: another may still break the promise.
            self._reason = str(found)
            return
        except Exception as error:
            self.examples += 1
            self.example, self._error = example, error
            raise
        self.examples += 1

    def _stopped(self, limit: float) -> None:
        if self._error is not None:
            self._conclude(self._error, flaky=False)
            return
        self.status, self.hung, self.example = "error", True, self._under_way
        what = f"expected an answer within the time limit, got none: a call was stopped after {limit:.3g} s"
        self.message = f"{self._prop.name}: {what}\nexample: {_drawn(self.example or {})}"

    def _conclude(self, error: Exception, *, flaky: bool) -> None:
        self.status = "failed" if isinstance(error, AssertionError) else "error"
        self.message, self.raised = str(error), isinstance(error.__cause__, Raised)
        if self.status == "error":
            what = str(error) if isinstance(error, BuildError) else f"{self._prop.name}: the check raised {told(error)}"
            self.message = f"{what}\nexample: {_drawn(self.example or {})}"
        if flaky:
            self.message += "\nnot reproducible: the same example also passed, so that state is kept between calls"
