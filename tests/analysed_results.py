"""What the tests of analyses share: a study of texts and one of images, with results whose effects are known."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from biases.ablation import Cell, Result, Study, load_study

SPEC = """
schema = 1
name = "sight"
size = "tiny"
question = "What does a gate gain by sight of the future?"
notes = ["smaller than published"]
data = "pydoc"
seeds = 8
[model]
layers = 1
heads = 1
dim = 8
context = 12
[train]
steps = 20
warmup = 2
truncated_positions = 40
[factors]
attention = ["standard", "ega"]
position = ["learned", "mope"]
[statistics]
metric = "full"
unit = "nats per character"
smallest_effect = 0.01
minimum_seeds = 6
[[contrasts]]
name = "ega"
a = "ega+learned"
b = "standard+learned"
[[contrasts]]
name = "ega on prefixes"
a = "ega+learned"
b = "standard+learned"
metric = "truncated"
margin = 0.002
[[contrasts]]
name = "mope"
a = "standard+mope"
b = "standard+learned"
[[contrasts]]
name = "both"
y00 = "standard+learned"
y10 = "ega+learned"
y01 = "standard+mope"
y11 = "ega+mope"
[[exploratory]]
name = "mope with ega"
a = "ega+mope"
b = "ega+learned"
"""
IMAGES = """
schema = 1
name = "vision"
size = "tiny"
question = "Which?"
kind = "images"
data = "digits"
seeds = 6
[train]
steps = 20
warmup = 2
[arms.swin]
name = "swin-t"
[arms.rmt]
name = "rmt-t"
[statistics]
metric = "test_accuracy"
unit = "share of images"
smallest_effect = 0.01
larger_is_better = true
minimum_seeds = 6
[[contrasts]]
name = "rmt - swin"
a = "rmt"
b = "swin"
"""
EFFECTS = {"standard+learned": 0.0, "ega+learned": -0.1, "standard+mope": 0.001, "ega+mope": -0.099}
LEAK = 0.3


def text_result(cell: Cell, value: float) -> Result:
    leak = LEAK + 0.001 * cell.seed if cell.arm.startswith("ega") else 0.0
    return {
        "metrics": {
            "full": value,
            "train": value - 0.1,
            "truncated": value + leak,
            "full_at_truncated": value,
            "leak": leak,
            "leak_standard_error": 0.01,
            "positions": 40,
            "windows": 10,
            "parameters": 100,
        },
        "learned": {"gate.tau": [0.5 + cell.seed, 1.5 + cell.seed]} if cell.arm.startswith("ega") else {},
        "curve": [
            {"step": 0, "train": None, "validation": 4.0},
            {"step": 20, "train": value, "validation": value},
        ],
    }


def image_result(cell: Cell, value: float) -> Result:
    metrics = {"test_accuracy": value, "test_loss": 1 - value, "train_accuracy": value, "train_loss": 1 - value}
    curve = [{"step": 20, "train_loss": 0.5, "test_loss": 1 - value, "test_accuracy": value}]
    return {"metrics": {**metrics, "parameters": 7}, "learned": {}, "curve": curve}


def luck(cell: Cell) -> float:
    """Of a seed, and of the arm under it."""
    return random.Random(f"{cell.arm} {cell.seed}").uniform(-0.002, 0.002) + random.Random(cell.seed).uniform(
        -0.05, 0.05
    )


def outcome(cell: Cell, describe: Callable[[Cell, float], Result], value: float) -> Result:
    """The result of a cell that finished."""
    return {
        "schema": 1,
        "id": cell.id,
        "arm": cell.arm,
        "seed": cell.seed,
        "config": cell.config,
        "status": "ok",
        "error": None,
        **describe(cell, value),
        "versions": {"torch": "2.13.0", "code": "abc"},
        "device": "cpu",
        "device_name": "a processor",
        "data": {"name": cell.data, "sha256": "d1"},
        "git": "r1",
        "seconds": 2.0,
        "started": f"2026-01-0{cell.seed + 1}T00:00:00+00:00",
    }


def change(results: list[Result], arm: str, seed: int, **values: Any) -> None:
    next(result for result in results if (result["arm"], result["seed"]) == (arm, seed)).update(values)


def values_of(results: list[Result], arm: str, metric: str = "full") -> list[float]:
    """By seed."""
    return [result["metrics"][metric] for result in sorted(results, key=lambda r: r["seed"]) if result["arm"] == arm]


def row(analysis: dict[str, Any], name: str) -> dict[str, Any]:
    """The contrast of that name."""
    (found,) = [each for each in analysis["contrasts"] if each["name"] == name]
    return found


def sight_study(folder: Path) -> Study:
    path = folder / "study.toml"
    path.write_text(SPEC)
    return load_study(path)


def sight_results(study: Study) -> list[Result]:
    return [outcome(cell, text_result, 1.5 + EFFECTS[cell.arm] + luck(cell)) for cell in study.grid.cells()]


def image_results(study: Study) -> list[Result]:
    """In which ``rmt`` is better by 0.05."""
    gain = {"swin": 0.0, "rmt": 0.05}
    return [outcome(cell, image_result, 0.9 + gain[cell.arm] + luck(cell) / 10) for cell in study.grid.cells()]
