"""The ledger of claims as Markdown, from its committed verdicts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown_tables import escaped, table
from biases.claims.ledger import (
    APART,
    CONDITIONAL,
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    LIMITED,
    NOT_REPRODUCIBLE,
    PAPERS,
    SHORT,
)

TELLING = (
    "ega-causal",
    "ega-gain",
    "ega-gain-without-the-future",
    "ega-gate-after-softmax",
    "superadditivity",
    "mope-boundary-without-data",
    "mope-converges-from-elsewhere",
    "rmt-linear-complexity",
    "retnet-first-chunkwise",
    "swat-forward-looking",
)
"""Entries that the README shows."""

COLUMNS = (HOLDS, CONDITIONAL, FAILS, LIMITED, INCONCLUSIVE, NOT_REPRODUCIBLE)
README, PAGE = 240, 360
"""Characters up to which further sentences of an evidence are shown."""

Rows = Sequence[Mapping[str, Any]]


def counts(rows: Rows) -> str:
    """How many statements have which verdict, by paper, and the other kinds of entries below."""
    head = ["paper", "entries", *(SHORT.get(verdict, verdict) for verdict in COLUMNS)]
    stated = [row for row in rows if row["kind"] not in APART]
    groups = {
        f"[{title}](https://arxiv.org/abs/{paper})": [row for row in stated if row["paper"] == paper]
        for paper, title in PAPERS.items()
    }
    groups["all that was executed"] = stated
    groups |= {f"apart: {kind}": [row for row in rows if row["kind"] == kind] for kind in APART}
    lines = []
    for name, group in groups.items():
        found = Counter(_verdict(row) for row in group)
        if group:
            numbers = (found[SHORT.get(verdict, verdict)] for verdict in COLUMNS)
            lines.append([name, str(len(group)), *(str(number or "") for number in numbers)])
    return "\n".join(table(head, lines))


def telling(rows: Rows) -> str:
    """The entries of :data:`TELLING` with verdict and evidence."""
    by_id = {row["id"]: row for row in rows}
    lines = [
        [f"{escaped(row['statement'])} (`{row['id']}`)", _verdict(row), brief(row, README, in_full=False)]
        for row in (by_id[id] for id in TELLING)
    ]
    return "\n".join(table(["the paper states", "verdict", "evidence"], lines))


def ledger(rows: Rows) -> str:
    """Every entry, by paper."""
    lines: list[str] = []
    for paper, title in PAPERS.items():
        own = [row for row in rows if row["paper"] == paper]
        if own:
            lines += ["", f"### {title}, [arXiv {paper}](https://arxiv.org/abs/{paper})", ""]
            lines += table(["id", "where", "statement", "verdict", "evidence"], map(_entry, own))
    return "\n".join(lines[1:])


def brief(row: Mapping[str, Any], length: int, *, in_full: bool = True) -> str:
    """The conditions, if any, and the first sentences of the evidence, through that with the interval where it has one.

    Args:
        length: in characters, beyond which no further sentence is begun.
        in_full: whether to tell in what a size of a study is not the published one.
    """
    evidence = row["evidence"]
    first, *rest = re.split(r"(?<=[.?]) (?=[A-Z`])", " ".join(evidence["text"].split()))
    for sentence in rest:
        untold = evidence["interval"] is not None and "[" not in first
        if not untold and len(first) + len(sentence) > length:
            break
        first += f" {sentence}"
    conditions = evidence["conditions"]
    if not in_full:
        conditions = re.sub(r"(^|; )(size \w+): .*", r"\1\2, not the published setting", conditions)
    return (f"*Condition: {escaped(conditions)}.* " if conditions else "") + escaped(first)


def _entry(row: Mapping[str, Any]) -> list[str]:
    return [f"`{row['id']}`", escaped(row["location"]), escaped(row["statement"]), _verdict(row), brief(row, PAGE)]


def _verdict(row: Mapping[str, Any]) -> str:
    if row["status"] == FAILS and row["evidence"]["conditions"]:
        return LIMITED
    return SHORT.get(row["status"], row["status"])
