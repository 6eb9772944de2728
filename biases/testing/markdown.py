"""Results as Markdown: what CI systems show as the summary of a job, and a comment on a change."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from biases._files import write_atomically
from biases._markup import cell, printable
from biases.testing.result import BAD, COLUMNS, Result, summary, unchecked

LIMIT = 512 * 1024
"""Bytes that a page takes at most; GitHub shows no summary of a step that is larger than 1 MiB."""
_ROWS, _MESSAGE, _SCRIPT = 200, 4000, 8000
_TITLE = "### Promises of attention: "


def markdown(results: Sequence[Result], limit: int = LIMIT) -> str:
    """Counts of each subject, then a table of what failed, then each failure in full, folded.

    Args:
        results: of the battery.
        limit: bytes, at least 64 KiB. Failures that do not fit are counted.
    """
    bad = [result for result in results if result.status in BAD]
    silent = unchecked(results)
    lines = [_TITLE + _headline(results, len(silent)), "", *_counts(results)]
    for subject, reasons in silent.items():
        lines += ["", f"**{cell(subject)}: nothing was checked.** " + cell("; ".join(reasons), _MESSAGE)]
    if bad:
        lines += ["", "| subject | property | promise | counterexample |", "|---|---|---|---|"]
        lines += [_row(result) for result in bad[:_ROWS]]
    page = cut("\n".join([*lines, ""]), limit // 2, "The rest of this is left out here; the other reports have it.")
    left = limit - len(page.encode()) - 200
    shown = 0
    for result in bad:
        block = _folded(result)
        left -= len(block.encode())
        if left < 0:
            break
        page += block
        shown += 1
    if shown < len(bad):
        page += f"\n{len(bad) - shown} more of {len(bad)} failures are left out here; the other reports have them.\n"
    return page


def write_markdown(results: Sequence[Result], path: str | Path) -> None:
    """Write :func:`markdown` to ``path``, whole or not at all."""
    write_atomically(Path(path), markdown(results).encode())


def cut(text: str, limit: int, note: str) -> str:
    """``text``, or as many whole lines of it as fit into ``limit`` bytes, and the note."""
    content = text.encode()
    if len(content) <= limit:
        return text
    kept = content[:limit].rpartition(b"\n")[0].decode().rstrip()
    return f"{kept}\n\n{note}\n"


def _headline(results: Sequence[Result], silent: int) -> str:
    """``silent``: how many subjects were put to no property."""
    counts = summary(results)
    bad = sum(counts[status] for status in BAD)
    if bad:
        return f"{bad} of {counts['ran'] + counts['error']} checks failed"
    if not counts["ran"]:
        return "nothing was checked"
    if silent:
        return f"no verdict, nothing was checked of {silent} of {len({result.subject for result in results})} subjects"
    return f"{counts['ran']} checked, all as expected"


def _counts(results: Sequence[Result]) -> list[str]:
    lines = [f"| subject | {' | '.join(COLUMNS)} |", f"|---{'|--:' * len(COLUMNS)}|"]
    for subject in dict.fromkeys(result.subject for result in results):
        counts = summary(result for result in results if result.subject == subject)
        lines.append(f"| {cell(subject)} | {' | '.join(str(counts[key]) for key in COLUMNS.values())} |")
    return lines


def _row(result: Result) -> str:
    example = "" if result.counterexample is None else json.dumps(dict(result.counterexample), ensure_ascii=False)
    what = f"{result.property} ({result.status})" if result.status != "failed" else result.property
    return f"| {' | '.join(cell(text) for text in (result.subject, what, result.promise, example))} |"


def _folded(result: Result) -> str:
    """A blank line before and after what is inside makes GitHub read it as Markdown."""
    title = cell(f"{result.subject}: {result.property} {result.status}")
    parts = [f"\n<details><summary>{title}</summary>\n", _fenced(result.message, "text", _MESSAGE)]
    if result.reproduce:
        parts += ["To see it alone:\n", _fenced(result.reproduce, "python", _SCRIPT)]
    return "\n".join([*parts, "</details>\n"])


def _fenced(text: str, language: str, longest: int) -> str:
    """In a fence that is longer than any inside."""
    text = printable(text if len(text) <= longest else f"{text[:longest]}\n...")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
