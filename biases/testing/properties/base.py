"""What a property is, and the table of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from biases._checks import fail
from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.strategies import MAX_LENGTH, examples
from biases.testing.subject import Layer
from biases.testing.views import VIEWED
from biases.traits import Traits

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Widths = Sequence[tuple[int, int]]
Inputs = Mapping[str, Any] | Callable[[Traits], Mapping[str, Any]]


@dataclass(frozen=True)
class Property:
    """One promise and the way it is put to the test.

    Attributes:
        name: kebab-case, states the promise.
        promise: one sentence.
        check: raises ``AssertionError`` where the example breaks the promise, and
            :class:`~biases.testing.subject.NotApplicable` where it cannot be put to the layer on this example; a
            property of which no example can be is not applicable.
        trait: the trait that makes it apply, in words; ``None``: every attention layer.
        reason: from the traits to why it does not apply; ``None``: it applies.
        kinds: the kinds of subject that it is a promise of.
        domains: the domains that it is a promise in.
        slow: whether it takes seconds an example, and is checked only where it is asked for.
        inputs: keyword arguments of :func:`biases.testing.strategies.examples`, or a function from the traits to them.
    """

    name: str
    promise: str
    check: Callable[[Case], None]
    trait: str | None = None
    reason: Callable[[Traits], str | None] = field(default=lambda traits: None)
    kinds: tuple[str, ...] = VIEWED
    domains: tuple[str, ...] = ("sequence", "image")
    slow: bool = False
    inputs: Inputs = field(default_factory=dict)

    def applies(self, traits: Traits, kind: str = "layer") -> str | None:
        """Why the property does not apply to a subject of this kind and these traits; ``None`` where it does."""
        if kind not in self.kinds:
            return f"it is a promise of {' and '.join(self.kinds)}, and this is of kind {kind!r}"
        if traits.domain not in self.domains:
            return f"it is a promise in the domain {self.domains[0]!r}, and Traits.domain is {traits.domain!r}"
        reason = self.reason(traits)
        needed, longest = self._inputs(traits).get("min_length", 1), traits.max_length
        if reason is None and longest is not None and needed > longest:
            return f"it needs {needed} tokens, and Traits.max_length is {longest}"
        return reason

    def strategy(self, widths: Widths, traits: Traits) -> SearchStrategy[dict[str, Any]]:
        """Strategy of examples, for subjects of these ``(dim, heads)`` and traits."""
        inputs = {"domain": traits.domain, **self._inputs(traits)}
        if traits.max_length is not None:
            inputs["max_length"] = min(inputs.get("max_length", MAX_LENGTH), traits.max_length)
            choices = inputs.get("choices") or {}
            if "length" in choices:
                fitting = [length for length in choices["length"] if length <= traits.max_length]
                inputs["choices"] = {**choices, "length": fitting}
        return examples(widths, **inputs)

    def _inputs(self, traits: Traits) -> Mapping[str, Any]:
        return self.inputs(traits) if callable(self.inputs) else self.inputs


PROPERTIES: dict[str, Property] = {}


def promises(
    name: str,
    promise: str,
    *,
    trait: str | None = None,
    reason: Callable[[Traits], str | None] = lambda traits: None,
    kinds: tuple[str, ...] = VIEWED,
    domains: tuple[str, ...] = ("sequence", "image"),
    slow: bool = False,
    drawn: Callable[[Traits], Mapping[str, Any]] | None = None,
    **inputs: Any,
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Enter the decorated check into :data:`PROPERTIES`; the inputs are keywords, or ``drawn`` from the traits."""
    if name in PROPERTIES:
        fail("property name", "a name not yet taken", repr(name))

    def enter(check: Callable[[Case], None]) -> Callable[[Case], None]:
        chosen = inputs if drawn is None else drawn
        PROPERTIES[name] = Property(name, promise, check, trait, reason, kinds, domains, slow, chosen)
        return check

    return enter


def magnitude(*tensors: Tensor) -> float:
    """The largest finite absolute value."""
    finite = [t[t.isfinite()].abs().max().item() for t in tensors if t.isfinite().any()]
    return float(max(finite, default=0.0))


def rounding_of(x: Tensor) -> float:
    """16 roundings of the largest value, in float32 even for float64: layers may work in float32 inside.

    Where everything cancels, what is left is the rounding of values that do not show in ``x``: hence the floor.
    """
    floor = 1e-6 if x.dtype == torch.float64 else 0.1
    return 16 * max(torch.finfo(torch.float32).eps, torch.finfo(x.dtype).eps) * max(magnitude(x), floor)


def noise(case: Case, layer: Layer, x: Tensor, out: Tensor) -> float:
    """How far rounding the input in float32 moves the output: what an ill-conditioned input excuses."""
    eps = max(torch.finfo(torch.float32).eps, torch.finfo(x.dtype).eps)
    moved = 0.0
    for draw in range(2):
        sign = torch.rand(x.shape, generator=case.generator(10 + draw), dtype=torch.float64).round() * 2 - 1
        nearby = case.call(layer, x * (1 + eps * sign).to(x))
        moved = max(moved, magnitude(nearby - out))
    return moved


def assert_alike(case: Case, layer: Layer, x: Tensor, out: Tensor, pair: tuple[Tensor, Tensor], what: str) -> None:
    """Assert that ``pair``, (got, expected), agrees as results of one computation in other shapes must.

    Matrix products round differently in other shapes, so the tolerance is that rounding, and what the same
    rounding of the input ``x`` does to ``out``.
    """
    tolerance = rounding_of(out) + 8 * noise(case, layer, x, out)
    assert_tolerance(*pair, tolerance=tolerance, what=what, nan_equal=True)
