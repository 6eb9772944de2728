"""``biases bench``: its arguments, and what it writes and shows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from biases._checks import fail
from biases._exit_codes import INTERRUPTED
from biases._files import is_stream, writable_file, write_atomically
from biases.attention import BACKENDS
from biases.bench.cases import DIRECTIONS
from biases.bench.ceilings import Ceilings
from biases.bench.machine import facts
from biases.bench.rows import Row, exit_code

LEVELS = ("operator", "layer", "model", "training")
DTYPES = ("float32", "bfloat16", "float16", "float64")
USUAL: dict[str, Any] = {
    "batch": 1,
    "heads": 8,
    "head_dim": 64,
    "length": [1024],
    "direction": list(DIRECTIONS),
    "rounds": 15,
    "seconds": 5.0,
}
QUICK: dict[str, Any] = {**USUAL, "heads": 2, "head_dim": 32, "length": [256], "rounds": 5, "seconds": 0.5}
# Models and steps of training normalise over the batch.
SMALLEST_BATCH = {"model": 2, "training": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``biases bench``; those without a default get one from :data:`USUAL` or :data:`QUICK`."""

    def usual(name: str) -> str:
        shown = " ".join(map(str, USUAL[name])) if isinstance(USUAL[name], list) else USUAL[name]
        return f"(default: {shown})"

    what = "of the zoo, options included (default: all layers; for models, all that are not named after a layer)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=what)
    parser.add_argument("--level", choices=LEVELS, default="operator", help="what is run (default: %(default)s)")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, metavar="B", help=f"{usual('batch')[:-1]}; 2 for models)")
    parser.add_argument("--heads", type=int, metavar="H", help=usual("heads"))
    parser.add_argument("--head-dim", type=int, metavar="D", help=usual("head_dim"))
    what = f"tokens, or pixels of a square map or image {usual('length')}"
    parser.add_argument("--length", type=int, nargs="+", metavar="N", help=what)
    parser.add_argument("--direction", choices=DIRECTIONS, nargs="+", help=usual("direction"))
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="of attend (default: %(default)s)")
    parser.add_argument("--peers", action="store_true", help="also released libraries with the same operator or layer")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"timed rounds, at most {usual('rounds')}")
    what = f"budget of the rounds of each name {usual('seconds')}"
    parser.add_argument("--seconds", type=float, metavar="S", help=what)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights and inputs (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--out", metavar="FILE", help="write the results there as JSON after every name")


def run(options: argparse.Namespace) -> int:
    """``biases bench [NAME...]``: returns the exit code.

    Raises:
        ValueError: names, sizes, dtype or device that cannot be measured, or a file that cannot be written, before
            anything is measured.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from biases.bench.run import bench

    plan = plan_of(options)
    if options.out:
        writable_file("--out", options.out)
    rows: list[Row] = []
    rates: Mapping[str, Ceilings] = {}
    machine, interrupted = facts(), False
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())

    def document(complete: bool) -> dict[str, Any]:
        return {
            "schema": 1,
            "configuration": {**plan.as_dict(), "threads": torch.get_num_threads()},
            "machine": machine,
            "ceilings": {dtype: each.as_dict() for dtype, each in rates.items()},
            "complete": complete,
            "rows": [row.as_dict() for row in rows],
        }

    def save(complete: bool) -> None:
        write_atomically(Path(options.out), (json.dumps(document(complete), indent=1) + "\n").encode())

    # To a pipe only the whole is written.
    kept = bool(options.out) and not is_stream(options.out)
    if kept:
        save(False)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        try:
            for found, measured in bench(plan, advance):
                rates = measured
                rows += found
                if kept:
                    save(False)
        except KeyboardInterrupt:
            interrupted = True
    if options.out:
        save(not interrupted)
    if options.json:
        print(json.dumps(document(not interrupted), indent=1))
    else:
        show(rows)
    return INTERRUPTED if interrupted else exit_code(rows)


def plan_of(options: argparse.Namespace) -> Any:
    """The plan that the arguments name.

    Raises:
        ValueError: one of them is out of its range.
    """
    from biases import zoo
    from biases.bench.run import Plan
    from biases.bench.workloads import Setting

    defaults = QUICK if options.quick else USUAL
    chosen = {name: getattr(options, name) or value for name, value in defaults.items()}
    if options.batch is None:
        chosen["batch"] = SMALLEST_BATCH.get(options.level, chosen["batch"])
    for name in ("batch", "heads", "head_dim", "rounds", "seconds"):
        given = getattr(options, name)
        if given is not None and not given > 0:
            fail(f"--{name.replace('_', '-')}", "a positive number", given)
    directions = ["forward+backward"] if options.level == "training" else chosen["direction"]
    if options.level == "training" and options.direction not in (None, directions):
        fail("--direction of a training step", "forward+backward", " ".join(options.direction))
    settings = [
        Setting(
            chosen["batch"],
            chosen["heads"],
            length,
            chosen["head_dim"],
            options.dtype,
            options.device,
            direction,
            options.seed,
        )
        for length in chosen["length"]
        for direction in directions
    ]
    kind = "layer" if options.level in ("operator", "layer") else "model"
    names = options.names or zoo.names(kind)
    for name in names:
        zoo.trial(name)
    _refuse_unused(options, names)
    return Plan(options.level, names, settings, options.backend, options.peers, chosen["rounds"], chosen["seconds"])


def _refuse_unused(options: argparse.Namespace, names: list[str]) -> None:
    """Refuse arguments that would be ignored.

    Raises:
        ValueError: peers at a level that has none, or heads for a model that has its own.
    """
    from biases.bench.peers import PEERS
    from biases.bench.workloads import has_own_heads

    levels = sorted({peer.level for peer in PEERS}, reverse=True)
    if options.peers and options.level not in levels:
        fail("--level with --peers", " or ".join(levels), options.level)
    for argument in ("heads", "head_dim"):
        given = getattr(options, argument)
        for name in names if given is not None else ():
            if has_own_heads(options.level, name):
                fail(f"--{argument.replace('_', '-')} of {name!r}", "none, the model has its own", given)


def show(rows: list[Row]) -> None:
    """Print the rows for people."""
    from rich.console import Console

    from biases.bench.table import render_rows

    console = Console()
    for table in render_rows(rows, console):
        console.print(table)
