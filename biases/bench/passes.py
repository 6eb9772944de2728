"""What is run of a module: forward, forward and backward, a step of training; and the same without a bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from biases._calls import replaced
from biases.bench.operators import stock

if TYPE_CHECKING:
    from biases.bench.workloads import Setting

Finish = Callable[[Tensor], Tensor]
"""What follows the module, before gradients are taken."""


def itself(x: Tensor) -> Tensor:
    return x


def run_layer(module: nn.Module, x: Tensor, setting: Setting) -> Callable[[], tuple[Tensor, ...]]:
    """A call of a layer: returns the output and, for forward+backward, the gradients."""
    return whole_pass(module, x, itself, setting.draw(*x.shape, offset=1), setting)


def whole_pass(
    module: nn.Module, x: Tensor, finish: Finish, grad: Tensor | None, setting: Setting
) -> Callable[[], tuple[Tensor, ...]]:
    """Returns the output and, for forward+backward, the gradients by the input, if it has any, and the parameters."""
    if not setting.backward:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (finish(module(x)),)

        return forward
    inputs = [x.requires_grad_()] if x.is_floating_point() else []
    wanted = [*inputs, *(parameter for parameter in module.parameters() if parameter.requires_grad)]

    def both() -> tuple[Tensor, ...]:
        out = finish(module(x))
        found = torch.autograd.grad(out, wanted, grad, allow_unused=True, materialize_grads=True)
        return (out.detach(), *found)

    return both


def training_step(module: nn.Module, x: Tensor, loss: Finish) -> Callable[[], tuple[Tensor, ...]]:
    groups = module.parameter_groups(0.1)  # type: ignore[operator]
    optimiser = torch.optim.AdamW(groups, lr=0.0)

    def step() -> tuple[Tensor, ...]:
        """The loss; the gradients are left in the parameters."""
        optimiser.zero_grad(set_to_none=True)
        value = loss(module(x))
        value.backward()
        optimiser.step()
        return (value.detach(),)

    return step


def floored(run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """The same with stock attention in place of ``attend``."""

    def floor() -> tuple[Tensor, ...]:
        with replaced(stock):
            return run()

    return floor
