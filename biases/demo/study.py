"""Third part of the demo: a 2 x 2 ablation, {standard, EGA} x {learned, MoPE}, over several seeds.

The arms are far smaller than the published ones and trained far shorter: what it shows is the method, and says of the
published effect only what its intervals say.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ATTENTION = ("standard", "ega")
POSITION = ("learned", "mope")
SEEDS = tuple(range(8))
UNIT = "nats per character"
MODEL: dict[str, Any] = {"layers": 2, "heads": 4, "dim": 64, "context": 64, "dropout": 0.0}
TRAIN: dict[str, Any] = {
    "steps": 400,
    "batch": 16,
    "learning_rate": 1e-3,
    "warmup": 40,
    "evaluate_every": 100,
    "evaluation_windows": 64,
    "truncated_positions": 1024,
}


def grid(data: str, seeds: Sequence[int] = SEEDS, steps: int | None = None) -> Any:
    """The demo's :class:`~biases.ablation.Grid`."""
    from biases.ablation import Grid, ModelConfig, TrainConfig

    arms = {
        f"{attention}+{position}": ModelConfig(attention=attention, position=position, **MODEL)
        for attention in ATTENTION
        for position in POSITION
    }
    train = {
        **TRAIN,
        **({} if steps is None else {"steps": steps, "warmup": max(1, steps // 10), "evaluate_every": steps}),
    }
    return Grid(arms, tuple(seeds), TrainConfig(**train), data)


def key(data: str, seeds: Sequence[int] = SEEDS, steps: int | None = None) -> str:
    """Name of a folder for cells of this text and this code: a changed gate or file is trained anew.

    Raises:
        ValueError: unusable text or sizes.
    """
    from biases.ablation import load_text
    from biases.ablation._provenance import code_fingerprint
    from biases.ablation.training import check_text

    text = load_text(data)
    for cell in grid(data, seeds, steps).cells():
        check_text(cell, text)
    return f"{code_fingerprint()}-{text.sha256[:12]}"


def study(
    data: str,
    out: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    steps: int | None = None,
    workers: int = 2,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run or resume the grid, whose cells are written to ``out`` one by one; yields its summary."""
    from biases.ablation import run_grid

    planned = grid(data, seeds, steps)
    while True:
        done = run_grid(planned, out, workers=workers, progress=progress, retry_failed=True)
        if len(done) == len(planned.cells()):
            break
        # Another run has the others in its hands; should it die, its locks are taken over.
        time.sleep(1.0)
    yield summarise(planned, out)


def summarise(planned: Any, out: Path) -> dict[str, Any]:
    """The finished cells of the grid ``planned`` in ``out``, as the report takes them.

    Curves, contrasts, interaction and the leak of every arm. Other cells in the folder, of another size or text, do not
    count.
    """
    from biases.ablation import load_results

    wanted = {cell.id for cell in planned.cells()}
    cells = [result for result in load_results(out) if result["id"] in wanted]
    results = [result for result in cells if result["status"] == "ok"]
    arms = {arm: [r for r in results if r["arm"] == arm] for arm in sorted({r["arm"] for r in results})}
    shown = {
        "config": {
            "data": results[0]["data"] if results else planned.data,
            "model": MODEL,
            "train": dataclasses.asdict(planned.train),
            "seeds": sorted({r["seed"] for r in results}),
        },
        "factors": {"attention": list(ATTENTION), "position": list(POSITION)},
        "arms": {arm: _arm(cells) for arm, cells in arms.items()},
        "failed": [
            {"arm": cell["arm"], "seed": cell["seed"], "status": cell["status"], "error": cell["error"]}
            for cell in cells
            if cell["status"] != "ok"
        ],
        "file": str(out),
    }
    if results:
        shown |= contrasts(results)
    return shown


def _arm(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    curves = np.array([[point["validation"] for point in cell["curve"]] for cell in cells])
    centre = curves.mean(0)
    arm: dict[str, Any] = {
        "curve": {
            "steps": [point["step"] for point in cells[0]["curve"]],
            "mean": centre.tolist(),
            "low": curves.min(0).tolist(),
            "high": curves.max(0).tolist(),
        },
        "full": {str(cell["seed"]): cell["metrics"]["full"] for cell in cells},
        "truncated": {str(cell["seed"]): cell["metrics"]["truncated"] for cell in cells},
    }
    if len(cells) > 1:
        from biases.stats import paired

        pairs = [(cell["metrics"]["truncated"], cell["metrics"]["full_at_truncated"]) for cell in cells]
        leak = paired([a for a, _ in pairs], [b for _, b in pairs], unit=UNIT, minimum_seeds=2)
        arm |= {"leak_mean": leak.mean, "leak_interval": leak.interval}
    return arm


def contrasts(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Paired contrasts over the seeds that every arm finished, and the interaction."""
    from biases.stats import interaction, paired

    names = [f"{attention}+{position}" for attention in ATTENTION for position in POSITION]
    by_arm = {name: {r["seed"]: r["metrics"] for r in results if r["arm"] == name} for name in names}
    seeds = sorted(set.intersection(*(set(cells) for cells in by_arm.values())))
    if len(seeds) < 2:
        return {"contrasts": [], "interaction": None}

    def values(arm: str, metric: str) -> list[float]:
        return [by_arm[arm][seed][metric] for seed in seeds]

    rows = []
    for name, new, old, metric in (
        ("ega - standard, with learned", "ega+learned", "standard+learned", "full"),
        ("ega - standard, with mope", "ega+mope", "standard+mope", "full"),
        ("mope - learned, with standard", "standard+mope", "standard+learned", "full"),
        ("ega - standard, with learned, on prefixes", "ega+learned", "standard+learned", "truncated"),
    ):
        rows.append({"name": name, **paired(values(new, metric), values(old, metric), unit=UNIT).as_dict()})
    # y_ij: attention at level i, position at level j, in the order y00, y10, y01, y11.
    cells = [values(f"{a}+{p}", "full") for p in POSITION for a in ATTENTION]
    superadditivity = interaction(*cells, unit=UNIT).as_dict()
    return {"contrasts": rows, "interaction": {"name": "attention x position", **superadditivity}}
