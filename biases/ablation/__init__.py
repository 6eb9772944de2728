"""Ablations: paired multi-seed trainings of character models, stored one result a cell, and of image classifiers.

:func:`train_images` returns its result and stores nothing; ``benchmarks/digits.py`` runs and stores a grid of them.
"""

from biases.ablation.data import DATASETS, Text, TextUnavailable, load_text
from biases.ablation.grid import run_cell, run_grid
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
from biases.ablation.training import build_model, train_cell

__all__ = [
    "DATASETS",
    "IMAGE_DATASETS",
    "Cell",
    "Grid",
    "ImageTrainConfig",
    "Images",
    "ImagesUnavailable",
    "ModelConfig",
    "Result",
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
    "load_text",
    "paired_values",
    "read_result",
    "run_cell",
    "run_grid",
    "table",
    "train_cell",
    "train_images",
]
