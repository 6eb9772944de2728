"""Retention, in parallel, step by step and in chunks: right, and with the published faults of the chunks.

arXiv:2307.08621 Eq. 5 (parallel), 6 (recurrent), 7 (in chunks).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from biases.testing.mutants.base import mutant, sound
from biases.traits import Traits

RETENTION = Traits(causal=True, normalisation="none")
CHUNK = 4

Operator = Callable[[Tensor, Tensor, Tensor], Tensor]


def _ratio(q: Tensor) -> Tensor:
    """(H, 1, 1): what is left of a weight after one step."""
    heads = torch.arange(q.shape[1], dtype=q.dtype, device=q.device)
    return (1 - 2 ** (-1 - heads))[:, None, None]


def _decay(q: Tensor, length: int) -> Tensor:
    place = torch.arange(length, device=q.device)
    return (_ratio(q) ** (place[:, None] - place).clamp(min=0)).tril()


def _same_lengths(q: Tensor, k: Tensor) -> None:
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"retention: expected as many keys as queries, got {k.shape[2]} and {q.shape[2]}")


def parallel(dim: int, heads: int) -> Operator:
    """Eq. 5."""

    def retain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _same_lengths(q, k)
        return (q @ k.mT * _decay(q, q.shape[2])) @ v

    return retain


def recurrent(dim: int, heads: int) -> Operator:
    """Eq. 6."""

    def retain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state, outs = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), []
        for t in range(q.shape[2]):
            state = _ratio(q) * state + k[:, :, t, :, None] * v[:, :, t, None]
            outs.append(q[:, :, t : t + 1] @ state)
        return torch.cat(outs, 2)

    return retain


def _in_chunks(of_tokens: Callable[[Tensor, int], Tensor], normalised: bool = False) -> Callable[[int, int], Operator]:
    """Eq. 7; ``of_tokens`` gives the decay of what each token of a chunk leaves to the state."""

    def make(dim: int, heads: int) -> Operator:
        def retain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            state, outs = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), []
            for start in range(0, q.shape[2], CHUNK):
                part = [each[:, :, start : start + CHUNK] for each in (q, k, v)]
                length = part[0].shape[2]
                decay = _decay(q, length)
                if normalised:
                    decay = decay / decay.sum(-1, keepdim=True)
                place = torch.arange(length, dtype=q.dtype, device=q.device)[:, None]
                near = (part[0] @ part[1].mT * decay) @ part[2]
                outs.append(near + part[0] @ state * _ratio(q) ** (place + 1))
                left = part[1].mT @ (part[2] * of_tokens(_ratio(q), length).to(q))
                state = _ratio(q) ** length * state + left
            return torch.cat(outs, 2)

        return retain

    return make


def _to_the_end(ratio: Tensor, length: int) -> Tensor:
    return ratio ** torch.arange(length - 1, -1, -1, device=ratio.device)[:, None]


def _from_the_start(ratio: Tensor, length: int) -> Tensor:
    return ratio ** torch.arange(1, length + 1, device=ratio.device)[:, None]


in_chunks = _in_chunks(_to_the_end)

sound("retention", RETENTION, kind="operator", forms={"recurrent": recurrent, "in chunks": in_chunks})(parallel)
mutant(
    "chunks-power",
    "what a token leaves to the state of its chunk decays from the start of the chunk, not to its end",
    RETENTION,
    kind="operator",
    caught_by="forms-agree",
    forms={"in chunks": _in_chunks(_from_the_start)},
    source="Jamie-Stirling/RetNet#10",
)(parallel)
mutant(
    "chunks-normalised",
    "the decay is normalised over the chunk, which another form does not do",
    RETENTION,
    kind="operator",
    caught_by="forms-agree",
    forms={"in chunks": _in_chunks(_to_the_end, normalised=True)},
    source="microsoft/torchscale#77,syncdoth/RetNet#10",
)(parallel)


def _state_detached(dim: int, heads: int) -> Operator:
    def retain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state, outs = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), []
        for t in range(q.shape[2]):
            state = _ratio(q) * state.detach() + k[:, :, t, :, None] * v[:, :, t, None]
            outs.append(q[:, :, t : t + 1] @ state)
        return torch.cat(outs, 2)

    return retain


mutant(
    "state-detached",
    "the state is cut from its gradient at each step of the recurrent form",
    RETENTION,
    kind="operator",
    caught_by="forms-agree-gradient",
    forms={"recurrent": _state_detached},
)(parallel)
