"""The ledger: what a paper states, as an entry with a test that runs and returns evidence.

A module of this folder holds the entries of one paper, each a function without arguments under :func:`claim`. A verdict
is about the statement, so a statement that fails is a result; an exception in a test is an error of this package.
"""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from biases._checks import fail, one_of
from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, INCONCLUSIVE, NOT_REPRODUCIBLE, VERDICTS, Evidence

__all__ = [
    "APART",
    "CLAIMS",
    "CONDITIONAL",
    "FAILS",
    "HOLDS",
    "INCONCLUSIVE",
    "KINDS",
    "LABELS",
    "LIMITED",
    "NOT_REPRODUCIBLE",
    "PAPERS",
    "SHORT",
    "STATEMENTS",
    "VERDICTS",
    "Claim",
    "Evidence",
    "Row",
    "claim",
    "claims_of",
    "get",
    "run_claims",
    "summary",
]

STATEMENTS = ("theorem", "identity", "count", "invariance", "empirical", "method")
"""Kinds of statements of the papers that are executed."""
APART = {
    "control": "questions of ours",
    "arithmetic": "arithmetic on published numbers",
    "reading": "readings of text and code",
}
"""Kinds that are counted by themselves, in words. A control that does not hold is no failure of the paper."""
KINDS = (*STATEMENTS, *APART)
SHORT = {NOT_REPRODUCIBLE: "not reproducible"}
"""Of verdicts that are longer than what is printed."""
LIMITED = "fails on condition"
"""Of ``"fails"`` where it is limited to conditions."""
LABELS = (HOLDS, CONDITIONAL, FAILS, LIMITED, INCONCLUSIVE, SHORT[NOT_REPRODUCIBLE])
"""Verdicts as they are printed."""
PAPERS = {
    "2605.21842": "Energy-Gated Attention (EGA)",
    "2605.26355": "EGA and wavelet positional encoding",
    "2606.01258": "Morlet positional encoding (MoPE)",
    "2604.06014": "Gated-SwinRMT",
    "2309.11523": "RMT",
    "2103.14030": "Swin Transformer",
    "2307.08621": "RetNet",
    "2108.12409": "ALiBi",
    "2104.09864": "RoPE",
    "2502.18845": "SWAT",
    "2505.06708": "Gated attention (G1)",
    "2002.05202": "GLU variants",
    "1706.03762": "Transformer",
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of a paper, or, of the kind ``"control"``, a question that it leaves open.

    Attributes:
        id: kebab-case, prefixed by the paper's tag.
        paper: arXiv identifier.
        location: section, equation or table.
        kind: one of :data:`KINDS`.
        statement: what the paper states; short quotations only.
        run: the test.
    """

    id: str
    paper: str
    location: str
    kind: str
    statement: str
    run: Callable[[], Evidence]

    @property
    def test(self) -> str:
        """Where the test is defined."""
        function = self.run.func if isinstance(self.run, partial) else self.run
        return f"{function.__module__}.{function.__name__}"

    def check(self, evidence: Evidence) -> Evidence:
        """``evidence`` if it can be evidence of this claim.

        Raises:
            ValueError: an empirical verdict without interval, seeds and size. Inconclusive for want of results and
                "not reproducible" need none; inconclusive with seeds, and a control that has seeds, need theirs.
        """
        if not isinstance(evidence, Evidence):
            fail(f"evidence of {self.id!r}", "an Evidence", type(evidence).__name__)
        if self.kind == "empirical":
            excused = evidence.verdict == NOT_REPRODUCIBLE or (
                evidence.verdict == INCONCLUSIVE and evidence.seeds is None
            )
        else:
            excused = self.kind != "control" or evidence.seeds is None
        if evidence.interval is None and not excused:
            fail(f"{self.kind} evidence of {self.id!r}", "an interval, with seeds and size", evidence.verdict)
        return evidence


CLAIMS: dict[str, Claim] = {}


def claim(
    *, id: str, paper: str, location: str, kind: str, statement: str
) -> Callable[[Callable[[], Evidence]], Callable[[], Evidence]]:
    """Enter the decorated function, which takes no arguments and returns :class:`Evidence`, into the ledger.

    Raises:
        ValueError: the id is taken, or the paper or kind is unknown.
    """
    one_of(f"paper of {id!r}", paper, PAPERS)
    one_of(f"kind of {id!r}", kind, KINDS)
    if id in CLAIMS:
        fail("claim id", "an id not yet in the ledger", repr(id))

    def enter(run: Callable[[], Evidence]) -> Callable[[], Evidence]:
        CLAIMS[id] = Claim(id=id, paper=paper, location=location, kind=kind, statement=statement, run=run)
        return run

    return enter


def get(id: str) -> Claim:
    """The claim called ``id``.

    Raises:
        ValueError: unknown id; near ones are suggested.
    """
    if id not in CLAIMS:
        near = difflib.get_close_matches(id, CLAIMS, n=5, cutoff=0.3)
        fail("claim id", f"an id of the ledger, such as {', '.join(near) or ', '.join(list(CLAIMS)[:3])}", repr(id))
    return CLAIMS[id]


def claims_of(paper: str | None = None) -> list[Claim]:
    """The claims, of one paper if given, in the order of :data:`biases.claims.ledger.PAPERS`.

    Raises:
        ValueError: unknown paper.
    """
    if paper is not None:
        one_of("paper", paper, PAPERS)
    return [entry for known in PAPERS if paper in (None, known) for entry in CLAIMS.values() if entry.paper == known]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A claim and what its test found.

    Attributes:
        claim: the statement.
        evidence: ``None`` if the test could not be run to its end.
        message: why not.
        seconds: that it took.
    """

    claim: Claim
    evidence: Evidence | None
    message: str
    seconds: float

    @property
    def status(self) -> str:
        """The verdict, or ``"error"``."""
        return "error" if self.evidence is None else self.evidence.verdict

    @property
    def label(self) -> str:
        """The status as it is printed, which tells also whether ``"fails"`` is limited to conditions."""
        if self.evidence is not None and self.status == FAILS and self.evidence.conditions:
            return LIMITED
        return SHORT.get(self.status, self.status)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        entry = self.claim
        return {
            "id": entry.id,
            "paper": entry.paper,
            "title": PAPERS[entry.paper],
            "location": entry.location,
            "kind": entry.kind,
            "statement": entry.statement,
            "test": entry.test,
            "status": self.status,
            "evidence": None if self.evidence is None else self.evidence.as_dict(),
            "message": self.message,
            "seconds": round(self.seconds, 3),
        }


def run_claims(ids: Iterable[str] | None = None) -> Iterator[Row]:
    """Run the tests of ``ids``, or of all claims; each starts from the same random state and leaves the caller's.

    Raises:
        ValueError: unknown id, before anything is run.
    """
    entries = claims_of() if ids is None else [get(id) for id in ids]
    return (_run(entry) for entry in entries)


def _run(entry: Claim) -> Row:
    evidence, message, start = None, "", time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            evidence = entry.check(entry.run())
        # Whatever a test raises is a fault of the test, to be shown beside the others.
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
    return Row(claim=entry, evidence=evidence, message=message, seconds=time.perf_counter() - start)


def summary(rows: Iterable[Row], *, labels: bool = False) -> dict[str, dict[str, int]]:
    """``"statements"``, and each kind of :data:`APART` that there is: status, or label, -> how many, those that there
    are, in the order of :data:`VERDICTS` or :data:`LABELS`, errors last."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("statements", *APART)}
    for row in rows:
        counts[row.claim.kind if row.claim.kind in APART else "statements"][row.label if labels else row.status] += 1
    return {
        name: {status: found[status] for status in (*(LABELS if labels else VERDICTS), "error") if found[status]}
        for name, found in counts.items()
        if found or name == "statements"
    }
