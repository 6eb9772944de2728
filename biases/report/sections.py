"""The sections of the page that show results: how each is prepared and told, and the commands that make it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from biases.report import ablation, bench, claims, history, verification

View = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """One of them.

    Attributes:
        view: what the template shows of a part, of the longest text and of the part's index in its section.
        findings: sentences for the overview, of what is shown.
        made_by: a command that makes results.
        shown_by: the one that then shows them.
        cuts: whether the view depends on the longest text.
    """

    view: Callable[[Mapping[str, Any], int, int], View]
    findings: Callable[[Mapping[str, Any]], list[str]]
    made_by: str
    shown_by: str
    cuts: bool = False


SECTIONS = {
    "verification": Section(
        lambda part, limit, index: verification.view(part, limit, f"result-{index}"),
        verification.findings,
        "biases check all --json > check.json",
        "biases report check.json",
        cuts=True,
    ),
    "bench": Section(
        lambda part, limit, index: bench.view(part),
        bench.findings,
        "biases bench --out bench.json",
        "biases report bench.json",
    ),
    "history": Section(
        lambda part, limit, index: history.view(part),
        history.findings,
        "asv run",
        "biases report benchmarks/results/asv",
    ),
    "ablation": Section(
        lambda part, limit, index: ablation.view(part),
        ablation.findings,
        "biases ablate SPEC.toml --out runs/NAME",
        "biases report runs/NAME",
    ),
    "claims": Section(
        lambda part, limit, index: claims.view(part, limit, f"claim-{index}"),
        claims.findings,
        "biases claims --json > claims.json",
        "biases report claims.json",
        cuts=True,
    ),
}
