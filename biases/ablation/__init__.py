"""Ablations: paired multi-seed trainings of character models and of image classifiers, stored one result a cell.

:func:`load_study` reads what ``biases ablate`` runs; :func:`run_grid` runs the cells of a grid made in Python.
"""

from biases.ablation.contrasts import Contrast, Statistics
from biases.ablation.data import DATASETS, Text, TextUnavailable, load_text
from biases.ablation.grid import run_cell, run_cells, run_grid
from biases.ablation.image_cells import ImageCell, ImageGrid, ImageModelConfig
from biases.ablation.image_training import ImageTrainConfig, build_image_model, train_images
from biases.ablation.images import (
    IMAGE_DATASETS,
    Images,
    ImagesUnavailable,
    load_cifar10,
    load_digits,
    load_image_folder,
    load_images,
)
from biases.ablation.results import Result, load_results, paired_values, read_result, table
from biases.ablation.spec import Cell, Grid, ModelConfig, TrainConfig
from biases.ablation.study import Study, load_study
from biases.ablation.training import build_model, train_cell

__all__ = [
    "DATASETS",
    "IMAGE_DATASETS",
    "Cell",
    "Contrast",
    "Grid",
    "ImageCell",
    "ImageGrid",
    "ImageModelConfig",
    "ImageTrainConfig",
    "Images",
    "ImagesUnavailable",
    "ModelConfig",
    "Result",
    "Statistics",
    "Study",
    "Text",
    "TextUnavailable",
    "TrainConfig",
    "build_image_model",
    "build_model",
    "load_cifar10",
    "load_digits",
    "load_image_folder",
    "load_images",
    "load_results",
    "load_study",
    "load_text",
    "paired_values",
    "read_result",
    "run_cell",
    "run_cells",
    "run_grid",
    "table",
    "train_cell",
    "train_images",
]
