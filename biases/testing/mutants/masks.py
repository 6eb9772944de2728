"""Masks that are right, and those with one fault: a window, its middle, its padding."""

from __future__ import annotations

import torch
from torch import Tensor

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.generators import Sizes, past
from biases.traits import Traits

WINDOW = Traits(causal=True, window=3, alignment="lower-right")
CENTRED = Traits(window=5)
SHIFTED = Traits(domain="image", window=3, shift=1)
WIDE = Traits(causal=True, window=128)


@sound("causal-window-mask", WINDOW, kind="mask")
def causal_window(dim: int, heads: int) -> Sizes:
    return lambda L, S: (past(L, S) >= 0) & (past(L, S) < 3)


@sound("wide-window-mask", WIDE, kind="mask")
def wide_window(dim: int, heads: int) -> Sizes:
    return lambda L, S: (past(L, S) >= 0) & (past(L, S) < 128)


@mutant(
    "wide-mask-one-more",
    "a window of 128 shows the own key and the 128 before it",
    WIDE,
    caught_by="mask-support",
    kind="mask",
    source="huggingface/transformers#39408",
)
def wide_one_more(dim: int, heads: int) -> Sizes:
    return lambda L, S: (past(L, S) >= 0) & (past(L, S) <= 128)


@sound("centred-window-mask", CENTRED, kind="mask")
def centred_window(dim: int, heads: int) -> Sizes:
    return lambda L, S: past(L, S).abs() <= 2


@sound("shifted-window-mask", SHIFTED, kind="mask")
def shifted_window(dim: int, heads: int) -> Sizes:
    return lambda height, width: by_region(*padded_regions(height, width, pad_first=True), height, width)


def padded_regions(height: int, width: int, *, pad_first: bool) -> tuple[Tensor, Tensor]:
    """Which window, and which region of it, each pixel is in after the cyclic shift by 1: two (height, width)."""
    sides = []
    for size in (height, width):
        whole = -(-size // 3) * 3
        # Where each pixel lies after the roll, on a side that is padded before it or after it.
        place = (torch.arange(size) - 1) % (whole if pad_first else size)
        region = (place >= whole - 3).long() + (place >= whole - 1).long()
        sides.append((place // 3, region))
    (down, part_down), (across, part_across) = sides
    return down[:, None] * 1000 + across, part_down[:, None] * 1000 + part_across


def by_region(window: Tensor, region: Tensor, height: int, width: int) -> Tensor:
    window, region = window.flatten(), region.flatten()
    return (window[:, None] == window) & (region[:, None] == region)


@mutant("mask-additive", "0 and -inf in place of True and False", WINDOW, caught_by="mask-shape", kind="mask")
def additive(dim: int, heads: int) -> Sizes:
    return lambda L, S: torch.zeros(L, S).masked_fill(~causal_window(dim, heads)(L, S), -torch.inf)


@mutant(
    "mask-window-one-more",
    "a window of 3 shows the own key and the 3 before it",
    WINDOW,
    caught_by="mask-support",
    kind="mask",
    source="huggingface/transformers#39408",
)
def window_one_more(dim: int, heads: int) -> Sizes:
    return lambda L, S: (past(L, S) >= 0) & (past(L, S) <= 3)


@mutant(
    "mask-window-ignored",
    "the window never reaches the mask",
    WINDOW,
    caught_by="mask-support",
    kind="mask",
    source="unslothai/unsloth#8253",
)
def window_ignored(dim: int, heads: int) -> Sizes:
    return lambda L, S: past(L, S) >= 0


@mutant(
    "mask-padded-after-the-roll",
    "the map is padded after the cyclic shift, and the regions are those of the map padded before",
    SHIFTED,
    caught_by="mask-support",
    kind="mask",
    source="huggingface/pytorch-image-models#2438",
)
def padded_after_the_roll(dim: int, heads: int) -> Sizes:
    return lambda height, width: by_region(*padded_regions(height, width, pad_first=False), height, width)


@mutant(
    "mask-lopsided-window",
    "a window of 5 reaches 4 keys back and 2 ahead",
    CENTRED,
    caught_by="mask-symmetry",
    kind="mask",
    source="huggingface/transformers#40700",
)
def lopsided_window(dim: int, heads: int) -> Sizes:
    return lambda L, S: (past(L, S) <= 4) & (past(L, S) >= -2)


@mutant(
    "mask-without-the-own-key",
    "a query sees the keys before its own only, so that the first sees none",
    Traits(causal=True),
    caught_by="every-query-has-a-key",
    kind="mask",
)
def without_the_own_key(dim: int, heads: int) -> Sizes:
    return lambda L, S: past(L, S) > 0
