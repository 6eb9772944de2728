"""The ledger for people."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from biases.claims.ledger import APART, CONDITIONAL, FAILS, HOLDS, INCONCLUSIVE, PAPERS, Row, summary

STYLES = {HOLDS: "green", CONDITIONAL: "green", FAILS: "red", INCONCLUSIVE: "yellow", "error": "bold red"}


def show_all(rows: Sequence[Row]) -> None:
    """A table for each paper, and the totals."""
    console = Console()
    for paper, title in PAPERS.items():
        of_paper = [row for row in rows if row.claim.paper == paper]
        if not of_paper:
            continue
        console.rule(Text(f"{title}, arXiv {paper}"), align="left")
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        for row in of_paper:
            verdict = Text(row.label, style=STYLES.get(row.status, ""))
            # Statements may hold what looks like markup.
            kind = f" [{row.claim.kind}]" if row.claim.kind in APART else ""
            table.add_row(row.claim.id, verdict, Text((row.message or row.claim.statement) + kind))
        console.print(table)
        console.print()
    for name, found in summary(rows, labels=True).items():
        counts = ", ".join(f"{number} {status}" for status, number in found.items())
        what = APART.get(name, "statements of the papers, executed")
        console.print(f"{sum(found.values())} {what}: {counts or 'none'}", markup=False, highlight=False)
    console.print("the evidence: `biases claims ID`", style="dim", markup=False)


def show_one(row: Row) -> None:
    """One claim with its evidence."""
    console, entry = Console(), row.claim
    console.rule(Text(entry.id), align="left")
    console.print(Text(entry.statement))
    console.print(Text(f"{PAPERS[entry.paper]}, arXiv {entry.paper}, {entry.location}; {entry.kind}", style="dim"))
    console.print(Text(row.label, style=STYLES.get(row.status, "")))
    lines = Table(box=None, show_header=False, pad_edge=False)
    lines.add_column(no_wrap=True)
    lines.add_column(ratio=1)
    for name, value in _lines(row):
        lines.add_row(name, Text(value))
    console.print(Padding(lines, (0, 0, 1, 2)))


def _lines(row: Row) -> list[tuple[str, str]]:
    evidence = row.evidence
    lines = [("error", row.message)] if evidence is None else [("found", evidence.text)]
    if evidence is not None:
        if evidence.conditions:
            lines.append(("conditions", evidence.conditions))
        if evidence.error is not None:
            lines.append(("error", f"{evidence.error:.3g}, tolerance {evidence.tolerance:.3g}"))
        if evidence.interval is not None:
            low, high = evidence.interval
            of = f"{evidence.seeds} {evidence.repeated}, size {evidence.size}"
            lines.append(("interval", f"[{low:.4g}, {high:.4g}] {evidence.unit}, {of}"))
        if evidence.counterexample is not None:
            lines.append(("counterexample", json.dumps(evidence.counterexample)))
        if evidence.values:
            lines.append(("values", json.dumps(dict(evidence.values))))
        if evidence.source:
            lines.append(("source", evidence.source))
    return [*lines, ("test", f"{row.claim.test}, {row.seconds:.2f} s")]
