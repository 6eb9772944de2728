"""Attention inside shifted windows: what the layers with windows share.

Queries, keys and values are projected on the whole map and cut afterwards, so that the padding below and on the right
of a map holds zeros, which no query sees. What the shift brings together from opposite sides of the map is kept apart
either exactly, by exclusion, or as in Swin's code (microsoft/Swin-Transformer, commit f82860b), where such pairs have
-100 added to their logits and keep a weight of about e^-100.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from biases.attention import attend
from biases.axial import attend_decomposed
from biases.backends import DecayTerm, PairTerm
from biases.windows import Windows

MASK_VALUES = (None, -100.0)
# Two axes, on each of which a pixel was brought round by the shift or was not.
REGIONS = 4
Rotation = Callable[[Tensor], Tensor]


def attend_in_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Windows,
    heads: int,
    *,
    decomposed: bool = False,
    bias: tuple[PairTerm, ...] = (),
    weights: str = "softmax",
    decay: DecayTerm | None = None,
    rotation: Rotation | None = None,
    axis_rotation: Rotation | None = None,
    order: str = "width-first",
    mask_value: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Multi-head attention of every pixel over its window.

    Args:
        q, k, v: (B, H, W, C).
        windows: how the map is cut.
        heads: number of heads, dividing C.
        decomposed: along the rows and then along the columns of the window (:func:`biases.axial.attend_decomposed`)
            instead of over all of it (:func:`biases.attend`).
        bias, decay: terms along an axis if ``decomposed``, otherwise of the pixels of a window in raster order.
        weights: see :func:`biases.attend`.
        rotation: (B', heads, T, D) -> the same, for queries and keys of a window in raster order.
        axis_rotation: the same along the axis of each pass; with ``decomposed`` only.
        order: of the passes.
        mask_value: what is added to the logits of pairs that only the shift brought together; ``None`` excludes them.
        backend: see :func:`biases.attend`.

    Returns:
        (B, H, W, C).
    """
    q, k, v = (windows.partition(x).unflatten(-1, (heads, -1)).permute(0, 3, 1, 2, 4) for x in (q, k, v))
    scale, head_dim = 1.0 / math.sqrt(q.shape[-1]), q.shape[-1]
    if rotation is not None:
        q, k = (rotation(x.flatten(2, 3)).unflatten(2, windows.size) for x in (q, k))
    soft = False
    if mask_value is not None and (windows.rows.shift or windows.columns.shift):
        soft = True
        q, k = _with_regions(q, k, windows, mask_value / scale)
    if decomposed:
        y = attend_decomposed(
            q,
            k,
            v,
            bias=bias,
            weights=weights,
            decay=decay,
            masks=_axis_padding(windows, q.device) if soft else windows.axis_masks(q.device),
            rotation=_of_channels(axis_rotation, head_dim),
            order=order,
            scale=scale,
            backend=backend,
        )
    else:
        mask = _padding(windows, q.device) if soft else windows.mask(q.device)
        maps = q.shape[0] // windows.count
        flat = attend(
            *(x.flatten(2, 3) for x in (q, k, v)),
            bias=bias,
            weights=weights,
            decay=decay,
            mask=None if mask is None else mask.repeat(maps, 1, 1)[:, None],
            scale=scale,
            backend=backend,
        )
        y = flat.unflatten(2, windows.size)
    return windows.reverse(y.permute(0, 2, 3, 1, 4).flatten(3))


def _with_regions(q: Tensor, k: Tensor, windows: Windows, value: float) -> tuple[Tensor, Tensor]:
    """More channels of ``q`` and ``k`` (B', heads, h, w, D), by which q . k has ``value`` more across regions.

    With the region of a pixel one-hot, ``value (1 - onehot(r_i)) . onehot(r_j)`` is exactly 0 where r_i = r_j. So the
    value costs neither a mask over pairs nor the fused kernel.
    """
    rows = torch.arange(windows.rows.side, device=q.device) < windows.rows.shift
    columns = torch.arange(windows.columns.side, device=q.device) < windows.columns.shift
    region = 2 * rows[:, None].long() + columns.long()
    onehot = torch.nn.functional.one_hot(region, REGIONS)[None].to(q.dtype)
    cut = windows.partition(onehot)[:, None].repeat(q.shape[0] // windows.count, 1, 1, 1, 1)
    cut = cut.expand(*q.shape[:4], REGIONS)
    return torch.cat([q, value * (1.0 - cut)], -1), torch.cat([k, cut], -1)


def _of_channels(rotation: Rotation | None, channels: int) -> Rotation | None:
    """``rotation`` of the first ``channels`` channels; those that tell regions are not turned."""
    if rotation is None:
        return None

    def rotate(x: Tensor) -> Tensor:
        turned = rotation(x[..., :channels])
        return turned if x.shape[-1] == channels else torch.cat([turned, x[..., channels:]], -1)

    return rotate


def _padding(windows: Windows, device: torch.device) -> Tensor | None:
    """As ``windows.mask()``, padding alone being masked: (``count``, 1, h w)."""
    (h, w), (down, across) = windows.size, windows.real(device)
    if down is None and across is None:
        return None
    everywhere = torch.ones((), dtype=torch.bool, device=device)
    vertical = everywhere if down is None else down[:, :, None]
    horizontal = everywhere if across is None else across[:, None]
    return (vertical & horizontal).expand(windows.count, h, w).reshape(windows.count, 1, h * w)


def _axis_padding(windows: Windows, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """As ``windows.axis_masks()``, padding alone being masked."""
    (h, w), (down, across) = windows.size, windows.real(device)
    return (
        None if down is None else down[:, None].expand(-1, h, -1),
        None if across is None else across[:, None].expand(-1, w, -1),
    )
