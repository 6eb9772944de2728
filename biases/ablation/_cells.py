"""What the cells and grids of texts and of images have in common; the configuration of a cell is its identity."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Self

from biases._checks import fail
from biases.registry import parse_name

ADDED: Mapping[str, Any] = MappingProxyType({"added": True})
"""Metadata of a configuration's field that is left out of the canonical form while it has its default.

A field that joins a configuration of which there are results needs it, so that their ids stay what they are.
"""

LARGEST_SEED = 2**63 - 1
MOST_SEEDS = 10_000


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no whitespace: equal values give equal text.

    Raises:
        ValueError: a value that JSON cannot hold, infinities and NaN included.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"configuration: expected values that JSON can hold, got {error}") from error


def json_copy(value: object) -> Any:
    """What a rerun from a result would read; raised is what :func:`canonical_json` raises."""
    return json.loads(canonical_json(value))


def plain(config: Any) -> dict[str, Any]:
    """The fields of a configuration by name, those of configurations in it too; see :data:`ADDED`."""
    values = {}
    for each in fields(config):
        value = getattr(config, each.name)
        if each.metadata.get("added") and value == each.default:
            continue
        values[each.name] = plain(value) if is_dataclass(value) else value
    return values


def checked_number(what: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """Check for a finite number in [low, high), or (low, high); a float, so that 1 and 1.0 hash alike."""
    inside = isinstance(value, int | float) and not isinstance(value, bool) and low <= value < high
    try:
        number = float(value) if inside else math.inf  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if number == math.inf or (open_low and value == low):
        fail(what, f"a number in {'(' if open_low else '['}{low:g}, {high:g})", repr(value))
    return number


def checked_count(what: str, value: object) -> int:
    """Check for an integer of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        fail(what, "an integer of at least 0", repr(value))
    return value


def checked_name(what: str, value: object) -> None:
    """Check for a text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        fail(what, "a name", repr(value))


def check_names(what: str, values: object) -> None:
    """Check for a mapping whose keys are texts."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        fail(what, "a mapping from names", repr(values))


def check_options(what: str, name: str, options: Mapping[str, Any], decided: Mapping[str, str]) -> None:
    """Check the options of what the zoo calls ``name``.

    Args:
        decided: arguments that the cell gives itself -> what decides them.

    Raises:
        ValueError: one of those, or an option that the name carries in brackets too.
    """
    for option, by in decided.items():
        if option in options:
            fail(what, f"no {option!r}, which {by}", repr(dict(options)))
    for option in parse_name(name)[1] if options else ():
        if option in options:
            fail(what, f"no {option!r}, which {name!r} has already", repr(dict(options)))


@dataclass(frozen=True)
class BaseCell:
    """One training: an arm under a seed. Of texts it is a :class:`~biases.ablation.Cell`, of images an
    :class:`~biases.ablation.ImageCell`.

    Attributes:
        arm, seed: see :class:`~biases.ablation.Cell`.
        model, train: configurations, of the classes ``MODEL`` and ``TRAIN``.
        data: name or path of what is trained on.
    """

    MODEL: ClassVar[type]
    TRAIN: ClassVar[type]

    arm: str
    seed: int
    model: Any
    train: Any
    data: str

    def __post_init__(self) -> None:
        what = type(self).__name__
        checked_name(f"{what} arm", self.arm)
        if checked_count(f"{what} seed", self.seed) > LARGEST_SEED:
            fail(f"{what} seed", "at most 2^63 - 1", self.seed)
        checked_name(f"{what} data", self.data)
        for name, value, kind in (("model", self.model, self.MODEL), ("train", self.train, self.TRAIN)):
            if not isinstance(value, kind):
                fail(f"{what} {name}", f"a {kind.__name__}", type(value).__name__)

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides the outcome but the bytes of the data, as plain JSON values."""
        return json_copy(plain(self))

    @classmethod
    def _read(cls, config: Mapping[str, Any]) -> Self:
        try:
            rest = {name: value for name, value in config.items() if name not in ("model", "train")}
            return cls(model=cls.MODEL(**config["model"]), train=cls.TRAIN(**config["train"]), **rest)
        except (KeyError, TypeError) as error:
            raise ValueError(f"configuration: expected the fields of a {cls.__name__}, got {error!r}") from error

    @cached_property
    def id(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the canonical configuration."""
        return hashlib.sha256(canonical_json(plain(self)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class BaseGrid:
    """Arms x seeds under one training configuration and one data set.

    Attributes:
        arms: name -> model.
        seeds: distinct, at most 10,000.
        train, data: see :class:`BaseCell`.
        folder: what a relative path in ``data`` is relative to; ``None`` for the working directory. It is no part of
            any cell.

    Raises:
        ValueError: no arms or seeds, repeated seeds or too many.
    """

    CELL: ClassVar[type[BaseCell]]

    arms: Mapping[str, Any] = field(hash=False)
    seeds: tuple[int, ...]
    train: Any
    data: str
    folder: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        what = type(self).__name__
        if not isinstance(self.arms, Mapping) or not self.arms:
            fail(f"{what} arms", f"at least one arm, as name -> {self.CELL.MODEL.__name__}", repr(self.arms))
        if isinstance(self.seeds, str) or not isinstance(self.seeds, Iterable):
            fail(f"{what} seeds", "integers", repr(self.seeds))
        object.__setattr__(self, "arms", dict(self.arms))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            fail(f"{what} seeds", "at least one seed, each once", self.seeds)
        if len(self.seeds) > MOST_SEEDS:
            fail(f"{what} seeds", f"at most {MOST_SEEDS} seeds", f"{len(self.seeds)} seeds")
        self.cells()

    def cells(self) -> list[Any]:
        """Every cell, seed by seed, so that an interrupted grid has whole pairs."""
        return [
            self.CELL(arm=arm, seed=seed, model=model, train=self.train, data=self.data)
            for seed in self.seeds
            for arm, model in self.arms.items()
        ]

    def units(self, together: int = 1) -> list[tuple[Any, ...]]:
        """The cells in the groups that advance together: up to ``together`` seeds of one arm each.

        The arms of the same seeds follow each other, so that an interrupted grid has whole pairs.
        """
        cells = {(cell.arm, cell.seed): cell for cell in self.cells()}
        groups = [self.seeds[start : start + together] for start in range(0, len(self.seeds), together)]
        return [tuple(cells[arm, seed] for seed in group) for group in groups for arm in self.arms]

    def shard(self, index: int, count: int) -> Self:
        """Part ``index``, from 1, of ``count``: every ``count``-th seed with all its arms.

        The parts are disjoint and together the grid.

        Raises:
            ValueError: no such part, or more parts than seeds.
        """
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (index, count))
        if not whole or not 1 <= index <= count:
            fail("shard", "I/N with 1 <= I <= N", f"{index}/{count}")
        if count > len(self.seeds):
            fail("shard", f"at most {len(self.seeds)} parts, as the cells of a seed stay together", f"{index}/{count}")
        return replace(self, seeds=self.seeds[index - 1 :: count])
