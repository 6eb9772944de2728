"""What is kept of committed runs: analyses of the studies with the package, verdicts of the ledger with the results.

``python benchmarks/pages.py`` writes both, and makes the pages from them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from biases._files import write_atomically
from biases.ablation.stats_command import analyse_folder
from biases.ablation.study import Study, load_study
from biases.ablation.study_folder import STUDY_FILE
from biases.claims import run_claims
from biases.claims.analyses import KEPT, SMALL

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SPECS = ROOT / "benchmarks" / "ablations"
RUNS = RESULTS / "ablations"
LEDGER = RESULTS / "claims.json"
NAMES = ("gate-sight", "superadditivity", "mope-controls", "vision")
SCIENTIFIC = re.compile(r"\d(?:\.\d+)?e[+-]\d+")
ROUNDING = 1e-9
"""Numbers below it, and relative differences, that another machine or number of threads may give."""

Analysis = dict[str, Any]


def studies() -> list[Study]:
    """The committed studies, by name in the order of the pages, the small size first."""
    found = [load_study(path) for path in sorted(SPECS.glob("*.toml"))]
    order = {name: index for index, name in enumerate(NAMES)}
    return sorted(found, key=lambda each: (order.get(each.name, len(order)), each.name, each.size != SMALL, each.size))


def made_analyses(runs: Path = RUNS) -> dict[str, Analysis]:
    """``NAME-SIZE`` -> what ``biases stats DIR --json`` prints of each run in the folder.

    Raises:
        ValueError: a run whose folder is not called after its study and size, or that cannot be read.
    """
    found = {}
    for folder in sorted(path.parent for path in runs.glob(f"*/{STUDY_FILE}")):
        analysis = analyse_folder(folder)
        name = f"{analysis['study']}-{analysis['size']}"
        if folder.name != name:
            raise ValueError(f"run {folder}: expected a folder called {name}, after its study, got {folder.name}")
        found[name] = analysis
    return found


def kept_analyses(data: Path = KEPT) -> dict[str, Analysis]:
    """``NAME-SIZE`` -> the analysis that comes with the package."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(data.glob("*-*.json"))}


def made_ledger() -> dict[str, Any]:
    """Run every test of the ledger; takes about half a minute.

    Raises:
        RuntimeError: a test that could not be run to its end.
    """
    rows = []
    for row in run_claims():
        if row.evidence is None:
            raise RuntimeError(f"claim {row.claim.id}: {row.message}")
        rows.append({key: value for key, value in row.as_dict().items() if key not in ("seconds", "message")})
    return {"schema": 1, "claims": rows}


def kept_ledger() -> dict[str, Any]:
    """The committed verdicts."""
    return json.loads(LEDGER.read_text())


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values agree up to what rounding differs by on other machines, in numbers and in texts."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, str) and isinstance(b, str):
        return _without_rounding(a) == _without_rounding(b)
    if isinstance(a, float) and isinstance(b, int | float) and not isinstance(b, bool):
        return math.isclose(a, b, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return type(a) is type(b) and a == b


def _without_rounding(text: str) -> str:
    return SCIENTIFIC.sub(lambda found: "0" if float(found[0]) < ROUNDING else found[0], text)


def refresh_analyses(runs: Path = RUNS, data: Path = KEPT) -> list[Path]:
    """Bring the package's copies up to date with the runs; the files that were written or removed."""
    made, kept = made_analyses(runs), kept_analyses(data)
    changed = [_write(data / f"{name}.json", made[name]) for name in made if not same(made[name], kept.get(name))]
    for name in kept.keys() - made.keys():
        path = data / f"{name}.json"
        path.unlink()
        changed.append(path)
    return changed


def refresh_ledger(make: Callable[[], dict[str, Any]] = made_ledger, path: Path = LEDGER) -> list[Path]:
    """Run the ledger and bring its committed verdicts up to date."""
    made = make()
    if path.exists() and same(made, json.loads(path.read_text())):
        return []
    return [_write(path, made)]


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return path
