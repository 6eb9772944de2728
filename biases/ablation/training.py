"""Training one cell, so that the arms of one seed differ in the arm and in nothing else.

Under one seed all arms see the same batches in the same order, the same evaluation windows and positions,
and start from equal values in every parameter that has the same name and shape. Arithmetic is float32
throughout (the published runs used float16 autocast); the reported losses are those after the last update,
never the best.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from biases._checks import fail
from biases.ablation.data import Text
from biases.ablation.evaluation import (
    evaluation_windows,
    full_losses,
    measure_leak,
    position_losses,
    sample_positions,
    truncated_losses,
)
from biases.ablation.spec import Cell

Build = Callable[[Cell, int], nn.Module]
Progress = Callable[[dict[str, Any]], None]

REPORT_EVERY = 20
"""Updates between two looks at the losses; each look waits for the device."""


class Diverged(ArithmeticError):
    """A loss that is not finite."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"{what} is not finite at step {step}")
        self.step = step


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


class Schedule(Protocol):
    """What the learning rate follows from; the configurations say what each is."""

    @property
    def steps(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def schedule(self) -> str: ...


def learning_rate(config: Schedule, step: int) -> float:
    """Rate of update ``step`` (1 to ``steps``): linear up to the peak at ``warmup``, then the schedule.

    The cosine reaches 0 at ``steps``, as published; the published extra update 0, whose rate is 0, is not
    made.
    """
    if step < config.warmup:
        return config.learning_rate * step / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup) / (config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def training_batch(tokens: Tensor, context: int, batch: int, order: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows (batch, context) at random starts, and the same shifted by one token."""
    starts = torch.randint(0, len(tokens) - context, (batch, 1), generator=order)
    windows = tokens[starts + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def check_device(device: str) -> str:
    """Check that PyTorch knows the device and that it is here.

    Raises:
        ValueError: it does not, or it is not.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device: expected one that PyTorch can use here, got {device!r} ({reason})") from error
    return str(torch.device(device))


def check_text(cell: Cell, text: Text) -> None:
    """Check that each split holds at least one window and its target.

    Raises:
        ValueError: the text is too short for the context.
    """
    shorter = min(len(text.train), len(text.validation))
    if shorter < cell.model.context + 1:
        expected = f"splits of at least context + 1 = {cell.model.context + 1} tokens"
        fail(f"text {text.name!r}", expected, f"{len(text.train)} to train, {len(text.validation)} to validate")


class _Run:
    """The state of one training."""

    def __init__(self, cell: Cell, text: Text, device: str, build: Build, progress: Progress | None) -> None:
        self.cell, self.text, self.device, self.progress = cell, text, device, progress
        train, context = cell.train, cell.model.context
        self.model = build(cell, len(text.vocabulary))
        initialise(self.model, cell.seed)
        self.model.to(device)
        groups = cast(Any, self.model).parameter_groups(train.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas)
        self.validation = evaluation_windows(text.validation, context, train.evaluation_windows)
        self.curve: list[dict[str, float | int | None]] = []
        self.losses: list[Tensor] = []
        self.latest = torch.empty(0)

    def event(self, kind: str, **values: Any) -> None:
        if self.progress is not None:
            cell = self.cell
            self.progress({"event": kind, "id": cell.id, "arm": cell.arm, "seed": cell.seed, **values})

    def full(self, windows: tuple[Tensor, Tensor], step: int) -> Tensor:
        losses = full_losses(self.model, *windows, batch=self.cell.train.batch, device=self.device)
        if not losses.isfinite().all():
            raise Diverged("evaluation loss", step)
        return losses

    def recent(self, step: int, since: int) -> list[float]:
        """Training losses of the updates after ``since``, checked."""
        values = torch.stack(self.losses).tolist() if self.losses else []
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise Diverged("training loss", since + index + 1)
        if values:
            self.event("step", step=step, steps=self.cell.train.steps, loss=values[-1])
        self.losses.clear()
        return values

    def evaluate(self, step: int, train_losses: list[float]) -> None:
        self.latest = self.full(self.validation, step)
        full = self.latest.mean().item()
        train = sum(train_losses) / len(train_losses) if train_losses else None
        self.curve.append({"step": step, "train": train, "validation": full})
        self.event("evaluation", step=step, steps=self.cell.train.steps, train=train, validation=full)

    def update(self, step: int, order: torch.Generator) -> None:
        train = self.cell.train
        x, y = training_batch(self.text.train, self.cell.model.context, train.batch, order)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(train, step)
        loss = position_losses(self.model, x.to(self.device), y.to(self.device)).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if train.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), train.clip)
        self.optimiser.step()
        self.losses.append(loss.detach())

    def train(self) -> None:
        train = self.cell.train
        order = generator(self.cell.seed, "batches")
        self.model.train()
        self.evaluate(0, [])
        seen, since_evaluation = 0, []
        for step in range(1, train.steps + 1):
            self.update(step, order)
            due = step % train.evaluate_every == 0 or step == train.steps
            if due or step - seen == REPORT_EVERY:
                since_evaluation += self.recent(step, seen)
                seen = step
            if due:
                self.evaluate(step, since_evaluation)
                since_evaluation = []

    def metrics(self) -> dict[str, Any]:
        """Values after the last update, whose evaluation is the latest; see :func:`train_cell`."""
        config, (inputs, targets) = self.cell.train, self.validation
        full = self.latest
        seen = evaluation_windows(self.text.train, self.cell.model.context, len(inputs))
        metrics: dict[str, Any] = {
            "full": full.mean().item(),
            "train": self.full(seen, config.steps).mean().item(),
            "windows": len(inputs),
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
        if config.truncated_positions:
            draw = generator(self.cell.seed, "positions")
            pairs = sample_positions(len(inputs), inputs.shape[1], config.truncated_positions, draw)
            losses = truncated_losses(self.model, inputs, targets, pairs, batch=config.batch, device=self.device)
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
        ``{"status", "error", "metrics", "curve"}``. ``status`` is ``"ok"``, or ``"diverged"`` where a loss
        was not finite (``error`` then says which and when, ``metrics`` is ``{"diverged_at": step}``).
        ``metrics``, losses in nats per character: ``full``, mean over the validation windows; ``train``, the
        same over equally many windows of the training split; ``windows``; ``parameters``; and, unless
        ``truncated_positions`` is 0, the fields of :class:`~biases.ablation.evaluation.Leak`. ``curve``:
        ``step``, ``train`` (mean loss of the updates since the last point, dropout on, ``None`` at step 0)
        and ``validation`` (full).

    Raises:
        ValueError: the text is too short for the context, the device is not here, the configuration is
            refused by the model.
    """
    check_text(cell, text)
    device = check_device(device)
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(cell.seed)
        run = _Run(cell, text, device, build, progress)
        # Arms draw different amounts while they are built; dropout starts from the same state.
        torch.manual_seed(cell.seed)
        try:
            run.train()
            outcome: Mapping[str, Any] = {"status": "ok", "error": None, "metrics": run.metrics()}
        except Diverged as diverged:
            reached = {"diverged_at": diverged.step}
            outcome = {"status": "diverged", "error": str(diverged), "metrics": reached}
    return {**outcome, "curve": run.curve}
