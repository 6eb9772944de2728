"""Failures as annotations of the lines that they are about.

GitHub Actions reads them from what a step prints: https://docs.github.com/actions/reference/workflow-commands
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from biases._markup import printable
from biases.testing.location import Location
from biases.testing.result import BAD, Result, unchecked

FORMS = ("github",)
# GitHub refuses annotations of more than 64 KiB.
_LONGEST = 4000


def github(results: Sequence[Result], locations: Mapping[str, Location] | None = None) -> list[str]:
    """One command for each failure, and for each subject of which nothing was checked.

    Args:
        results: of the battery.
        locations: subject -> where its factory is.
    """
    places = locations or {}
    failures = [
        github_error(f"{each.subject}: {each.property} {each.status}", each.message, places.get(each.subject))
        for each in results
        if each.status in BAD
    ]
    return failures + [
        github_error(f"{subject}: nothing was checked", "\n".join(reasons) or "see its errors", places.get(subject))
        for subject, reasons in unchecked(results).items()
    ]


def github_error(title: str, message: str, location: Location | None = None) -> str:
    """``::error file=FILE,line=LINE,title=TITLE::MESSAGE``, escaped; without a file that is not one of the sources."""
    fields = {"file": location.path, "line": str(location.line)} if location is not None and location.inside else {}
    values = ",".join(f"{name}={_property(value)}" for name, value in {**fields, "title": title}.items())
    return f"::error {values}::{_data(message[:_LONGEST])}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
