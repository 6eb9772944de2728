"""Everything that needs a GPU, piece by piece, within a time: ``make gpu``.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --budget 1500 --out results
    python -m benchmarks.gpu --only latency
    python -m benchmarks.gpu --device cpu --tiny --out trial        # to try it out: no evidence of anything
    python -m benchmarks.gpu --print-table                          # the table for biases/backends/choice.py

The pieces, in this order: ``environment`` (packages, ceilings of the device), ``tests`` (``pytest -m gpu``),
``properties`` (the battery on every layer), ``correctness`` (every backend against the float64 specification),
``latency`` (time and peak memory beside stock attention without a bias), ``ablation`` (cells of the committed studies
in their size ``paper``, until the time is up). Each writes ``gpu_<piece>.json`` after every cell, whole or not at all;
the same command goes on where an earlier one was stopped, and takes over the cells that the same source measured on the
same device, from DIR or from benchmarks/results. ``gpu_choice.json`` then has the backend of every family
(:func:`fastest`), and ``ablations/`` the studies, as ``biases ablate`` stores them. No cell is begun after the budget;
the one in flight is finished, tests excepted.

Exit code 0: nothing failed; 1: a result was wrong or a cell failed; 2: bad usage; 3: there is no CUDA device, or
nothing was measured; 130: interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_pieces import MEMORY_BAR, PIECES
from benchmarks.gpu_plan import ROOT, Outcome, Plan
from biases._files import remove_temporaries, write_atomically
from biases.ablation._provenance import device_name, git_revision, versions
from biases.bench import facts

RESULTS = ROOT / "benchmarks" / "results"
OK, FAILED, NOTHING, INTERRUPTED = 0, 1, 3, 130
SETTLED = ("ok", "diverged", "wrong", "refused", "skipped", "slow")
GOOD = ("ok", "diverged", "refused", "skipped", "slow")


def fingerprint(piece: str | None = None) -> str:
    """First 12 hex digits of the SHA-256 of all source that is measured or measures, for ``"tests"`` also of them."""
    digest = hashlib.sha256()
    files = [path for kind in ("*.py", "*.cpp", "*.hpp") for path in (ROOT / "biases").rglob(kind)]
    files += (ROOT / "benchmarks").glob("gpu*.py")
    if piece == "tests":
        files += [path for folder in ("properties", "tests") for path in (ROOT / folder).glob("*.py")]
        files += [path for path in (ROOT / "conftest.py", ROOT / "pyproject.toml") if path.exists()]
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


class Store:
    """The cells of one piece, in one file.

    Args:
        path: of the file. Cells are taken over from it and from the file of the same name in benchmarks/results, unless
            other source, another device or another version of torch made them. What only says what the folder of a
            study holds is not taken over: it is looked up there.
        head: what is written beside the cells; ``head["made_by"]`` says what made them.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.head = path, head
        self.cells: dict[str, Outcome] = {}
        remove_temporaries(path)
        for earlier in (RESULTS / path.name, path):
            before = read(earlier)
            if before is not None and before.get("made_by") == head["made_by"]:
                self.cells |= {name: cell for name, cell in before["cells"].items() if "study" not in cell}

    def has(self, name: str) -> bool:
        return name in self.cells and self.cells[name]["status"] in SETTLED

    def put(self, name: str, outcome: Outcome) -> None:
        self.cells[name] = outcome
        content = {**self.head, "cells": self.cells}
        write_atomically(self.path, (json.dumps(content, indent=1, default=str) + "\n").encode())


def read(path: Path) -> dict[str, Any] | None:
    """The results in ``path``; ``None`` if there are none, or no whole ones."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("cells"), dict) else None


def run_piece(piece: str, options: argparse.Namespace, head: dict[str, Any], deadline: float) -> tuple[Store, int]:
    """Run what is left of a piece; also how many of its cells the time did not reach."""
    made_by = {**head["made_by"], "source": fingerprint(piece)}
    store = Store(options.out / f"{prefix(options)}_{piece}.json", {**head, "made_by": made_by, "piece": piece})
    left = 0
    plan = Plan(options.device, options.tiny, deadline, options.out, RESULTS)
    for name, cell in PIECES[piece](plan):
        if isinstance(cell, dict):
            store.put(name, cell)
            continue
        if store.has(name):
            continue
        begin = time.monotonic()
        outcome = cell() if begin < deadline else None
        if outcome is None:
            left += 1
            continue
        outcome["cell_seconds"] = round(time.monotonic() - begin, 3)
        store.put(name, outcome)
        print(f"{piece:<12} {name:<52} {line(outcome)}", flush=True)
    return store, left


def line(outcome: Outcome) -> str:
    """One cell in one line."""
    if "backends" not in outcome:
        first = str(outcome.get("message") or "").strip().partition("\n")[0]
        if outcome["status"] == "refused":
            first = first.rpartition(", got ")[2]
        return f"{outcome['status']} {first[:120]}".strip()
    bar = outcome.get("bars", {}).get("ratio")
    parts = []
    for name, each in outcome["backends"].items():
        if "ratio" in each:
            parts.append(f"{name} {each['ratio']['value']:.2f} (memory {each['memory_ratio']:.2f})")
        else:
            parts.append(f"{name} {each['status']}")
    return ", ".join(parts) + ("" if bar is None else f"; bar {bar:.2f}")


def wrong(store: Store) -> list[str]:
    """Names of the cells that failed, backends inside them included."""
    return [
        name
        for name, cell in store.cells.items()
        if any(each["status"] not in GOOD for each in (cell, *cell.get("backends", {}).values()))
    ]


def fastest(latency: dict[str, Outcome]) -> dict[str, Outcome]:
    """Family, dtype and direction -> the backend to use for the whole family.

    Of each of its subjects the greatest length counts. A backend must be right in all of these cells and hold to the
    project's bar of memory, or, where none does, to that bar beside the least of them; among those the one whose worst
    ratio to the floor is the smallest. The algebra over stock attention, which runs anything, where none is left.
    """
    longest: dict[str, dict[str, str]] = {}
    for name, cell in latency.items():
        if cell.get("family") is None or "setting" not in cell:
            continue
        setting = cell["setting"]
        of_family = longest.setdefault(f"{cell['family']}/{setting['dtype']}/{setting['direction']}", {})
        before = of_family.get(cell["subject"])
        if before is None or latency[before]["setting"]["length"] < setting["length"]:
            of_family[cell["subject"]] = name
    rows = {}
    for key, names in longest.items():
        cells = [latency[name] for name in names.values()]
        allowed = [_allowed(cell["backends"]) for cell in cells]
        common = set.intersection(*map(set, allowed))
        ratios = {each: max(ratio[each] for ratio in allowed) for each in sorted(common)}
        rows[key] = {
            "status": "ok",
            "backend": min(ratios, key=ratios.__getitem__) if ratios else "fused",
            "ratios": ratios,
            "cells": sorted(names.values()),
        }
    return rows


def _allowed(backends: dict[str, Outcome]) -> dict[str, float]:
    """The ratio to the floor of each backend that is right and within the bounds of memory of :func:`fastest`."""
    right = {name: found for name, found in backends.items() if found["status"] == "ok" and "ratio" in found}
    bound = MEMORY_BAR * max(1.0, min((found["memory_ratio"] for found in right.values()), default=1.0))
    return {name: found["ratio"]["value"] for name, found in right.items() if found["memory_ratio"] <= bound}


def print_table(options: argparse.Namespace) -> int:
    """Print ``MEASURED`` of biases/backends/choice.py; only what was measured on a GPU is evidence."""
    path = options.out / f"{prefix(options)}_choice.json"
    found = read(path)
    if found is None or not found.get("evidence"):
        print(f"{path}: expected results of a GPU, got {'none' if found is None else 'a trial run'}", file=sys.stderr)
        return NOTHING
    print("MEASURED: dict[tuple[str, str, str], str] = {")
    for key, row in sorted(found["cells"].items()):
        family, dtype, direction = key.split("/")
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in sorted(row["ratios"].items())) or "none for all"
        print(f'    ("{family}", "{dtype}", "{direction}"): "{row["backend"]}",  # {ratios}')
    print("}")
    return OK


def prefix(options: argparse.Namespace) -> str:
    return "gpu_tiny" if options.tiny else "gpu"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=1500.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--only", choices=list(PIECES), action="append", help="only this piece; may be repeated")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu needs --tiny")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the programme out; no evidence")
    parser.add_argument("--print-table", action="store_true", help="print the table of choices that was measured")
    options = parser.parse_args(arguments)
    if not options.budget >= 0:
        parser.error(f"--budget: expected at least 0 seconds, got {options.budget}")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu: expected --tiny with it, as the CPU is measured by `biases bench`")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.print_table:
        return print_table(options)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu: no CUDA device (torch {torch.__version__}): nothing was measured", file=sys.stderr)
        return NOTHING
    try:
        return run(options)
    except KeyboardInterrupt:
        print("gpu: interrupted; what had finished is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def run(options: argparse.Namespace) -> int:
    """Run the pieces and store what they found."""
    deadline = time.monotonic() + options.budget
    made_by = {
        "source": fingerprint(),
        "device": device_name(options.device),
        "torch": str(torch.__version__),
        "tiny": options.tiny,
    }
    head: dict[str, Any] = {
        "schema": 1,
        "evidence": options.device == "cuda" and not options.tiny,
        "made_by": made_by,
        "machine": facts(),
        "versions": versions(),
        "revision": git_revision(),
        "configuration": {"device": options.device, "seed": 0, "pieces": options.only or list(PIECES)},
    }
    failed: list[str] = []
    counted, left = 0, 0
    for piece in PIECES:
        if options.only and piece not in options.only:
            continue
        store, unreached = run_piece(piece, options, head, deadline)
        left += unreached
        counted += sum(cell["status"] == "ok" for cell in store.cells.values()) if piece != "environment" else 0
        failed += [f"{piece}: {name}: {line(store.cells[name])}" for name in wrong(store)]
        if piece == "latency":
            choices = Store(options.out / f"{prefix(options)}_choice.json", {**head, "piece": "choice"})
            choices.cells = {}
            for name, row in fastest(store.cells).items():
                choices.put(name, row)
    for each in failed:
        print(f"gpu: {each}", file=sys.stderr)
    if left:
        print(f"gpu: the time is up, {left} cells are left: run the same command again", file=sys.stderr)
    if failed:
        return FAILED
    return OK if counted or options.only == ["environment"] else NOTHING


if __name__ == "__main__":
    # A time limit from outside ends with SIGTERM: what is in flight ends as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
