"""What the contrasts of a study say of a statement."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from biases._checks import one_of
from biases.claims.analyses import Analysis, Finding, among_sizes, measured, setting
from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, INCONCLUSIVE, Evidence
from biases.claims.ledger import claim
from biases.claims.published import differences

OPPOSITE = {"better": "worse", "worse": "better"}
STATED = (*OPPOSITE, "equivalent")
AGREES, OPPOSES, OPEN = "agrees", "opposes", "open"

Row = Mapping[str, Any]


def compared(study: str, *, stated: str, published: str, metric: str, departs: str = "", **arms: str) -> Evidence:
    """What a contrast of a study says of a statement.

    Args:
        study: its name.
        stated: what is stated of arm a beside arm b (or of the interaction), one of :data:`STATED`; a loss that is
            lower is better.
        published: the paper's number and setting, in words.
        metric: of the contrast.
        departs: in what the arms themselves are not those of the statement; empty if in nothing.
        arms: ``a`` and ``b``, or ``y00``, ``y10``, ``y01`` and ``y11``.

    Returns:
        ``"holds"`` and ``"fails"`` without conditions only in the published setting; elsewhere both are limited to the
        setting measured. A direction is agreed to on condition where the difference is in that direction and smaller
        than the smallest effect of interest. Contrasts outside the declared family have an interval and no verdict.
    """
    one_of("stated", stated, STATED)
    judge = partial(_judge, arms=arms, metric=metric, stated=stated, published=published, departs=departs)
    return among_sizes(study, published, judge)


def settled(answer: str, unlike: str, conditions: str) -> tuple[str, str]:
    """Verdict and the conditions to which it is limited.

    Args:
        answer: whether the measurement :data:`AGREES` with the statement, :data:`OPPOSES` it or leaves it :data:`OPEN`.
        unlike: in what the setting is not the published one; empty where it is.
        conditions: further ones.
    """
    told = "; ".join(each for each in (conditions, unlike) if each)
    if answer == AGREES:
        return (CONDITIONAL, told) if told else (HOLDS, "")
    return (FAILS, told) if answer == OPPOSES else (INCONCLUSIVE, "")


def _judge(
    file: str,
    analysis: Analysis,
    *,
    arms: Mapping[str, str],
    metric: str,
    stated: str,
    published: str,
    departs: str,
) -> Finding:
    row = next((row for row in analysis["contrasts"] if row["arms"] == arms and row["metric"] == metric), None)
    if row is None:
        return Finding(note="has no such contrast")
    seeds = len(analysis["config"]["seeds"])
    if row["interval"] is None:
        told = f"one seed of {seeds}, {row['mean']:+.4g} {row['unit']}, no interval" if row["n"] else row["reason"]
        return Finding(note=f"{row['name']}: {told}")
    answer, conditions = _answer(row, stated)
    where = differences(analysis)
    unlike = "; ".join(each for each in (departs, f"size {analysis['size']}: {where}" if where else "") if each)
    verdict, told = settled(answer, unlike, conditions)
    text = f"{_in_numbers(row)}: {_in_words(row)}."
    if answer == OPPOSES and unlike:
        text += f" {_opposition(row, stated)}."
    text += f" Study {analysis['study']}, size {analysis['size']} ({setting(analysis)})."
    redeclared = analysis["family"].get("redeclared") or []
    if redeclared:
        text += " The family was declared anew after the run was begun."
    evidence = Evidence(
        verdict=verdict,
        text=f"{text} Published: {published}.",
        conditions=told,
        **measured(file, analysis, row["interval"], row["n"], row["unit"]),
        values=_values(row, redeclared),
    )
    decided = row["verdict"] in STATED if row["family"] else row["n"] >= analysis["statistics"]["minimum_seeds"]
    return Finding(evidence=evidence, decided=decided, note=f"{row['n']} of {seeds} seeds, no verdict")


def _answer(row: Row, stated: str) -> tuple[str, str]:
    """Whether a contrast agrees with what is stated, and on what condition."""
    verdict = row["verdict"] if row["family"] else ""
    if verdict not in STATED:
        return OPEN, ""
    if verdict == stated:
        return AGREES, ""
    low, high = row["interval"]
    upwards = (stated == "better") == bool(row["larger_is_better"])
    if stated in OPPOSITE and verdict == "equivalent" and (low > 0 if upwards else high < 0):
        return AGREES, f"by less than the smallest effect of interest, {row['margin']:g} {row['unit']}"
    return OPPOSES, ""


def _opposition(row: Row, stated: str) -> str:
    """What speaks against the statement, where it was made in another setting."""
    low, high = row["interval"]
    if row["verdict"] != "equivalent":
        return f"{'Not so' if stated == 'equivalent' else 'The opposite'} at this size: {_direction(row)}"
    where = "includes 0" if low <= 0 <= high else "is wholly on the opposite side of 0"
    return f"Not so at this size: within {row['margin']:g} {row['unit']} of no difference, by an interval that {where}"


def _direction(row: Row) -> str:
    """Where the metric went, as what is better depends on it, or the verdict without a direction."""
    if row["verdict"] not in OPPOSITE:
        return row["verdict"]
    return "higher" if (row["verdict"] == "better") == bool(row["larger_is_better"]) else "lower"


def _in_numbers(row: Row) -> str:
    low, high = row["interval"]
    words = f"{row['name']}: {row['mean']:+.4g} {row['unit']}, {100 * row['confidence']:g} % interval of this contrast "
    words += f"by itself [{low:+.4g}, {high:+.4g}]"
    if row["family"] and row["interval_simultaneous"] and row["family_size"] > 1:
        low, high = row["interval_simultaneous"]
        words += f", of all {row['family_size']} together [{low:+.4g}, {high:+.4g}]"
    words += f", n = {row['n']}"
    if row["family"] and row["margin"] is not None:
        words += f", margin {row['margin']:g}"
    if not row["family"]:
        return words
    if row["verdict"] == "equivalent":
        words += f", Holm-adjusted p of equivalence = {row['p_equivalence_holm']:.3g}"
    elif row["p_holm"] is not None:
        words += f", Holm-adjusted p = {row['p_holm']:.3g} (smallest attainable {row['p_holm_smallest']:.3g})"
    return words


def _in_words(row: Row) -> str:
    """The verdict of a contrast by its direction, with its reason and the seeds that it lacks."""
    if not row["family"]:
        return f"outside the declared family: an interval, no verdict{_dropped(row)}"
    mixed = f"; {row['mixed']} seeds with arms of different code or devices" if row["mixed"] else ""
    return f"{_direction(row)} ({row['reason']}{mixed}){_dropped(row)}"


def _dropped(row: Row) -> str:
    by_reason: dict[str, list[str]] = {}
    for each in row["dropped"]:
        by_reason.setdefault(each["why"], []).append(str(each["seed"]))
    told = (f"{' '.join(seeds)} ({why})" for why, seeds in by_reason.items())
    return f", without seeds {', '.join(told)}" if by_reason else ""


def _values(row: Row, redeclared: list[str]) -> dict[str, Any]:
    values = {
        "mean": row["mean"],
        "verdict of the contrast": row["verdict"],
        "reason": row["reason"],
        "margin": row["margin"],
        "mixed": row["mixed"],
        "dropped": row["dropped"],
    }
    if row["family"]:
        values["interval of all together"] = row["interval_simultaneous"]
        p = "p_equivalence_holm" if row["verdict"] == "equivalent" else "p_holm"
        values[p] = row[p]
    if redeclared:
        values["redeclared"] = list(redeclared)
    return values


def enter(
    id: str,
    *,
    paper: str,
    location: str,
    statement: str,
    study: str,
    stated: str,
    published: str,
    metric: str,
    kind: str = "empirical",
    departs: str = "",
    **arms: str,
) -> None:
    """Enter a claim whose test is :func:`compared`."""
    run = partial(compared, study, stated=stated, published=published, metric=metric, departs=departs, **arms)
    claim(id=id, paper=paper, location=location, kind=kind, statement=statement)(run)
