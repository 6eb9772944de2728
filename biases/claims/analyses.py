"""Analyses of the studies, as ``biases stats DIR --json`` prints them.

They are read from ``<study>-<size>.json`` in a folder, by default the one that comes with the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases.claims.evidence import INCONCLUSIVE, Evidence

PAPER, SMALL = "paper", "small"
SIZES = (PAPER, SMALL)
"""Sizes of the studies, the largest first."""
SCHEMA = 1
FOLDER: ContextVar[Path] = ContextVar("folder of the analyses")
KEPT = Path(__file__).with_name("data")

Analysis = Mapping[str, Any]


@contextmanager
def reading(folder: Path | str | None) -> Iterator[None]:
    """Read analyses from ``folder`` instead of the package's; ``None`` for the package's.

    Raises:
        ValueError: there is no such folder.
    """
    path = KEPT if folder is None else Path(folder)
    if not path.is_dir():
        fail("results", "a folder with analyses <study>-<size>.json", str(path))
    token = FOLDER.set(path)
    try:
        yield
    finally:
        FOLDER.reset(token)


def analyses_of(study: str) -> list[tuple[str, dict[str, Any]]]:
    """``(file name, analysis)`` of a study, the largest size first.

    Raises:
        ValueError: a file that is no analysis of that study and size.
    """
    found = []
    for size in SIZES:
        path = FOLDER.get(KEPT) / f"{study}-{size}.json"
        if not path.is_file():
            continue
        try:
            analysis = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"analysis {path}: expected JSON, got {error}") from error
        expected = {"schema": SCHEMA, "study": study, "size": size}
        got = {key: analysis.get(key) for key in expected} if isinstance(analysis, dict) else type(analysis).__name__
        if got != expected:
            fail(f"analysis {path}", expected, got)
        found.append((path.name, analysis))
    return found


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one size of a study says of a statement.

    Attributes:
        evidence: ``None`` where there is no interval.
        decided: whether all was there that a verdict takes.
        note: how far it got, a phrase for the text of another size's evidence.
    """

    evidence: Evidence | None = None
    decided: bool = False
    note: str


def among_sizes(study: str, published: str, judge: Callable[[str, Analysis], Finding]) -> Evidence:
    """The evidence of the largest size that reached a verdict, or else of the largest that has an interval.

    Args:
        study: its name.
        published: the paper's number and setting, in words.
        judge: of a file's name and its analysis.

    Returns:
        Inconclusive where no size has an interval. Sizes that got less far are named in the text.
    """
    findings = [(analysis["size"], judge(file, analysis)) for file, analysis in analyses_of(study)]
    if not findings:
        command = f"biases ablate benchmarks/ablations/{study}-{SMALL}.toml"
        text = f"No results of study {study} are here; `{command}` makes them. Published: {published}."
        return Evidence(verdict=INCONCLUSIVE, text=text)
    decided = [each for _, each in findings if each.decided]
    told = [each for _, each in findings if each.evidence is not None]
    chosen = [*decided, *told, findings[0][1]][0]
    rest = [(size, each) for size, each in findings if each is not chosen and not each.decided]
    others = "".join(f" Size {size}: {each.note}." for size, each in rest)
    evidence = chosen.evidence
    if evidence is None:
        text = f"Study {study}, size {findings[0][0]}: {chosen.note}.{others} Published: {published}."
        return Evidence(verdict=INCONCLUSIVE, text=text)
    return replace(evidence, text=evidence.text + others)


def setting(analysis: Analysis) -> str:
    """The setting of a study in words: data, model and training."""
    model, train = analysis["config"]["model"], analysis["config"].get("train", {})
    parts = [f"{model[key]} {key}" for key in ("layers", "heads") if key in model]
    parts += [f"{name} {model[key]}" for key, name in (("dim", "width"), ("context", "context")) if key in model]
    parts += [f"{train[key]} {name}" for key, name in (("steps", "updates"),) if key in train]
    data = analysis["config"].get("data")
    return ", ".join([*([str(data)] if data else []), *parts])


def measured(file: str, analysis: Analysis, interval: Any, seeds: int, unit: str) -> dict[str, Any]:
    """Fields of :class:`~biases.claims.evidence.Evidence` that every measurement has."""
    low, high = interval
    revisions = ", ".join(sorted(revision[:12] for revision in analysis["provenance"]["git"]))
    return {
        "interval": (low, high),
        "seeds": seeds,
        "size": analysis["size"],
        "unit": unit,
        "source": f"{file}, cells of revision {revisions}",
    }
