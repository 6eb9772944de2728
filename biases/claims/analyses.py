"""Analyses of the studies, as ``biases stats DIR --json`` prints them, and what they say of a statement.

They are read from ``<study>-<size>.json`` in a folder, by default the one that comes with the package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from biases._checks import fail, one_of
from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, INCONCLUSIVE, Evidence

PAPER, SMALL = "paper", "small"
SIZES = (PAPER, SMALL)
SCHEMA = 1
STATED = ("better", "worse", "equivalent")
FOLDER: ContextVar[Path] = ContextVar("folder of the analyses")
KEPT = Path(__file__).with_name("data")


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
    """``(file name, analysis)`` of a study, that of the paper's size first.

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


def compared(study: str, *, stated: str, published: str, metric: str, **arms: str) -> Evidence:
    """What a contrast of a study says of a statement.

    Args:
        study: its name.
        stated: what the paper says of arm a beside arm b (or of the interaction), one of :data:`STATED`; a loss that is
            lower is better.
        published: the paper's number and setting, in words.
        metric: of the contrast.
        arms: ``a`` and ``b``, or ``y00``, ``y10``, ``y01`` and ``y11``.

    Returns:
        ``"holds"`` only in the paper's size; in another one that the contrast agrees is a condition. Contrasts outside
        the declared family have an interval and no test, and are inconclusive.
    """
    one_of("stated", stated, STATED)
    for file, analysis in analyses_of(study):
        for row in analysis["contrasts"]:
            if row["arms"] == arms and row["metric"] == metric and row["interval"] is not None:
                return _judge(file, analysis, row, stated, published)
    return missing(study, published)


def missing(study: str, published: str) -> Evidence:
    """Inconclusive for want of results."""
    command = f"biases ablate benchmarks/ablations/{study}-{SMALL}.toml"
    text = f"No results of study {study} that bear on this are here; `{command}` makes them. Published: {published}."
    return Evidence(verdict=INCONCLUSIVE, text=text)


def setting(analysis: Mapping[str, Any]) -> str:
    """The size of a study in words: model and training."""
    model, train = analysis["config"]["model"], analysis["config"].get("train", {})
    parts = [f"{model[key]} {key}" for key in ("layers", "heads") if key in model]
    parts += [f"{name} {model[key]}" for key, name in (("dim", "width"), ("context", "context")) if key in model]
    parts += [f"{train[key]} {name}" for key, name in (("steps", "updates"),) if key in train]
    data = analysis["config"].get("data")
    return ", ".join([*([str(data)] if data else []), *parts])


def _judge(file: str, analysis: Mapping[str, Any], row: Mapping[str, Any], stated: str, published: str) -> Evidence:
    low, high = row["interval"]
    words = f"{row['name']}: {row['mean']:+.4g} {row['unit']}, {100 * row['confidence']:g} % interval "
    words += f"[{low:+.4g}, {high:+.4g}], n = {row['n']}"
    if row["family"] and row["p_holm"] is not None:
        words += f", Holm-adjusted p = {row['p_holm']:.3g} (smallest attainable {row['p_holm_smallest']:.3g})"
    reached = row["verdict"] if row["family"] else ""
    text = f"{words}: {_in_words(row)}. Study {analysis['study']}, size {analysis['size']} ({setting(analysis)}). "
    text += f"Published: {published}."
    if reached not in STATED:
        verdict = INCONCLUSIVE
    elif reached != stated:
        verdict = FAILS
    else:
        verdict = HOLDS if analysis["size"] == PAPER else CONDITIONAL
    conditions = f"size {analysis['size']}, smaller than the paper's: {setting(analysis)}"
    return Evidence(
        verdict=verdict,
        text=text,
        conditions=conditions if verdict == CONDITIONAL else "",
        **measured(file, analysis, row["interval"], row["n"], row["unit"]),
        values={"mean": row["mean"], "p_holm": row["p_holm"], "verdict of the contrast": row["verdict"]},
    )


def _in_words(row: Mapping[str, Any]) -> str:
    """The verdict of a contrast, by direction: what is better depends on the metric."""
    if not row["family"]:
        return "outside the declared family, so there is no test"
    if row["verdict"] not in ("better", "worse"):
        return row["verdict"]
    return "higher" if (row["verdict"] == "better") == row["larger_is_better"] else "lower"


def measured(file: str, analysis: Mapping[str, Any], interval: Any, seeds: int, unit: str) -> dict[str, Any]:
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
