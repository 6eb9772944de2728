"""How far the published training can move a parameter (arXiv 2605.21842 section 4.1; the released code).

AdamW moves a parameter by ``lr m / (sqrt(v) + eps)``. With bias correction, m and v are weighted means of the gradients
and of their squares, so by the Cauchy-Schwarz inequality ``|m| / sqrt(v)`` at update t is at most
``sqrt(sum_i a_i^2 / b_i)``, where ``a_i`` and ``b_i`` are the weights of gradient i: a bound over all gradients.
"""

from __future__ import annotations

import math
from functools import cache

import torch

from biases.ablation import TrainConfig
from biases.ablation._loop import learning_rate

PUBLISHED = TrainConfig()


@cache
def decay_factor() -> float:
    """What weight decay alone leaves of a parameter: ``prod_t (1 - lr_t decay)``."""
    decay = PUBLISHED.weight_decay
    return math.exp(sum(math.log1p(-learning_rate(PUBLISHED, step) * decay) for step in range(1, PUBLISHED.steps + 1)))


@cache
def farthest() -> float:
    """What the gradients of all updates together can add to a parameter, or take from it, at most."""
    return sum(learning_rate(PUBLISHED, step) * _largest_ratio(step) for step in range(1, PUBLISHED.steps + 1))


def _largest_ratio(step: int) -> float:
    """Largest ``|m| / sqrt(v)`` at update ``step`` over all gradients."""
    first, second = PUBLISHED.betas
    ratio = first**2 / second
    mean = (1 - first) / (1 - first**step)
    square = (1 - second) / (1 - second**step)
    return math.sqrt(mean**2 / square * (1 - ratio**step) / (1 - ratio))


def lowest(start: float) -> float:
    """A bound below which no gradients bring a parameter that starts at ``start`` > 0, decay included: decay shrinks
    what the updates did before it, too."""
    return start * decay_factor() - farthest()


def decayed(parameters: list[torch.nn.Parameter]) -> None:
    """Train ``parameters`` in place through the published schedule, every gradient being zero."""
    optimiser = torch.optim.AdamW(
        parameters, lr=PUBLISHED.learning_rate, betas=PUBLISHED.betas, weight_decay=PUBLISHED.weight_decay
    )
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for step in range(1, PUBLISHED.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(PUBLISHED, step)
        optimiser.step()
