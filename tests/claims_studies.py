"""What the tests of claims share: a claim's row, and analyses of studies whose results are made up."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from biases.ablation.analysis import analyse
from biases.ablation.study import load_study
from biases.claims import run_claims
from biases.claims.ledger import Row

STUDIES = Path(__file__).resolve().parents[1] / "benchmarks" / "ablations"
LOSSES = {"standard": 1.80, "ega": 1.70, "ega-prefix": 1.801, "ega-token": 1.9}


def row_of(id: str) -> Row:
    """Of an entry whose test must run to its end."""
    (row,) = run_claims([id])
    assert row.message == "", row.message
    return row


def made_up(
    name: str,
    size: str,
    values: Callable[[str, int], dict[str, float]],
    *,
    learned: Callable[[Any], dict[str, list[float]]] | None = None,
    seeds: int = 8,
    lost: Collection[tuple[str, int]] = (),
) -> dict[str, Any]:
    """The analysis of a study whose cells have the metrics ``values(arm, seed)``; those ``lost`` are missing."""
    study = load_study(STUDIES / f"{name}-{size}.toml")
    results = []
    for cell in study.grid.cells():
        if cell.seed >= seeds or (cell.arm, cell.seed) in lost:
            continue
        result = {"schema": 1, "id": cell.id, "arm": cell.arm, "seed": cell.seed, "config": cell.config}
        result |= {"metrics": values(cell.arm, cell.seed), "curve": [], "data": {"name": "t", "sha256": "0"}}
        result |= {"status": "ok", "git": "f" * 40, "learned": learned(cell) if learned else {}}
        results.append(result)
    return analyse(study, results)


def noise(arm: str, seed: int, scale: float = 1e-3) -> float:
    """Small, the same for the same arm and seed."""
    return random.Random(f"{arm} {seed}").gauss(0, scale)


def gate_sight(
    size: str = "small",
    *,
    seeds: int = 8,
    ega: float = 1.70,
    leak: float = 0.25,
    tau: float = 0.35,
    alpha: float = 3.0,
    spread: float = 1e-3,
    lost: Collection[tuple[str, int]] = (),
) -> dict[str, Any]:
    """The study of that name, with these losses, leak and learned values of EGA."""
    full = {**LOSSES, "ega": ega}
    truncated = {**full, "ega": ega + leak}

    def values(arm, seed):
        drawn = noise(arm, seed, spread)
        found = {"full": full[arm] + drawn, "truncated": truncated[arm] + drawn}
        found |= {"full_at_truncated": found["full"], "train": 1.5, "positions": 2048, "windows": 871}
        return {**found, "leak": truncated[arm] - full[arm] + drawn, "leak_standard_error": 0.002}

    def learned(cell):
        if cell.arm != "ega":
            return {}
        ends = {"tau": tau, "alpha": alpha}
        return {
            f"blocks.{layer}.attention.key_gate.{name}": [value + noise(name, cell.seed, spread) + layer] * 2
            for layer in range(2)
            for name, value in ends.items()
        }

    return made_up("gate-sight", size, values, learned=learned, seeds=seeds, lost=lost)


def keep(folder: Path, analysis: dict[str, Any]) -> None:
    """Where the claims read it."""
    path = folder / f"{analysis['study']}-{analysis['size']}.json"
    path.write_text(json.dumps(analysis, allow_nan=False))
