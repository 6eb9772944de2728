"""How often the battery cries wolf: sound subjects, many examples, many seeds.

    python benchmarks/false_alarms.py peers --examples 1000 --seeds 0 1 2 3 4
    python benchmarks/false_alarms.py zoo --examples 25 --random-seeds 50

Each (subject, seed) is one process's work and one file in ``--out``, written after every property, so that a run that
was interrupted goes on where it was; a property is done again where its code, or the search's, has changed. The summary
goes to ``--summary``. Exit code 0: no alarm; 1: at least one; 3: nothing ran.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import inspect
import json
import multiprocessing
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from biases import zoo
from biases._files import write_atomically
from biases.testing import PROPERTIES, check_attention
from biases.testing.adapters.catalogue import peers

CORE = ("case", "compare", "isolation", "masks", "search", "strategies", "subject", "views", "properties.base")
PACKAGES = ("torch", "hypothesis", "transformers", "timm", "torchvision", "x-transformers", "attention-biases")
BAD = ("failed", "error", "xpassed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+", help="`peers`, `zoo`, or names out of these")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--random-seeds", type=int, metavar="N", help="N seeds drawn once, in place of --seeds")
    parser.add_argument("--property", nargs="+", metavar="P", help="only these; others count as measured before")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/false-alarms"))
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the summary here (JSON)")
    options = parser.parse_args()
    names, only = chosen(options.subjects), options.property or list(PROPERTIES)
    seeds = drawn_seeds(options.random_seeds) if options.random_seeds else options.seeds
    cells = [(name, seed) for name in names for seed in seeds]
    folder = options.out / f"examples-{options.examples}"
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        running = {
            pool.submit(run_cell, name, seed, options.examples, folder, only): (name, seed) for name, seed in cells
        }
        for count, future in enumerate(as_completed(running), 1):
            name, seed = running[future]
            alarms = [prop for prop, row in future.result().items() if row["status"] in BAD]
            spent = (time.monotonic() - started) / 60
            print(f"{count}/{len(cells)} {spent:.0f} min {name} seed {seed} {' '.join(alarms) or 'clean'}", flush=True)
    summary = summarise(folder, names, seeds, options.examples)
    if options.summary:
        write_atomically(options.summary, (json.dumps(summary, indent=1) + "\n").encode())
    print(json.dumps({key: summary[key] for key in ("cells", "examples", "changed_verdicts")}), summary["alarms"])
    if not summary["examples"]:
        return 3
    return 1 if summary["alarms"] else 0


def chosen(subjects: list[str]) -> list[str]:
    """Names, ``peers`` and ``zoo`` spelled out."""
    groups = {"peers": list(peers()), "zoo": zoo.names("layer")}
    return [name for each in subjects for name in groups.get(each, [each])]


def drawn_seeds(count: int) -> list[int]:
    """Seeds that nobody chose, and that a later call draws again."""
    generator = torch.Generator().manual_seed(20261122)
    return torch.randint(2**31, (count,), generator=generator).tolist()


def run_cell(name: str, seed: int, examples: int, folder: Path, only: list[str]) -> dict[str, dict[str, Any]]:
    """Put the properties ``only`` to one subject; those done before, by the same code, are not done again."""
    torch.set_num_threads(1)
    path = folder / f"{name.replace('/', '_')}-{seed}.json"
    done: dict[str, dict[str, Any]] = json.loads(path.read_text())["properties"] if path.exists() else {}
    third_party = peers()
    make_layer = third_party[name] if name in third_party else zoo.factory(name)
    known = getattr(make_layer, "known_failures", {}) if name in third_party else zoo.get(name).known_failures
    for prop in only:
        code = fingerprint(prop)
        if PROPERTIES[prop].slow or done.get(prop, {}).get("code") == code:
            continue
        (result,) = check_attention(
            make_layer,
            name=name,
            max_examples=examples,
            seed=seed,
            properties=[prop],
            known_failures={prop: known[prop]} if prop in known else None,
            deadline=900.0,
        )
        done[prop] = {
            "status": result.status,
            "examples": result.examples,
            "seconds": round(result.seconds, 3),
            "code": code,
            "message": result.message if result.status in BAD else "",
            "reproduce": result.reproduce if result.status in BAD else "",
        }
        content = {"subject": name, "seed": seed, "examples": examples, "properties": done}
        write_atomically(path, json.dumps(content, indent=1).encode())
    return {prop: done[prop] for prop in PROPERTIES if prop in done}


def fingerprint(prop: str) -> str:
    """Of the source of a property and of the search."""
    package = Path(inspect.getfile(check_attention)).parent
    files = [package / f"{name.replace('.', '/')}.py" for name in CORE]
    files.append(Path(inspect.getfile(PROPERTIES[prop].check)))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]


def summarise(folder: Path, names: list[str], seeds: list[int], examples: int) -> dict[str, Any]:
    """Counts, alarms, and verdicts that differ between seeds."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in names:
        for seed in seeds:
            path = folder / f"{name.replace('/', '_')}-{seed}.json"
            for prop, row in json.loads(path.read_text())["properties"].items():
                if prop in PROPERTIES:
                    rows.setdefault(name, {}).setdefault(prop, []).append({**row, "seed": seed})
    subjects = {
        name: {
            "examples": sum(row["examples"] for each in found.values() for row in each),
            "passed": sorted(prop for prop, each in found.items() if {row["status"] for row in each} == {"passed"}),
            "known_failures": sorted(p for p, each in found.items() if {row["status"] for row in each} == {"xfailed"}),
        }
        for name, found in rows.items()
    }
    flat = [(name, prop, row) for name, found in rows.items() for prop, each in found.items() for row in each]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "schema": 1,
        "asked": {"examples": examples, "seeds": seeds},
        "versions": {"python": platform.python_version(), **versions},
        "cells": len(names) * len(seeds),
        "examples": sum(each["examples"] for each in subjects.values()),
        "alarms": [
            f"{name}: {prop} {row['status']}, {row['seed']}" for name, prop, row in flat if row["status"] in BAD
        ],
        "changed_verdicts": sorted(
            f"{name}: {prop}"
            for name, found in rows.items()
            for prop, each in found.items()
            if len({row["status"] for row in each}) > 1
        ),
        "subjects": subjects,
    }


if __name__ == "__main__":
    sys.exit(main())
