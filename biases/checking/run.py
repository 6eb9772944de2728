"""The battery on names of the zoo and on anybody's factories, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from biases import zoo
from biases._checks import fail, one_of, positive_int
from biases.registry import VARIANTS
from biases.testing import PROPERTIES, WIDTHS, Result, Traits, check_attention, kinds
from biases.testing.location import Location, location_of, source_root
from biases.testing.targets import is_factory, load_factory, parse_traits


def check_all(
    targets: Sequence[str],
    *,
    traits: Iterable[str] = (),
    known_failures: Mapping[str, Mapping[str, str]] | None = None,
    properties: Sequence[str] | None = None,
    max_examples: int = 25,
    seed: int = 0,
    kind: str | None = None,
    found: Callable[[Result], object] | None = None,
    **further: Any,
) -> list[Result]:
    """Check every target; progress goes to standard error.

    Args:
        targets: names of the zoo, ``"all"`` of its layers, ``"peers"``, which are the subjects of
            :mod:`biases.testing.adapters` that are installed, or ``module:factory``.
        traits: ``name=value`` texts, over what a factory declares itself; not for names of the zoo.
        known_failures: target -> property -> reason; names of the zoo bring their own.
        kind: what a ``module:factory`` is: a factory of that kind, or the plain function that
            :mod:`biases.testing.kinds` makes one of.
        found: called with each result as soon as it is there.
        properties, max_examples, seed, further: see :func:`biases.testing.check_attention`.

    Raises:
        ValueError: unusable targets, traits or known failures, before anything is checked.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    positive_int("max_examples", max_examples)
    for each in properties or ():
        one_of("property", each, PROPERTIES)
    _try_options(targets, further)
    subjects = _subjects(targets, list(traits), kind)
    known = {name: dict(reasons) for name, reasons in (known_failures or {}).items()}
    for name in known:
        if name not in subjects:
            fail(f"known failures of {name!r}", f"one of the targets {sorted(subjects)}", repr(name))
    results: list[Result] = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        for name, (make_layer, declared, own, how) in subjects.items():
            task = bars.add_task(name, total=None)

            def advance(done: int, total: int, result: Result, task: Any = task) -> None:
                if found is not None:
                    found(result)
                bars.update(task, completed=done, total=total)

            expected = {key: why for key, why in own.items() if properties is None or key in properties}
            results += check_attention(
                make_layer,
                declared,
                name=name,
                max_examples=max_examples,
                seed=seed,
                properties=properties,
                known_failures={**expected, **known.get(name, {})},
                progress=advance,
                how_to_build=how,
                **further,
            )
            bars.remove_task(task)
    return results


Subject = tuple[Callable[..., Any], Traits | None, Mapping[str, str], str | None]


def _subjects(targets: Sequence[str], traits: list[str], kind: str | None) -> dict[str, Subject]:
    """Target -> factory, traits, known failures, and how to build it in a script."""
    subjects: dict[str, Subject] = {}
    for target in targets:
        if is_factory(target):
            subjects[target] = _own(target, traits, kind)
            continue
        for option, given in (("--trait", traits), ("--as", kind)):
            if given:
                fail(option, f"targets of the form module:factory, as {target!r} declares its own", given)
        if target == "peers":
            subjects |= _peers()
            continue
        for name in zoo.names("layer") if target == "all" else [target]:
            variant = zoo.get(name)
            if variant.kind != "layer":
                fail(f"target {name!r}", "a layer", f"a {variant.kind}")
            subjects[name] = (zoo.factory(name), None, variant.known_failures, None)
    return subjects


def _try_options(targets: Iterable[str], further: Mapping[str, Any]) -> None:
    """Build layers of the zoo that get options once: one error, not one for each property."""
    given = further.get("options") or {}
    for name in targets:
        carried = name.partition("[")[0] in VARIANTS and ("[" in name or given)
        if carried and zoo.get(name).kind == "layer":
            zoo.trial(name, further.get("widths") or WIDTHS, **given)


def _own(target: str, traits: list[str], kind: str | None) -> Subject:
    found = load_factory(target)
    declared = parse_traits(traits, getattr(found, "traits", None))
    module, _, path = target.partition(":")
    how = f"import {module}; make_layer = {module}.{path}"
    if kind is not None:
        one_of("--as", kind, list(kinds.KINDS))
    own = getattr(found, "kind", None)
    if kind is not None and own not in (None, kind):
        fail("--as", f"{own!r}, as {target!r} says of itself", repr(kind))
    if kind in (None, "layer") or own == kind:
        return found, declared, {}, how
    found = getattr(kinds, str(kind))(found, declared)
    return found, declared, {}, f"{how}\nfrom biases.testing import kinds; make_layer = kinds.{kind}(make_layer)"


def _peers() -> dict[str, Subject]:
    from biases.testing.adapters.catalogue import peers

    return {
        name: (make_layer, None, getattr(make_layer, "known_failures", {}), None)
        for name, make_layer in peers().items()
    }


def locate(targets: Sequence[str]) -> dict[str, Location]:
    """Where the factories of ``targets`` are written, those of a source file; paths are relative to the repository.

    Raises:
        ValueError: unusable targets.
    """
    root = source_root()
    places: dict[str, Location | None] = {}
    for target in targets:
        if is_factory(target):
            places[target] = location_of(load_factory(target), root, target.partition(":")[0])
        elif target == "peers":
            places |= {name: location_of(make_layer, root) for name, (make_layer, *_) in _peers().items()}
        else:
            for name in zoo.names("layer") if target == "all" else [target]:
                places[name] = location_of(zoo.get(name).make, root)
    return {name: place for name, place in places.items() if place is not None}
