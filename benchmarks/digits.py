"""Does a model of each image family learn the digits? Trains them and writes the test accuracies.

    python benchmarks/digits.py
    python benchmarks/digits.py rmt-digits --seeds 0 1 2 3 4 --steps 800
    python benchmarks/digits.py --summary benchmarks/results/digits.json

All models of a seed see the same images in the same order. Each (model, seed) is one process's work and one file in
``--out``, so that a run that was interrupted goes on where it was; a cell is done again where the code or the data has
changed. Exit code 0: every model is over 95 % on all the test images under every seed; 1: one is not; 2: bad usage, or
no data; 130: interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import queue
import shlex
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from biases._files import write_atomically
from biases.ablation import Images, ImageTrainConfig, Result, build_image_model, load_images, read_result, train_images
from biases.ablation._cells import canonical_json, plain
from biases.ablation._provenance import device_name, git_revision, versions
from biases.ablation.results import SCHEMA, result_path, write_result

DATA = "digits"
MODELS = ("rmt-digits", "swin-digits", "gated-swinrmt-retention[size=digits]", "gated-swinrmt-swat[size=digits]")
THRESHOLD = 0.95
TRAINING = ImageTrainConfig(steps=500, batch=64, learning_rate=2e-3, warmup=50, shift=1, evaluate_every=100)


class Stopped(Exception):
    """The training was asked to end."""


@dataclass(frozen=True)
class Cell:
    """One training."""

    model: str
    seed: int
    train: ImageTrainConfig

    @property
    def config(self) -> dict[str, Any]:
        return {"model": {"name": self.model}, "seed": self.seed, "train": plain(self.train), "data": DATA}

    @property
    def id(self) -> str:
        return hashlib.sha256(canonical_json(self.config).encode()).hexdigest()[:12]


def main() -> int:
    options = arguments()
    try:
        images = load_images(DATA)
        train = replace(TRAINING, steps=options.steps)
        for name in options.models:
            build_image_model(name, images, 0)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    cells = [Cell(model, seed, train) for seed in options.seeds for model in options.models]
    started = time.monotonic()
    try:
        fresh = run_all(cells, images, options)
    except KeyboardInterrupt:
        print(f"interrupted: what was finished is in {options.out}, and the next run goes on from it", file=sys.stderr)
        return 130
    wall = time.monotonic() - started
    results = [read_result(result_path(options.out, cell.id), of_grid=False) for cell in cells]
    summary = summarise(results, images, train, options)
    summary["wall_seconds"] = round(wall, 1) if fresh == len(cells) else None
    if options.summary:
        write_atomically(options.summary, (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    show(summary)
    return 0 if all(family["over_threshold"] for family in summary["models"].values()) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help="zoo names of image models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=TRAINING.steps, help="updates")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the summary here (JSON)")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"argument --jobs: expected at least 1, got {options.jobs}")
    if min(options.seeds) < 0:
        parser.error(f"argument --seeds: expected at least 0, got {min(options.seeds)}")
    options.models, options.seeds = list(dict.fromkeys(options.models)), list(dict.fromkeys(options.seeds))
    return options


def run_all(cells: list[Cell], images: Images, options: argparse.Namespace) -> int:
    """Run what has no result yet; the number of cells that were run."""
    left = [cell for cell in cells if not is_done(cell, images, options.out)]
    if not left:
        return 0
    context = multiprocessing.get_context("spawn")
    events, stop = context.Queue(), context.Event()
    with (
        progress(left) as tell,
        ProcessPoolExecutor(
            min(options.jobs, len(left)),
            mp_context=context,
            initializer=_start_worker,
            initargs=(events, stop),
        ) as pool,
    ):
        running: set[Future[Result]] = {pool.submit(_work, cell) for cell in left}
        try:
            while running:
                done, running = wait(running, timeout=0.2)
                for future in done:
                    write_result(options.out, future.result())
                with suppress(queue.Empty):
                    while True:
                        tell(events.get_nowait())
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(left)


def is_done(cell: Cell, images: Images, out: Path) -> bool:
    """Whether there is a result of this code on this data."""
    try:
        result = read_result(result_path(out, cell.id), of_grid=False)
    except (OSError, ValueError):
        return False
    same = result["data"].get("sha256") == images.sha256 and result.get("versions") == all_versions()
    return same and result["status"] != "failed"


def all_versions() -> dict[str, str | None]:
    return {**versions(), "scikit-learn": importlib.metadata.version("scikit-learn")}


_here: dict[str, Any] = {}


def _start_worker(events: Any, stop: Any) -> None:
    # Ctrl-C reaches the whole process group; the parent says what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    events.cancel_join_thread()
    _here.update(images=load_images(DATA), events=events, stop=stop)


def _work(cell: Cell) -> Result:
    """Train one cell and describe it in full; an exception in it becomes a result of status ``"failed"``."""

    def tell(news: dict[str, Any]) -> None:
        parent = multiprocessing.parent_process()
        # A parent that was killed could not set the event.
        if _here["stop"].is_set() or (parent is not None and not parent.is_alive()):
            raise Stopped
        _here["events"].put({**news, "id": cell.id})

    images: Images = _here["images"]
    started, clock = datetime.now(UTC), time.perf_counter()
    try:
        model = build_image_model(cell.model, images, cell.seed)
        outcome = train_images(model, images, cell.train, seed=cell.seed, progress=tell)
    except Stopped:
        raise
    except Exception:
        outcome = {"status": "failed", "error": traceback.format_exc(), "metrics": {}, "curve": []}
    return {
        "schema": SCHEMA,
        "id": cell.id,
        "arm": cell.model,
        "seed": cell.seed,
        "config": cell.config,
        **outcome,
        "versions": all_versions(),
        "device": "cpu",
        "device_name": device_name("cpu"),
        "threads": torch.get_num_threads(),
        "data": {"name": images.name, "sha256": images.sha256},
        "git": git_revision(),
        "seconds": time.perf_counter() - clock,
        "started": started.isoformat(timespec="seconds"),
    }


@contextmanager
def progress(cells: list[Cell]) -> Iterator[Any]:
    """A bar a cell, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[now]}"), console=Console(stderr=True)) as bars:
        tasks = {
            cell.id: bars.add_task(f"{cell.model} seed {cell.seed}", total=cell.train.steps, now="", start=False)
            for cell in cells
        }

        def tell(news: dict[str, Any]) -> None:
            task = tasks[news["id"]]
            bars.start_task(task)
            bars.update(task, completed=news["step"])
            if news["event"] == "evaluation":
                bars.update(task, now=f"{100 * news['test_accuracy']:.1f} %")

        yield tell


def summarise(
    results: list[Result], images: Images, train: ImageTrainConfig, options: argparse.Namespace
) -> dict[str, Any]:
    """Accuracies of every model, and everything that is needed to get them again."""
    return {
        "schema": 1,
        "command": command(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "threshold": THRESHOLD,
        "train": plain(train),
        "seeds": options.seeds,
        "data": {"name": images.name, "sha256": images.sha256, "train": len(images.train), "test": len(images.test)},
        "versions": all_versions(),
        "git": sorted({str(result["git"]) for result in results}),
        "device": sorted({result["device_name"] for result in results}),
        "jobs": options.jobs,
        "threads_each": sorted({result["threads"] for result in results}),
        "models": {name: family([result for result in results if result["arm"] == name]) for name in options.models},
    }


def command() -> str:
    """This program's command line as a shell reads it, paths as they are seen from the folder it runs in."""

    def relative(word: str) -> str:
        option, equals, value = word.rpartition("=")
        return option + equals + os.path.relpath(value) if os.path.isabs(value) else word

    return shlex.join(["python", *map(relative, (__file__, *sys.argv[1:]))])


def family(results: list[Result]) -> dict[str, Any]:
    """One model under all seeds; a training that did not finish has no accuracy, and is not over the threshold."""
    finished = [result for result in results if result["status"] == "ok"]
    accuracies = [result["metrics"]["test_accuracy"] for result in finished]
    return {
        "over_threshold": len(finished) == len(results) and min(accuracies) > THRESHOLD,
        "parameters": finished[0]["metrics"]["parameters"] if finished else None,
        "mean_test_accuracy": statistics.fmean(accuracies) if accuracies else None,
        "smallest_test_accuracy": min(accuracies, default=None),
        "seconds": round(sum(result["seconds"] for result in results), 1),
        "seeds": [
            {
                **{name: result[name] for name in ("seed", "id", "status", "error", "metrics")},
                "seconds": round(result["seconds"], 1),
            }
            for result in results
        ],
    }


def show(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    numbers = (
        Column(what, no_wrap=True, justify="right") for what in ("parameters", "mean", "smallest", "seeds", "seconds")
    )
    # The name alone gives way where the terminal is narrow.
    columns = (Column("model", overflow="fold"), *numbers, Column("", no_wrap=True))
    table = Table(*columns, box=None, pad_edge=False)
    for name, row in summary["models"].items():
        shares = (row["mean_test_accuracy"], row["smallest_test_accuracy"])
        mean, smallest = ("-" if share is None else f"{100 * share:.2f} %" for share in shares)
        verdict = "" if row["over_threshold"] else f"not over {100 * THRESHOLD:g} %"
        parameters = "-" if row["parameters"] is None else f"{row['parameters']:,}"
        cells = (parameters, mean, smallest, str(len(row["seeds"])), f"{row['seconds']:.0f}", verdict)
        table.add_row(Text(name), *cells)
    console = Console(highlight=False)
    data, wall = summary["data"], summary["wall_seconds"]
    console.print(table)
    took = "" if wall is None else f"; {wall / 60:.1f} minutes in all"
    console.print(f"Accuracy on the {data['test']} test images after the last update{took}.", style="dim")


if __name__ == "__main__":
    sys.exit(main())
