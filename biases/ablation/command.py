"""``biases ablate``: its arguments, and what it runs, writes and shows."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from biases._checks import fail, one_of
from biases._exit_codes import FAILED, INTERRUPTED, NOTHING, OK
from biases._signals import terminated_as_interrupted
from biases.ablation import _locks
from biases.ablation._cells import BaseGrid
from biases.ablation.executors import Open
from biases.ablation.grid import check_run, run_grid
from biases.ablation.kinds import Data
from biases.ablation.progress import Tally, say, show, unread
from biases.ablation.results import cells_directory
from biases.ablation.run_view import show_cells, show_run
from biases.ablation.study import Execution, Study, check_models, few_seeds_note, load_study
from biases.ablation.study_folder import begin, check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``biases ablate``."""
    parser.add_argument("spec", metavar="SPEC.toml", help="the study")
    parser.add_argument("--out", metavar="DIR", help="folder of its results (default: runs/NAME-SIZE)")
    parser.add_argument("--shard", metavar="I/N", help="only part I of N, from 1: whole seeds, for arrays of jobs")
    what = "where cells are run (default: %(default)s)"
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help=what)
    what = "of a Ray cluster (default: $RAY_ADDRESS, or a cluster of this machine)"
    parser.add_argument("--address", metavar="A", help=what)
    parser.add_argument("--workers", type=int, metavar="N", help="local processes (default: as the study says)")
    what = "seeds of an arm that advance together (default: as the study says)"
    parser.add_argument("--together", type=int, metavar="N", help=what)
    parser.add_argument(
        "--device",
        metavar="D",
        help="where cells are trained (default: cuda where the study asks for GPUs and one is there; else cpu)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="S", help="only these seeds of the study")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms of the study")
    parser.add_argument("--retry-failed", action="store_true", help="train failed and diverged cells again")
    parser.add_argument("--dry-run", action="store_true", help="only list the cells and what is done of them")


def run(options: argparse.Namespace) -> int:
    """``biases ablate SPEC.toml``: returns the exit code.

    0 where cells were run, or none was left; 1 where one failed or diverged, or the run was ended; 3 where all that are
    left are in other processes' hands; 130 where it was interrupted.

    Raises:
        ValueError: a study that cannot be run as it is declared or asked for, before anything is.
    """
    with terminated_as_interrupted():
        study = load_study(options.spec)
        grid = chosen_grid(study, options)
        execution = chosen_execution(study.execution, options)
        opened = _executor(execution, options)
        device = _device(study, execution, options)
        out = _folder(options.out or Path("runs") / study.folder)
        checked: dict[str, Any] = {"device": device, "workers": execution.workers, "together": execution.together}
        if options.dry_run:
            check_models(study)
            if note := few_seeds_note(study):
                say(f"biases: {note}")
            data = check_run(grid, **checked, elsewhere=opened is not None)
            show_cells(study, grid, data, out, as_json=options.json)
            return OK
        tally, folder = Tally(len(grid.cells())), _Begun(study, out)
        # The only ones known of a run that is ended before it returns.
        results: Sequence[Mapping[str, Any]] = tally.finished
        ended: str | None = None
        try:
            check_models(study)
            with show(tally) as tell:

                def progress(event: dict[str, Any]) -> None:
                    folder.check(event)
                    tell(event)

                results = run_grid(
                    grid,
                    out,
                    **checked,
                    progress=progress,
                    retry_failed=options.retry_failed,
                    executor=opened,
                    study={"name": study.name, "size": study.size},
                    begin=folder.begin,
                )
        except KeyboardInterrupt:
            ended = "interrupted"
        except (RuntimeError, OSError) as error:
            # What had finished before is as good as ever.
            ended = str(error)
        return _report(study, tally, results, out, ended, options.json)


def _folder(path: str | Path) -> Path:
    """A folder that is there or can be made.

    Raises:
        ValueError: it, or what it lies in, is a file.
    """
    folder = Path(path)
    existing = next((each for each in (folder, *folder.parents) if each.exists()), None)
    if existing is not None and not existing.is_dir():
        fail("--out", "a folder", f"{folder}, but {existing} is a file")
    return folder


class _Begun:
    """The folder that a run begins, or goes on with."""

    def __init__(self, study: Study, out: Path) -> None:
        self.study, self.out = study, out
        self.data: Data | None = None
        self.unchecked = True

    def begin(self, data: Data) -> None:
        self.data = data
        cells_directory(self.out).mkdir(parents=True, exist_ok=True)
        with _locks.exclusive(cells_directory(self.out)):
            changed = begin(self.study, self.out, data)
        for note in filter(None, (few_seeds_note(self.study), changed)):
            say(f"biases: {note}")

    def check(self, event: Mapping[str, Any]) -> None:
        """Look at it again when the first cell is locked: before that, another study could be begun in it."""
        if self.unchecked and event["event"] == "started":
            self.unchecked = False
            with _locks.exclusive(cells_directory(self.out)):
                check_folder(self.study, self.out, self.data)


def chosen_grid(study: Study, options: argparse.Namespace) -> BaseGrid:
    """The study's grid, or what ``--arms``, ``--seeds`` and ``--shard`` leave of it.

    Raises:
        ValueError: an arm or seed that the study has not, or a shard that is none.
    """
    grid = study.grid
    for arm in options.arms or ():
        one_of("--arms", arm, grid.arms)
    for seed in options.seeds or ():
        one_of("--seeds", seed, grid.seeds)
    arms = {arm: model for arm, model in grid.arms.items() if arm in (options.arms or grid.arms)}
    wanted = set(options.seeds or grid.seeds)
    seeds = tuple(seed for seed in grid.seeds if seed in wanted)
    grid = replace(grid, arms=arms, seeds=seeds)
    if options.shard is None:
        return grid
    index, slash, count = options.shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        fail("--shard", "I/N, such as 1/4", repr(options.shard))
    return grid.shard(int(index), int(count))


def chosen_execution(execution: Execution, options: argparse.Namespace) -> Execution:
    """What the study says, unless the command does.

    Raises:
        ValueError: a number below 1.
    """
    given = {name: getattr(options, name) for name in ("workers", "together") if getattr(options, name) is not None}
    return replace(execution, **given)


def _executor(execution: Execution, options: argparse.Namespace) -> Open | None:
    """What opens a Ray cluster; ``None`` for local processes.

    Raises:
        ValueError: an argument that would be ignored.
        ModuleNotFoundError: Ray is not here.
    """
    if options.executor == "local":
        if options.address is not None:
            fail("--address", "--executor ray beside it", "--executor local")
        return None
    if options.workers is not None:
        fail("--workers", "--executor local beside it; a cluster's nodes say how many", "--executor ray")
    options.extra = "ray"
    from biases.ablation.executors.ray import open_ray

    resources: dict[str, Any] = {"cpus": execution.cpus_per_cell, "gpus": execution.gpus_per_cell}
    return functools.partial(open_ray, address=options.address, **resources)


def _device(study: Study, execution: Execution, options: argparse.Namespace) -> str:
    """Where cells are trained.

    Raises:
        ValueError: a device other than that of a cluster's cells.
    """
    gpus = execution.gpus_per_cell
    if options.executor == "ray":
        # A cluster's nodes choose among their own; what is here says nothing of them.
        device = "cuda" if gpus else "cpu"
        if options.device not in (None, device):
            fail("--device", f"{device}, as a cell of the study has {gpus:g} GPUs of a cluster", options.device)
        return device
    if options.device is not None:
        return str(options.device)
    if not gpus:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    asked = f"{study.file} asks for {gpus:g} GPUs a cell and PyTorch finds none here"
    say(f"biases: {asked}: cells of size {study.size!r} train on the CPU")
    return "cpu"


def _report(
    study: Study, tally: Tally, results: Sequence[Mapping[str, Any]], out: Path, ended: str | None, as_json: bool
) -> int:
    """Show what became of the cells; returns the exit code."""
    with _unread_allowed():
        show_run(study, tally, results, out, ended=ended, as_json=as_json)
    if ended is not None:
        say(f"biases: {ended}")
        say(f"what was finished is in {out}; the same command goes on")
        return INTERRUPTED if ended == "interrupted" else FAILED
    if {"failed", "diverged"} & set(tally.status.values()):
        return FAILED
    return NOTHING if tally.locked and not tally.trained else OK


@contextlib.contextmanager
def _unread_allowed() -> Iterator[None]:
    """What was done decides the exit code, whether or not anybody reads of it."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        unread(sys.stdout)
