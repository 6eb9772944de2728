"""The kinds of subject, and the view that makes one set of properties fit several of them.

Layers of images, operators, encodings and decoders can all be seen as a layer (B, T, C) -> (B, T, C); what every layer
must satisfy is then put to each of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

KINDS: Mapping[str, str] = {
    "layer": "a callable x -> out, (B, T, C) or, in the image domain, (B, H, W, C)",
    "operator": "a callable (q, k, v[, mask]) -> out, (B, H, L, D), (B, H, S, D), (B, H, S, Dv) -> (B, H, L, Dv)",
    "encoding": "a callable (x, positions) -> x with the positions in it, (B, H, T, D), (T,) -> (B, H, T, D)",
    "decoder": "a callable (x, state) -> (out, state) for the next tokens x, (B, T, C); the first state is None",
    "gate": "a callable x -> gate of each token, (B, T, C) -> (B, T, ...)",
    "bias": "a callable (L, S) -> logits to add, broadcastable to (H, L, S); in the image domain (height, width)",
    "slopes": "a callable () -> slopes, (H,)",
    "mask": "a callable (L, S) -> (L, S), True = may attend; in the image domain (height, width)",
}
VIEWED = ("layer", "operator", "encoding", "decoder")


class Misfit(AssertionError):
    """What the subject returned cannot be seen as the output of a layer."""


def view(kind: str, domain: str, inner: Any, heads: int, grid: tuple[int, int] | None = None) -> Callable[..., Any]:
    """``inner`` seen as a layer (B, T, C) -> (B, T, C).

    Args:
        kind: one of :data:`VIEWED`.
        domain: ``"sequence"`` or ``"image"``.
        inner: what the factory returned; a layer of sequences is its own view.
        heads: H, into which C is split for operators and encodings.
        grid: (height, width) of the map that T tokens are; other T are seen as one row.

    Returns:
        A module where ``inner`` is one, so that its parameters are found; else a function.
    """
    if kind == "layer" and domain == "sequence":
        return inner
    applied = _applied(kind, heads, grid)
    if isinstance(inner, nn.Module):
        return _View(inner, applied)

    def viewed(x: Tensor) -> Any:
        return applied(inner, x)

    return viewed


class _View(nn.Module):
    def __init__(self, inner: nn.Module, applied: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self._applied = inner, applied
        self.train(inner.training)

    def forward(self, x: Tensor) -> Any:
        return self._applied(self.inner, x)


def _applied(kind: str, heads: int, grid: tuple[int, int] | None) -> Callable[[Any, Tensor], Any]:
    match kind:
        case "layer":
            return lambda inner, x: _image(inner, x, grid)
        case "operator":
            return lambda inner, x: _merged(inner(*split(x, heads)), x)
        case "encoding":
            return lambda inner, x: _merged(inner(_heads(x, heads), torch.arange(x.shape[1], device=x.device)), x)
        case _:
            return lambda inner, x: first_of_pair(inner(x, None))


def split(x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, T, D) made of a layer's input (B, T, C): its channels, in three orders."""
    h = _heads(x, heads)
    return h, h.roll(1, -1), h.roll(2, -1)


def _heads(x: Tensor, heads: int) -> Tensor:
    h = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    # Strides come from an input that has strides, and not from the view.
    return h.contiguous() if x.is_contiguous() else h


def _merged(out: Any, x: Tensor) -> Any:
    if not isinstance(out, Tensor):
        return out
    if out.ndim != 4 or out.transpose(1, 2).flatten(2).shape != x.shape:
        batch, length, dim = x.shape
        heads = "heads x (C / heads)"
        raise Misfit(
            f"output: expected shape (B, H, T, D) with B {batch}, T {length}, {heads} = {dim}, got {tuple(out.shape)}"
        )
    return out.transpose(1, 2).flatten(2)


def _image(inner: Any, x: Tensor, grid: tuple[int, int] | None) -> Any:
    height, width = grid if grid is not None and grid[0] * grid[1] == x.shape[1] else (1, x.shape[1])
    laid_out = x.unflatten(1, (height, width))
    out = inner(laid_out)
    if not isinstance(out, Tensor):
        return out
    if out.shape != laid_out.shape:
        raise Misfit(f"output: expected shape (B, H, W, C) = {tuple(laid_out.shape)}, got {tuple(out.shape)}")
    return out.flatten(1, 2)


def with_mask(kind: str, inner: Any, forms: tuple[str, ...]) -> Any:
    """``inner``, given a mask that hides nothing where it cannot be called without one.

    Args:
        kind: ``"layer"`` or ``"operator"``; others are given back as they are.
        inner: what the factory returned.
        forms: ``Traits.mask``.
    """
    inputs = {"layer": 1, "operator": 3}.get(kind, 0)
    if not (inputs and forms) or _required(inner) <= inputs:
        return inner
    if isinstance(inner, nn.Module):
        return _Masked(inner, inputs, forms)
    return lambda *given: inner(*given, *_hiding_nothing(given, inputs, forms))


class _Masked(nn.Module):
    def __init__(self, inner: nn.Module, inputs: int, forms: tuple[str, ...]) -> None:
        super().__init__()
        self.inner, self._inputs, self._forms = inner, inputs, forms

    def forward(self, *given: Tensor) -> Any:
        return self.inner(*given, *_hiding_nothing(given, self._inputs, self._forms))


def _required(inner: Any) -> int:
    """How many positional arguments it cannot do without; 0 where that cannot be known."""
    try:
        parameters = inspect.signature(inner.forward if isinstance(inner, nn.Module) else inner).parameters.values()
    except (TypeError, ValueError):
        return 0
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.default is each.empty and each.kind in positional for each in parameters)


def _hiding_nothing(given: tuple[Tensor, ...], inputs: int, forms: tuple[str, ...]) -> tuple[Tensor, ...]:
    if len(given) > inputs:
        return ()
    if inputs == 1:
        return (given[0].new_ones(given[0].shape[:-1], dtype=torch.bool),)
    shape = (given[0].shape[2], given[1].shape[2])
    if "boolean" in forms:
        return (given[0].new_ones(shape, dtype=torch.bool),)
    return (given[0].new_zeros(shape),)


def first_of_pair(returned: Any) -> Any:
    """The output of a decoder.

    Raises:
        Misfit: it did not return a pair.
    """
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise Misfit(f"the decoder returned {type(returned).__name__}, expected a pair (out, state)")
    return returned[0]
