"""Markdown tables of texts that may hold anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

CODE = re.compile(r"(`[^`]*`)")


def escaped(text: str) -> str:
    """A text on one line that Markdown takes for itself inside a table; what stands in backticks stays code."""
    parts = CODE.split(" ".join(text.split()))
    kept = (part if CODE.fullmatch(part) else re.sub(r"([\\*_<\[\]])", r"\\\1", part) for part in parts)
    return "".join(kept).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table of cells that are Markdown already."""
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
