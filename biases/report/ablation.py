"""The ablation section: learning curves, paired effects, interactions, and what a leak is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from biases._checks import fail
from biases.report import text
from biases.report.charts import study as charts
from biases.report.effects import UNIT, contrast, grid

LEAK = 1e-4
"""Nats per character; the truncated loss of a causal model differs from its full one by less, by rounding only."""
REFUSED = "refused"
MEASURE = f"validation loss, {UNIT}"
MOST_POINTS = 80
"""Points of a curve above which every second one is left out, until there are fewer."""


def _curve(arm: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    steps = text.numbers(f"curve steps of {arm!r}", raw.get("steps") or [])
    none = [None] * len(steps)
    found = {
        key: text.numbers(f"curve {key} of {arm!r}", none if raw.get(key) is None else raw[key], len(steps))
        for key in ("mean", "low", "high")
    }
    stride = 1 + len(steps) // MOST_POINTS
    # The last point is what the tables are about.
    kept = sorted({*range(0, len(steps), stride), *([len(steps) - 1] if steps else [])})
    return {key: [values[i] for i in kept] for key, values in {"steps": steps, **found}.items()}


def _arm(name: str, raw: object) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        fail(f"arm {name!r}", "a mapping", type(raw).__name__)
    losses: dict[str, dict[str, float | None]] = {}
    for kind in ("full", "truncated"):
        values = text.section(raw, kind)
        losses[kind] = {str(s): text.finite(f"{kind} loss of {name!r}", v) for s, v in values.items()}
    low, high = text.interval(f"leak_interval of {name!r}", raw.get("leak_interval"))
    leak = text.finite(f"leak_mean of {name!r}", raw.get("leak_mean"))
    counts = text.section(raw, "statuses")
    finished = len([v for v in losses["full"].values() if v is not None])
    return {
        "name": name,
        "curve": _curve(name, text.section(raw, "curve")),
        "full": text.number(_mean(losses["full"])),
        "truncated": text.number(_mean(losses["truncated"])),
        "truncated_mean": _mean(losses["truncated"]),
        "leak": text.number(leak, signed=True),
        "leak_mean": leak,
        "leak_interval": text.span(low, high, signed=True),
        "leak_low": low,
        "n": f"{finished} of {sum(counts.values())}" if counts else str(finished),
        "seeds": [
            (seed, text.number(losses["full"].get(seed)), text.number(losses["truncated"].get(seed)))
            for seed in text.seeds(losses["full"] | losses["truncated"])
        ],
    }


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None


def _interactions(part: Mapping[str, Any], measure: str) -> list[dict[str, Any]]:
    """Each with its contrast (``None`` where it is among the others), its cells for a table, and its figure."""
    found = []
    for raw in text.parts(part, "interaction"):
        factors = text.section(raw, "factors") or text.section(part, "factors")
        placed = grid(text.section(raw, "cells") or text.section(raw, "cell_means"), factors)
        known = any(cell["mean"] is not None for inner in placed.values() for cell in inner.values())
        title, shown = text.words(raw.get("name") or "interaction"), text.words(raw.get("measure") or measure)
        found.append(
            {
                "name": title,
                "contrast": None if raw.get("listed") else contrast(raw, "interaction"),
                "factors": [str(factor) for factor in factors],
                "cells": [
                    (level, other, text.number(cell["mean"]))
                    for level, inner in placed.items()
                    for other, cell in inner.items()
                ],
                "figure": charts.interaction(placed, *map(str, factors), measure=shown) if known else None,
            }
        )
    return found


def _gaps(part: Mapping[str, Any]) -> list[str]:
    """Cells that failed or could not be read, and those that were not run, a line each."""
    found = [
        f"{text.words(cell.get('arm'))}, seed {text.words(cell.get('seed'))}: {text.words(cell.get('status'))}, "
        f"{text.words(cell.get('error'))}"
        for cell in text.rows(part, "failed")
    ]
    missing: dict[str, list[str]] = {}
    for cell in text.rows(part, "missing"):
        missing.setdefault(text.words(cell.get("arm")), []).append(text.words(cell.get("seed")))
    found += [f"{arm}: not run yet under seeds {' '.join(seeds)}" for arm, seeds in missing.items()]
    return found + [
        f"{text.words(each.get('arm'))}: left out, {text.words(each.get('why'))}"
        for each in text.rows(part, "left_out")
    ]


def view(part: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one study.

    Args:
        part: ``arms`` (name -> ``curve``, ``full`` and ``truncated`` by seed, ``leak_mean``, ``leak_interval``,
            ``statuses``), ``contrasts``, ``interaction`` (one or several), ``factors``, ``measure`` (of ``full``, with
            its unit), ``curve_measure``, ``config``, ``question``, ``notes``, ``failed``, ``missing``, ``left_out``.

    Raises:
        ValueError: a value has the wrong type, or a curve's lists differ in length.
    """
    measure = text.words(part.get("measure") or MEASURE)
    arms = [_arm(str(name), raw) for name, raw in text.section(part, "arms").items()]
    drawn = {a["name"]: a["curve"] for a in arms if any(v is not None for v in a["curve"]["mean"])}
    interactions = _interactions(part, measure)
    contrasts = [contrast(raw) for raw in text.rows(part, "contrasts")]
    contrasts += [each["contrast"] for each in interactions if each["contrast"]]
    leaking = [a for a in arms if a["truncated_mean"] is not None and a["leak_mean"] is not None]
    return {
        "question": "" if part.get("question") is None else str(part["question"]),
        "notes": [text.words(note) for note in part.get("notes") or []],
        "measure": measure,
        "arms": arms,
        "contrasts": contrasts,
        "interactions": interactions,
        "gaps": _gaps(part),
        "curves": charts.curves(drawn, text.words(part.get("curve_measure") or measure)) if drawn else None,
        "forests": _forests(contrasts),
        "leaks": charts.leaks(leaking, measure) if leaking else None,
        "truncated": any(a["truncated_mean"] is not None for a in arms),
        "holm": any(row["p_holm"] != text.DASH for row in contrasts),
        "config": text.facts(text.section(part, "config")),
        "provenance": text.facts(text.section(part, "provenance")),
    }


def _forests(contrasts: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """(unit, figure): effects in different units have no common axis."""
    units: dict[str, list[Mapping[str, Any]]] = {}
    for row in contrasts:
        if row["mean"] is not None:
            units.setdefault(row["unit"], []).append(row)
    return [(unit, charts.forest(rows, unit)) for unit, rows in units.items()]


def findings(shown: Mapping[str, Any]) -> list[str]:
    """Sentences for the overview: the declared effects as they were judged, and any leak."""
    sentences = [
        f"{row['name']}: {row['effect']} {row['unit']} {row['interval']} over {row['n']} seeds, {row['verdict']}."
        for row in shown["contrasts"]
        if row["declared"] and row["verdict"] != REFUSED and row["mean"] is not None
    ]
    refused = [row["name"] for row in shown["contrasts"] if row["declared"] and row["verdict"] == REFUSED]
    if refused:
        sentences.append(f"No verdict yet, see the table for the reasons: {text.listing(refused)}.")
    leaks = [f"{a['name']} ({a['leak']})" for a in shown["arms"] if a["leak_low"] is not None and a["leak_low"] > LEAK]
    if leaks:
        sentences.append(
            f"Worse when given only the past: the full-window loss used the future: {text.listing(leaks)}."
        )
    return sentences
