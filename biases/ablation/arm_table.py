"""The arms of a study: those named one by one, and the product of factors less what is left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from biases.ablation._document import Document, join


@dataclass(frozen=True)
class LeftOut:
    """An arm of the factors' product that is not run, and why."""

    arm: str
    why: str


def read_arms(document: Document, config: type[Any]) -> tuple[dict[str, Any], tuple[LeftOut, ...]]:
    """The arms, name -> ``config`` of its model, and those of the product that are left out.

    Raises:
        ValueError: no arms, one named twice, a level that is none, two levels of an arm that disagree, an arm left out
            that is not in the product, or a model that is refused.
    """
    content = document.content
    base = document.table("model", content.get("model", {}))
    known = [each.name for each in fields(config)]
    document.known("model", base, known)
    named = document.table("arms", content.get("arms", {}))
    overrides = {arm: (f"arms.{arm}", document.table(f"arms.{arm}", table)) for arm, table in named.items()}
    product = _product(document, known)
    for arm in product:
        if arm in overrides:
            document.fail(f"arms.{arm}", "another name than an arm of the factors has", repr(arm))
    left_out = _left_out(document, product)
    overrides |= {arm: (f"factors: arm {arm!r}", table) for arm, table in product.items()}
    for each in left_out:
        del overrides[each.arm]
    if not overrides:
        document.fail("arms", "at least one arm, in [arms] or of [factors]", "none")
    models = {}
    for arm, (path, table) in overrides.items():
        document.known(path, table, known)
        models[arm] = document.make(path, config, merged(base, table), prefix=config.__name__)
    return models, left_out


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``; tables in both are merged."""
    values = dict(base)
    for key, value in over.items():
        both = isinstance(values.get(key), dict) and isinstance(value, dict)
        values[key] = merged(values[key], value) if both else value
    return values


def _product(document: Document, known: list[str]) -> dict[str, dict[str, Any]]:
    """Arm -> what its levels set."""
    factors = document.table("factors", document.content.get("factors", {}))
    levels = document.table("levels", document.content.get("levels", {}))
    document.known("levels", levels, factors)
    columns = [_levels(document, name, factors[name], levels.get(name, {}), known) for name in factors]
    arms: dict[str, dict[str, Any]] = {}
    for chosen in itertools.product(*columns) if columns else ():
        arm = "+".join(level for level, _ in chosen)
        table: dict[str, Any] = {}
        set_already: dict[str, Any] = {}
        for _, over in chosen:
            for path, value in _leaves(over):
                if set_already.setdefault(path, value) != value:
                    document.fail(
                        f"levels: arm {arm!r}", f"one value of {path}", f"{set_already[path]!r} and {value!r}"
                    )
            table = merged(table, over)
        if arm in arms:
            document.fail("factors", "arms of different names", f"{arm!r} twice")
        arms[arm] = table
    return arms


def _levels(
    document: Document, factor: str, chosen: Any, declared: Any, known: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Name and overrides of each level of a factor."""
    path = f"factors.{factor}"
    if not document.typed(path, chosen, list, "a list of levels"):
        document.fail(path, "at least one level", "none")
    declared = document.table(f"levels.{factor}", declared)
    document.known(f"levels.{factor}", declared, [str(level) for level in chosen])
    found = []
    for index, level in enumerate(chosen):
        name = str(level)
        if name in declared:
            found.append((name, document.table(f"levels.{factor}.{name}", declared[name])))
        elif factor in known and factor != "options" and isinstance(level, str | int | float):
            found.append((name, {factor: level}))
        else:
            document.fail(f"{path}[{index}]", f"a level declared as [levels.{factor}.NAME]", repr(level))
    return found


def _leaves(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        here = join(path, key)
        if isinstance(value, dict):
            yield from _leaves(value, here)
        else:
            yield here, value


def _left_out(document: Document, product: Mapping[str, Any]) -> tuple[LeftOut, ...]:
    found: list[LeftOut] = []
    for index, table in enumerate(document.tables("left_out")):
        path = f"left_out[{index}]"
        document.known(path, table, ("arm", "why"))
        each = LeftOut(document.text(path, table, "arm"), document.text(path, table, "why"))
        if each.arm not in product or each.arm in (other.arm for other in found):
            document.fail(f"{path}.arm", f"an arm of the factors, once: {', '.join(product) or 'none'}", repr(each.arm))
        found.append(each)
    return tuple(found)
