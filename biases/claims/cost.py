"""The measured cost of the gate, kept with the package: an extract of ``benchmarks/results/ratios_cpu.json``.

:func:`write` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biases._files import write_atomically

FILE = Path(__file__).with_name("data") / "cost.json"
SUBJECT = "EGA, causal (`ega`)/1024"


def extract(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`biases.claims.ega.no_measurable_cost` needs of the measured ratios.

    Returns:
        ``ratios``: time of the gated operator over that of PyTorch's fused attention without a gate, by direction, with
        its interval; ``plain``: the same of the equation computed with all weights in memory, forward.
    """
    pieces = {way: measured["pieces"][f"{SUBJECT}/{way}"] for way in ("forward", "forward+backward")}
    setting, machine = pieces["forward"]["setting"], measured["machine"]
    return {
        "source": f"benchmarks/results/ratios_cpu.json at {machine['git_revision'][:12]}",
        "device": f"{machine['threads']} threads of {machine['cpu']}, torch {machine['torch']}",
        "setting": f"{setting['heads']} heads of {setting['head_dim']}, {setting['length']} tokens, {setting['dtype']}",
        "bar": pieces["forward"]["bar"],
        "ratios": {way: piece["ratio"] for way, piece in pieces.items()},
        "plain": pieces["forward"]["plain_ratio"]["value"],
    }


def load() -> dict[str, Any]:
    """The extract that is kept."""
    return json.loads(FILE.read_text())


def write(ratios: Path, file: Path = FILE) -> None:
    """Extract the measurement in ``ratios`` into ``file``."""
    write_atomically(file, (json.dumps(extract(json.loads(ratios.read_text())), indent=1) + "\n").encode())
