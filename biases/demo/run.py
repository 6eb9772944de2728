"""Runs the parts of the demo one after another, shows progress, keeps what is finished, writes the page."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import biases
from biases import zoo
from biases._checks import fail
from biases._files import write_atomically
from biases.demo import benchmark, study, verification

COMMAND = "biases demo"


@dataclass
class Demo:
    """What the demo found.

    Attributes:
        results: as :func:`biases.report.render` takes them.
        page: the page.
        interrupted: whether it was stopped before its end.
        leak: the result that shows that published EGA is not causal, if it was found.
        errors: part -> why it could not be finished.
    """

    results: dict[str, Any]
    page: Path
    interrupted: bool = False
    leak: dict[str, Any] | None = None
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """What went wrong, a line each; empty if all is well."""
        found = [
            f"{r['subject']}: {r['property']} {r['status']}"
            for r in self.results.get("verification", {}).get("results", [])
            if r["status"] in ("failed", "error", "xpassed")
        ]
        rows = self.results.get("bench", {}).get("rows", [])
        found += [f"bench of {r['name']}: {r['message']}" for r in rows if r["status"] != "ok"]
        cells = self.results.get("ablation", {}).get("failed", [])
        found += [f"{c['arm']} seed {c['seed']}: {c['status']} {c['error'] or ''}".rstrip() for c in cells]
        return found + [f"{part}: {why}" for part, why in self.errors.items()]


def run_demo(
    data: str = "pydoc",
    out: str | Path = "runs/demo",
    *,
    layers: Sequence[str] | None = None,
    seeds: Sequence[int] = study.SEEDS,
    steps: int | None = None,
    rounds: int = benchmark.ROUNDS,
    workers: int = 2,
) -> Demo:
    """Verify, benchmark, ablate and report.

    Args:
        data: ``"pydoc"`` (needs no network), ``"tinyshakespeare"`` or a text file.
        out: folder of the results. Ablation cells that the same code finished on the same text are used again. A run
            that is interrupted leaves ``partial.html`` and does not touch the page of an earlier one.
        layers: layers to verify; all of the zoo if ``None``.
        seeds, steps: size of the ablation.
        rounds: of the benchmark.
        workers: processes of the ablation.

    Raises:
        ValueError: unusable text, sizes or folder, before anything is run.
    """
    folder = Path(out)
    cells = folder / "ablation" / study.key(data, seeds, steps)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail("demo folder", "one that exists or can be made", f"{str(folder)!r}: {error.strerror}")
    results: dict[str, Any] = {"missing": {}}
    interrupted, errors = False, {}
    with _progress() as bar:
        verify, time, ablate = bar("verify"), bar("benchmark"), bar("ablate")
        cell = _events(ablate, len(seeds) * len(study.ATTENTION) * len(study.POSITION))
        parts = {
            "verification": verification.verify(layers, progress=verify),
            "bench": benchmark.benchmark(rounds=rounds, progress=time),
            "ablation": study.study(data, cells, seeds=seeds, steps=steps, workers=workers, progress=cell),
        }
        for name, part in parts.items():
            if interrupted:
                results["missing"][name] = "interrupted before it ran"
                continue
            try:
                for section in part:
                    results[name] = {**section, "command": COMMAND, "file": str(folder / f"{name}.json")}
            except KeyboardInterrupt:
                interrupted = True
                results["missing"][name] = "interrupted"
            except Exception as error:
                # The other parts are worth their page whatever happened to this one.
                errors[name] = results["missing"][name] = f"{type(error).__name__}: {error}"
            else:
                _save(results[name], folder / f"{name}.json")
    if "ablation" not in results and (cells / "cells").is_dir():
        results["ablation"] = {**study.summarise(study.grid(data, seeds, steps), cells), "command": COMMAND}
    return _finish(results, folder, interrupted, errors)


def _finish(results: dict[str, Any], folder: Path, interrupted: bool, errors: dict[str, str]) -> Demo:
    from biases.bench import facts
    from biases.report import write
    from biases.report.pictures import pictures

    results |= {
        "title": "Attention biases: the demo",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": COMMAND,
        "machine": facts(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "biases": biases.__version__},
        "zoo": zoo.table(),
    }
    _save(results, folder / ("partial.json" if interrupted else "results.json"))
    # Who interrupts waits for no pictures.
    gallery = [] if interrupted else pictures()
    page = write({**results, "gallery": gallery}, folder / ("partial.html" if interrupted else "report.html"))
    leak = verification.leak_of(results.get("verification", {}).get("results", []))
    return Demo(results, page, interrupted, leak, errors)


def headline(results: dict[str, Any]) -> dict[str, Any]:
    """The part of the demo's results that the README reads: without the battery's messages and the zoo."""
    parts = ("created", "machine", "versions", "bench", "ablation")
    return {name: results[name] for name in parts if name in results}


def _save(value: Any, path: Path) -> None:
    write_atomically(path, json.dumps(value, indent=1).encode())


Report = Callable[[int, int, str], None]


@contextmanager
def _progress() -> Iterator[Callable[[str], Report]]:
    """A factory of progress callbacks, one bar a part."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[now]}"), console=Console(stderr=True)) as bars:

        def part(name: str) -> Report:
            task = bars.add_task(name, total=None, now="", start=False)

            def report(done: int, total: int, now: str) -> None:
                bars.start_task(task)
                bars.update(task, completed=done, total=total, now=now)

            return report

        yield part


def _events(report: Report, total: int) -> Callable[[dict[str, Any]], None]:
    """From the grid's events to (done, total, what)."""
    finished: set[str] = set()

    def event(news: dict[str, Any]) -> None:
        if news["event"] in ("finished", "skipped"):
            finished.add(news["id"])
        report(len(finished), total, f"{news.get('arm', '')} seed {news.get('seed', '')}")

    return event
