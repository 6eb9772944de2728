"""Building layers and positions from the registry's entries, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

import biases.decays
import biases.gates
import biases.positions  # noqa: F401
from biases._checks import fail, one_of, positive_int
from biases.attention import BACKENDS
from biases.layers.self_attention import SelfAttention, set_backend
from biases.registry import Variant, get


def layer(name: str, dim: int, heads: int, *, dropout: float = 0.0, backend: str = "auto", **options: Any) -> nn.Module:
    """Build the attention layer ``name``: a module from (B, T, C) to the same, or from (B, H, W, C) for images.

    Args:
        name: a name of the zoo, options included or not.
        dim, heads: width C and number of heads.
        dropout: probability, on the weights, in training.
        backend: see :func:`biases.attend`.
        options: options of the variant, over those in the name.

    Raises:
        ValueError: unknown name or option, dimensions that do not fit, dropout for a layer that has none.
    """
    one_of("backend", backend, BACKENDS)
    if not 0.0 <= dropout < 1.0:
        fail("dropout", "a probability in [0, 1)", dropout)
    variant = get(name)
    if variant.kind != "layer":
        fail(f"zoo name {name!r}", "a layer", f"a {variant.kind}")
    parts = components(variant, dim, heads, **options)
    if isinstance(parts, nn.Module):
        if dropout and not isinstance(getattr(parts, "dropout", None), float):
            fail(f"dropout of {variant.name}", "0, as the layer takes none", dropout)
        if dropout:
            parts.dropout = dropout  # type: ignore[assignment]
        return parts if backend == "auto" else set_backend(parts, backend)
    return SelfAttention(dim, heads, dropout=dropout, backend=backend, **parts)


def components(variant: Variant, dim: int, heads: int, **options: Any) -> Any:
    """The components of a layer by slot name (or, for some variants, the finished module)."""
    for option in options:
        one_of(f"option of {variant.name}", option, sorted(variant.options))
    if positive_int("dim", dim) % positive_int("heads", heads):
        fail(f"{variant.name} dim", f"a multiple of heads={heads}", dim)
    return variant.make(dim, heads, **{**variant.options, **options})


def position(name: str, dim: int, *, context: int, heads: int, **options: Any) -> dict[str, Any]:
    """Build the position ``name``: ``{"embedding": module}``, ``{"rotary": module}`` or nothing.

    Raises:
        ValueError: unknown name or option, or dimensions that do not fit.
    """
    variant = get(name)
    if variant.kind != "position":
        fail(f"zoo name {name!r}", "a position", f"a {variant.kind}")
    for option in options:
        one_of(f"option of {variant.name}", option, sorted(variant.options))
    return variant.make(dim, context=context, heads=heads, **{**variant.options, **options})
