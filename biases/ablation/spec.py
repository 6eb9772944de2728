"""What an ablation is, as data: models, training, cells and the grid of them.

The defaults are the published training configuration of EGA and MoPE (6 layers, 8 heads, width 256, context
256, dropout 0.1; 64 windows a step, 5000 steps, 300 of them warm-up).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from biases._checks import divides, fail, one_of, positive_int

SCHEDULES = ("cosine", "constant")
OPTION_GROUPS = ("attention", "position")


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no whitespace: equal values give equal text.

    Raises:
        ValueError: a value that JSON cannot hold, infinities and NaN included.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"configuration: expected values that JSON can hold, got {error}") from error


def checked_number(what: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """Check for a finite number in [low, high), or (low, high); a float, so that 1 and 1.0 hash alike."""
    inside = isinstance(value, int | float) and not isinstance(value, bool) and low <= value < high
    if not inside or (open_low and value == low):
        fail(what, f"a number in {'(' if open_low else '['}{low:g}, {high:g})", repr(value))
    return float(value)  # type: ignore[arg-type]


def checked_count(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        fail(what, "an integer of at least 0", repr(value))
    return value


def _name(what: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        fail(what, "a name", repr(value))


@dataclass(frozen=True)
class ModelConfig:
    """One character model.

    Attributes:
        attention: zoo name of the attention layer.
        position: zoo name of the position encoding.
        layers, heads, dim, context: its size; ``context`` in tokens.
        dropout: probability, [0, 1).
        options: ``{"attention": {...}, "position": {...}}``, each optional, values that JSON can hold.

    Raises:
        ValueError: a value outside its range, heads that do not divide the width, an unknown group of
            options.
    """

    attention: str = "standard"
    position: str = "learned"
    layers: int = 6
    heads: int = 8
    dim: int = 256
    context: int = 256
    dropout: float = 0.1
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _name("ModelConfig attention", self.attention)
        _name("ModelConfig position", self.position)
        positive_int("ModelConfig layers", self.layers)
        divides("ModelConfig", self.dim, self.heads)
        positive_int("ModelConfig context", self.context)
        object.__setattr__(self, "dropout", checked_number("ModelConfig dropout", self.dropout, 0, 1))
        if not isinstance(self.options, Mapping):
            fail("ModelConfig options", "a mapping", repr(self.options))
        for group, options in self.options.items():
            one_of("ModelConfig options", group, OPTION_GROUPS)
            if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
                fail(f"ModelConfig options[{group!r}]", "a mapping from names", repr(options))
        # A copy through JSON is what a rerun from a result would read; empty groups say nothing.
        plain = {group: dict(options) for group, options in self.options.items() if options}
        object.__setattr__(self, "options", json.loads(canonical_json(plain)))


@dataclass(frozen=True)
class Optimisation:
    """What trainings of texts and of images have in common; each gives its defaults and adds its own.

    Attributes:
        steps: updates.
        batch: examples an update.
        learning_rate: peak of the schedule.
        warmup: updates of linear warm-up, fewer than ``steps``.
        weight_decay, betas: AdamW's.
        clip: largest gradient norm; ``None`` for no clipping.
        schedule: ``"cosine"`` (to 0 at the last update) or ``"constant"``, after the warm-up.
        evaluate_every: updates between two points of the curve.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float
    betas: tuple[float, float]
    clip: float | None
    schedule: str
    evaluate_every: int

    def __post_init__(self) -> None:
        what = type(self).__name__
        for name in ("steps", "batch", "evaluate_every"):
            positive_int(f"{what} {name}", getattr(self, name))
        if checked_count(f"{what} warmup", self.warmup) >= self.steps:
            fail(f"{what} warmup", f"fewer updates than steps={self.steps}", self.warmup)
        one_of(f"{what} schedule", self.schedule, SCHEDULES)
        rate = checked_number(f"{what} learning_rate", self.learning_rate, 0, open_low=True)
        object.__setattr__(self, "learning_rate", rate)
        object.__setattr__(self, "weight_decay", checked_number(f"{what} weight_decay", self.weight_decay, 0))
        if self.clip is not None:
            object.__setattr__(self, "clip", checked_number(f"{what} clip", self.clip, 0, open_low=True))
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            fail(f"{what} betas", "two numbers", repr(self.betas))
        first, second = (checked_number(f"{what} betas", beta, 0, 1) for beta in self.betas)
        object.__setattr__(self, "betas", (first, second))


@dataclass(frozen=True)
class TrainConfig(Optimisation):
    """How every arm is trained and evaluated.

    Attributes:
        steps: updates.
        batch: windows an update.
        learning_rate: peak of the schedule.
        warmup: updates of linear warm-up, fewer than ``steps``.
        weight_decay: AdamW's; the model says which parameters it is for.
        betas: AdamW's.
        clip: largest gradient norm; ``None`` for no clipping.
        schedule: ``"cosine"`` (to 0 at the last update) or ``"constant"``, after the warm-up.
        evaluate_every: updates between two points of the loss curve.
        evaluation_windows: validation windows, evenly spaced; ``None`` for all of the split.
        truncated_positions: sampled positions at which the truncated loss is measured; 0 for none.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 5000
    batch: int = 64
    learning_rate: float = 3e-4
    warmup: int = 300
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    schedule: str = "cosine"
    evaluate_every: int = 500
    evaluation_windows: int | None = None
    truncated_positions: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluation_windows is not None:
            positive_int("TrainConfig evaluation_windows", self.evaluation_windows)
        checked_count("TrainConfig truncated_positions", self.truncated_positions)


@dataclass(frozen=True)
class Cell:
    """One training: an arm under a seed.

    Attributes:
        arm: the arm's name. It is part of the identity: two arms of one configuration are replicates.
        seed: at least 0.
        model, train: see there.
        data: name of the text or path of its file, for :func:`~biases.ablation.load_text`.
    """

    arm: str
    seed: int
    model: ModelConfig
    train: TrainConfig
    data: str = "pydoc"

    def __post_init__(self) -> None:
        _name("Cell arm", self.arm)
        checked_count("Cell seed", self.seed)
        _name("Cell data", self.data)
        for what, value, kind in (("model", self.model, ModelConfig), ("train", self.train, TrainConfig)):
            if not isinstance(value, kind):
                fail(f"Cell {what}", f"a {kind.__name__}", type(value).__name__)

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides the outcome but the bytes of the text, as plain JSON values."""
        return json.loads(canonical_json(asdict(self)))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Cell:
        """The cell of a result's ``"config"``, to run it again.

        Raises:
            ValueError: missing or unknown names, or values outside their range.
        """
        try:
            rest = {name: value for name, value in config.items() if name not in ("model", "train")}
            return cls(model=ModelConfig(**config["model"]), train=TrainConfig(**config["train"]), **rest)
        except (KeyError, TypeError) as error:
            raise ValueError(f"configuration: expected the fields of a Cell, got {error!r}") from error

    @cached_property
    def id(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the canonical configuration."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Grid:
    """Arms x seeds under one training configuration and one text.

    Attributes:
        arms: name -> model; all of one context, so that all arms are evaluated on the same windows.
        seeds: distinct.
        train, data: see :class:`Cell`.

    Raises:
        ValueError: no arms or seeds, repeated seeds, different contexts.
    """

    arms: Mapping[str, ModelConfig] = field(hash=False)
    seeds: tuple[int, ...]
    train: TrainConfig
    data: str = "pydoc"

    def __post_init__(self) -> None:
        if not isinstance(self.arms, Mapping) or not self.arms:
            fail("Grid arms", "at least one arm, as name -> ModelConfig", repr(self.arms))
        if isinstance(self.seeds, str) or not isinstance(self.seeds, Iterable):
            fail("Grid seeds", "integers", repr(self.seeds))
        object.__setattr__(self, "arms", dict(self.arms))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            fail("Grid seeds", "at least one seed, each once", self.seeds)
        self.cells()
        contexts = {name: model.context for name, model in self.arms.items()}
        if len(set(contexts.values())) > 1:
            fail("Grid arms", "one context for all, which the evaluation windows depend on", contexts)

    def cells(self) -> list[Cell]:
        """Every cell, seed by seed, so that an interrupted grid has whole pairs."""
        return [
            Cell(arm=arm, seed=seed, model=model, train=self.train, data=self.data)
            for seed in self.seeds
            for arm, model in self.arms.items()
        ]
