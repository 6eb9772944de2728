"""The ledger: what the papers state, with verdict and evidence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from biases._checks import one_of
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
from biases.report import text
from biases.report.charts import claims as charts

OURS = {"control": "question of ours", "arithmetic": "arithmetic of ours", "reading": "reading of ours"}
"""Kinds of :data:`~biases.claims.ledger.APART`, of one entry."""
NO_PAPER = "no paper named"


@dataclass(frozen=True)
class Verdict:
    """How a verdict is shown: never by colour alone.

    Attributes:
        name: as the ledger has it.
        style: the colour of the style sheet.
        glyph: a sign.
        pattern: of its bars.
    """

    name: str
    style: str
    glyph: str
    pattern: str

    @property
    def words(self) -> str:
        return SHORT.get(self.name, self.name)


VERDICTS = {
    verdict.name: verdict
    for verdict in (
        Verdict(HOLDS, "passed", "✓", ""),
        Verdict(CONDITIONAL, "xpassed", "△", "/"),
        Verdict(FAILS, "failed", "✕", "x"),
        Verdict(LIMITED, "failed", "▽", "\\"),
        Verdict(INCONCLUSIVE, "xfailed", "◇", "."),
        Verdict(NOT_REPRODUCIBLE, "not_applicable", "·", "-"),
        Verdict("error", "error", "!", "|"),
    )
}


STATUSES = tuple(name for name in VERDICTS if name != LIMITED)


def _row(index: str, raw: Mapping[str, Any], limit: int) -> dict[str, Any]:
    one_of("status of a claim", raw.get("status"), STATUSES)
    evidence = text.section(raw, "evidence")
    paper = text.words(raw.get("paper"))
    low, high = text.interval("interval of a claim", evidence.get("interval"))
    facts = [(name, text.words(raw.get(name))) for name in ("location", "kind", "test")]
    if low is not None:
        of = f"{text.words(evidence.get('seeds'))} {text.words(evidence.get('repeated'))}"
        told = f"{text.span(low, high)} {text.words(evidence.get('unit'))}, {of}, {text.words(evidence.get('size'))}"
        facts.append(("interval", told))
    error = text.finite("error of a claim", evidence.get("error"))
    if error is not None:
        allowed = text.number(text.finite("tolerance of a claim", evidence.get("tolerance")))
        facts.append(("error", f"{text.number(error)}, tolerance {allowed}"))
    facts += [(name, str(evidence[name])) for name in ("conditions", "source") if evidence.get(name)]
    facts += [(str(name), text.words(value)) for name, value in text.section(evidence, "values").items()]
    found = raw.get("message") if not evidence else evidence.get("text")
    return {
        "id": index,
        "name": text.words(raw.get("id")),
        "paper": paper,
        "title": text.words(raw.get("title") or PAPERS.get(paper) or (NO_PAPER if paper == text.DASH else paper)),
        "link": text.arxiv(paper),
        "statement": text.words(raw.get("statement")),
        "verdict": VERDICTS[LIMITED if raw["status"] == FAILS and evidence.get("conditions") else raw["status"]],
        "apart": APART.get(str(raw.get("kind")), ""),
        "ours": OURS.get(str(raw.get("kind")), ""),
        "found": text.cut(found, limit),
        "facts": [(name, text.cut(value, limit)) for name, value in facts if value != text.DASH],
        "counterexample": text.cut(_plain(evidence.get("counterexample")), limit),
    }


def _plain(value: object) -> str:
    return "" if value is None else json.dumps(value, indent=1, ensure_ascii=False, default=str)


def view(part: Mapping[str, Any], limit: int, prefix: str = "claim") -> dict[str, Any]:
    """What the template shows of one ledger.

    Args:
        part: ``{"claims": [...]}``, as ``biases claims --json`` prints them.
        limit: longest text of a claim, in characters.
        prefix: of the elements' names, one for each part of a page.

    Raises:
        ValueError: a verdict is unknown, or a value has the wrong type.
    """
    rows = [_row(f"{prefix}-{index}", raw, limit) for index, raw in enumerate(text.rows(part, "claims"))]
    papers = _papers(rows)
    stated = [row for row in rows if not row["apart"]]
    counts = {papers[row["paper"]]: Counter[str]() for row in stated}
    for row in stated:
        counts[papers[row["paper"]]][row["verdict"].name] += 1
    shown = [{"name": v.name, "words": v.words, "style": v.style, "pattern": v.pattern} for v in VERDICTS.values()]
    return {
        "rows": rows,
        "papers": list(papers.items()),
        "verdicts": [v for v in VERDICTS.values() if any(row["verdict"] is v for row in rows)],
        "counts": counts,
        "counted": [v for v in VERDICTS.values() if any(row["verdict"] is v for row in stated)],
        "apart": [name for name in APART.values() if any(row["apart"] == name for row in rows)],
        "figure": charts.verdicts(counts, shown) if stated else None,
        "about": _about(rows),
    }


def _papers(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Paper -> its title, with its identifier where that is not the title and others have the same one."""
    titles = {row["paper"]: row["title"] for row in rows}
    several = Counter(titles.values())
    return {
        paper: f"{title} ({paper})" if several[title] > 1 and title != paper else title
        for paper, title in titles.items()
    }


def _about(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the chart counts, and what it leaves to the list."""
    counts = Counter(row["apart"] for row in rows if row["apart"])
    told = "Statements of the papers, executed, by the paper that states them."
    if counts:
        others = ", ".join(f"{name} ({counts[name]})" for name in APART.values() if counts[name])
        told += f" Not counted, as no paper states them: {others}; they are marked in the ledger."
    return told


def findings(shown: Mapping[str, Any]) -> list[str]:
    """Sentences for the overview: statements of the papers, and by themselves what is none."""
    kinds = {"": "statements of the papers, executed", **{name: name for name in APART.values()}}
    return [
        f"{len(rows)} {what}: {_tally(rows, shown['verdicts'])}."
        for kind, what in kinds.items()
        if (rows := [row for row in shown["rows"] if row["apart"] == kind])
    ]


def _tally(rows: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict]) -> str:
    counted = [(v, sum(row["verdict"] is v for row in rows)) for v in verdicts]
    return ", ".join(f"{v.words} {count}" for v, count in counted if count)
