"""Failures as annotations of the lines that they are about.

GitHub Actions reads them from what a step prints: https://docs.github.com/actions/reference/workflow-commands
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from biases._markup import printable
from biases.testing.location import Location
from biases.testing.result import BAD, Result, unchecked

FORMS = ("github",)
# GitHub refuses annotations of more than 64 KiB.
_LONGEST = 4000
_TITLE = 120


def github(results: Sequence[Result], locations: Mapping[str, Location] | None = None) -> list[str]:
    """One command for each failure, and for each subject of which nothing was checked.

    Properties of one subject that failed by the same exception, up to the numbers in it, share one: a layer that always
    raises breaks most promises by that.

    Args:
        results: of the battery.
        locations: subject -> where its factory is.
    """
    places = locations or {}
    alike: dict[tuple[str, str, str], list[Result]] = {}
    for each in results:
        if each.status in BAD:
            why = re.sub(r"\d+", "0", _exception(each)) or each.property
            alike.setdefault((each.subject, each.status, why), []).append(each)
    failures = [github_error(*_told(same), places.get(same[0].subject)) for same in alike.values()]
    return failures + [
        github_error(f"{subject}: nothing was checked", "\n".join(reasons) or "see its errors", places.get(subject))
        for subject, reasons in unchecked(results).items()
    ]


def _told(same: Sequence[Result]) -> tuple[str, str]:
    """Title and message of failures of one kind."""
    first = same[0]
    if len(same) == 1:
        return f"{first.subject}: {first.property} {first.status}", first.message
    title = f"{first.subject}: {len(same)} properties {first.status} by {_exception(first)[:_TITLE]}"
    return title, f"{first.message}\n\n{', '.join(each.property for each in same)}"


def _exception(result: Result) -> str:
    """Type and message of what was raised; empty where a promise was broken by a wrong answer."""
    if not (result.raised or result.status == "error"):
        return ""
    found = re.search(r" raised (?:on .*?: )?([A-Za-z_]\w*: .*)", result.message)
    return found[1] if found else ""


def github_error(title: str, message: str, location: Location | None = None) -> str:
    """``::error file=FILE,line=LINE,title=TITLE::MESSAGE``, escaped; without a file that is not one of the sources."""
    fields = {"file": location.path, "line": str(location.line)} if location is not None and location.inside else {}
    values = ",".join(f"{name}={_property(value)}" for name, value in {**fields, "title": title}.items())
    return f"::error {values}::{_data(message[:_LONGEST])}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
