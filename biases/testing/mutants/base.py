"""What a planted fault is, and the table of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from biases._checks import fail
from biases.traits import Traits

Factory = TypeVar("Factory", bound=Callable[..., Any])


@dataclass(frozen=True)
class Sound:
    """A subject that is right, and keeps every promise that its traits make.

    Attributes:
        name: kebab-case.
        make_layer, traits, kind, forms: as for :func:`biases.testing.check_attention`.
    """

    name: str
    make_layer: Callable[..., Any]
    traits: Traits
    kind: str = "layer"
    forms: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Mutant(Sound):
    """A subject that is right but for one planted fault.

    Attributes:
        fault: what is wrong, in one sentence.
        caught_by: the property that names this fault.
        source: the published bug that it re-creates, as ``owner/repository#number``; several are separated by commas;
            empty where it re-creates none.
        by_raising: whether raising is the fault itself.
    """

    fault: str = ""
    caught_by: str = ""
    source: str = ""
    by_raising: bool = False


SOUND: dict[str, Sound] = {}
MUTANTS: dict[str, Mutant] = {}


def sound(
    name: str, traits: Traits, *, kind: str = "layer", forms: Mapping[str, Callable[..., Any]] | None = None
) -> Callable[[Factory], Factory]:
    """Enter the decorated factory into :data:`SOUND`."""
    if name in SOUND:
        fail("name of a sound subject", "one not yet taken", repr(name))

    def enter(make_layer: Factory) -> Factory:
        SOUND[name] = Sound(name, make_layer, traits, kind, forms or {})
        return make_layer

    return enter


def mutant(
    name: str,
    fault: str,
    traits: Traits,
    *,
    caught_by: str,
    kind: str = "layer",
    source: str = "",
    by_raising: bool = False,
    forms: Mapping[str, Callable[..., Any]] | None = None,
) -> Callable[[Factory], Factory]:
    """Enter the decorated factory into :data:`MUTANTS`."""
    if name in MUTANTS:
        fail("name of a mutant", "one not yet taken", repr(name))

    def enter(make_layer: Factory) -> Factory:
        MUTANTS[name] = Mutant(name, make_layer, traits, kind, forms or {}, fault, caught_by, source, by_raising)
        return make_layer

    return enter
