"""Cells and grids of image classifiers, run and stored as those of texts are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from biases.ablation._cells import BaseCell, BaseGrid, check_names, check_options, checked_name, json_copy
from biases.ablation._loop import Progress, check_device, own_random_state
from biases.ablation.image_training import ImageTrainConfig, build_image_model, train_images
from biases.ablation.images import Images

DECIDED: Mapping[str, str] = {"name": "the field decides"} | dict.fromkeys(("classes", "channels"), "the images decide")

BuildImages = Callable[["ImageCell", Images], nn.Module]


@dataclass(frozen=True)
class ImageModelConfig:
    """One image classifier.

    Attributes:
        name: of a model of the zoo; options in brackets are read too, as in ``"gated-swinrmt-swat[size=digits]"``.
        options: of its class, values that JSON can hold; classes and channels are those of the images.

    Raises:
        ValueError: a value of another kind, an option that the images decide or that stands in the name too.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        checked_name("ImageModelConfig name", self.name)
        check_names("ImageModelConfig options", self.options)
        check_options("ImageModelConfig options", self.name, self.options, DECIDED)
        object.__setattr__(self, "options", json_copy(dict(self.options)))


@dataclass(frozen=True)
class ImageCell(BaseCell):
    """One training of an image classifier: an arm under a seed.

    Attributes:
        arm, seed, model, train: as of a :class:`~biases.ablation.Cell`.
        data: name or path, for :func:`~biases.ablation.load_images`.
    """

    MODEL: ClassVar[type] = ImageModelConfig
    TRAIN: ClassVar[type] = ImageTrainConfig

    arm: str
    seed: int
    model: ImageModelConfig
    train: ImageTrainConfig
    data: str = "digits"


@dataclass(frozen=True)
class ImageGrid(BaseGrid):
    """Arms x seeds under one training configuration and one set of images.

    Attributes:
        arms: name -> model.
        seeds: distinct.
        train, data: see :class:`ImageCell`.
        folder: what a relative path in ``data`` is relative to; ``None`` for the working directory.

    Raises:
        ValueError: no arms or seeds, repeated seeds or too many.
    """

    CELL: ClassVar[type[BaseCell]] = ImageCell

    arms: Mapping[str, ImageModelConfig] = field(hash=False)
    seeds: tuple[int, ...]
    train: ImageTrainConfig
    data: str = "digits"
    folder: str | None = field(default=None, compare=False)


def build_image_cell(cell: ImageCell, images: Images) -> nn.Module:
    """The cell's model for these images.

    A stand-in given as ``build=`` must return a module that :func:`~biases.ablation.train_images` takes.

    Raises:
        ValueError: unknown name or option, no image model.
    """
    return build_image_model(cell.model.name, images, cell.seed, **cell.model.options)


def train_image_cell(
    cell: ImageCell,
    images: Images,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    build: BuildImages = build_image_cell,
) -> dict[str, Any]:
    """Train and evaluate one cell; see :func:`~biases.ablation.train_images` for what is returned and raised.

    Args:
        device: where to train.
        progress: told each event, with ``id``, ``arm`` and ``seed`` in it.
        build: makes the model; see :func:`build_image_cell`.
    """

    def tell(event: dict[str, Any]) -> None:
        if progress is not None:
            progress({**event, "id": cell.id, "arm": cell.arm, "seed": cell.seed})

    # What a model draws while it is built depends on the seed alone, whoever builds it.
    with own_random_state(check_device(device), cell.seed):
        model = build(cell, images)
    return train_images(model, images, cell.train, seed=cell.seed, device=device, progress=tell)
