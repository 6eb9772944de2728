"""Layers and operators whose attention stays in a window: of a sequence, and of an image, shifted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.layers import WINDOW, Plain, Windowed
from biases.testing.mutants.multi_head import MultiHead
from biases.testing.mutants.operators import CAUSAL, Causal
from biases.traits import Traits

SIDE, SHIFT = 4, 2
SHIFTED = Traits(domain="image", window=SIDE, shift=SHIFT, normalisation="row")
WIDE = Traits(causal=True, window=64, normalisation="row", equivariant_to=("shift",))
WIDE_OPERATOR = CAUSAL.but(window=16)
SPARSE = Traits(causal=True, window=6, normalisation="row")


@mutant(
    "layer-window-and-one",
    "Each query sees a key more than its window holds.",
    WINDOW,
    caught_by="receptive-field",
    source="huggingface/transformers#39408",
)
class LayerWindowAndOne(Windowed):
    def mask(self, logits: Tensor) -> Tensor:
        return torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril().triu(-3)


@sound("wide-window", WIDE)
class WideWindow(Plain):
    """A window longer than the sequences that most promises are put to."""

    window = 64

    def mask(self, logits: Tensor) -> Tensor:
        return super().mask(logits).triu(1 - self.window)


@mutant("wide-window-lost", "The window reaches no formulation.", WIDE, caught_by="receptive-field")
class WideWindowLost(WideWindow):
    window = 10**6


@mutant("wide-window-halved", "Half of the window stands before the query.", WIDE, caught_by="receptive-field")
class WideWindowHalved(WideWindow):
    window = 32


@sound("largest-two", SPARSE)
class LargestTwo(Plain):
    """The two largest logits of a window have all of the weight."""

    window = 6

    def weights(self, logits: Tensor) -> Tensor:
        seen = self.mask(logits).triu(1 - self.window)
        logits = logits.masked_fill(~seen, float("-inf"))
        least = logits.topk(min(2, logits.shape[-1]), -1).values[..., -1:]
        return logits.masked_fill(logits < least, float("-inf")).softmax(-1)


@mutant("largest-two-of-five", "A window of 6 holds 5 keys.", SPARSE, caught_by="receptive-field")
class LargestTwoOfFive(LargestTwo):
    window = 5


@sound("operator-wide-window", WIDE_OPERATOR, kind="operator")
class OperatorWideWindow(Causal):
    """A window longer than the sequences that most promises are put to."""

    window = 16


@mutant("operator-window-ignored", "The window is not passed on.", WIDE_OPERATOR, kind="operator", caught_by="support")
class OperatorWindowIgnored(Causal):
    pass


@mutant(
    "operator-window-halved",
    "Half of the window stands before the query.",
    WIDE_OPERATOR,
    kind="operator",
    caught_by="support",
)
class OperatorWindowHalved(Causal):
    window = 8


@sound("operator-delta", Traits(causal=True), kind="operator")
def delta_rule(dim: int, heads: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A key of norm 1 overwrites what the state holds in its direction."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        state, outs = v.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]), []
        for query, key, value in zip(q.split(1, 2), k.split(1, 2), v.split(1, 2), strict=True):
            state = state + key.mT @ (value - key @ state)
            outs.append(query @ state)
        return torch.cat(outs, dim=2)

    return attend


@sound("shifted-windows", SHIFTED)
class ShiftedWindows(MultiHead):
    """Attention in windows of a map (B, H, W, C), shifted as in Swin: pad, roll, cut, attend, and back."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"x: expected shape (B, H, W, C), got {tuple(x.shape)}")
        height, width = x.shape[1:3]
        tokens, regions = self.laid_out(x)
        q, k, v = _windows(self.qkv(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        label = _windows(regions[None, ..., None])[..., 0]
        same = (label[:, :, None] == label[:, None, :]).repeat(len(x), 1, 1)[:, None]
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(same))
        return self.put_back(_merged(self.out(y.transpose(1, 2).flatten(2)), tokens.shape), height, width)

    def mask(self, same: Tensor) -> Tensor:
        return same

    def laid_out(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The padded and rolled map, and the region of each of its pixels; padding is a region of its own."""
        inside = functional.pad(torch.ones(x.shape[1:3], dtype=torch.long, device=x.device), _padding(x))
        padded = functional.pad(x, (0, 0, *_padding(x))).roll((-SHIFT, -SHIFT), (1, 2))
        return padded, _regions(inside) * inside.roll((-SHIFT, -SHIFT), (0, 1))

    def put_back(self, y: Tensor, height: int, width: int) -> Tensor:
        return y.roll((SHIFT, SHIFT), (1, 2))[:, :height, :width]


def _padding(x: Tensor) -> tuple[int, int, int, int]:
    return 0, -x.shape[2] % SIDE, 0, -x.shape[1] % SIDE


def _regions(like: Tensor) -> Tensor:
    """Numbers from 1, (H, W): what the roll brought to the end of an axis is another region than what stood there."""
    regions = torch.zeros(like.shape, dtype=torch.long, device=like.device)
    cuts = (slice(0, -SIDE), slice(-SIDE, -SHIFT), slice(-SHIFT, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in cuts for columns in cuts):
        regions[rows, columns] = number + 1
    return regions


def _windows(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B windows, SIDE SIDE, C)."""
    cut = x.unflatten(2, (-1, SIDE)).unflatten(1, (-1, SIDE))
    return cut.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _merged(x: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_windows`."""
    cut = x.unflatten(0, (shape[0], shape[1] // SIDE, -1)).unflatten(3, (SIDE, SIDE))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


@mutant(
    "pad-after-roll",
    "The map is padded after it was rolled, and the regions are those of the map without padding.",
    SHIFTED,
    caught_by="receptive-field",
    source="huggingface/pytorch-image-models#2438",
)
class PadAfterRoll(ShiftedWindows):
    def laid_out(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rolled = x.roll((-SHIFT, -SHIFT), (1, 2))
        regions = _regions(x[0, :, :, 0])
        return functional.pad(rolled, (0, 0, *_padding(x))), functional.pad(regions, _padding(x))

    def put_back(self, y: Tensor, height: int, width: int) -> Tensor:
        return y[:, :height, :width].roll((SHIFT, SHIFT), (1, 2))


@mutant(
    "wrapped-windows",
    "What the shift brings together from two ends of the map is not kept apart.",
    SHIFTED,
    caught_by="receptive-field",
)
class WrappedWindows(ShiftedWindows):
    def mask(self, same: Tensor) -> Tensor:
        return torch.ones_like(same)
