"""The kinds of documents that show results: how each is told from the others and read, and who wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from biases.report import measurements, sources, studies

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of document.

    Attributes:
        section: that shows it.
        program: that writes it.
        holds: whether a document is of this kind.
        read: the part of the section, of a document.
        command: the very command, of a document; ``None`` where it does not say.
    """

    section: str
    program: str
    holds: Callable[[Document], bool]
    read: Callable[[Document], Mapping[str, Any]]
    command: Callable[[Document], str | None] = lambda document: None


def _lists(name: str, *keys: str) -> Callable[[Document], bool]:
    """Whether ``name`` holds a list whose first entry has these keys."""

    def holds(document: Document) -> bool:
        rows = document.get(name)
        return bool(isinstance(rows, list) and rows and isinstance(rows[0], dict) and all(k in rows[0] for k in keys))

    return holds


def _has_backends(document: Document) -> bool:
    cells = document.get("cells")
    return isinstance(cells, Mapping) and any("backends" in c for c in cells.values() if isinstance(c, Mapping))


def _has_arms(document: Document) -> bool:
    return isinstance(document.get("arms"), Mapping) and isinstance(document.get("contrasts"), list)


def _has_pieces(document: Document) -> bool:
    return isinstance(document.get("pieces"), Mapping) and "made_by" in document


def _has_analysis(document: Document) -> bool:
    return all(name in document for name in ("study", "arms", "contrasts", "statistics"))


def _has_section(document: Document, name: str) -> bool:
    return isinstance(document.get(name), Mapping) and "versions" in document


def _section(document: Document, name: str) -> Mapping[str, Any]:
    """A section of a document that has several, which say of their machine once."""
    return {"machine": document.get("machine"), **document[name]}


KINDS = (
    Kind(
        "verification",
        "biases check",
        _lists("results", "subject", "property", "status"),
        dict,
        sources.check_command,
    ),
    Kind("claims", "biases claims", _lists("claims", "id", "statement", "status"), dict),
    Kind(
        "bench",
        "biases bench",
        _lists("rows", "name", "setting", "samples"),
        measurements.of_bench,
        sources.bench_command,
    ),
    Kind("bench", "biases bench", _lists("rows", "name", "ratio", "seconds_median"), dict),
    Kind("bench", "python benchmarks/ratios.py", _has_pieces, measurements.of_pieces),
    Kind("bench", "python -m benchmarks.gpu", _has_backends, measurements.of_backends),
    Kind("ablation", "biases stats", _has_analysis, studies.part_of),
    Kind("ablation", "biases demo", _has_arms, dict),
)
DEMO = tuple(
    Kind(name, "biases demo", partial(_has_section, name=name), partial(_section, name=name))
    for name in ("verification", "bench", "ablation")
)
EMPTY = {"results": "biases check", "rows": "biases bench", "claims": "biases claims"}
"""List of a document's results -> the command that writes it."""


def kinds_of(document: Document) -> tuple[Kind, ...]:
    """The kind of a document, or of each of its sections; none for what none of the commands wrote."""
    single = next((kind for kind in KINDS if kind.holds(document)), None)
    return tuple(kind for kind in DEMO if kind.holds(document)) if single is None else (single,)


def empty(document: Document) -> tuple[str, str] | None:
    """(list, command) of a document whose list of results is empty."""
    found = ((name, program) for name, program in EMPTY.items() if document.get(name) == [] and "schema" in document)
    return next(found, None)
