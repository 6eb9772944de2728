"""Promises of decoders: callables (x, state) -> (out, state) that take the next tokens, (B, T, C).

Catalogue of published faults of this kind: torchscale#77, Jamie-Stirling/RetNet#10 and syncdoth/RetNet#10 (chunkwise
retention against parallel), pytorch#103082 and #108108 (alignment where queries and keys differ in number),
flashinfer#348 (the same, off by one), vllm#945 (distance off by one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, cycle, islice
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.properties.base import assert_alike, promises
from biases.testing.properties.edges import edge_length, with_edge
from biases.testing.properties.encodings import lengths
from biases.testing.strategies import MODERATE
from biases.testing.subject import Layer, Violation
from biases.testing.views import Misfit, first_of_pair
from biases.traits import Traits

_DECODER = ("decoder",)
_SEQUENCE = ("sequence",)
# Longer sequences have most of their tokens given at once, and the last of them after that.
_ONE_BY_ONE, _LAST = 40, 12


def _step(case: Case, layer: Layer, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    returned = case.invoke(layer, x, state)
    try:
        out = first_of_pair(returned)
    except Misfit as error:
        raise Violation(str(error)) from error
    return case.check_form(out, x), returned[1]


def _decode(case: Case, layer: Layer, x: Tensor, sizes: Sequence[int] = (1,)) -> Tensor:
    """The outputs for ``x``, given in pieces of these numbers of tokens, again and again; (B, T, C)."""
    outs, state = [], None
    for piece in _pieces(x, sizes):
        out, state = _step(case, layer, piece, state)
        outs.append(out)
    return torch.cat(outs, dim=1)


def _pieces(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    ends = list(accumulate(islice(cycle(sizes), x.shape[1])))
    cuts = [end for end in ends if end < x.shape[1]]
    # Contiguous: whether views are taken is another property's question.
    return [piece.contiguous() for piece in x.tensor_split(cuts, dim=1)]


def _assert_as_whole(case: Case, sizes: Sequence[int], what: str) -> None:
    raw, x = case.raw(case.precise), case.input(case.precise)
    past = edge_length(case)
    if past is not None:
        x = case.tensor((x.shape[0], past, case.dim), case.precise)
        if past > _ONE_BY_ONE:
            # As many as the window takes at once: what is asked is what happens when it is left.
            sizes, what = (past - _LAST, *(tuple(sizes) * _LAST)), f"{what}, after {past - _LAST} tokens at once"
    whole = case.subject.seen_as_layer(raw, case.heads, case.grid)
    out = case.call(whole, x)
    assert_alike(case, whole, x, out, (_decode(case, raw, x, sizes), out), what)


def _drawn(least: int, most: int, **inputs: Any) -> Callable[[Traits], Mapping[str, Any]]:
    """Lengths in these bounds, and some past the declared window."""
    return lambda traits: with_edge(traits, lengths(least, most, **inputs)(traits))


@promises(
    "decode-agrees-with-prefill",
    "Tokens given one at a time have the outputs that they have when given all at once.",
    kinds=_DECODER,
    domains=_SEQUENCE,
    drawn=_drawn(2, 12, among=MODERATE),
)
def decode_agrees_with_prefill(case: Case) -> None:
    _assert_as_whole(case, (1,), "outputs of one token at a time, against all at once")


@promises(
    "chunks-agree",
    "Tokens given in pieces of any length have the outputs that they have when given all at once.",
    kinds=_DECODER,
    domains=_SEQUENCE,
    drawn=_drawn(3, 16, among=MODERATE, choices={"pieces": ((2,), (3,), (1, 4), (5, 1), (7,))}),
)
def chunks_agree(case: Case) -> None:
    sizes = case.example["pieces"]
    if edge_length(case) is None and case.length <= sizes[0]:
        sizes = (case.length - 1,) if case.length > 1 else (1,)
    what = f"outputs of {', '.join(map(str, sizes))} tokens at a time, against all at once"
    _assert_as_whole(case, sizes, what)


@promises(
    "sequences-do-not-mix",
    "Two sequences that are decoded in turn have the outputs that each has alone.",
    kinds=_DECODER,
    domains=_SEQUENCE,
    drawn=lengths(2, 6, among=MODERATE),
)
def sequences_do_not_mix(case: Case) -> None:
    x = case.input(case.precise)
    other = case.normal(x)
    with case.subject.isolated():
        alone = _decode(case, case.raw(case.precise), x)
    layer = case.raw(case.precise)
    outs: list[Tensor] = []
    first = second = None
    for token, beside in zip(_pieces(x, (1,)), _pieces(other, (1,)), strict=True):
        out, first = _step(case, layer, token, first)
        _, second = _step(case, layer, beside, second)
        outs.append(out)
    what = "outputs of a sequence decoded in turn with another, against alone"
    assert_alike(case, partial(_decode, case, layer), x, alone, (torch.cat(outs, dim=1), alone), what)


@promises(
    "decode-batch-independence",
    "Decoded one token at a time, a sequence does not depend on the others of its batch.",
    kinds=_DECODER,
    domains=_SEQUENCE,
    drawn=lengths(2, 6, among=MODERATE, min_batch=2),
)
def decode_batch_independence(case: Case) -> None:
    layer, x = case.raw(case.precise), case.input(case.precise)
    together = _decode(case, layer, x)
    ends = [0, len(x) - 1]
    alone = torch.cat([_decode(case, layer, x[at : at + 1]) for at in ends])
    what = f"decoded outputs of examples {ends[0]} and {ends[1]}, against alone"
    assert_alike(case, partial(_decode, case, layer), x, together, (together[ends], alone), what)
