"""The verification section: a matrix of subjects against properties, and the evidence behind every cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from biases._checks import one_of
from biases.report import text


@dataclass(frozen=True)
class Status:
    """How a status is shown: never by colour alone.

    Attributes:
        name: of the status, and of its colour in the style sheet.
        glyph, words, many: a sign; in words, of one and of several.
        folded: whether its results are shown by their cells alone: nothing went wrong.
    """

    name: str
    glyph: str
    words: str
    many: str = ""
    folded: bool = False

    def counted(self, count: int) -> str:
        """``1 known failure``, ``2 known failures``."""
        return f"{count} {self.many if self.many and count != 1 else self.words}"


STATUSES = {
    status.name: status
    for status in (
        Status("failed", "✕", "failed"),
        Status("error", "!", "error", "errors"),
        Status("xpassed", "△", "passed unexpectedly"),
        Status("xfailed", "◇", "known failure", "known failures"),
        Status("passed", "✓", "passed", folded=True),
        Status("not_applicable", "·", "not applicable", folded=True),
    )
}
CUT_MARK = "\n… cut, {} characters left out of this page"


def cut(value: object, limit: int) -> str:
    """Text of at most ``limit`` characters, saying how much is missing."""
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}={item!r}" for name, item in value.items())
    whole = "" if value is None else value if isinstance(value, str) else text.words(value)
    return whole if len(whole) <= limit else whole[:limit] + CUT_MARK.format(len(whole) - limit)


def _result(name: str, raw: Mapping[str, Any], limit: int) -> dict[str, Any]:
    one_of("status of a result", raw.get("status"), STATUSES)
    status = STATUSES[raw["status"]]
    subject, prop = text.words(raw.get("subject")), text.words(raw.get("property"))
    examples = text.finite("examples of a result", raw.get("examples"))
    return {
        "id": name,
        "subject": subject,
        "property": prop,
        "status": status,
        "promise": text.words(raw.get("promise")),
        "message": cut(raw.get("message"), limit),
        "counterexample": cut(raw.get("counterexample"), limit),
        "reproduce": cut(raw.get("reproduce"), limit),
        "examples": text.DASH if examples is None else f"{examples:.0f}",
        "seconds": text.duration(text.finite("seconds of a result", raw.get("seconds"))),
    }


def view(part: Mapping[str, Any], limit: int, prefix: str = "result") -> dict[str, Any]:
    """What the template shows of one run of the battery.

    Args:
        part: ``{"results": [...]}``, each a :class:`biases.testing.Result` as a dictionary.
        limit: longest message, counterexample or script, in characters.
        prefix: of the elements' names, one for each part of a page.

    Raises:
        ValueError: a status is unknown, or a value has the wrong type.
    """
    results = [_result(f"{prefix}-{i}", raw, limit) for i, raw in enumerate(text.rows(part, "results"))]
    subjects = list(dict.fromkeys(r["subject"] for r in results))
    promises: dict[str, str] = {}
    for result in results:
        promises.setdefault(result["property"], result["promise"])
    properties = [(name, f"{prefix}-property-{i}", promise) for i, (name, promise) in enumerate(promises.items())]
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        cells.setdefault((result["subject"], result["property"]), []).append(result)
    return {
        "results": results,
        "properties": properties,
        "matrix": [(s, [(where, cells.get((s, p), [])) for p, where, _ in properties]) for s in subjects],
        "groups": [(s, [r for r in results if r["status"] is s]) for s in STATUSES.values()],
        "counts": [(s, sum(r["status"] is s for r in results)) for s in STATUSES.values()],
    }


def findings(shown: Mapping[str, Any]) -> list[str]:
    """Sentences for the overview."""
    if not shown["results"]:
        return []
    counts = [status.counted(count) for status, count in shown["counts"] if count]
    total = text.plural(len(shown["results"]), "check")
    across = f"{text.plural(len(shown['properties']), 'property', 'properties')} on "
    sentences = [f"{total} of {across}{text.plural(len(shown['matrix']), 'subject')}: {', '.join(counts)}."]
    leads = {
        "failed": "Broken promises",
        "error": "Could not be checked",
        "xpassed": "Known failures that did not fail",
        "xfailed": "Known failures, confirmed",
    }
    for status, results in shown["groups"]:
        if results and status.name in leads:
            named = text.listing(f"{r['subject']} ({r['property']})" for r in results)
            sentences.append(f"{leads[status.name]}: {named}.")
    return sentences
