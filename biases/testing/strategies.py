"""Hypothesis strategies for the inputs of an attention layer.

Hypothesis draws a shape, a *regime* and a seed, never the numbers themselves: so a failure shrinks to a short
sequence of a plain kind, and the tensor is rebuilt from a local :class:`torch.Generator`, without global
state.

Hypothesis is imported when a strategy is made; :func:`make_tensor` does not need it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from biases._checks import fail, one_of

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

REGIMES = (
    "normal",
    "zeros",
    "equal-tokens",
    "one-hot",
    "alternating-sign",
    "tiny",
    "large",
    "non-contiguous",
)
# Values alone: that strides do not matter is a promise of its own.
VALUES = tuple(regime for regime in REGIMES if regime != "non-contiguous")
MODERATE = tuple(regime for regime in VALUES if regime != "large")
MAX_LENGTH = 12
WIDTHS = ((16, 2), (16, 1), (24, 3), (32, 4))
PARAMETERS = ("initial", "moved")


def shapes(
    max_batch: int = 3, max_length: int = 12, *, min_batch: int = 1, min_length: int = 1
) -> SearchStrategy[tuple[int, int]]:
    """Strategy of ``(B, T)``; shrinks to the shortest sequence first, then to the smallest batch."""
    from hypothesis import strategies as st

    lengths, batches = st.integers(min_length, max_length), st.integers(min_batch, max_batch)
    return st.tuples(lengths, batches).map(lambda drawn: (drawn[1], drawn[0]))


def seeds() -> SearchStrategy[int]:
    """Strategy of seeds; shrinks to 0."""
    from hypothesis import strategies as st

    return st.integers(0, 2**16 - 1)


def _grids(at_least: int, at_most: int) -> SearchStrategy[tuple[int, int]]:
    """Strategy of (height, width), both sides between 1 and about the square root of ``2 at_most``."""
    from hypothesis import strategies as st

    longest = max(1, math.isqrt(2 * at_most))
    pairs = [(h, w) for h in range(1, longest + 1) for w in range(1, longest + 1) if at_least <= h * w <= at_most]
    return st.sampled_from(sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair)))


def regimes(among: Sequence[str] = REGIMES) -> SearchStrategy[str]:
    """Strategy of regime names; shrinks to the first of ``among``.

    Raises:
        ValueError: a name is not a regime.
    """
    from hypothesis import strategies as st

    for name in among:
        one_of("regime", name, REGIMES)
    return st.sampled_from(list(among))


def examples(
    widths: Sequence[tuple[int, int]] = WIDTHS,
    *,
    max_batch: int = 3,
    max_length: int = MAX_LENGTH,
    min_batch: int = 1,
    min_length: int = 1,
    among: Sequence[str] = VALUES,
    cut: bool = False,
    keys: bool = False,
    domain: str = "sequence",
    choices: dict[str, Sequence[Any]] | None = None,
) -> SearchStrategy[dict[str, Any]]:
    """Strategy of whole examples: dicts of JSON values from which a layer and its input can be rebuilt.

    Args:
        widths: pairs ``(dim, heads)``.
        max_batch, max_length, min_batch, min_length: bounds of ``(B, T)``.
        among: regimes of the input.
        cut: whether to draw ``position``, an index in ``[0, T - 2]`` that has a future; needs ``min_length >=
            2``.
        keys: whether to draw ``keys``, a number of keys S between the same bounds as T.
        domain: ``"image"`` draws ``height`` and ``width`` in place of ``length``, with ``height * width`` between the
            bounds of T, or as near below as the sides allow.
        choices: further keys and the values to choose from; each shrinks to its first.

    Returns:
        Dicts with the keys ``length``, ``batch``, ``dim``, ``heads``, ``regime``, ``seed``, ``parameters``
        (``"initial"``, or ``"moved"`` away from values such as the zeros that hide a gate), and those asked
        for.
    """
    from hypothesis import strategies as st

    if cut and min_length < 2:
        fail("min_length of examples with a cut", "at least 2", min_length)
    sizes = shapes(max_batch, max_length, min_batch=min_batch, min_length=min_length)
    grids = _grids(min_length, max_length)

    @st.composite
    def example(draw: DrawFn) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        if domain == "image":
            drawn["height"], drawn["width"] = draw(grids)
            drawn["batch"] = draw(st.integers(min_batch, max_batch))
        else:
            batch, drawn["length"] = draw(sizes)
            drawn["batch"] = batch
        if keys:
            drawn["keys"] = draw(st.integers(min_length, max_length))
        if cut:
            drawn["position"] = draw(st.integers(0, drawn["length"] - 2))
        for name, values in (choices or {}).items():
            drawn[name] = draw(st.sampled_from(list(values)))
        drawn["dim"], drawn["heads"] = draw(st.sampled_from(list(widths)))
        drawn["regime"] = draw(regimes(among))
        drawn["parameters"] = draw(st.sampled_from(PARAMETERS))
        drawn["seed"] = draw(seeds())
        return drawn

    return example()


def make_tensor(
    shape: Sequence[int], regime: str = "normal", seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Build a CPU tensor of one regime from a local generator.

    Args:
        shape: at least 2 axes, ``(..., T, C)``.
        regime: one of :data:`REGIMES`: ``normal``; ``zeros``; ``equal-tokens``, one token repeated along T;
            ``one-hot``, one channel of a token is 1; ``alternating-sign``, positive on even tokens, negative
            on odd ones; ``tiny``, 1e-6 (1e-4 in float16); ``large``, 1e4 (1e2 in float16 and bfloat16);
            ``non-contiguous``, normal with a stride of 2 along C.
        seed: of the generator. The numbers are drawn in float64 and rounded, so that they agree across
            dtypes.
        dtype: a floating dtype.

    Raises:
        ValueError: unknown regime, fewer than 2 axes, or a dtype that is not floating.
    """
    one_of("regime", regime, REGIMES)
    if len(shape) < 2:
        fail("shape of an input", "at least 2 axes, (..., T, C)", tuple(shape))
    if not dtype.is_floating_point:
        fail("dtype of an input", "a floating dtype", dtype)
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(*shape, generator=generator, dtype=torch.float64)
    half = dtype in (torch.float16, torch.bfloat16)
    match regime:
        case "zeros":
            x = torch.zeros_like(normal)
        case "equal-tokens":
            x = normal[..., :1, :].expand_as(normal).contiguous()
        case "one-hot":
            x = torch.nn.functional.one_hot(normal.argmax(-1), shape[-1]).double()
        case "alternating-sign":
            sign = 1.0 - 2.0 * (torch.arange(shape[-2]) % 2).double()
            x = normal.abs() * sign[:, None]
        case "tiny":
            x = normal * (1e-4 if dtype == torch.float16 else 1e-6)
        case "large":
            x = normal * (1e2 if half else 1e4)
        case _:
            x = normal
    x = x.to(dtype)
    return strided(x) if regime == "non-contiguous" else x


def strided(x: Tensor) -> Tensor:
    """The same values laid out with a stride of 2 along the last axis."""
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]
