"""A study: a TOML file that declares an ablation before it is run, its confirmatory contrasts included."""

from __future__ import annotations

import itertools
import os
import re
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biases._checks import fail, positive_int
from biases.ablation._cells import MOST_SEEDS, BaseGrid, canonical_json, checked_number, plain
from biases.ablation._document import Document
from biases.ablation.arm_table import LeftOut, read_arms
from biases.ablation.contrasts import (
    LEAK_METRICS,
    METRICS,
    Contrast,
    Statistics,
    check_contrasts,
    seeds_for_verdicts,
)
from biases.ablation.image_cells import ImageGrid
from biases.ablation.spec import OPTION_GROUPS, Cell, Grid

SCHEMA = 1
GRIDS: Mapping[str, type[BaseGrid]] = {"text": Grid, "images": ImageGrid}
KEYS = (
    *("schema", "name", "size", "question", "notes", "kind", "data", "seeds", "model", "train", "arms", "factors"),
    *("levels", "left_out", "statistics", "contrasts", "exploratory", "execution"),
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Execution:
    """How a study is run unless the command says otherwise; it decides no outcome and is in no id.

    Attributes:
        workers: local processes.
        together: seeds of an arm that advance together.
        cpus_per_cell, gpus_per_cell: what a unit of work asks of a Ray cluster; shares of a GPU are allowed.

    Raises:
        ValueError: a value outside its range.
    """

    workers: int = 1
    together: int = 1
    cpus_per_cell: int = 1
    gpus_per_cell: float = 0.0

    def __post_init__(self) -> None:
        for name in ("workers", "together", "cpus_per_cell"):
            positive_int(f"execution {name}", getattr(self, name))
        checked = checked_number("execution gpus_per_cell", self.gpus_per_cell, 0)
        object.__setattr__(self, "gpus_per_cell", checked)


@dataclass(frozen=True)
class Study:
    """A declared ablation.

    Attributes:
        name, size: of the study, and in which of its sizes; together they name its folder.
        question: what it asks, in a sentence or two.
        notes: what was left out and why, and the like.
        kind: ``"text"`` or ``"images"``.
        grid: all its cells.
        statistics: how contrasts are judged.
        family: the confirmatory contrasts, judged together.
        exploratory: contrasts of which intervals are given, never a verdict.
        left_out: arms of the factors' product that are not run.
        execution: how it is run by default.
        source: the TOML text.
        file: where it was read, for messages.
    """

    name: str
    size: str
    question: str
    notes: tuple[str, ...]
    kind: str
    grid: BaseGrid
    statistics: Statistics
    family: tuple[Contrast, ...]
    exploratory: tuple[Contrast, ...]
    left_out: tuple[LeftOut, ...]
    execution: Execution
    source: str
    file: str

    @property
    def folder(self) -> str:
        """``NAME-SIZE``"""
        return f"{self.name}-{self.size}"

    @property
    def identity(self) -> dict[str, str]:
        """What every run into one folder must agree in, a canonical text a part."""
        parts: dict[str, Any] = {"name": self.name, "size": self.size, "kind": self.kind, "data": self.grid.data}
        parts["train"] = plain(self.grid.train)
        parts |= {f"arm {name!r}": plain(model) for name, model in self.grid.arms.items()}
        return {part: canonical_json(value) for part, value in parts.items()}


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read and check a study's file.

    Raises:
        ValueError: it cannot be read, is no TOML, or a value in it is not what it must be; the message names the file
            and the key.
    """
    try:
        return _load(os.fspath(path))
    except RecursionError as error:
        raise ValueError(f"{os.fspath(path)}: expected TOML, got values nested too deeply to be read") from error


def _load(file: str) -> Study:
    try:
        source = Path(file).read_bytes().decode("utf-8")
        document = Document(file, tomllib.loads(source))
    except OSError as error:
        raise ValueError(f"{file}: expected a study's TOML file, got {error.strerror}") from error
    except ValueError as error:
        # No UTF-8, no TOML, or an integer of thousands of digits.
        raise ValueError(f"{file}: expected TOML, got {error}") from error
    document.check_integers("", document.content)
    return _read(document, source)


def _read(document: Document, source: str) -> Study:
    content = document.content
    document.known("", content, KEYS)
    if content.get("schema") != SCHEMA or isinstance(content["schema"], bool):
        document.fail("schema", SCHEMA, repr(content.get("schema", "nothing")))
    for key in ("name", "size"):
        if not NAME.fullmatch(document.text("", content, key)):
            document.fail(key, "letters, digits, '.', '_' and '-', which name a folder", repr(content[key]))
    kind = document.text("", content, "kind", "text")
    if kind not in GRIDS:
        document.fail("kind", f"one of {', '.join(map(repr, GRIDS))}", repr(kind))
    notes = document.typed("notes", content.get("notes", []), list, "texts")
    for index, note in enumerate(notes):
        document.typed(f"notes[{index}]", note, str, "a text")
    arms, left_out = read_arms(document, GRIDS[kind].CELL.MODEL)
    grid = _grid(document, kind, arms)
    execution = _section(document, "execution", Execution)
    if execution.together > 1 and kind != "text":
        document.fail("execution.together", f"1 for {kind}", execution.together)
    statistics, family, exploratory = _contrasts(document, kind, grid, left_out)
    return Study(
        name=content["name"],
        size=content["size"],
        question=document.text("", content, "question"),
        notes=tuple(notes),
        kind=kind,
        grid=grid,
        statistics=statistics,
        family=family,
        exploratory=exploratory,
        left_out=left_out,
        execution=execution,
        source=source,
        file=document.name,
    )


def _section(document: Document, key: str, cls: type[Any]) -> Any:
    """The table ``key`` as a dataclass whose errors begin with that word."""
    return document.make(key, cls, document.table(key, document.content.get(key, {})), prefix=key)


def _grid(document: Document, kind: str, arms: Mapping[str, Any]) -> BaseGrid:
    cls = GRIDS[kind]
    config = cls.CELL.TRAIN
    train = document.table("train", document.content.get("train", {}))
    if train.get("clip") is False:
        # TOML has no null.
        train = train | {"clip": None}
    training = document.make("train", config, train, prefix=config.__name__)
    seeds = document.content.get("seeds", "nothing")
    if isinstance(seeds, int) and not isinstance(seeds, bool) and 0 < seeds <= MOST_SEEDS:
        seeds = list(range(seeds))
    valid = isinstance(seeds, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds)
    if not valid or not 0 < len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds):
        expected = f"their number, up to {MOST_SEEDS}, or a list of so many different integers of at least 0"
        document.fail("seeds", expected, textwrap.shorten(repr(seeds), 80))
    data = document.text("", document.content, "data")
    try:
        return cls(arms=arms, seeds=tuple(seeds), train=training, data=data, folder=os.path.dirname(document.name))
    except ValueError as error:
        raise ValueError(f"{document.name}: arms: {error}") from error


def _contrasts(
    document: Document, kind: str, grid: BaseGrid, left_out: tuple[LeftOut, ...]
) -> tuple[Statistics, tuple[Contrast, ...], tuple[Contrast, ...]]:
    statistics = _section(document, "statistics", Statistics)
    missing = {each.arm: each.why for each in left_out}
    read: dict[str, tuple[Contrast, ...]] = {}
    for key in ("contrasts", "exploratory"):
        found = []
        for index, table in enumerate(document.tables(key)):
            path = f"{key}[{index}]"
            contrast = document.make(path, Contrast, table, prefix=f"contrast {table.get('name')!r}")
            for role, arm in contrast.arms.items():
                if arm in missing:
                    document.fail(f"{path}.{role}", "an arm that is run", f"{arm!r}, left out: {missing[arm]}")
            found.append(contrast)
        read[key] = tuple(found)
    family, exploratory = read["contrasts"], read["exploratory"]
    metrics = list(METRICS[kind])
    if kind == "text" and not grid.train.truncated_positions:
        metrics = [metric for metric in metrics if metric not in LEAK_METRICS]
    try:
        check_contrasts(statistics, family, exploratory, arms=grid.arms, metrics=metrics)
        for contrast in (*family, *exploratory):
            _check_different(contrast, grid)
    except ValueError as error:
        raise ValueError(f"{document.name}: {error}") from error
    return statistics, family, exploratory


def _check_different(contrast: Contrast, grid: BaseGrid) -> None:
    """Check that no two arms are one model, whose difference is 0 under every seed."""
    for one, other in itertools.combinations(contrast.arms.values(), 2):
        if _whole(grid.arms[one]) == _whole(grid.arms[other]):
            fail(f"contrast {contrast.name!r}", "arms of different models", f"{one!r} and {other!r}, the same model")


def _whole(model: Any) -> dict[str, Any]:
    """A model's configuration, the options in its names and those left at their defaults written out."""
    from biases import zoo

    values = plain(model)
    options = values.pop("options")
    groups = {"name": options} if "name" in values else {key: options.get(key, {}) for key in OPTION_GROUPS}
    for key, given in groups.items():
        try:
            variant = zoo.get(values[key])
        except (KeyError, ValueError):
            # The model itself, or a name that :func:`check_models` refuses.
            values[f"options {key}"] = given
        else:
            values[key] = variant.name.partition("[")[0]
            values[f"options {key}"] = {**variant.options, **given}
    return values


def few_seeds_note(study: Study) -> str | None:
    """What to tell before a study is run whose seeds are too few for any verdict; ``None`` where they are enough."""
    if not study.family:
        return None
    needed, declared = seeds_for_verdicts(study.statistics, len(study.family)), len(study.grid.seeds)
    if declared >= needed:
        return None
    return (
        f"{study.file}: {declared} seed{'s' if declared > 1 else ''} declared, but a verdict in a family of "
        f"{len(study.family)} takes {needed}: every contrast will be refused"
    )


def check_models(study: Study) -> None:
    """Build each arm's model without memory for its weights.

    Raises:
        ValueError: unknown names or options, sizes or values that do not fit; the message names the file and the arm.
    """
    from biases import zoo
    from biases.ablation.training import build_model

    for arm, model in study.grid.arms.items():
        try:
            with torch.device("meta"):
                if study.kind == "text":
                    build_model(Cell(arm, 0, model, study.grid.train), 64)
                else:
                    zoo.model(model.name, **model.options)
        except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
            # Options are of any type, and not every layer says itself which it cannot take.
            reason = str(error) if isinstance(error, ValueError) else f"expected a model, got {error!r}"
            raise ValueError(f"{study.file}: arm {arm!r}: {reason}") from error
