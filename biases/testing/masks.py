"""Masks, True = may attend: builders of named kinds, and the support that traits promise.

The support is written out from the words of :class:`biases.traits.Traits`, as the thing to compare to:

* query ``i`` stands at key ``i`` (``"upper-left"``), or at key ``i + S - L`` (``"lower-right"``);
* a causal query sees no key after its own place;
* a causal window of ``w`` keys is the own key and the ``w - 1`` before it; without causality it is symmetric, with
  ``(w - 1) // 2`` keys to each side, so that an even ``w`` means the same as ``w - 1``;
* windows of an image have side ``w``. Shifted by ``s``, they are cut at ``s``, ``s + w``, ``s + 2 w`` ... on each axis,
  and the first holds the ``s`` pixels before: what the cyclic shift brings into one window from the two ends of the map
  does not mix (Swin, arXiv:2103.14030, Figure 4). A map that windows do not divide, or smaller than one, is padded
  at its end before it is shifted, and windows keep their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from biases._checks import fail, one_of, positive_int
from biases.traits import Traits

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

# Kinds that leave every query a key, the simplest first.
WITH_KEYS = ("all", "causal", "padding", "left-padding", "band", "one-key", "random")
MASKS = (*WITH_KEYS, "empty-rows", "empty")


def make_mask(kind: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Build a mask of one kind from a local generator.

    Args:
        kind: one of :data:`MASKS`: ``all``; ``causal``, query i sees keys 0..i; ``padding`` and ``left-padding``, the
            last or the first keys are masked for every query, by another number in each leading axis; ``band``, the
            nearest keys; ``one-key``, one key a query; ``random``, about half of the pairs; ``empty-rows``, the same
            with about a third of the queries, and at least one, left without any key; ``empty``, no pair at all.
        shape: (..., L, S), none of them 0.
        seed: of the generator.

    Returns:
        bool of that shape, True = may attend.

    Raises:
        ValueError: unknown kind, or a shape of fewer than 2 axes or with an axis of 0.
    """
    one_of("kind of mask", kind, MASKS)
    if len(shape) < 2 or min(shape) < 1:
        fail("shape of a mask", "(..., L, S), each at least 1", tuple(shape))
    *lead, L, S = shape
    generator = torch.Generator().manual_seed(seed)
    i, j = torch.arange(L)[:, None], torch.arange(S)
    # One key that each query is left with, whatever else is drawn.
    kept = torch.nn.functional.one_hot(torch.randint(S, (*lead, L), generator=generator), S).bool()
    drawn = torch.rand(*shape, generator=generator) < 0.5
    count = torch.randint(1, S + 1, (*lead, 1, 1), generator=generator)
    empty = torch.rand(*lead, L, 1, generator=generator) < 1 / 3
    match kind:
        case "all":
            mask = torch.ones(L, S, dtype=torch.bool)
        case "causal":
            mask = j <= i
        case "padding":
            mask = (j < count).expand(*lead, L, S)
        case "left-padding":
            mask = (j >= S - count).expand(*lead, L, S)
        case "band":
            mask = (i.clamp(max=S - 1) - j).abs() <= 1
        case "one-key":
            mask = kept
        case "random":
            mask = drawn | kept
        case "empty-rows":
            empty[..., -1, :] |= ~empty.any(-2)
            mask = (drawn | kept) & ~empty
        case _:
            mask = torch.zeros(L, S, dtype=torch.bool)
    return mask.expand(*shape).clone()


def masks(shape: Sequence[int], among: Sequence[str] = MASKS) -> SearchStrategy[Tensor]:
    """Strategy of masks of one shape, (..., L, S), bool; shrinks to the first kind of ``among`` and to seed 0.

    Raises:
        ValueError: a name is not a kind of mask.
    """
    from hypothesis import strategies as st

    for name in among:
        one_of("kind of mask", name, MASKS)
    seeds = st.integers(0, 2**16 - 1)
    return st.tuples(st.sampled_from(list(among)), seeds).map(lambda drawn: make_mask(drawn[0], shape, drawn[1]))


def additive(mask: Tensor, dtype: torch.dtype, forbidden: float = float("-inf")) -> Tensor:
    """The mask as what is added to the logits: 0 where True, ``forbidden`` where False; the shape of ``mask``."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, forbidden)


def expected_support(traits: Traits, first: int, second: int) -> Tensor:
    """Which key each query may see, by the traits ``causal``, ``alignment``, ``window`` and ``shift``.

    Args:
        traits: the promises; the module's docstring says how they are read.
        first, second: (L, S), or in the image domain (height, width), whose pixels are queries and keys row by row.

    Returns:
        (L, S), or (height width, height width), bool, True = may attend.

    Raises:
        ValueError: a size below 1, or L != S where places matter and ``Traits.alignment`` is not declared.
    """
    positive_int("expected_support first", first)
    positive_int("expected_support second", second)
    if traits.domain == "image":
        return _image(traits, first, second).clone()
    placed = traits.causal or traits.window is not None
    if placed and first != second and traits.alignment is None:
        fail(f"Traits alignment for L={first}, S={second}", "'upper-left' or 'lower-right'", None)
    offset = second - first if traits.alignment == "lower-right" else 0
    back = torch.arange(first)[:, None] + offset - torch.arange(second)
    seen = back >= 0 if traits.causal else torch.ones(first, second, dtype=torch.bool)
    if traits.window is None:
        return seen
    return seen & (back < traits.window if traits.causal else back.abs() <= (traits.window - 1) // 2)


@lru_cache(maxsize=256)
def _image(traits: Traits, height: int, width: int) -> Tensor:
    places = torch.arange(height * width)
    seen = torch.ones(height * width, height * width, dtype=torch.bool)
    if traits.causal:
        seen = places <= places[:, None]
    if traits.window is not None:
        side, shift = traits.window, traits.shift % traits.window
        for along in (places // width, places % width):
            number = (along - shift).div(side, rounding_mode="floor")
            seen = seen & (number == number[:, None])
    return seen
