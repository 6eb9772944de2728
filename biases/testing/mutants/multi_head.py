"""What the layers among the subjects begin with."""

from __future__ import annotations

from torch import nn


class MultiHead(nn.Module):
    """The projections of multi-head attention of width ``dim``: ``qkv`` for all three, and ``out``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim: expected a multiple of heads={heads}, got {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
