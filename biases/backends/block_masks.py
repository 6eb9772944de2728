"""Which pairs may attend, as FlexAttention's ``BlockMask``, worked out from the ends of the blocks: O(pairs / BLOCK^2)
memory and no mask over all pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from biases.backends.geometry import Geometry
from biases.backends.streams import capturing, finished
from biases.backends.terms import Problem

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def block_mask(problem: Problem) -> BlockMask | None:
    """Which pairs may attend; ``None`` for all."""
    geometry, device = problem.geometry, problem.q.device
    if problem.keep is None and problem.mask is None:
        if not geometry.causal:
            return None
        if torch.compiler.is_compiling() or type(problem.q) is not Tensor or capturing(device):
            return _of_geometry(geometry, device)
        return _cached(geometry, device)
    some, every = _blocks(geometry, device)
    mods = [_placed(geometry)] if geometry.causal else []
    if problem.keep is not None:
        kept, whole = _any_and_all(problem.keep)
        some, every = some & kept[:, :, None, :], every & whole[:, :, None, :]
        mods.append(_kept(problem.keep))
    if problem.mask is not None:
        pairs, whole = _any_and_all(problem.mask)
        (pairs, _), (_, whole) = _any_and_all(pairs.mT), _any_and_all(whole.mT)
        some, every = some & pairs.mT, every & whole.mT
        mods.append(_paired(problem.mask))
    return _sparse(some, every, mods, geometry)


def _of_geometry(geometry: Geometry, device: torch.device) -> BlockMask:
    return _sparse(*_blocks(geometry, device), [_placed(geometry)], geometry)


@functools.lru_cache(maxsize=64)
def _cached(geometry: Geometry, device: torch.device) -> BlockMask:
    # What is made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        made = _of_geometry(geometry, device)
    finished(device)
    return made


def _blocks(geometry: Geometry, device: torch.device) -> tuple[Tensor, Tensor]:
    """Blocks of which causality and window leave some pair, and every pair: two of (1, 1, L / BLOCK, S / BLOCK) bool.

    The distances in a block of pairs are all the integers between those of its corners. A block that sticks out over
    the last query or key never counts as whole.
    """
    rows = torch.arange(0, geometry.L, BLOCK, device=device)[:, None]
    keys = torch.arange(0, geometry.S, BLOCK, device=device)
    whole = (rows + BLOCK <= geometry.L) & (keys + BLOCK <= geometry.S)
    if not geometry.causal:
        return torch.ones_like(whole)[None, None], whole[None, None]
    last_row, last_key = (rows + BLOCK).clamp(max=geometry.L) - 1, (keys + BLOCK).clamp(max=geometry.S) - 1
    nearest, furthest = rows + geometry.offset - last_key, last_row + geometry.offset - keys
    some, every = furthest >= 0, whole & (nearest >= 0)
    if geometry.window is not None:
        some, every = some & (nearest < geometry.window), every & (furthest < geometry.window)
    return some[None, None], every[None, None]


def _any_and_all(x: Tensor) -> tuple[Tensor, Tensor]:
    """Over blocks of the last axis, the last one filled up with ``False``."""
    blocks = torch.nn.functional.pad(x, (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    return blocks.any(-1), blocks.all(-1)


def _sparse(some: Tensor, every: Tensor, mods: list[MaskMod], geometry: Geometry) -> BlockMask:
    from torch.nn.attention.flex_attention import BlockMask

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        allowed = mods[0](b, h, q_idx, kv_idx)
        for mod in mods[1:]:
            allowed = allowed & mod(b, h, q_idx, kv_idx)
        return allowed

    return BlockMask.from_kv_blocks(
        *_listed(some & ~every),
        *_listed(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(geometry.L, geometry.S),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are set, (..., L / BLOCK), and their indices first, (..., L / BLOCK, S / BLOCK)."""
    order = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32).contiguous()


def _placed(geometry: Geometry) -> MaskMod:
    offset, window = geometry.offset, geometry.window

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        distance = q_idx + offset - kv_idx
        return distance >= 0 if window is None else (distance >= 0) & (distance < window)

    return mask_mod


def _kept(keep: Tensor) -> MaskMod:
    batched, by_head = keep.shape[0] > 1, keep.shape[1] > 1

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return keep[b if batched else 0, h if by_head else 0, kv_idx]

    return mask_mod


def _paired(mask: Tensor) -> MaskMod:
    batched, by_head = mask.shape[0] > 1, mask.shape[1] > 1

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return mask[b if batched else 0, h if by_head else 0, q_idx, kv_idx]

    return mask_mod
