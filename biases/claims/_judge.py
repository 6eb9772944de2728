"""What the tests of statements share: draws, deviations, counts, and the verdict that a deviation amounts to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, Evidence

EXACT = 1e-12  # float64 numbers of about 1 after a few hundred roundings


def judged(
    text: str, *, error: float, tolerance: float, counterexample: Mapping[str, Any] | None = None, **more: Any
) -> Evidence:
    """Holds where ``error`` is within ``tolerance``, and fails, by the ``counterexample``, where it is not.

    Args:
        text: true of both outcomes, as it gives the numbers.
        more: other fields of :class:`Evidence`.
    """
    error = float(error)
    if error <= tolerance:
        return Evidence(verdict=HOLDS, text=text, error=error, tolerance=tolerance, **more)
    return Evidence(verdict=FAILS, text=text, error=error, tolerance=tolerance, counterexample=counterexample, **more)


def limited(
    text: str,
    *,
    inside: float,
    outside: float,
    tolerance: float,
    conditions: str,
    counterexample: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    **more: Any,
) -> Evidence:
    """Holds under ``conditions`` where the deviation ``inside`` them is within ``tolerance`` and that ``outside`` is
    not; holds without any where both are within it; fails where ``inside`` is not."""
    inside, outside = float(inside), float(outside)
    values = {**(values or {}), "deviation_outside_the_conditions": outside}
    if inside > tolerance or outside <= tolerance:
        return judged(text, error=inside, tolerance=tolerance, counterexample=counterexample, values=values, **more)
    return Evidence(
        verdict=CONDITIONAL,
        text=text,
        conditions=conditions,
        error=inside,
        tolerance=tolerance,
        counterexample=counterexample,
        values=values,
        **more,
    )


def reconstructed(
    text: str, *, error: float, tolerance: float, counterexample: Mapping[str, Any] | None = None, **more: Any
) -> Evidence:
    """As :func:`judged`, of equations that the paper does not print: what holds, holds in our reconstruction."""
    found = judged(text, error=error, tolerance=tolerance, counterexample=counterexample, **more)
    if found.verdict != HOLDS:
        return found
    return replace(found, verdict=CONDITIONAL, conditions="in our reconstruction, as the paper prints no equations")


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, float64, the same on every machine."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return (a.double() - b.double()).abs().max().item()


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def multiply_adds(run: Callable[[], object]) -> int:
    """Multiply-adds of the matrix products and convolutions of ``run()``, which may be on the meta device."""
    from biases.bench.counting import flops

    return flops(run, backward=False) // 2


def exponent(cost: Callable[[int], int], small: int, large: int) -> float:
    """The power of its size with which ``cost`` grows from ``small`` to ``large``."""
    return math.log(cost(large) / cost(small)) / math.log(large / small)


@torch.no_grad()
def influence(layer: Callable[[Tensor], Tensor], x: Tensor, *, step: float = 1.0) -> Tensor:
    """How far each pixel of the output moves when a pixel of the map is moved.

    Args:
        layer: maps (B, H, W, C) -> the same.
        x: one map, (1, H, W, C).
        step: what is added to all channels of a pixel.

    Returns:
        (H W, H W): the pixel moved, then the pixel of the output.
    """
    _, height, width, channels = x.shape
    pixels = height * width
    moved = x.flatten(1, 2).repeat(pixels, 1, 1)
    moved[torch.arange(pixels), torch.arange(pixels)] += step
    out = layer(moved.view(pixels, height, width, channels)) - layer(x)
    return out.flatten(1, 2).abs().amax(-1)


def manhattan_distance(height: int, width: int) -> Tensor:
    """|dy| + |dx| of every pair of pixels in raster order, (H W, H W)."""
    pixel = torch.arange(height * width)
    y, x = pixel // width, pixel % width
    return (y[:, None] - y).abs() + (x[:, None] - x).abs()


def rise(weights: Tensor, distance: Tensor) -> Tensor:
    """By how much a weight at some distance exceeds one at a lesser distance of the same query, at most; 0 if never.

    Args:
        weights: (heads, L, S).
        distance: (L, S), integers.

    Returns:
        (heads,).
    """
    worst = weights.new_zeros(len(weights))
    for d in range(int(distance.max())):
        near = weights.masked_fill(distance > d, torch.inf).amin(-1)
        far = weights.masked_fill(distance <= d, -torch.inf).amax(-1)
        worst = torch.maximum(worst, (far - near).amax(-1))
    return worst
