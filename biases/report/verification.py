"""The verification section: a matrix of subjects against properties, and the evidence behind every cell."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from biases._checks import one_of
from biases.report import sources, text


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


ABSENT = STATUSES["not_applicable"]
SCRIPT = 4
"""A script may be so many times as long as a message; a longer one is left out, as a part of it runs nothing."""


def reruns(configuration: Mapping[str, Any]) -> Callable[[str, str], str]:
    """Gives the command that puts a property to a subject as a run did, as far as its configuration is known.

    Returns:
        (subject, property) -> the command, quoted for a shell.
    """
    from biases.checking.command import add_arguments

    program = "biases check"
    options = sources.invocation(program, add_arguments, {**configuration, "targets": None, "property": None})
    known = configuration.get("targets")
    targets = [str(each) for each in known] if isinstance(known, list) else []

    def rerun(subject: str, prop: str) -> str:
        named = targets if targets and subject not in targets and "all" not in targets else [subject]
        return f"{program} {shlex.join([*named, '--property', prop])}{options.removeprefix(program)}"

    return rerun


def _result(name: str, raw: Mapping[str, Any], limit: int, rerun: Callable[[str, str], str]) -> dict[str, Any]:
    one_of("status of a result", raw.get("status"), STATUSES)
    status = STATUSES[raw["status"]]
    subject, prop = text.words(raw.get("subject")), text.words(raw.get("property"))
    examples = text.finite("examples of a result", raw.get("examples"))
    script = str(raw.get("reproduce") or "")
    fits = len(script) <= SCRIPT * limit
    return {
        "id": name,
        "subject": subject,
        "property": prop,
        "status": status,
        "promise": text.words(raw.get("promise")),
        "message": text.cut(raw.get("message"), limit),
        "counterexample": text.cut(raw.get("counterexample"), limit),
        "reproduce": script if fits else "",
        "rerun": "" if fits else rerun(subject, prop),
        "examples": text.DASH if examples is None else f"{examples:.0f}",
        "seconds": text.duration(text.finite("seconds of a result", raw.get("seconds"))),
    }


def view(part: Mapping[str, Any], limit: int, prefix: str = "result") -> dict[str, Any]:
    """What the template shows of one run of the battery.

    Args:
        part: ``{"results": [...]}``, each a :class:`biases.testing.Result` as a dictionary, and the run's
            ``configuration`` where it is known.
        limit: longest message or counterexample, in characters; a script may be longer, and is never cut.
        prefix: of the elements' names, one for each part of a page.

    Returns:
        ``results``; ``matrix`` (subject, its cells), rows and columns with failures first; ``properties`` (name,
        element, promise) of its columns, and ``absent``, those with the reasons, that apply to no subject; ``groups``
        and ``counts`` by status.

    Raises:
        ValueError: a status is unknown, or a value has the wrong type.
    """
    rerun = reruns(text.section(part, "configuration"))
    results = [_result(f"{prefix}-{i}", raw, limit, rerun) for i, raw in enumerate(text.rows(part, "results"))]
    by_subject, by_property = _grouped(results, "subject"), _grouped(results, "property")
    columns = [(name, f"{prefix}-property-{i}", own[0]["promise"]) for i, (name, own) in enumerate(by_property.items())]
    columns.sort(key=lambda column: _gravity(by_property[column[0]]))
    applies = {name for name, own in by_property.items() if any(r["status"] is not ABSENT for r in own)}
    properties = [column for column in columns if column[0] in applies]
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        cells.setdefault((result["subject"], result["property"]), []).append(result)
    subjects = sorted(by_subject, key=lambda name: _gravity(by_subject[name]))
    return {
        "results": results,
        "properties": properties,
        "absent": [(*each, _reasons(by_property[each[0]])) for each in columns if each[0] not in applies],
        "matrix": [(s, [(where, cells.get((s, p), [])) for p, where, _ in properties]) for s in subjects],
        "groups": [(s, [r for r in results if r["status"] is s]) for s in STATUSES.values()],
        "counts": [(s, sum(r["status"] is s for r in results)) for s in STATUSES.values()],
    }


def _grouped(results: Sequence[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result[key], []).append(result)
    return groups


def _gravity(results: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Sorts what has more failures first, then errors, and so on; what has none keeps its order."""
    return tuple(-sum(r["status"] is s for r in results) for s in STATUSES.values() if not s.folded)


def _reasons(results: Sequence[Mapping[str, Any]]) -> str:
    """Why a property applies to no subject: each reason once."""
    return "; ".join(dict.fromkeys(result["message"] for result in results if result["message"]))


def findings(shown: Mapping[str, Any]) -> list[str]:
    """Sentences for the overview."""
    if not shown["results"]:
        return []
    counts = [status.counted(count) for status, count in shown["counts"] if count]
    total = text.plural(len(shown["results"]), "check")
    across = f"{text.plural(len(shown['properties']) + len(shown['absent']), 'property', 'properties')} on "
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
