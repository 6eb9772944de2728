"""Swin's shifted-window attention (arXiv 2103.14030 Eq. 4; microsoft/Swin-Transformer, commit f82860b).

    A = softmax(Q K^T / sqrt(D) + B [+ mask]) inside windows of M x M pixels,  B from a table of (2 M - 1)^2 offsets.

In a model, every second layer is shifted by half a window, so that pixels on both sides of a border meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biases._checks import divides, feature_map, one_of, positive_int
from biases.attention import BACKENDS
from biases.layers.window_attention import MASK_VALUES, attend_in_windows
from biases.positions.relative_position import RelativePositionBias
from biases.registry import register
from biases.traits import Traits
from biases.windows import Windows

TABLE_DEVIATION = 0.02


class SwinAttention(nn.Module):
    """Multi-head attention inside shifted windows with a learned bias of relative position: (B, H, W, C) -> the same.

    A map whose smaller side is at most M is cut into windows of that side and not shifted; the table's centre serves
    them (Swin's code would make a smaller table). Swin's classifier needs sides that are multiples of the window;
    here others are padded with zeros, which no pixel attends to (Swin's code for detection lets pixels attend to them).

    Args:
        dim: C.
        heads: H, dividing C.
        window: M, side of the windows; 7 in the paper.
        shifted: shift the windows by ``M // 2`` up and to the left.
        mask_value: what is done with pairs of pixels that only the cyclic shift brought into one window: ``None``
            excludes them (ours, exact); ``-100.0`` adds that to their logits (Swin's code).
        backend: see :func:`biases.attend`.

    Raises:
        ValueError: heads not dividing dim, a window that is not positive, unknown option.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        window: int = 7,
        shifted: bool = False,
        mask_value: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        divides("SwinAttention", dim, heads)
        one_of("SwinAttention shifted", shifted, (False, True))
        one_of("SwinAttention mask_value", mask_value, MASK_VALUES)
        one_of("SwinAttention backend", backend, BACKENDS)
        self.dim, self.heads = dim, heads
        self.window, self.shifted = positive_int("SwinAttention window", window), shifted
        self.mask_value, self.backend = mask_value, backend
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        # Swin's code exempts the table from weight decay.
        self.no_weight_decay = ("relative_position",)
        self.relative_position = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position, std=TABLE_DEVIATION)

    def windows(self, height: int, width: int) -> Windows:
        """How a map of this size is cut."""
        return Windows.of(height, width, self.window, shifted=self.shifted, rule="clamp")

    def forward(self, x: Tensor) -> Tensor:
        """Attend: x (B, H, W, C), any H and W of at least 1, float32, float64, bfloat16 or float16 -> the same.

        Raises:
            ValueError: another shape.
        """
        feature_map("SwinAttention x", x, self.dim)
        windows = self.windows(x.shape[1], x.shape[2])
        y = attend_in_windows(
            self.query(x),
            self.key(x),
            self.value(x),
            windows,
            self.heads,
            bias=(RelativePositionBias(self.relative_position, *windows.size),),
            mask_value=self.mask_value,
            backend=self.backend,
        )
        return self.output(y)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, heads={self.heads}, window={self.window}, shifted={self.shifted}, "
            f"mask_value={self.mask_value}, backend={self.backend!r}"
        )


def _traits(options: Mapping[str, Any]) -> Traits:
    # No trait `window`: on a map that is smaller than the window, windows have the map's smaller side.
    return Traits(
        domain="image",
        normalisation="row",
        position="relative",
        memory="linear",
        fast_path="windows as a batch, tiles of queries, the bias gathered from its table; shifted by rolling the map",
        published="2103.14030 Eq. 4",
    )


register(
    "swin",
    family="layers",
    summary="attention inside shifted windows with a learned bias of relative position",
    traits=_traits,
    parameters="(2 window - 1)^2 * heads (table), and 3 * dim for the biases of query, key and value",
    notes=(
        "The official code adds -100 to pairs of different regions, which leaves them weights of about e^-100.",
        "The official code pads in detection only, and lets pixels attend to the padding.",
    ),
)(SwinAttention)
