"""The measured cost of the gate, kept with the package: a layer with it beside a layer without, on one backend.

``python -m biases.claims.cost`` measures it on a quiet machine, in a minute, and writes ``data/cost.json``.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from biases import zoo
from biases._files import write_atomically

FILE = Path(__file__).with_name("data") / "cost.json"
GATED, PLAIN, BACKEND = "ega", "standard", "native"
BATCH, TOKENS, HEADS, DIM = 8, 256, 8, 256
"""The published shape (arXiv 2605.21842 section 4.1) with 8 windows in place of 64."""
ROUNDS = 101
CONFIDENCE = 0.95
NOTICEABLE = 0.05
"""Share of the time of a layer up to which a difference is not one of interest."""


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of the median between order statistics, which covers it at least with ``confidence`` whatever the
    distribution of independent values; between the extremes where there are too few for any."""
    ordered, count = sorted(values), len(values)
    below, rank = 0.5**count, 0
    while rank + 1 < count / 2 and 2 * (below + math.comb(count, rank + 1) * 0.5**count) <= 1 - confidence:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    return ordered[rank], ordered[count - 1 - rank]


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Time both layers, forward and backward, in interleaved rounds.

    Returns:
        ``ratio``: median over rounds of the gated layer's time by the plain one's, and its interval (``low``,
        ``high``); ``extra_operations``: of the matrix products of a forward pass; ``rounds``, ``backend``,
        ``setting``, ``device``, ``revision`` and ``date``.
    """
    from biases.bench import facts, interleaved
    from biases.bench.counting import flops

    torch.manual_seed(0)
    x = torch.randn(BATCH, TOKENS, DIM, requires_grad=True)
    layers = {name: zoo.layer(name, DIM, HEADS, backend=BACKEND) for name in (GATED, PLAIN)}

    def train(layer: torch.nn.Module) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(layer(x).sum(), [x, *(p for p in layer.parameters() if p.requires_grad)])

    samples = interleaved({name: partial(train, layer) for name, layer in layers.items()}, rounds=rounds, warmup=5)
    ratios = [a / b for a, b in zip(samples[GATED].seconds, samples[PLAIN].seconds, strict=True)]
    low, high = median_interval(ratios)
    operations = {name: flops(partial(layer, x), backward=False) for name, layer in layers.items()}
    machine = facts()
    return {
        "ratio": {"median": statistics.median(ratios), "low": low, "high": high},
        "extra_operations": operations[GATED] / operations[PLAIN] - 1,
        "rounds": rounds,
        "backend": BACKEND,
        "setting": f"{BATCH} windows of {TOKENS} tokens, {HEADS} heads of {DIM // HEADS}, float32",
        "device": f"{machine['threads']} threads of {machine['cpu']}, torch {machine['torch']}",
        "revision": machine["git_revision"],
        "date": machine["date"],
    }


def load() -> dict[str, Any]:
    """The measurement that is kept."""
    return json.loads(FILE.read_text())


def write(measured: dict[str, Any], file: Path = FILE) -> None:
    """Keep a measurement."""
    write_atomically(file, (json.dumps(measured, indent=1) + "\n").encode())


if __name__ == "__main__":
    write(measure())
    print(FILE.read_text())
