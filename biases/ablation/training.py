"""Training one cell, so that the arms of one seed differ in the arm and in nothing else.

Under one seed all arms see the same batches in the same order, the same evaluation windows and positions,
and start from equal values in every parameter that has the same name and shape. Arithmetic is float32
unless the configuration asks for less precise updates (the published runs used float16 autocast); the reported losses
are those after the last update, never the best, and are always evaluated in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn

from biases._checks import fail
from biases.ablation._loop import (
    Diverged,
    Progress,
    Training,
    arithmetic,
    check_device,
    own_random_state,
)
from biases.ablation.data import Text
from biases.ablation.evaluation import (
    evaluation_windows,
    full_losses,
    measure_leak,
    position_losses,
    sample_positions,
    truncated_losses,
)
from biases.ablation.spec import Cell, TrainConfig

__all__ = [
    "Build",
    "build_model",
    "check_text",
    "describe",
    "generator",
    "initialise",
    "train_cell",
    "training_batch",
]

Build = Callable[[Cell, int], nn.Module]


def build_model(cell: Cell, vocab: int) -> nn.Module:
    """The cell's :class:`~biases.models.CharGPT` for ``vocab`` characters.

    A stand-in given as ``build=`` must return a module that maps tokens (B, T) to logits (B, T, V) and has
    ``parameter_groups(weight_decay)`` (AdamW's groups) and ``initial_std(name)`` (the standard deviation of
    the normal that the named parameter starts from, ``None`` to leave it as constructed).

    Raises:
        ValueError: unknown names or options.
    """
    from biases.models import CharGPT

    model = cell.model
    return CharGPT(
        vocab,
        context=model.context,
        layers=model.layers,
        heads=model.heads,
        dim=model.dim,
        attention=model.attention,
        position=model.position,
        dropout=model.dropout,
        attention_options=dict(model.options.get("attention", {})),
        position_options=dict(model.options.get("position", {})),
        **model.options.get("model", {}),
    )


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator that depends on the seed and the purpose alone."""
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    # The CPU generator keeps 32 bits of its seed.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Redraw each parameter that declares an initial distribution from a generator of its own.

    The draw depends on (seed, name, shape), so parameters that two arms share by name and shape start equal
    whatever else the arms hold.
    """
    for name, parameter in model.named_parameters():
        std = cast(Any, model).initial_std(name)
        if std is not None:
            own = generator(seed, "parameter", name, list(parameter.shape))
            parameter.copy_(torch.randn(parameter.shape, generator=own) * std)


def training_batch(tokens: Tensor, context: int, batch: int, order: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows (batch, context) at random starts, and the same shifted by one token."""
    starts = torch.randint(0, len(tokens) - context, (batch, 1), generator=order)
    windows = tokens[starts + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def check_text(cell: Cell, text: Text) -> None:
    """Check that each split holds at least one window and its target.

    Raises:
        ValueError: the text is too short for the context.
    """
    shorter = min(len(text.train), len(text.validation))
    if shorter < cell.model.context + 1:
        expected = f"splits of at least context + 1 = {cell.model.context + 1} tokens"
        fail(f"text {text.name!r}", expected, f"{len(text.train)} to train, {len(text.validation)} to validate")


class TextTraining(Training):
    """One training of a character model; see :func:`train_cell`."""

    def __init__(self, cell: Cell, text: Text, device: str, build: Build, progress: Progress | None) -> None:
        self.cell, self.text, self.device = cell, text, device
        train, context = cell.train, cell.model.context
        model = build(cell, len(text.vocabulary))
        initialise(model, cell.seed)
        model.to(device)
        groups = cast(Any, model).parameter_groups(train.weight_decay)
        names = {"id": cell.id, "arm": cell.arm, "seed": cell.seed}
        super().__init__(model, groups, train, cell.seed, progress=progress, names=names)
        self.order = generator(cell.seed, "batches")
        self.validation = evaluation_windows(text.validation, context, train.evaluation_windows)
        self.latest = torch.empty(0)

    def full(self, windows: tuple[Tensor, Tensor], step: int) -> Tensor:
        losses = full_losses(self.model, *windows, batch=self.config.batch, device=self.device)
        if not losses.isfinite().all():
            raise Diverged("evaluation loss", step)
        return losses

    def loss(self) -> Tensor:
        x, y = training_batch(self.text.train, self.cell.model.context, self.config.batch, self.order)
        with arithmetic(self.device, self.cell.train.precision):
            return position_losses(self.model, x.to(self.device), y.to(self.device)).mean()

    def evaluate(self, step: int, train_loss: float | None) -> dict[str, float | int | None]:
        self.latest = self.full(self.validation, step)
        return {"train": train_loss, "validation": self.latest.mean().item()}

    def metrics(self) -> dict[str, Any]:
        """See :func:`train_cell`."""
        config, (inputs, targets) = self.cell.train, self.validation
        seen = evaluation_windows(self.text.train, self.cell.model.context, len(inputs))
        train = self.full(seen, config.steps)
        prefixes = None
        if config.truncated_positions:
            draw = generator(self.cell.seed, "positions")
            pairs = sample_positions(len(inputs), inputs.shape[1], config.truncated_positions, draw)
            losses = truncated_losses(self.model, inputs, targets, pairs, batch=config.batch, device=self.device)
            prefixes = losses, pairs
        return describe(self.model, config, self.latest, train, prefixes)


def describe(
    model: nn.Module, config: TrainConfig, full: Tensor, train: Tensor, prefixes: tuple[Tensor, Tensor] | None
) -> dict[str, Any]:
    """The metrics that :func:`train_cell` returns.

    Args:
        full, train: losses on windows of the validation and of the training split, (W, T).
        prefixes: truncated losses (K,) and their pairs (K, 2); ``None`` where none were measured.

    Raises:
        Diverged: losses of the training split or truncated ones are not finite.
    """
    if not train.isfinite().all():
        raise Diverged("evaluation loss", config.steps)
    metrics: dict[str, Any] = {
        "full": full.mean().item(),
        "train": train.mean().item(),
        "windows": len(full),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if prefixes is not None:
        losses, pairs = prefixes
        if not losses.isfinite().all():
            raise Diverged("truncated loss", config.steps)
        measured = asdict(measure_leak(losses, full, pairs))
        metrics |= {name: value for name, value in measured.items() if value is not None}
    return metrics


def train_cell(
    cell: Cell,
    text: Text,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    build: Build = build_model,
) -> dict[str, Any]:
    """Train and evaluate one cell. The caller's random state is left as it was.

    Args:
        device: where to train; data order and initial weights are drawn on the CPU and do not depend on it.
        progress: called with ``{"event": "step" | "evaluation", "id", "arm", "seed", "step", "steps",
            ...}``; an exception that it raises ends the training.
        build: makes the model; see :func:`build_model`.

    Returns:
        ``{"status", "error", "metrics", "learned", "curve"}``. ``status`` is ``"ok"``, or ``"diverged"`` where a loss
        was not finite (``error`` then says which and when, ``metrics`` is ``{"diverged_at": step}``).
        ``metrics``, losses in nats per character: ``full``, mean over the validation windows; ``train``, the
        same over equally many windows of the training split; ``windows``; ``parameters``; and, unless
        ``truncated_positions`` is 0, the fields of :class:`~biases.ablation.evaluation.Leak`. ``learned``: what the
        model's parts tell of their parameters in the end, see :func:`~biases.ablation._loop.learned_values`. ``curve``:
        ``step``, ``train`` (mean loss of the updates since the last point, dropout on, ``None`` at step 0)
        and ``validation`` (full).

    Raises:
        ValueError: the text is too short for the context, the device is not here, the configuration is
            refused by the model.
    """
    check_text(cell, text)
    device = check_device(device)
    with own_random_state(device, cell.seed):
        return TextTraining(cell, text, device, build, progress).run()
