"""What ``biases ci`` found, and its reports."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import biases
from biases._exit_codes import FAILED, INTERRUPTED, NOTHING, OK, USAGE
from biases._files import write_atomically
from biases._markup import cell
from biases.bench import facts
from biases.bench.compare import Comparison
from biases.bench.compare.render import markdown as markdown_of_comparison
from biases.ci import benchmarks
from biases.testing.annotations import github
from biases.testing.junit import write_junit
from biases.testing.location import Location
from biases.testing.markdown import cut
from biases.testing.markdown import markdown as markdown_of_results
from biases.testing.result import Result, as_document
from biases.testing.sarif import write_sarif

# The one that counts comes first.
CODES = {
    INTERRUPTED: "interrupted",
    FAILED: "something failed",
    USAGE: "something could not be run",
    NOTHING: "something was not measured, so that there is no verdict",
    OK: "all is well",
}
REPORTS = ("junit.xml", "results.sarif", "summary.md", "comparison.json")
NOT_COMPARED = "Nothing was compared: no base is given."
_LONGEST = 4000
# With the page of the results, less than the 1 MiB that GitHub shows.
_LIMIT = 256 * 1024


@dataclass
class Outcome:
    """What was found.

    Attributes:
        base: the revision to compare with, if any.
        results: of all checks. One that could not be run has an error.
        locations: subject -> where its factory is.
        comparison: with ``base``; ``None`` until it was made.
        refused: why it could not be.
        codes: exit codes of the parts.
    """

    base: str | None
    results: list[Result] = field(default_factory=list)
    locations: dict[str, Location] = field(default_factory=dict)
    comparison: Comparison | None = None
    refused: str = ""
    codes: list[int] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """The gravest of those of the parts."""
        return next(code for code in CODES if code in self.codes or code == OK)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "schema": 1,
            "exit_code": self.exit_code,
            "check": as_document(self.results),
            "compare": None if self.comparison is None else self.comparison.as_dict(),
            "refused": self.refused,
            "versions": {"attention-biases": biases.__version__},
            "machine": facts(),
        }

    def summary(self) -> str:
        """A page in Markdown, smaller than 1 MiB."""
        parts = [f"## biases: {CODES[self.exit_code]}\n"]
        if self.results:
            parts.append(markdown_of_results(self.results))
        parts.append(f"{NOT_COMPARED}\n" if self.base is None else f"### Comparison with {cell(self.base)}\n")
        if self.refused:
            parts.append(f"It could not be made: {cell(self.refused, _LONGEST)}\n")
        if self.comparison is not None:
            note = "The rest is left out here; comparison.json has all of it."
            parts.append(cut(markdown_of_comparison(self.comparison), _LIMIT, note))
        return "\n".join(parts)

    def annotations(self) -> list[str]:
        """Commands that make GitHub show what was found, the few of the comparison first."""
        compared = benchmarks.commands(self.base, self.comparison, self.refused)
        return compared + github(self.results, self.locations)

    def write(self, folder: Path) -> None:
        """``junit.xml``, ``results.sarif`` and ``summary.md``, each whole or not at all."""
        unfinished = [CODES[code] for code in (INTERRUPTED, USAGE) if code in self.codes]
        unfinished += benchmarks.faults(self.base, self.comparison, self.refused)
        cases = benchmarks.cases(self.base, self.comparison, self.refused)
        write_junit([*self.results, *cases], folder / "junit.xml")
        write_sarif(
            [*self.results, *benchmarks.findings(self.comparison)],
            folder / "results.sarif",
            self.locations,
            version=biases.__version__,
            unfinished=unfinished,
        )
        write_atomically(folder / "summary.md", self.summary().encode())

    def append_to_job(self) -> None:
        """Append the summary to that of the job, where GitHub has a file for it."""
        file = os.environ.get("GITHUB_STEP_SUMMARY")
        if file:
            with open(file, "a", encoding="utf-8") as job:
                job.write(self.summary())
