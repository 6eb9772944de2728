"""What the conformance battery costs: a layer under all properties, and each property by itself.

Slow properties, which compile, are left out.
"""

from __future__ import annotations

from functools import lru_cache

from biases.testing import check_attention
from biases.testing.properties import PROPERTIES
from biases.zoo import factory, get

LAYERS = ("standard", "ega-token", "alibi", "retention", "manhattan")
EXAMPLES = 5
QUICK_TO_CHECK = tuple(name for name, each in PROPERTIES.items() if not each.slow)
BROKEN = ("failed", "xpassed", "error")


def check(layer: str, properties: tuple[str, ...]) -> int:
    """Check a layer of the zoo; returns how many properties were put to it.

    Raises:
        AssertionError: one that is no known failure is broken, or none was put to it.
    """
    known = {name: reason for name, reason in get(layer).known_failures.items() if name in properties}
    results = check_attention(
        factory(layer), max_examples=EXAMPLES, seed=0, properties=properties, known_failures=known
    )
    broken = [result for result in results if result.status in BROKEN]
    if broken:
        raise AssertionError(f"{layer}: {broken[0].property}: {broken[0].message}")
    ran = sum(result.status != "not_applicable" for result in results)
    if not ran:
        raise AssertionError(f"{layer}: none of {len(properties)} properties applies")
    return ran


# asv runs `setup` before each timed call; the verdicts are wanted once.
checked = lru_cache(maxsize=1)(check)


def layers_of_properties() -> dict[str, str]:
    """Property -> the first of the layers that it applies to; those of other kinds of subject are left out."""
    found: dict[str, str] = {}
    for name in QUICK_TO_CHECK:
        for layer in LAYERS:
            if PROPERTIES[name].applies(get(layer).traits) is None:
                found.setdefault(name, layer)
    return found


SUBJECTS = layers_of_properties()


class Layers:
    """All properties on one layer."""

    version = "1"
    timeout = 600
    rounds = 1
    repeat = (1, 3, 5.0)
    warmup_time = 0
    params = (LAYERS,)
    param_names = ("layer",)

    def setup(self, layer: str) -> None:
        checked(layer, QUICK_TO_CHECK)

    def time_check(self, layer: str) -> None:
        check(layer, QUICK_TO_CHECK)


class Properties:
    """One property on the first layer that it applies to."""

    version = "1"
    timeout = 120
    rounds = 1
    repeat = (2, 5, 2.0)
    warmup_time = 0
    params = (tuple(SUBJECTS),)
    param_names = ("property",)

    def setup(self, name: str) -> None:
        checked(SUBJECTS[name], (name,))

    def time_check(self, name: str) -> None:
        check(SUBJECTS[name], (name,))
