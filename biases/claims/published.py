"""What the papers published of their training, as data, and how a study differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHARACTERS: Mapping[str, Any] = {
    "model": {"layers": 6, "heads": 8, "dim": 256, "context": 256, "dropout": 0.1},
    "train": {
        "steps": 5000,
        "batch": 64,
        "learning_rate": 3e-4,
        "warmup": 300,
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "clip": 1.0,
        "schedule": "cosine",
    },
    "data": "tinyshakespeare",
}
"""arXiv 2605.21842 section 4.1, 2605.26355 section 4.1 and 2606.01258 section 6.1, with betas and clipping of the
released code. Steps 0 to 5000 of theirs are one more than ours, the first of them at a rate of 0; precision (float16)
and evaluation (50 random batches) are not compared."""

SETTINGS: Mapping[str, Mapping[str, Any] | None] = {
    "gate-sight": CHARACTERS,
    "superadditivity": CHARACTERS,
    "mope-controls": CHARACTERS,
    # Configuration, split and epochs are not in the abstract of arXiv 2604.06014.
    "vision": None,
}
"""Study -> the setting that the statements were made in; ``None`` where it is not known."""

TAU = {"EGA-C": (0.354, 0.344, 0.341, 0.323), "EGA-M-F": (0.373, 0.409, 0.376, 0.284)}
"""Learned thresholds of layer 0, head 0 (arXiv 2605.21842, learned values), one a scale."""
ALPHA = {"EGA-C": (2.2260, 2.2453, 2.2537, 2.2596)}
"""Learned steepnesses of layer 0, head 0: starting values of a variant in the released code, which it says are those
that EGA-C learned."""


def differences(analysis: Mapping[str, Any]) -> str:
    """How the setting of a study differs from the published one, in words; empty where it does not."""
    published = SETTINGS[analysis["study"]]
    if published is None:
        return "the published setting is not known"
    config = analysis["config"]
    found = []
    for part in ("model", "train"):
        for key, value in published[part].items():
            if config[part].get(key) != value:
                found.append(f"{key} {config[part].get(key)} (published {value})")
    if config.get("data") != published["data"]:
        found.append(f"data {config.get('data')} (published {published['data']})")
    return ", ".join(found)
