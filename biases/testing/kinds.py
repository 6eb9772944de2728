"""Subjects of other kinds than layers, made of plain functions.

Each wrapper returns a factory that :func:`biases.testing.check_attention` takes::

    from functools import partial

    from torch.nn.functional import scaled_dot_product_attention

    from biases.testing import Traits, check_attention, kinds

    causal = partial(scaled_dot_product_attention, is_causal=True)
    results = check_attention(kinds.operator(causal), Traits(causal=True, normalisation="row"))

A factory ``make(dim, heads, **options)`` of one's own that returns what its kind asks for needs no wrapper: give it
an attribute ``kind``, or pass ``kind=`` to the check. The kinds are in :data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from biases._checks import fail
from biases.testing.script import how_to_import
from biases.testing.views import KINDS
from biases.traits import Traits

__all__ = ["KINDS", "bias", "decoder", "encoding", "gate", "mask", "operator", "slopes"]

Factory = Callable[..., Any]


def operator(fn: Callable[..., Tensor], traits: Traits | None = None) -> Factory:
    """A functional operator.

    Args:
        fn: ``fn(q, k, v)`` with (B, H, L, D), (B, H, S, D), (B, H, S, Dv), returning (B, H, L, Dv); also
            ``fn(q, k, v, mask)`` where ``Traits.mask`` says which masks it takes.
        traits: what it promises.
    """
    return _wrapped("operator", fn, traits, lambda dim, heads: fn)


def encoding(make: Callable[[int], Any], traits: Traits | None = None) -> Factory:
    """A positional encoding.

    Args:
        make: ``make(head_dim)`` returning a callable (x, positions) -> x with the positions in it, for x (B, H, T, D)
            and positions (T,).
        traits: what it promises; ``position="relative"`` for a rotation of queries and keys, ``"absolute"`` for a
            table that is added.
    """
    return _wrapped("encoding", make, traits, lambda dim, heads: make(dim // heads))


def decoder(make: Callable[[int, int], Any], traits: Traits | None = None) -> Factory:
    """A decoding pair.

    Args:
        make: ``make(dim, heads)`` returning a callable (x, state) -> (out, state) that takes any number of tokens,
            (B, T, C), the first state being ``None``; or a pair ``(prefill, step)`` with ``prefill(x) -> (out, state)``
            and ``step(x, state) -> (out, state)`` for one token, (B, 1, C).
        traits: what it promises.
    """

    def build(dim: int, heads: int, **options: Any) -> Any:
        made = make(dim, heads, **options)
        return _paired(*made) if isinstance(made, tuple) else made

    return _wrapped("decoder", make, traits, build)


def _paired(prefill: Callable[..., Any], step: Callable[..., Any]) -> Callable[..., Any]:
    owner = getattr(prefill, "__self__", None)
    if owner is getattr(step, "__self__", None) and isinstance(owner, torch.nn.Module):
        return _Pair(owner, prefill.__name__, step.__name__)
    return lambda x, state: _extended(prefill, step, x, state)


class _Pair(torch.nn.Module):
    """Two methods of one module, whose parameters are found here, and which is copied with them."""

    def __init__(self, owner: torch.nn.Module, prefill: str, step: str) -> None:
        super().__init__()
        self.owner, self._names = owner, (prefill, step)

    def forward(self, x: Tensor, state: Any) -> Any:
        prefill, step = (getattr(self.owner, name) for name in self._names)
        return _extended(prefill, step, x, state)


def _extended(prefill: Callable[..., Any], step: Callable[..., Any], x: Tensor, state: Any) -> Any:
    if state is None:
        return prefill(x)
    outs = []
    for token in x.split(1, dim=1):
        out, state = step(token, state)
        outs.append(out)
    return torch.cat(outs, dim=1), state


def gate(make: Callable[[int, int], Any], traits: Traits | None = None) -> Factory:
    """A gate.

    Args:
        make: ``make(dim, heads)`` returning a callable (B, T, C) -> (B, T, ...), the gate of each token.
        traits: what it promises: ``gate_range``, ``gate_sees``, ``gate_monotone_in``.
    """
    return _wrapped("gate", make, traits, make)


def bias(fn: Callable[..., Tensor], traits: Traits | None = None) -> Factory:
    """A bias of the logits.

    Args:
        fn: ``fn(heads, L, S)`` returning what is added to the logits, broadcastable to (H, L, S), ``-inf`` where
            nothing may be seen; in the image domain ``fn(heads, height, width)``, broadcastable to (H, H W, H W).
        traits: what it promises: ``causal``, ``alignment``, ``decay``, ``window``.
    """
    return _wrapped("bias", fn, traits, lambda dim, heads: lambda first, second: fn(heads, first, second))


def slopes(fn: Callable[[int], Any], traits: Traits | None = None) -> Factory:
    """Slopes of ALiBi, ``fn(heads)``: (H,), a tensor or numbers."""
    return _wrapped("slopes", fn, traits, lambda dim, heads: lambda: torch.as_tensor(fn(heads)))


def mask(fn: Callable[[int, int], Tensor], traits: Traits | None = None) -> Factory:
    """A mask, ``fn(L, S)``: (L, S), True = may attend; in the image domain ``fn(height, width)``: (H W, H W)."""
    return _wrapped("mask", fn, traits, lambda dim, heads: fn)


def _wrapped(kind: str, inner: Callable[..., Any], traits: Traits | None, make: Factory) -> Factory:
    if not callable(inner):
        fail(f"kinds.{kind}", "a callable", type(inner).__name__)
    declared = traits if traits is not None else getattr(inner, "traits", None)

    def factory(dim: int, heads: int, **options: Any) -> Any:
        return make(dim, heads, **options)

    factory.__name__ = str(getattr(inner, "__name__", None) or getattr(getattr(inner, "func", None), "__name__", kind))
    factory.kind = kind  # type: ignore[attr-defined]
    factory.how_to_build = "\n".join(  # type: ignore[attr-defined]
        [how_to_import(inner), f"from biases.testing import kinds; make_layer = kinds.{kind}(make_layer)"]
    )
    # The state that outlives a call is that of the wrapped function's module, not of this one.
    factory.__module__ = getattr(inner, "__module__", None) or __name__
    if declared is not None:
        factory.traits = declared  # type: ignore[attr-defined]
    return factory
