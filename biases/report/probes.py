"""How the pictures of a layer are read off it: by what it gives, not by what it says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from biases import _calls
from biases.attention import pair_weights, terms

BATCH = 28
"""Outputs whose influence is computed at once."""
SMALLEST = 1e-13
"""Share of a row's largest influence below which it is rounding."""
WITHOUT = ("value_gate", "output_gate", "output_norm", "enhancement")
"""Modules of a layer over a map that act beside attention, and not through its weights."""
GATES = {"output_gate": "output", "value_gate": "values"}
"""Modules that multiply, and what."""


@dataclass
class Alike:
    """What attention does where queries and keys are all alike.

    Attributes:
        weights: of the first example of each call of ``attend``, (H, L, S).
        gates: logarithm of the gate on the keys of each, (H, S), or ``None``.
        left: what there is beside the product of query and key: ``"mask"``, ``"bias"``, ``"decay"``, ``"gate"``.
    """

    weights: list[Tensor] = field(default_factory=list)
    gates: list[Tensor | None] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def note(self, weights: Tensor, options: Mapping[str, Any]) -> None:
        gate = options["key_gate"]
        self.weights.append(weights[0].detach())
        self.gates.append(None if gate is None else gate.log[0].detach())
        there = {
            "mask": options["causal"] or options["mask"] is not None,
            "bias": bool(terms(options["bias"])),
            "decay": options["decay"] is not None,
            "gate": gate is not None,
        }
        self.left = [name for name, is_there in there.items() if is_there or name in self.left]


@contextmanager
def alike() -> Iterator[Alike]:
    """Inside this context queries and keys of ``attend`` are all alike, with ``scale q . k = 1``."""
    seen = Alike()

    def attend(q: Tensor, k: Tensor, v: Tensor, *, backend: str, dropout: float, **options: Any) -> Tensor:
        # Derivatives reach the values and the gates alone.
        q, k = (torch.ones_like(each) / each.shape[-1] ** 0.5 for each in (q, k))
        weights = pair_weights(q, k, **{**options, "scale": 1.0})
        seen.note(weights, options)
        return (weights @ v.double()).to(v.dtype)

    with _calls.replaced(attend):
        yield seen


def pixel_weights(layer: nn.Module, x: Tensor) -> Tensor | None:
    """What the values of all pixels weigh in attention's result at each, in whatever passes and windows: (H, P, P).

    Read off the layer with values that are 1 at one pixel and 0 elsewhere, and nothing else between its linear maps
    ``value`` and ``output``; ``None`` for a layer that has no such maps, each applied once to the whole image.
    """
    value, output = (getattr(layer, name, None) for name in ("value", "output"))
    if not isinstance(value, nn.Linear) or not isinstance(output, nn.Linear):
        return None
    shapes: list[torch.Size] = []
    made = value.register_forward_hook(lambda _, args, out: shapes.append(out.shape[:-1]))
    taken = output.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[:-1]))
    with made, taken:
        layer(x)
    if shapes != [x.shape[:-1]] * 2:
        return None
    pixels = x.shape[1] * x.shape[2]
    ones = torch.eye(pixels, dtype=x.dtype).view(pixels, *x.shape[1:3], 1)
    results: list[Tensor] = []
    modules = {name: each for name in WITHOUT if isinstance(each := getattr(layer, name, None), nn.Module)}
    with ExitStack() as hooks:
        for name, module in modules.items():
            adds = name == "enhancement"
            hook = module.register_forward_hook(lambda _, args, out, adds=adds: out * 0 if adds else args[0])
            hooks.callback(hook.remove)
        for start in range(0, pixels, BATCH):
            some = ones[start : start + BATCH]
            given = value.register_forward_hook(lambda _, args, out, some=some: some.expand_as(out))
            read = output.register_forward_pre_hook(lambda _, args: results.append(args[0].flatten(1, 2)))
            with given, read:
                layer(x.expand(len(some), *x.shape[1:]))
    # (pixel that is 1, pixel that attends, channel)
    by_channel = torch.cat(results)
    return by_channel[..., :: x.shape[-1] // getattr(layer, "heads", 1)].permute(2, 1, 0)


def gates(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What the gates on values and output multiply by, (B, T, C) each."""
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, what in GATES.items():
            if isinstance(module := getattr(layer, name, None), nn.Module):

                def record(module: nn.Module, args: tuple[Tensor, ...], _: object, what: str = what) -> None:
                    gate = module.forward(torch.ones_like(args[0]), *args[1:])
                    # The output comes by heads, (B, H, T, D), the values as (B, T, C) or (B, H, W, C).
                    by_token = gate.transpose(1, 2) if what == "output" else gate
                    found[what] = by_token.flatten(2) if what == "output" else by_token.flatten(1, -2)

                hooks.callback(module.register_forward_hook(record).remove)
        layer(x)
    return found


def influence(layer: nn.Module, x: Tensor, outputs: Iterable[int]) -> list[list[float | None]]:
    """Size of the derivative of each output by each input over the row's largest, ``None`` below
    :data:`SMALLEST`.

    Args:
        x: (1, T, C) or (1, H, W, C).
        outputs: tokens or pixels, in raster order.
    """
    wanted, rows = list(outputs), []
    for start in range(0, len(wanted), BATCH):
        some = torch.tensor(wanted[start : start + BATCH])
        # An example for each output: one derivative of their sum has them all.
        with torch.enable_grad():
            inputs = x.expand(len(some), *x.shape[1:]).clone().requires_grad_()
            result = layer(inputs).flatten(1, -2)[torch.arange(len(some)), some]
            weights = torch.randn(result.shape[-1], dtype=result.dtype)
            (slopes,) = torch.autograd.grad((result @ weights).sum(), inputs)
        sizes = slopes.flatten(1, -2).norm(dim=-1)
        rows += _shares(sizes)
    return rows


def _shares(sizes: Tensor) -> list[list[float | None]]:
    shares = sizes / sizes.amax(-1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
    return [[value if value > SMALLEST else None for value in row] for row in shares.tolist()]


def mixing(layer: nn.Module, tokens: int) -> tuple[list[int], Tensor] | None:
    """What a key that is 1 becomes among keys that are 0: lags, and the kernel over them, (H, lags); ``None`` for a
    layer that does not mix its keys."""
    module = getattr(layer, "key_mixing", None)
    if not isinstance(module, nn.Module):
        return None
    middle = tokens // 2
    k = torch.zeros(1, getattr(layer, "heads", 1), tokens, 1, dtype=torch.float64)
    k[:, :, middle] = 1.0
    return list(range(-middle, tokens - middle)), module(k, None)[0, :, :, 0]
