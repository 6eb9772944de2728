"""What a grid needs to know of texts and of images: how they are loaded, checked and trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from biases.ablation._cells import BaseCell, BaseGrid
from biases.ablation.data import DATASETS, Text, load_text
from biases.ablation.image_cells import ImageCell, build_image_cell, train_image_cell
from biases.ablation.image_training import check_augmentation
from biases.ablation.images import IMAGE_DATASETS, Images, load_images
from biases.ablation.spec import Cell
from biases.ablation.training import build_model, check_text, train_cell

Data = Text | Images


@dataclass(frozen=True)
class Kind:
    """One kind of cells.

    Attributes:
        name: ``"text"`` or ``"images"``.
        cell: their class.
        datasets: names of data that are no paths.
        load: data of a name or path.
        check: raises ValueError where the cell cannot be trained on the data.
        model_input: what ``build`` is given of the data, beside the cell.
        build: makes the model.
        train: ``train(cell, data, device=, progress=, build=)`` returns the outcome.
    """

    name: str
    cell: type[BaseCell]
    datasets: tuple[str, ...]
    load: Callable[[str | Path], Any]
    check: Callable[[Any, Any], None]
    model_input: Callable[[Any], Any]
    build: Callable[[Any, Any], Any]
    train: Callable[..., dict[str, Any]]


TEXT = Kind("text", Cell, DATASETS, load_text, check_text, lambda text: len(text.vocabulary), build_model, train_cell)
IMAGES = Kind(
    "images",
    ImageCell,
    IMAGE_DATASETS,
    load_images,
    lambda cell, images: check_augmentation(cell.train, images),
    lambda images: images,
    build_image_cell,
    train_image_cell,
)
KINDS = {kind.name: kind for kind in (TEXT, IMAGES)}


def kind_of(cell: type[BaseCell]) -> Kind:
    """The kind that cells of a class are of."""
    return next(kind for kind in KINDS.values() if issubclass(cell, kind.cell))


def load_data(grid: BaseGrid) -> Data:
    """The data of a grid's cells, under the name that the cells have for them.

    Raises:
        ValueError: they cannot be had.
    """
    kind = kind_of(grid.CELL)
    if grid.folder is None or grid.data in kind.datasets:
        return kind.load(grid.data)
    return replace(kind.load(Path(grid.folder) / grid.data), name=grid.data)
