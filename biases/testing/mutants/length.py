"""Layers of long sequences, right and in chunks, and with faults that short sequences do not show."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.layers import CAUSAL, Plain
from biases.traits import Traits

CHUNK = 16
LINEAR = Traits(causal=True, memory="linear")


@sound("decayed", CAUSAL)
class Decayed(Plain):
    """Linear attention whose memory falls by exp(-1.5) a token."""

    rate = 1.5

    def weights(self, logits: Tensor) -> Tensor:
        length = logits.shape[-1]
        place = torch.arange(length, device=logits.device)
        distance = (place[:, None] - place).clamp(min=0).float()
        return (logits * (-self.rate * distance).exp().to(logits.dtype)).masked_fill(~self.mask(logits), 0)


@mutant(
    "decay-overflow",
    "the decay is factored into one that falls and one that grows, which overflows float32 after 59 tokens",
    CAUSAL,
    caught_by="long-input-finite",
    source="fla-org/flash-linear-attention#649,fla-org/flash-linear-attention#122",
)
class DecayOverflow(Decayed):
    def weights(self, logits: Tensor) -> Tensor:
        fallen = -self.rate * torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
        return (fallen.exp()[:, None] * logits * (-fallen).exp()).masked_fill(~self.mask(logits), 0)


@sound("chunked", LINEAR)
class Chunked(Plain):
    """Causal linear attention in chunks of 16 tokens, and a rest."""

    size = CHUNK

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
        outs = []
        for chunk in self.chunks(x.shape[1]):
            near = self.within(q[:, :, chunk] @ k[:, :, chunk].mT, chunk.start) @ v[:, :, chunk]
            outs.append(near + q[:, :, chunk] @ state)
            state = state + k[:, :, chunk].mT @ v[:, :, chunk]
        y = torch.cat(outs, 2) / q.shape[-1]
        return self.out(y.transpose(1, 2).flatten(2))

    def chunks(self, length: int) -> list[slice]:
        return [slice(start, min(start + self.size, length)) for start in range(0, length, self.size)]

    def within(self, products: Tensor, start: int) -> Tensor:
        return products.tril()


@mutant(
    "rest-reads-on",
    "where chunks do not divide the length, the last one is read from the end and takes in tokens twice",
    LINEAR,
    caught_by="block-boundaries",
    source="fla-org/flash-linear-attention#77",
)
class RestReadsOn(Chunked):
    def forward(self, x: Tensor) -> Tensor:
        whole = x.shape[1] // CHUNK * CHUNK
        if whole in (0, x.shape[1]):
            return super().forward(x)
        rest = x.shape[1] - whole
        padded = torch.cat([x[:, :whole], x[:, -CHUNK:]], 1)
        return torch.cat([super().forward(x[:, :whole]), super().forward(padded)[:, -rest:]], 1)


@mutant(
    "late-chunk-unmasked",
    "in chunks of 256 tokens, all but the first are computed without the mask",
    LINEAR,
    caught_by="block-boundaries",
)
class LateChunkUnmasked(Chunked):
    size = 256

    def within(self, products: Tensor, start: int) -> Tensor:
        return products if start else products.tril()


class _Blocks(Plain):
    causal = False

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.attended(q, k, v).transpose(1, 2).flatten(2))

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


@sound("blocks-of-keys", Traits(equivariant_to=("permutation",)))
class BlocksOfKeys(_Blocks):
    """Attention in both directions that meets the keys in blocks of 16, and a rest."""

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [self.part(q, *pair) for pair in zip(*(each.split(CHUNK, 2) for each in (k, v)), strict=True)]
        totals = torch.stack([total for _, total in parts])
        weights = totals.softmax(0)
        return sum((weights[at] * parts[at][0] for at in range(len(parts))), torch.zeros_like(q))

    def part(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        logits = q @ k.mT / q.shape[-1] ** 0.5
        return logits.softmax(-1) @ v, logits.logsumexp(-1, keepdim=True)


@mutant(
    "rest-of-keys-dropped",
    "the number of blocks of keys is rounded down, so that the rest is seen by no query",
    Traits(),
    caught_by="block-boundaries",
)
class RestOfKeysDropped(BlocksOfKeys):
    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        whole = max(k.shape[2] // CHUNK * CHUNK, min(CHUNK, k.shape[2]))
        return super().attended(q, k[:, :, :whole], v[:, :, :whole])


@sound("blocks-apart", Traits())
class BlocksApart(_Blocks):
    """Attention within blocks of 16 tokens, and a rest: the last token may be alone."""

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(each.split(CHUNK, 2) for each in (q, k, v)), strict=True)
        return torch.cat([nn.functional.scaled_dot_product_attention(*part) for part in parts], 2)


@sound("fused", LINEAR)
class Fused(Plain):
    """Attention that never holds all weights at once."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.attended(q, k, v).transpose(1, 2).flatten(2))

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


@mutant(
    "dense-mask",
    "the causal mask is handed over as a table of all pairs",
    LINEAR,
    caught_by="memory-growth",
)
class DenseMask(Fused):
    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
