"""A comparison in the words of the battery, for reports that know a subject, a property and a status."""

from __future__ import annotations

from collections.abc import Iterator

from biases._exit_codes import NOTHING
from biases.bench.compare import Comparison, Row
from biases.bench.compare.render import why_no_rows
from biases.bench.compare.results import BAD
from biases.testing.annotations import github_error
from biases.testing.result import Result

SUITE = "biases compare"
PROPERTY = "no-regression"
_PROMISE = "A benchmark is at head neither slower nor larger than at base, by more than matters, and does not fail."
_STATUS = {
    **{"regression": "failed", "failed": "error"},
    **dict.fromkeys(("skipped", "not at base", "not at head"), "not_applicable"),
}
# GitHub shows ten annotations a step, and failures of the battery are to be among them.
_SHOWN = 4


def cases(base: str | None, comparison: Comparison | None, refused: str) -> list[Result]:
    """A result a benchmark, and one for a comparison that gives no verdict.

    Args:
        base: the revision that was to be compared with.
        comparison: if there is one.
        refused: why there is none.
    """
    found = [
        Result(SUITE, row.name, _PROMISE, _STATUS.get(row.verdict, "passed"), message=_told(row))
        for row in (comparison.rows if comparison is not None else ())
    ]
    return found + [
        Result(SUITE, title, _PROMISE, "error", message=why) for title, why in _gaps(base, comparison, refused)
    ]


def findings(comparison: Comparison | None) -> list[Result]:
    """A result a benchmark that regressed or fails, which is then its subject."""
    return [Result(row.name, PROPERTY, _PROMISE, "failed", message=_told(row)) for row in _bad(comparison)]


def faults(base: str | None, comparison: Comparison | None, refused: str) -> list[str]:
    """Why the comparison is no success, each in a line or two; none where it is one."""
    bad = len(_bad(comparison))
    counted = [f"comparison with {base}: {bad} of the benchmarks regressed or failed"] if bad else []
    return counted + [f"{title}: {why}" for title, why in _gaps(base, comparison, refused)]


def commands(base: str | None, comparison: Comparison | None, refused: str) -> list[str]:
    """Commands that make GitHub show the worst, and count the others."""
    bad = _bad(comparison)
    what = f"comparison with {base}"
    lines = [github_error(f"{row.name}: {row.verdict}", f"{row.reason} ({what})") for row in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        rest = "\n".join(f"{row.name}: {row.verdict}, {row.reason}" for row in bad[_SHOWN:])
        lines.append(github_error(f"{what}: {len(bad) - _SHOWN} more benchmarks regressed or failed", rest))
    return [github_error(title, why) for title, why in _gaps(base, comparison, refused)] + lines


def _bad(comparison: Comparison | None) -> list[Row]:
    rows = comparison.rows if comparison is not None else ()
    return sorted((row for row in rows if row.verdict in BAD), key=lambda row: BAD.index(row.verdict))


def _told(row: Row) -> str:
    return "\n\n".join(filter(None, (f"{row.verdict}: {row.reason}", row.trace)))


def _gaps(base: str | None, comparison: Comparison | None, refused: str) -> Iterator[tuple[str, str]]:
    """Title and reason of what kept a comparison from a verdict."""
    what = f"comparison with {base}"
    if refused:
        yield f"{what} could not be made", refused
    if comparison is None:
        return
    if comparison.interrupted:
        yield f"{what}: interrupted", "What is not listed was not measured."
    elif comparison.exit_code == NOTHING:
        reasons = "\n".join(sorted({f"{row.verdict}: {row.reason}" for row in comparison.rows}))
        yield f"{what}: nothing was measured", reasons or why_no_rows(comparison)
