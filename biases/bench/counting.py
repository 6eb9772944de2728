"""Floating-point operations of a callable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from biases._calls import replaced, values_alone
from biases.bench.operators import Operator


def flops(run: Callable[[], Any], *, backward: bool) -> int:
    """Floating-point operations of the matrix products of ``run()``: those that torch counts outside attention, and
    those of attention by its formula (:meth:`~biases.bench.operators.Operator.flops`)."""
    of_attention: list[int] = []
    seed = 0 if backward else None

    def note(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        of_attention.append(Operator.of(((q, k, v), options), seed=seed).flops())
        return values_alone(q, k, v)

    with _Counter() as counter, replaced(note):
        run()
    return counter.total + sum(of_attention)


class _Counter(TorchDispatchMode):
    """Counts by torch's formulas. (``FlopCounterMode`` itself tracks modules, and so refuses ``autograd.grad``.)"""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out
