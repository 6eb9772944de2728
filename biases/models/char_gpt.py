"""CharGPT: the character-level GPT of the EGA and MoPE papers (arXiv 2605.21842 section 4.1 and the released code).

Pre-LN decoder; token embedding tied to the head; q, k, v and head without bias; feed-forward 4 x with GELU; dropout on
the embedding, the attention weights, the attention projection and the feed-forward; weights from N(0, 0.02), biases 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases._checks import divides, fail, positive_int
from biases.layers import SelfAttention
from biases.layers.build import layer as build_layer
from biases.layers.build import position as build_position
from biases.models._optimiser import parameter_groups
from biases.positions import LearnedPosition
from biases.registry import get, register
from biases.traits import Traits

STD = 0.02


class Block(nn.Module):
    """``x + attention(LN(x))``, then ``x + MLP(LN(x))``: (B, T, C) -> (B, T, C)."""

    def __init__(self, dim: int, attention: nn.Module, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


@register(
    "char-gpt",
    kind="model",
    family="models",
    summary="the character-level GPT of the EGA and MoPE papers, 4,816,640 parameters at its defaults",
    traits=Traits(causal=True, published="2605.21842 section 4.1"),
    parameters="4,816,640",
)
class CharGPT(nn.Module):
    """Logits of the next character: tokens (B, T) -> (B, T, V).

    Args:
        vocab: V.
        context: largest T.
        layers, heads, dim: depth, heads a layer, width.
        attention: a layer of the zoo, for sequences; ``attention_options`` are its options.
        position: a position of the zoo; ``position_options`` are its options.
        absolute_too: add a learned absolute encoding beside the position (the released PE-ROPE does).
        dropout: probability, everywhere the papers have it.
        backend: see :func:`biases.attend`.

    Raises:
        ValueError: unknown names or options, a layer for images, dimensions that do not fit.
    """

    def __init__(
        self,
        vocab: int = 65,
        *,
        context: int = 256,
        layers: int = 6,
        heads: int = 8,
        dim: int = 256,
        attention: str = "standard",
        position: str = "learned",
        absolute_too: bool = False,
        dropout: float = 0.1,
        attention_options: Mapping[str, Any] | None = None,
        position_options: Mapping[str, Any] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for what, value in (("vocab", vocab), ("context", context), ("layers", layers)):
            positive_int(f"CharGPT {what}", value)
        divides("CharGPT", dim, heads)
        domain = get(attention).traits.domain
        if domain != "sequence":
            fail(f"CharGPT attention {attention!r}", "a layer for sequences, (B, T, C)", f"one for domain {domain!r}")
        if not 0.0 <= dropout < 1.0:
            fail("CharGPT dropout", "a probability in [0, 1)", dropout)
        self.context = context
        self.embedding = nn.Embedding(vocab, dim)
        placed = build_position(position, dim, context=context, heads=heads, **(position_options or {}))
        self.position = placed.get("embedding")
        self.absolute = LearnedPosition(dim, context) if absolute_too else None
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            built = build_layer(attention, dim, heads, dropout=dropout, backend=backend, **(attention_options or {}))
            if "rotary" in placed:
                _rotate(built, placed["rotary"], attention)
            self.blocks.append(Block(dim, built, dropout))
        self.norm = nn.LayerNorm(dim)
        self._keep_default = any(getattr(b.attention, "own_initialisation", None) for b in self.blocks)
        self._initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 2 or tokens.is_floating_point():
            fail("CharGPT tokens", "integers of shape (B, T)", f"{tokens.dtype} of shape {tuple(tokens.shape)}")
        if tokens.shape[1] > self.context:
            fail("CharGPT tokens", f"at most {self.context} of them", tokens.shape[1])
        x = self.embedding(tokens)
        for encoding in (self.absolute, self.position):
            if encoding is not None:
                x = encoding(x)
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)

    def initial_std(self, name: str) -> float | None:
        """Standard deviation of the normal distribution that parameter ``name`` starts from; ``None`` for others."""
        owner_name, _, leaf = name.rpartition(".")
        owner = self.get_submodule(owner_name)
        if isinstance(owner, (nn.Embedding, LearnedPosition)):
            return STD
        if isinstance(owner, nn.Linear) and leaf == "weight" and not self._keep_default:
            return STD
        return None

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            std = self.initial_std(name)
            if std is not None:
                parameter.normal_(std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: everything is decayed, as the authors did, but what its module exempts
        (``no_weight_decay``)."""
        return parameter_groups(self, weight_decay, decay_vectors=True)


def _rotate(layer: nn.Module, rotary: nn.Module, name: str) -> None:
    if not isinstance(layer, SelfAttention):
        fail(
            f"position with attention {name!r}",
            "one that is added to the embeddings",
            "a rotation of queries and keys",
        )
    layer.rotary = rotary
