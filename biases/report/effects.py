"""Paired effects and interactions of a study, for its charts and tables, and in words what their numbers mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from biases._checks import fail
from biases.report import text

UNIT = "nats per character"
PROBABILITIES = ("p_sign_flip", "p_smallest", "p_holm", "p_holm_smallest", "p_equivalence", "p_equivalence_holm")
UNKNOWN = "interval (of a level that the results do not state)"


def contrast(raw: Mapping[str, Any], name: str = "contrast") -> dict[str, Any]:
    """One paired effect, for the forest plot and for the table."""
    title = text.words(raw.get("name") or name)
    low, high = text.interval(f"interval of {title!r}", raw.get("interval"))
    together = text.interval(f"interval_simultaneous of {title!r}", raw.get("interval_simultaneous"))
    values = {
        key: text.finite(f"{key} of {title!r}", raw.get(key))
        for key in ("mean", "confidence", "margin", "family_size", *PROBABILITIES)
    }
    mean, size = values["mean"], values["family_size"]
    numbers = {key: text.DASH if values[key] is None else f"{values[key]:.3g}" for key in PROBABILITIES}
    larger = raw.get("larger_is_better")
    return {
        "name": title,
        "mean": mean,
        "low": low,
        "high": high,
        "confidence": values["confidence"],
        "margin": values["margin"],
        "family_size": None if size is None else int(size),
        "larger_is_better": larger if isinstance(larger, bool) else None,
        "n": text.words(raw.get("n")),
        "effect": text.number(mean, signed=True, decimals=text.places(low, high)),
        "interval": text.span(low, high, signed=True),
        "together": text.span(*together, signed=True),
        "p": numbers["p_sign_flip"],
        "p_smallest": numbers["p_smallest"],
        "p_holm": numbers["p_holm"],
        "p_holm_smallest": numbers["p_holm_smallest"],
        "p_equivalence": numbers["p_equivalence_holm" if size else "p_equivalence"],
        "bound": text.number(values["margin"]),
        "declared": raw.get("family") is not False,
        "verdict": text.words(raw.get("verdict")),
        "reason": "" if raw.get("reason") is None else str(raw["reason"]),
        "unit": text.words(raw.get("unit") or UNIT),
    }


def confidence(rows: Iterable[Mapping[str, Any]], stated: float | None = None) -> float | None:
    """The level of all intervals of a study; ``None`` where its results do not state one.

    Args:
        rows: as :func:`contrast` reads them.
        stated: the level of the study as a whole, if it states one.

    Raises:
        ValueError: several levels.
    """
    found = {level for level in (stated, *(row["confidence"] for row in rows)) if level is not None}
    if len(found) > 1:
        fail("confidence of the contrasts", "one level", ", ".join(f"{level:g}" for level in sorted(found)))
    return found.pop() if found else None


def interval_words(level: float | None) -> str:
    """``95 % interval``."""
    return UNKNOWN if level is None else f"{_percent(level)} interval"


def _percent(level: float) -> str:
    return f"{100 * level:g} %"


def about_forest(rows: Sequence[Mapping[str, Any]], level: float | None) -> str:
    """What a forest plot of these rows shows, and what it does not decide."""
    told = [f"Differences within a seed: their mean and its {interval_words(level)}, of each contrast by itself."]
    if any(row["p"] != text.DASH for row in rows):
        p = "p adjusted for the declared family" if any(row["family_size"] for row in rows) else "the sign-flip test"
        told.append(
            f"Beside n stands the verdict, which rests on {p} too: an interval that leaves out zero does not decide "
            "alone, and one that holds zero does not show that there is no difference."
        )
    if any(row["margin"] is not None for row in rows):
        told.append("A grey band is the margin that was declared to count as no difference.")
    if not all(row["declared"] for row in rows):
        told.append("Open squares were not declared before the run and are not tested.")
    direction = {row["larger_is_better"] for row in rows}
    if direction == {True}:
        told.append("Right of zero is better.")
    if direction == {False}:
        told.append("Left of zero is better.")
    return " ".join(told)


def about_table(rows: Sequence[Mapping[str, Any]], level: float | None) -> str:
    """How the columns of a table of these rows were computed, and what the verdicts take."""
    size = max((row["family_size"] or 0 for row in rows), default=0)
    tested, equivalence = (any(row[key] != text.DASH for row in rows) for key in ("p", "p_equivalence"))
    told = [f"The {interval_words(level)} is Student's t of the differences within a seed, each contrast by itself."]
    if any(row["together"] != text.DASH for row in rows):
        covering = "" if level is None else f" with {_percent(level)}"
        told.append(f"Together: intervals that cover all {size} declared means at once{covering} (Bonferroni).")
    if tested:
        told.append("p: two-sided sign-flip test, exact up to 20 seeds; at least: the smallest that they can give.")
    if equivalence:
        told.append("Equivalence: p of two one-sided t tests against the margin.")
    if size > 1:
        told.append(f"Holm: adjusted for all {size} declared contrasts, the p of equivalence by themselves.")
    elif tested and not size:
        told.append("No p is adjusted for there being several contrasts.")
    if tested and level is not None:
        adjusted, most = " (Holm)" if size > 1 else "", f"{1 - level:.3g}"
        first = f"equivalent takes an equivalence p{adjusted} of at most {most} and goes first; " if equivalence else ""
        told.append(
            f"Verdicts: {first}better and worse, of the first arm, take p{adjusted} of at most {most} and an interval "
            "by itself without zero; what is left is inconclusive."
        )
    return " ".join(told)


def about_interaction(row: Mapping[str, Any], level: float | None, *, whiskers: bool) -> str:
    """What the plot of the cell means of an interaction shows, and what was found of it."""
    told = [f"Cell means over the {row['n']} seeds of the contrast."]
    if whiskers:
        told.append(
            f"A whisker is the {interval_words(level)} of one cell by itself; the contrast is taken within a seed, so "
            "whiskers that overlap say nothing of it."
        )
    found = f"{row['effect']} {row['unit']}, {interval_words(level)} {row['interval']}, {row['verdict']}"
    if row["mean"] is None:
        found = row["verdict"]
    told.append(
        f"Parallel lines would mean that the two factors add up. Whether they do is the contrast's to say: {found}."
    )
    return " ".join(told)


def _cell(name: str, raw: object) -> dict[str, float | None]:
    """A cell of the design, given as a mean or as a mapping with its mean and its interval."""
    if not isinstance(raw, Mapping):
        return {"mean": text.finite(f"cell {name!r}", raw), "low": None, "high": None}
    low, high = text.interval(f"interval of cell {name!r}", raw.get("interval"))
    return {"mean": text.finite(f"mean of cell {name!r}", raw.get("mean")), "low": low, "high": high}


def cell_levels(key: str, levels: tuple[list[str], list[str]]) -> tuple[str, str] | None:
    """The level of each factor that a cell's name states, or ``None``.

    A name is ``y10`` (the index of the first factor's level, then of the second's) or holds both levels, as
    in ``ega+mope``.
    """
    first, second = levels
    indices = re.fullmatch(r"y(\d)(\d)", key)
    if indices:
        i, j = int(indices[1]), int(indices[2])
        return (first[i], second[j]) if i < len(first) and j < len(second) else None
    pairs = ((a, b) for a in first for b in second)
    return next(((a, b) for a, b in pairs if re.fullmatch(rf"{re.escape(a)}\W+{re.escape(b)}", key)), None)


def grid(cells: Mapping[str, Any], factors: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Cells as {first factor's level: {second's: mean, low, high}}; empty where a name cannot be placed.

    ``cells`` is nested in that way already, or flat under the names that :func:`cell_levels` reads.
    """
    if len(factors) != 2 or not cells:
        return {}
    first, second = ([str(level) for level in values] for values in factors.values())
    placed: dict[str, dict[str, dict[str, Any]]] = {}
    for key, raw in cells.items():
        if key in first and isinstance(raw, Mapping):
            placed[key] = {str(level): _cell(f"{key}, {level}", cell) for level, cell in raw.items()}
            continue
        levels = cell_levels(str(key), (first, second))
        if levels is None:
            return {}
        placed.setdefault(levels[0], {})[levels[1]] = _cell(str(key), raw)
    return placed
