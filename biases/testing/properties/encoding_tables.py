"""Promises of positional encodings that keep tables: what was asked for before, and other encodings, change nothing.

Catalogue of published faults of this kind: equinox 0.13.8 (a cache whose key lacks the base).
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any

import torch

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import promises
from biases.testing.properties.encodings import (
    ENCODING,
    SEQUENCE,
    count_from,
    encode,
    lengths,
    reach,
    tokens,
    tolerance_of,
)
from biases.testing.strategies import MODERATE
from biases.testing.subject import BuildError, NotApplicable, Violation, cast


@promises(
    "table-growth",
    "An encoding does not depend on the positions and dtypes that it was asked for before.",
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 8, among=MODERATE),
)
def table_growth(case: Case) -> None:
    x, positions = tokens(case, case.precise), count_from(case, 0)
    with case.subject.isolated():
        alone = encode(case, case.raw(case.precise), x, positions)
    far = count_from(case, max(0, reach(case, 500) + 1 - case.length))
    before = {
        "one position": (x[:, :, :1].contiguous(), positions[:1]),
        "larger positions": (x, far),
        "a bfloat16 input": (x.to(torch.bfloat16), positions),
        "the same positions, reversed": (x, positions.flip(0)),
    }
    for name, inputs in before.items():
        with case.subject.isolated():
            layer = case.raw(case.precise)
            # Whether it takes that call is not the question here.
            with suppress(Violation):
                encode(case, layer, *inputs)
            out = encode(case, layer, x, positions)
        what = f"encoding after a call for {name}, against before"
        assert_tolerance(out, alone, tolerance=tolerance_of(alone, case.length), what=what)


@promises(
    "instance-isolation",
    "Another encoding, with another base or another such option, does not change this one.",
    trait="its factory takes a base, or another option that is a number",
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 8, among=MODERATE),
)
def instance_isolation(case: Case) -> None:
    others = _other_options(case)
    if not others:
        raise NotApplicable("its factory has no option that is a number, so that none can be built otherwise")
    x, positions = tokens(case, case.precise), count_from(case, 0)
    with case.subject.isolated():
        alone = encode(case, case.raw(case.precise), x, positions)

    def use_others() -> None:
        for options in others:
            # Whether those work is not the question here.
            with suppress(BuildError, Violation):
                raw = case.subject.build(case.dim, case.heads, seed=case.example["seed"], options=options)
                encode(case, cast(raw, case.precise, case.device), x, positions)

    use_others()
    layer = case.raw(case.precise)
    tolerance, changed = tolerance_of(alone, case.length), f"with {', '.join(map(str, others))}"
    what = f"encoding after others {changed} were used, against before"
    assert_tolerance(encode(case, layer, x, positions), alone, tolerance=tolerance, what=what)
    use_others()
    assert_tolerance(encode(case, layer, x, positions), alone, tolerance=tolerance, what=f"second {what}")


def _other_options(case: Case) -> list[dict[str, Any]]:
    """Options that differ from the subject's in one number, which sets a scale: a float, or one named for a base."""
    given = dict(case.subject.options)
    numbers = dict(given)
    with suppress(TypeError, ValueError):
        named = inspect.signature(case.subject.make_layer).parameters
        numbers = {name: each.default for name, each in named.items()} | given
    return [
        {**given, name: type(value)(value / 100) or value + 1}
        for name, value in numbers.items()
        if isinstance(value, float) or (type(value) is int and any(word in name.lower() for word in ("base", "theta")))
    ]
