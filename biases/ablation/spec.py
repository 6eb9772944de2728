"""What an ablation is, as data: models, training, cells and the grid of them.

The defaults are the published training configuration of EGA and MoPE (6 layers, 8 heads, width 256, context
256, dropout 0.1; 64 windows a step, 5000 steps, 300 of them warm-up).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from biases._checks import divides, fail, one_of, positive_int
from biases.ablation._cells import (
    ADDED,
    BaseCell,
    BaseGrid,
    check_names,
    check_options,
    checked_count,
    checked_name,
    checked_number,
    json_copy,
)

SCHEDULES = ("cosine", "constant")
PRECISIONS = ("float32", "bfloat16")
OPTION_GROUPS = ("attention", "position", "model")
MODEL_OPTIONS = ("absolute_too",)
DECIDED: Mapping[str, Mapping[str, str]] = {
    "attention": dict.fromkeys(("name", "variant", "dim", "heads", "dropout", "backend"), "the model decides"),
    "position": dict.fromkeys(("name", "dim", "context", "heads"), "the model decides"),
}
"""Group of options -> arguments of what is built with them that are no options -> what decides them."""


@dataclass(frozen=True)
class ModelConfig:
    """One character model.

    Attributes:
        attention: zoo name of the attention layer.
        position: zoo name of the position encoding.
        layers, heads, dim, context: its size; ``context`` in tokens.
        dropout: probability, [0, 1).
        options: ``{"attention": {...}, "position": {...}, "model": {...}}``, each optional, values that JSON can hold;
            of the model, ``absolute_too`` (see :class:`~biases.models.CharGPT`).

    Raises:
        ValueError: a value outside its range, heads that do not divide the width, an unknown group of options, an
            option that another field decides or that stands in a name too.
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
        checked_name("ModelConfig attention", self.attention)
        checked_name("ModelConfig position", self.position)
        positive_int("ModelConfig layers", self.layers)
        divides("ModelConfig", self.dim, self.heads)
        positive_int("ModelConfig context", self.context)
        object.__setattr__(self, "dropout", checked_number("ModelConfig dropout", self.dropout, 0, 1))
        if not isinstance(self.options, Mapping):
            fail("ModelConfig options", "a mapping", repr(self.options))
        for group, options in self.options.items():
            one_of("ModelConfig options", group, OPTION_GROUPS)
            check_names(f"ModelConfig options[{group!r}]", options)
        for group, decided in DECIDED.items():
            check_options(f"ModelConfig options.{group}", getattr(self, group), self.options.get(group, {}), decided)
        for name, value in self.options.get("model", {}).items():
            one_of("ModelConfig options['model']", name, MODEL_OPTIONS)
            if not isinstance(value, bool):
                fail(f"ModelConfig options['model'][{name!r}]", "True or False", repr(value))
        # Empty groups and what is off say nothing.
        told = {group: dict(options) for group, options in self.options.items()}
        told["model"] = {name: value for name, value in told.get("model", {}).items() if value}
        kept = {group: options for group, options in told.items() if options}
        object.__setattr__(self, "options", json_copy(kept))


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
        precision: of the updates: ``"float32"``, or ``"bfloat16"`` by autocast, where weights, optimiser and evaluation
            stay float32.

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
    precision: str = field(default="float32", metadata=ADDED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluation_windows is not None:
            positive_int("TrainConfig evaluation_windows", self.evaluation_windows)
        checked_count("TrainConfig truncated_positions", self.truncated_positions)
        one_of("TrainConfig precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class Cell(BaseCell):
    """One training of a character model: an arm under a seed.

    Attributes:
        arm: the arm's name. It is part of the identity, but decides no number: under one seed two arms of one
            configuration are the same training.
        seed: 0 to 2^63 - 1.
        model, train: see there.
        data: name of the text or path of its file, for :func:`~biases.ablation.load_text`.
    """

    MODEL: ClassVar[type] = ModelConfig
    TRAIN: ClassVar[type] = TrainConfig

    arm: str
    seed: int
    model: ModelConfig
    train: TrainConfig
    data: str = "pydoc"

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> BaseCell:
        """The cell of a result's ``"config"``, of a text or of images, to run it again.

        Raises:
            ValueError: missing or unknown names, or values outside their range.
        """
        from biases.ablation.image_cells import ImageCell

        model = config.get("model")
        of_images = isinstance(model, Mapping) and "name" in model
        return (ImageCell if of_images else Cell)._read(config)


@dataclass(frozen=True)
class Grid(BaseGrid):
    """Arms x seeds under one training configuration and one text.

    Attributes:
        arms: name -> model; all of one context, so that all arms are evaluated on the same windows.
        seeds: distinct.
        train, data: see :class:`Cell`.
        folder: what a relative path in ``data`` is relative to; ``None`` for the working directory.

    Raises:
        ValueError: no arms or seeds, repeated seeds, different contexts.
    """

    CELL: ClassVar[type[BaseCell]] = Cell

    arms: Mapping[str, ModelConfig] = field(hash=False)
    seeds: tuple[int, ...]
    train: TrainConfig
    data: str = "pydoc"
    folder: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        contexts = {name: model.context for name, model in self.arms.items()}
        if len(set(contexts.values())) > 1:
            fail("Grid arms", "one context for all, which the evaluation windows depend on", contexts)
