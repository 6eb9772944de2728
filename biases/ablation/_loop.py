"""The training loop of texts and of images: AdamW under a schedule; a loss that is not finite is an outcome."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from biases.ablation.spec import Optimisation

Progress = Callable[[dict[str, Any]], None]

REPORT_EVERY = 20
"""Updates between two looks at the losses; each look waits for the device."""


class Diverged(ArithmeticError):
    """A loss that is not finite."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"{what} is not finite at step {step}")
        self.step = step


def learning_rate(config: Optimisation, step: int) -> float:
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


def check_device(device: str) -> str:
    """Check that PyTorch can train on the device: it knows it, it is here, and it hands back what it computed.

    Raises:
        ValueError: it cannot.
    """
    try:
        with torch.enable_grad():
            one = torch.ones(1, device=device, requires_grad=True)
            torch.autograd.grad((one * one).sum(), one)[0].item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device: expected one that PyTorch can use here, got {device!r} ({reason})") from error
    return str(torch.device(device))


@contextmanager
def own_random_state(device: str, seed: int) -> Iterator[None]:
    """Start from ``seed``, on the device too; the caller's random state comes back in the end."""
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def arithmetic(device: str, precision: str) -> AbstractContextManager[Any]:
    """Within it models compute in ``precision``: ``"float32"``, or ``"bfloat16"`` by autocast, not run on a GPU."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def learned_values(model: nn.Module) -> dict[str, list[float]]:
    """What the parts of a model tell of what they learned: ``{"module.name": values}``.

    A part tells by a method ``learned()`` that returns ``{name: tensor}``. Values that are not finite are left out, as
    JSON cannot hold them.
    """
    values: dict[str, list[float]] = {}
    with torch.no_grad():
        for path, module in model.named_modules():
            told = getattr(module, "learned", None)
            for name, tensor in told().items() if callable(told) else ():
                if tensor.isfinite().all():
                    values[f"{path}.{name}" if path else name] = tensor.double().flatten().tolist()
    return values


class Record:
    """Losses, curve and events of one training.

    Args:
        progress: told each event, with ``names`` in it.
    """

    def __init__(self, config: Optimisation, progress: Progress | None, names: Mapping[str, Any]) -> None:
        self.config, self.progress, self.names = config, progress, names
        self.curve: list[dict[str, float | int | None]] = []
        self._since_point: list[float] = []

    def updates(self, losses: list[float], step: int) -> None:
        """Training losses of the updates up to ``step``.

        Raises:
            Diverged: one is not finite.
        """
        for index, value in enumerate(losses):
            if not math.isfinite(value):
                raise Diverged("training loss", step - len(losses) + index + 1)
        self._tell("step", step=step, loss=losses[-1])
        self._since_point += losses

    def mean_loss(self) -> float | None:
        """Mean training loss since the last point of the curve; ``None`` before the first update."""
        return sum(self._since_point) / len(self._since_point) if self._since_point else None

    def point(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """A point of the curve."""
        self._since_point = []
        self.curve.append({"step": step, **values})
        self._tell("evaluation", step=step, **values)

    def finished(self, metrics: dict[str, Any], learned: dict[str, list[float]]) -> dict[str, Any]:
        """What a training returns that came to its end."""
        return {"status": "ok", "error": None, "metrics": metrics, "learned": learned, "curve": self.curve}

    def diverged(self, error: Diverged) -> dict[str, Any]:
        """What a training returns that diverged."""
        outcome = {"status": "diverged", "error": str(error), "metrics": {"diverged_at": error.step}, "learned": {}}
        return {**outcome, "curve": self.curve}

    def _tell(self, kind: str, **values: Any) -> None:
        if self.progress is not None:
            self.progress({"event": kind, **self.names, "steps": self.config.steps, **values})


class Training(ABC):
    """One training of a model that is on its device.

    Args:
        groups: AdamW's, each with its ``weight_decay``.
        seed: of what the model draws while it is trained (dropout).
        progress: told each event, with ``names`` in it.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        config: Optimisation,
        seed: int,
        *,
        progress: Progress | None,
        names: Mapping[str, Any],
    ) -> None:
        self.model, self.config, self.seed = model, config, seed
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
        self.record = Record(config, progress, names)

    @abstractmethod
    def loss(self) -> Tensor:
        """Mean loss of the next batch, to descend."""

    @abstractmethod
    def evaluate(self, step: int, train_loss: float | None) -> dict[str, float | int | None]:
        """The curve's values after update ``step``, where the updates since the last point had ``train_loss``.

        Raises:
            Diverged: they are not finite.
        """

    @abstractmethod
    def metrics(self) -> dict[str, Any]:
        """Values after the last update, whose evaluation is the latest.

        Raises:
            Diverged: they are not finite.
        """

    def run(self) -> dict[str, Any]:
        """Train: ``{"status", "error", "metrics", "learned", "curve"}``, ``status`` ``"ok"`` or ``"diverged"``."""
        # Models draw different amounts while they are built; dropout starts from the same state.
        torch.manual_seed(self.seed)
        try:
            self._train()
            return self.record.finished(self.metrics(), learned_values(self.model))
        except Diverged as diverged:
            return self.record.diverged(diverged)

    def _train(self) -> None:
        config = self.config
        self.model.train()
        self._point(0)
        losses: list[Tensor] = []
        for step in range(1, config.steps + 1):
            losses.append(self.update(step))
            due = step % config.evaluate_every == 0 or step == config.steps
            if due or len(losses) == REPORT_EVERY:
                self.record.updates(torch.stack(losses).tolist(), step)
                losses.clear()
            if due:
                self._point(step)

    def update(self, step: int) -> Tensor:
        """Update ``step``, from 1: its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config, step)
        loss = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimiser.step()
        return loss.detach()

    def _point(self, step: int) -> None:
        self.record.point(step, self.evaluate(step, self.record.mean_loss()))
