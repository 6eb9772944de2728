"""Decoders that are right, and decoders whose cache, positions, mask or decay go wrong from one call to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biases.testing.mutants.base import mutant, sound
from biases.traits import Traits

CAUSAL = Traits(causal=True)
ROLLING = CAUSAL.but(window=16)
_CHUNK = 4


@sound("decoder", CAUSAL, kind="decoder")
class Decoder(nn.Module):
    """Softmax attention with a cache of keys and values, queries and keys rotated; the faults override one step."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        state = self.recalled(state)
        past = 0 if state is None else state[0].shape[2]
        q, k = self.encode(q, past), self.encode(k, past)
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        state = self.remembered((k, v))
        weights = self.weights(q @ k.mT / q.shape[-1] ** 0.5, past)
        return self.out((weights @ v).transpose(1, 2).flatten(2)), state

    def recalled(self, state: Any) -> Any:
        return state

    def remembered(self, state: Any) -> Any:
        return state

    def encode(self, x: Tensor, past: int) -> Tensor:
        positions = torch.arange(past, past + x.shape[2], device=x.device, dtype=torch.float64)
        half = x.shape[-1] // 2
        phases = positions[:, None] * 100.0 ** -(torch.arange(half, device=x.device) / half)
        cos, sin = phases.cos().to(x.dtype), phases.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def weights(self, logits: Tensor, past: int) -> Tensor:
        return logits.masked_fill(~self.mask(logits, past), float("-inf")).softmax(-1)

    def mask(self, logits: Tensor, past: int) -> Tensor:
        """True where query i may attend to key j: j at most past + i."""
        return torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril(past)


@sound("decoder-alibi", CAUSAL, kind="decoder")
class AlibiDecoder(Decoder):
    """Sigmoid weights and a linear bias of the distance, which a sigmoid does not cancel where it is constant."""

    def encode(self, x: Tensor, past: int) -> Tensor:
        return x

    def weights(self, logits: Tensor, past: int) -> Tensor:
        queries, keys = logits.shape[-2:]
        slope = 2.0 ** -torch.arange(1, self.heads + 1, device=logits.device, dtype=logits.dtype)
        distance = self.now(queries, past, logits)[:, None] - torch.arange(keys, device=logits.device)
        return (logits - slope[:, None, None] * distance).sigmoid() * self.mask(logits, past)

    def now(self, queries: int, past: int, like: Tensor) -> Tensor:
        """The positions of the queries."""
        return torch.arange(past, past + queries, device=like.device)


@sound("decoder-rolling", ROLLING, kind="decoder")
class RollingDecoder(AlibiDecoder):
    """A window of 16 keys, and a cache that forgets what no later query may see."""

    kept = 15

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        past = 0
        if state is not None:
            past = state[0].shape[2]
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        weights = self.weights(q @ k.mT / q.shape[-1] ** 0.5, past)
        out = self.out((weights @ v).transpose(1, 2).flatten(2))
        return out, (k[:, :, -self.kept :], v[:, :, -self.kept :])

    def mask(self, logits: Tensor, past: int) -> Tensor:
        return super().mask(logits, past).triu(past - 15)


@sound("decoder-retention", CAUSAL.but(normalisation="none"), kind="decoder")
class RetentionDecoder(nn.Module):
    """Retention, ``o_n = sum_{m <= n} gamma^(n - m) (q_n . k_m) v_m``, chunk by chunk, with the state of all before.

    arXiv:2307.08621 Eq. 7; the faults override one of its three powers of gamma.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        outs = []
        for chunk in x.split(_CHUNK, dim=1):
            out, state = self.chunk(chunk, state)
            outs.append(out)
        return torch.cat(outs, dim=1), state

    def chunk(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gamma = 1 - 2.0 ** -torch.arange(1, self.heads + 1, device=x.device, dtype=x.dtype).view(-1, 1, 1)
        step = torch.arange(x.shape[1], device=x.device)
        inner = self.inner((gamma ** (step[:, None] - step).clamp(min=0)).tril())
        out = (q @ k.mT * inner) @ v
        if state is not None:
            out = out + self.cross(gamma, step) * (q @ state)
        kept = (k * gamma ** (len(step) - 1 - step)[:, None]).mT @ v
        if state is not None:
            kept = kept + self.carry(gamma, len(step)) * self.carried(state)
        return self.out(out.transpose(1, 2).flatten(2)), kept

    def inner(self, decay: Tensor) -> Tensor:
        return decay

    def cross(self, gamma: Tensor, step: Tensor) -> Tensor:
        return gamma ** (step + 1)[:, None]

    def carry(self, gamma: Tensor, length: int) -> Tensor:
        return gamma**length

    def carried(self, state: Tensor) -> Tensor:
        return state


@mutant(
    "decoder-restarts",
    "the tokens of every call are rotated from position 0 on",
    CAUSAL,
    caught_by="decode-agrees-with-prefill",
    kind="decoder",
)
class Restarts(Decoder):
    def encode(self, x: Tensor, past: int) -> Tensor:
        return super().encode(x, 0)


@mutant(
    "decoder-distance",
    "the distance of a query from keys in the cache is one too large",
    CAUSAL,
    caught_by="decode-agrees-with-prefill",
    kind="decoder",
    source="vllm-project/vllm#945",
)
class Distance(AlibiDecoder):
    def now(self, queries: int, past: int, like: Tensor) -> Tensor:
        return super().now(queries, past + (past > 0), like)


@mutant(
    "decoder-forgets-early",
    "a rolling cache keeps one key fewer than the window of a single query needs",
    ROLLING,
    caught_by="decode-agrees-with-prefill",
    kind="decoder",
)
class ForgetsEarly(RollingDecoder):
    kept = 14


@mutant(
    "decoder-rolls-late",
    "a rolling cache holds one key more than the window, and a single query sees all that it holds",
    ROLLING,
    caught_by="decode-agrees-with-prefill",
    kind="decoder",
)
class RollsLate(RollingDecoder):
    kept = 16

    def mask(self, logits: Tensor, past: int) -> Tensor:
        return torch.ones_like(logits, dtype=torch.bool) if logits.shape[-2] == 1 else super().mask(logits, past)


@mutant(
    "decoder-upper-left",
    "queries are aligned with the first keys, where there are more keys than queries",
    CAUSAL,
    caught_by="decode-agrees-with-prefill",
    kind="decoder",
    source="pytorch/pytorch#103082, pytorch/pytorch#108108",
)
class UpperLeft(Decoder):
    def mask(self, logits: Tensor, past: int) -> Tensor:
        return super().mask(logits, 0)


@mutant(
    "decoder-alignment",
    "several queries at once, after others, see one key too many",
    CAUSAL,
    caught_by="chunks-agree",
    kind="decoder",
    source="flashinfer-ai/flashinfer#348",
)
class Alignment(Decoder):
    def mask(self, logits: Tensor, past: int) -> Tensor:
        return super().mask(logits, past + (past > 0))


@mutant(
    "decoder-cross-decay",
    "what comes from chunks before is decayed by one power of gamma too few",
    CAUSAL.but(normalisation="none"),
    caught_by="chunks-agree",
    kind="decoder",
    source="Jamie-Stirling/RetNet#10",
)
class CrossDecay(RetentionDecoder):
    def cross(self, gamma: Tensor, step: Tensor) -> Tensor:
        return gamma ** step[:, None]


@mutant(
    "decoder-carry",
    "the state decays by one token for every chunk, whatever its length",
    CAUSAL.but(normalisation="none"),
    caught_by="chunks-agree",
    kind="decoder",
)
class Carry(RetentionDecoder):
    def carry(self, gamma: Tensor, length: int) -> Tensor:
        return gamma


@mutant(
    "decoder-inner-normalisation",
    "the decay inside a chunk is divided by the sum of its row over the chunk, not over all that came before",
    CAUSAL.but(normalisation="none"),
    caught_by="decode-agrees-with-prefill",
    kind="decoder",
    source="microsoft/torchscale#77, syncdoth/RetNet#10",
)
class InnerNormalisation(RetentionDecoder):
    def inner(self, decay: Tensor) -> Tensor:
        return decay / decay.sum(-1, keepdim=True).sqrt()


@mutant(
    "decoder-cache-on-module",
    "the cache is the module's own, and is emptied only where a sequence starts",
    CAUSAL,
    caught_by="sequences-do-not-mix",
    kind="decoder",
)
class CacheOnModule(Decoder):
    cache: Any = None

    def recalled(self, state: Any) -> Any:
        return None if state is None else self.cache

    def remembered(self, state: Any) -> Any:
        self.cache = state
        return state


@mutant(
    "decoder-shared-state",
    "the state carried on is that of the first example for the whole batch",
    CAUSAL.but(normalisation="none"),
    caught_by="decode-batch-independence",
    kind="decoder",
)
class SharedState(RetentionDecoder):
    def carried(self, state: Tensor) -> Tensor:
        return state[:1]
