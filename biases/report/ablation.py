"""The ablation section: learning curves, paired effects, interactions, and what a leak is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from biases._checks import fail
from biases.report import effects, text
from biases.report.charts import study as charts

LEAK = 1e-4
"""Nats per character; the truncated loss of a causal model differs from its full one by less, by rounding only."""
REFUSED = "refused"
MEASURE = f"validation loss, {effects.UNIT}"
BAND = "range that the results give for it"
MOST_POINTS = 80
"""Points of a curve above which only every n-th one, and the last, is shown."""


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
    shown = {key: [values[i] for i in kept] for key, values in {"steps": steps, **found}.items()}
    return {**shown, "thinned": len(kept) < len(steps)}


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


def _curves(arms: Sequence[Mapping[str, Any]], part: Mapping[str, Any], measure: str) -> dict[str, Any] | None:
    """The figure of the learning curves, what it shows in words, and its points for a table."""
    drawn = {a["name"]: a["curve"] for a in arms if any(v is not None for v in a["curve"]["mean"])}
    if not drawn:
        return None
    caption = f"Mean over seeds; the band is the {text.words(part.get('band') or BAND)}."
    if any(curve["thinned"] for curve in drawn.values()):
        caption += " Of the steps that were recorded, every n-th and the last are shown."
    start = charts.first_shown(drawn.values())
    cut = "" if start is None else f" The axes begin at step {start:.15g}; the values before are in the table below."
    points = [
        (name, f"{step:.15g}", text.number(mean, decimals=text.places(low, high)), text.span(low, high))
        for name, curve in drawn.items()
        for step, mean, low, high in zip(curve["steps"], curve["mean"], curve["low"], curve["high"], strict=True)
        if step is not None
    ]
    return {"figure": charts.curves(drawn, measure), "about": caption + cut, "caption": caption, "points": points}


def _interactions(
    part: Mapping[str, Any], measure: str, contrasts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each with its contrast, which is that of its name where it is listed, its cells for a table, and its figure."""
    found = []
    for raw in text.parts(part, "interaction"):
        factors = text.section(raw, "factors") or text.section(part, "factors")
        placed = effects.grid(text.section(raw, "cells") or text.section(raw, "cell_means"), factors)
        cells = [cell for inner in placed.values() for cell in inner.values()]
        known = any(cell["mean"] is not None for cell in cells)
        title, shown = text.words(raw.get("name") or "interaction"), text.words(raw.get("measure") or measure)
        found.append(
            {
                "name": title,
                "listed": bool(raw.get("listed")),
                "contrast": contrasts[title] if raw.get("listed") else effects.contrast(raw, "interaction"),
                "whiskers": any(cell["low"] is not None for cell in cells),
                "factors": [str(factor) for factor in factors],
                "cells": [
                    (
                        level,
                        other,
                        text.number(cell["mean"], decimals=text.places(cell["low"], cell["high"])),
                        text.span(cell["low"], cell["high"]),
                    )
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
            ``statuses``), ``contrasts``, ``interaction`` (one or several; one that is ``listed`` is the contrast of its
            name), ``factors``, ``confidence`` (of all intervals), ``measure`` (of ``full``, with its unit),
            ``curve_measure``, ``band`` (what that of the curves is, in words), ``config``, ``question``, ``notes``,
            ``failed``, ``missing``, ``left_out``.

    Raises:
        ValueError: a value has the wrong type, a curve's lists differ in length, or intervals in their level.
    """
    measure = text.words(part.get("measure") or MEASURE)
    arms = [_arm(str(name), raw) for name, raw in text.section(part, "arms").items()]
    contrasts = [effects.contrast(raw) for raw in text.rows(part, "contrasts")]
    interactions = _interactions(part, measure, {row["name"]: row for row in contrasts})
    contrasts += [each["contrast"] for each in interactions if not each["listed"]]
    level = effects.confidence(contrasts, text.finite("confidence", part.get("confidence")))
    for each in interactions:
        each["about"] = effects.about_interaction(each["contrast"], level, whiskers=each["whiskers"])
    leaking = [a for a in arms if a["truncated_mean"] is not None and a["leak_mean"] is not None]
    return {
        "question": "" if part.get("question") is None else str(part["question"]),
        "notes": [text.words(note) for note in part.get("notes") or []],
        "measure": measure,
        "arms": arms,
        "contrasts": contrasts,
        "interactions": interactions,
        "gaps": _gaps(part),
        "interval": effects.interval_words(level),
        "curves": _curves(arms, part, text.words(part.get("curve_measure") or measure)),
        "forests": _forests(contrasts, level),
        "about_effects": effects.about_table(contrasts, level),
        "leaks": charts.leaks(leaking, measure) if leaking else None,
        "truncated": any(a["truncated_mean"] is not None for a in arms),
        "columns": {key for key in ("p", "p_holm", "bound") if any(row[key] != text.DASH for row in contrasts)},
        "config": text.facts(text.section(part, "config")),
        "provenance": text.facts(text.section(part, "provenance")),
    }


def _forests(contrasts: Sequence[Mapping[str, Any]], level: float | None) -> list[tuple[str, Any, str]]:
    """(unit, figure, what it shows): effects in different units have no common axis."""
    units: dict[str, list[Mapping[str, Any]]] = {}
    for row in contrasts:
        if row["mean"] is not None:
            units.setdefault(row["unit"], []).append(row)
    return [(unit, charts.forest(rows, unit), effects.about_forest(rows, level)) for unit, rows in units.items()]


def findings(shown: Mapping[str, Any]) -> list[str]:
    """Sentences for the overview: the declared effects as they were judged, and any leak."""
    sentences = [
        f"{row['name']}: {row['effect']} {row['unit']}, {shown['interval']} {row['interval']}, "
        f"over {row['n']} seeds, {row['verdict']}."
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
