"""What the tests of ablations share: a text, models that train in no time, cells and a grid of them, a run's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from biases.ablation import Cell, Grid, ModelConfig, Text, TrainConfig

WORDS = "the quick brown fox jumps over the lazy dog; " * 60
TEXT = Text.from_string("words", WORDS)

SMALL = ModelConfig(attention="prefix-mean", layers=1, heads=1, dim=8, context=12, dropout=0.0)
LEAKY = replace(SMALL, attention="window-mean")
FAST = TrainConfig(
    steps=6,
    batch=4,
    warmup=2,
    learning_rate=1e-2,
    evaluate_every=3,
    evaluation_windows=8,
    truncated_positions=40,
)
# A cell of the study gate-sight-small, whose results are kept under this id.
PUBLISHED = Cell(
    "standard",
    0,
    ModelConfig("standard", "learned", layers=4, heads=4, dim=128, context=128, dropout=0.0),
    TrainConfig(
        steps=2000,
        batch=16,
        learning_rate=1e-3,
        warmup=100,
        weight_decay=0.1,
        evaluate_every=500,
        truncated_positions=2048,
    ),
    "tinyshakespeare",
)
PUBLISHED_ID = "d90548afe4e5"


class Trainable(nn.Module):
    """All parameters in one group, which start as they are."""

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        return [{"params": list(self.parameters()), "weight_decay": weight_decay}]

    def initial_std(self, name: str) -> float | None:
        return None


class MeanModel(Trainable):
    """Predicts from the mean of the embeddings of the prefix (causal) or of the window (not)."""

    def __init__(self, vocab: int, config: ModelConfig) -> None:
        super().__init__()
        self.prefix = config.attention == "prefix-mean"
        if config.attention == "wider":
            self.extra = nn.Parameter(torch.randn(3))
        self.embedding = nn.Embedding(vocab, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.embedding(tokens))
        if self.prefix:
            counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype).unsqueeze(-1)
            return self.head(x.cumsum(1) / counts)
        return self.head(x.mean(1, keepdim=True).expand_as(x) + x)

    def initial_std(self, name: str) -> float | None:
        return 0.5 if name.endswith("weight") else None


def build(cell: Cell, vocab: int) -> MeanModel:
    """The arm ``broken`` cannot be built, and ``nan`` starts from a loss that is not finite."""
    if cell.arm == "broken":
        raise RuntimeError("this arm cannot be built")
    model = MeanModel(vocab, cell.model)
    if cell.arm == "nan":
        with torch.no_grad():
            model.initial_std = lambda name: None
            model.head.weight.fill_(float("nan"))
    return model


def cell(arm: str = "causal", seed: int = 0, model: ModelConfig = SMALL, train: TrainConfig = FAST) -> Cell:
    return Cell(arm, seed, model, train, "words")


def small_grid(folder: Path) -> Grid:
    """Two arms under two seeds, of a file in ``folder`` that holds the text."""
    path = folder / "words.txt"
    path.write_text(WORDS)
    return Grid({"causal": SMALL, "leaky": LEAKY}, (0, 1), FAST, data=str(path))


def files(out: Path) -> list[str]:
    """Names in the folder of a run's cells."""
    return sorted(path.name for path in (out / "cells").iterdir() if path.name != ".takeover")
