"""Validation loss on whole windows, and on prefixes cut off where generation would stand.

A causal model has the same loss at a position whether or not later tokens are in its input. Where it has
not, the whole-window loss is no measure of what the model can generate: the future leaks into it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from biases._checks import fail, positive_int

NORMAL_95 = NormalDist().inv_cdf(0.975)


def evaluation_windows(tokens: Tensor, context: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Consecutive non-overlapping windows of a split and, shifted by one token, their targets.

    Args:
        tokens: (n,), int64.
        context: T, tokens a window.
        count: at most so many windows W, evenly spaced over the split; ``None`` for all.

    Returns:
        inputs and targets, each (W, T).

    Raises:
        ValueError: fewer than T + 1 tokens.
    """
    positive_int("context", context)
    available = (len(tokens) - 1) // context
    if available < 1:
        fail("validation split", f"at least context + 1 = {context + 1} tokens", len(tokens))
    chosen = torch.arange(available)
    if count is not None and positive_int("evaluation windows", count) < available:
        chosen = torch.arange(count) * available // count
    inputs = tokens[: available * context].view(available, context)
    targets = tokens[1 : available * context + 1].view(available, context)
    return inputs[chosen], targets[chosen]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the mode is restored."""
    training = model.training
    model.eval()
    try:
        # Not inference mode: a table that a model caches here must still serve in training.
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def position_losses(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Nats per character at every position: tokens (B, T) and targets (B, T) -> (B, T), in at least float32."""
    logits = model(tokens)
    if logits.ndim != 3 or logits.shape[:2] != targets.shape:
        fail("model output", f"shape {(*targets.shape, 'V')}", tuple(logits.shape))
    return token_losses(logits, targets)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of every target: logits (..., V) and targets (...) -> (...), in at least float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    return nn.functional.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)


def full_losses(model: nn.Module, inputs: Tensor, targets: Tensor, *, batch: int, device: str) -> Tensor:
    """Losses on whole windows, (W, T) -> (W, T), float64 on the CPU; ``batch`` windows at a time."""
    with evaluating(model):
        parts = [
            position_losses(model, x.to(device), y.to(device)).cpu()
            for x, y in zip(inputs.split(batch), targets.split(batch), strict=True)
        ]
    return torch.cat(parts).double()


def sample_positions(windows: int, context: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` distinct (window, position) pairs drawn uniformly, or all if fewer: (K, 2), int64."""
    flat = torch.randperm(windows * context, generator=generator)[:count]
    return torch.stack((flat // context, flat % context), dim=1)


def truncated_losses(
    model: nn.Module, inputs: Tensor, targets: Tensor, pairs: Tensor, *, batch: int, device: str
) -> Tensor:
    """Losses of predicting token t + 1 from the window's tokens up to t and nothing after them.

    Args:
        inputs, targets: (W, T).
        pairs: (window, t), (K, 2).
        batch: prefixes at a time; only prefixes of one length share a batch, as padding would be a future
            too.

    Returns:
        (K,), float64 on the CPU, in the order of ``pairs``.
    """
    losses = torch.empty(len(pairs), dtype=torch.float64)
    of_length: dict[int, list[int]] = defaultdict(list)
    for index, position in enumerate(pairs[:, 1].tolist()):
        of_length[position].append(index)
    with evaluating(model):
        for position, members in of_length.items():
            for rows in torch.tensor(members).split(batch):
                x = inputs[pairs[rows, 0], : position + 1].to(device)
                y = targets[pairs[rows, 0], : position + 1].to(device)
                losses[rows] = position_losses(model, x, y)[:, -1].cpu().double()
    return losses


@dataclass(frozen=True)
class Leak:
    """Truncated against whole-window loss on the same (window, position) pairs, nats per character.

    The intervals are of sampling the pairs, of one trained model: mean -+ 1.96 standard errors, pairs taken as
    independent, which for fewer than some 30 pairs is too narrow. They say nothing of other seeds. All are ``None`` for
    a single pair.

    Attributes:
        truncated: mean loss given the prefix.
        full_at_truncated: mean loss at the same positions given the whole window.
        leak: their difference; 0 up to rounding for a causal model, positive where the future helps.
        leak_standard_error: of the difference, pairs taken as independent; ``None`` for a single pair.
        positions: number of pairs K.
        leak_low, leak_high: 95 % interval of the difference.
        truncated_low, truncated_high: 95 % interval of the mean loss given the prefix.
    """

    truncated: float
    full_at_truncated: float
    leak: float
    leak_standard_error: float | None
    positions: int
    leak_low: float | None
    leak_high: float | None
    truncated_low: float | None
    truncated_high: float | None


def measure_leak(truncated: Tensor, full: Tensor, pairs: Tensor) -> Leak:
    """Compare prefix losses (K,) with whole-window losses (W, T) at ``pairs`` (K, 2)."""
    same = full[pairs[:, 0], pairs[:, 1]]
    leak, error, leak_low, leak_high = _mean_and_interval(truncated - same)
    mean, _, truncated_low, truncated_high = _mean_and_interval(truncated)
    return Leak(
        truncated=mean,
        full_at_truncated=same.mean().item(),
        leak=leak,
        leak_standard_error=error,
        positions=len(pairs),
        leak_low=leak_low,
        leak_high=leak_high,
        truncated_low=truncated_low,
        truncated_high=truncated_high,
    )


def _mean_and_interval(sample: Tensor) -> tuple[float, float | None, float | None, float | None]:
    """Mean of (K,), its standard error, and the ends of its 95 % interval."""
    mean = sample.mean().item()
    if len(sample) < 2:
        return mean, None, None, None
    error = sample.std().item() / len(sample) ** 0.5
    return mean, error, mean - NORMAL_95 * error, mean + NORMAL_95 * error
