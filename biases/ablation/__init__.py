"""Ablations: paired multi-seed trainings of character models, stored one result a cell."""

from biases.ablation.data import DATASETS, Text, TextUnavailable, load_text
from biases.ablation.grid import run_cell, run_grid
from biases.ablation.results import Result, load_results, paired_values, read_result, table
from biases.ablation.spec import Cell, Grid, ModelConfig, TrainConfig
from biases.ablation.training import build_model, train_cell

__all__ = [
    "DATASETS",
    "Cell",
    "Grid",
    "ModelConfig",
    "Result",
    "Text",
    "TextUnavailable",
    "TrainConfig",
    "build_model",
    "load_results",
    "load_text",
    "paired_values",
    "read_result",
    "run_cell",
    "run_grid",
    "table",
    "train_cell",
]
