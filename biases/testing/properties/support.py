"""Promises about which tokens reach an output: causality, alignment and windows, pair by pair.

Catalogue of published faults of this kind: transformers#39408, transformers#29623, unsloth#8253, transformers#40700
(windows off by one, lost on one path, lopsided), pytorch-image-models#2438 (shifted windows on padded maps).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from biases.testing.case import Case
from biases.testing.masks import expected_support
from biases.testing.properties.base import magnitude, promises, rounding_of
from biases.testing.properties.edges import (
    AFFORDABLE,
    NOTHING,
    boundary,
    edge_length,
    listed,
    map_beyond,
    out_of_reach,
    unseen,
    with_edge,
)
from biases.testing.properties.interface import gradients_of
from biases.testing.properties.operands import OPERATOR, lengths, require, run
from biases.testing.subject import Layer, NotApplicable, Violation
from biases.traits import Traits

# Draws after which weights that may be zero, as those of a ReLU or of the largest two, have been positive for a pair.
_DRAWS = 12
_COPIES = 2 * _DRAWS
# Pairs that are looked at again, where influence is missing.
_PAIRS = 4
# Pixels of the maps on which all pairs are looked at.
_MAP = 64


def not_placed(traits: Traits) -> str | None:
    if traits.causal or traits.window is not None:
        return out_of_reach(AFFORDABLE)(traits)
    return "every query may see every key: neither Traits.causal nor Traits.window is declared"


def not_bounded(traits: Traits) -> str | None:
    if traits.window is None:
        return "Traits.window is not declared"
    if traits.gate_sees in ("prefix", "window"):
        return f"Traits.gate_sees is {traits.gate_sees!r}, which reaches beyond the attention window"
    return out_of_reach(AFFORDABLE)(traits)


def _keys(traits: Traits) -> Mapping[str, Any]:
    return with_edge(traits, {"keys": True, "choices": {"sign": (1.0, -1.0)}})


def _sizes(traits: Traits) -> Mapping[str, Any]:
    """Lengths, or maps, that reach beyond the window on both sides, as far as that takes moderate ones."""
    window = traits.window or 6
    fixed = {"max_batch": 1, "among": ("normal",)}
    if traits.domain == "image":
        beyond = (window + traits.shift) ** 2
        inputs = {"max_length": min(max(12, beyond), _MAP), **fixed}
        return with_edge(traits, inputs) if beyond > _MAP else inputs
    longest = min(max(12, 2 * window + 2), 40, traits.max_length or 40)
    inputs = {"max_length": longest, **fixed}
    return with_edge(traits, inputs) if longest < 2 * window + 2 else inputs


def _assert_support(
    influence: Tensor,
    expected: Tensor,
    tolerance: float,
    what: str,
    missing: Tensor | None = None,
    asked: list[int] | None = None,
) -> None:
    """Assert that influence (rows of outputs, columns of inputs) is nowhere else than it is expected.

    Args:
        influence: absolute influence, (L, S).
        expected: where there may be some, bool, (L, S).
        tolerance: the influence that rounding explains.
        what: name of the rows, for the message.
        missing: where there has to be some and is none, bool, (L, S).
        asked: the columns that influence was asked of; ``None``: all.
    """
    wrong, kind = ~expected & ~(influence <= tolerance), "may not see"
    if missing is not None and not wrong.any():
        wrong, kind = missing, "may see, and does not"
    if wrong.any():
        at, of = (int(x) for x in wrong.nonzero()[0])
        seen = (influence[at] > tolerance).nonzero().flatten().tolist()
        should = expected[at].nonzero().flatten().tolist()
        among = ""
        if asked is not None and len(asked) < len(expected[at]):
            among, should = f" among {listed(asked)}", [key for key in should if key in asked]
        raise Violation(
            f"{what} {at} sees {listed(seen)}{among}, expected {listed(should)}: it {kind} {of}, whose influence is "
            f"{influence[at, of].item():.3g}\n  {int(wrong.sum())} of {wrong.numel()} pairs wrong, "
            f"shape {tuple(wrong.shape)}, rounding explains {tolerance:.3g}"
        )


def _vanishes(traits: Traits) -> bool:
    """Whether a declared decay may leave nothing of the very next key."""
    rates = None if traits.decay is None else traits.decay.rates
    return isinstance(rates, tuple) and max(rates, default=0.0) > 30


@promises(
    "support",
    "A query sees exactly the keys that causality, alignment and window leave it.",
    trait="Traits.causal or Traits.window is declared",
    reason=not_placed,
    kinds=OPERATOR,
    domains=("sequence",),
    drawn=_keys,
)
def operator_support(case: Case) -> None:
    """Key j is favoured by all queries, in example j of the batch, and is the only one with a value."""
    traits = case.subject.traits
    L, S = lengths(case)
    edge = edge_length(case)
    if edge is not None:
        L, S = (min(L, edge) if traits.alignment == "lower-right" else edge), edge
    expected = expected_support(traits, L, S)
    # What a query without any key gives is another promise.
    has_key = expected.any(-1, keepdim=True)
    require(bool(has_key.any()), "no query has a key")
    op = case.raw(case.precise)
    asked = list(range(S))
    if edge is not None:
        asked = sorted({*boundary(expected[L // 2]), *boundary(expected[-1]), *_cliff(case, op, expected)})
    influence = torch.zeros(L, S, dtype=case.precise)
    influence[:, asked] = torch.where(has_key, _favoured(case, op, L, S, asked, 0), 0)
    tolerance, what = rounding_of(influence), f"with L {L} and S {S}, query"
    _assert_support(influence, expected, tolerance, what, asked=asked)
    # A sparse pattern is causal too: that keys are seen is promised with the window or the alignment.
    if (traits.window is None and traits.alignment is None) or _vanishes(traits):
        return
    probed = torch.zeros(S, dtype=torch.bool)
    probed[asked] = True
    missing = unseen(influence, expected & probed)
    for draw in range(1, _DRAWS):
        if not missing.any():
            return
        keys = missing.any(0).nonzero().flatten().tolist()
        missing[:, keys] &= ~(_favoured(case, op, L, S, keys, draw).nan_to_num() > NOTHING)
    _assert_support(influence, expected, tolerance, what, missing, asked)


def _cliff(case: Case, op: Layer, expected: Tensor) -> list[int]:
    """Two keys, of which the last query sees one and not the one before, found by halving; none where it sees all."""
    L, S = expected.shape
    keys = expected[-1].nonzero().flatten().tolist()
    hidden, seen = 0, len(keys) - 1
    ends = [keys[hidden], keys[seen]]
    first, last = (_favoured(case, op, L, S, ends, 0)[-1] > NOTHING).tolist()
    if first or not last:
        return []
    while seen - hidden > 1:
        middle = (seen + hidden) // 2
        reached = bool(_favoured(case, op, L, S, [keys[middle]], 0)[-1, 0] > NOTHING)
        hidden, seen = (hidden, middle) if reached else (middle, seen)
    return keys[hidden : seen + 1]


def _favoured(case: Case, op: Layer, L: int, S: int, keys: list[int], draw: int) -> Tensor:
    """The influence on each query of each of these keys, favoured in its turn: (L, len(keys)), on the CPU."""
    D = case.dim // case.heads
    like = torch.empty(1, case.heads, 1, D, dtype=case.precise, device=case.device)
    direction = functional.normalize(case.normal(like, 1 + 100 * draw), dim=-1)
    direction = case.example["sign"] * (-1) ** draw * direction
    which = torch.eye(S, dtype=case.precise, device=case.device)[keys][:, None, :, None]
    # The others are not zero: a feature map might leave a query that may not see key j nothing to divide by.
    others = 0.1 * direction
    if draw:
        # Nor are they always parallel: what is written at one key may erase what was at another.
        others = functional.normalize(case.normal(like.expand(1, -1, S, -1), 2 + 100 * draw), dim=-1)
    q, k = direction.expand(len(keys), -1, L, -1).contiguous(), which * direction + (1 - which) * others
    out = run(case, op, q, k.contiguous(), which.expand(-1, case.heads, -1, D).contiguous())
    return out.abs().amax(dim=(1, 3)).T.cpu()


@promises(
    "receptive-field",
    "The tokens that reach an output are those of its window.",
    trait="Traits.window is declared, and no gate reaches beyond it",
    reason=not_bounded,
    kinds=("layer",),
    drawn=_sizes,
)
def receptive_field(case: Case) -> None:
    traits = case.subject.traits
    grid, T = _laid_out(case)
    expected = expected_support(traits, *(grid or (T, T)))
    layer = case.subject.seen_as_layer(case.raw(case.precise), case.heads, grid)
    edge = case.example.get("reach") == "edge"
    influence = _at_the_edge(case, layer, expected) if edge else _everywhere(case, layer, T)
    asked = influence.isfinite().any(-1)
    influence = torch.where(asked[:, None], influence, 0)
    apart = influence[~torch.eye(T, dtype=torch.bool)]
    # Layers often start with a projection of zeros, which "moved" moves.
    reached = case.example["parameters"] == "moved" or magnitude(apart) > 0
    require(reached, "no token reaches the output of another, with the parameters that it starts with")
    what = f"in a map {grid[0]} x {grid[1]}, the output of pixel" if grid else f"of {T} tokens, output"
    tolerance = rounding_of(influence)
    _assert_support(influence, expected | ~asked[:, None], tolerance, what)
    if _vanishes(traits):
        return
    missing = unseen(influence, expected & asked[:, None])
    for query, key in missing.nonzero().tolist()[:_PAIRS]:
        if not _ever_reached(case, layer, T, query, key):
            missing = torch.zeros_like(missing)
            missing[query, key] = True
            _assert_support(influence, expected, tolerance, what, missing)


def _laid_out(case: Case) -> tuple[tuple[int, int] | None, int]:
    """The map, or ``None``, and how many tokens: past the window where the example is of its edge."""
    traits = case.subject.traits
    if case.grid is None:
        return None, edge_length(case) or case.length
    grid = map_beyond(traits) if case.example.get("reach") == "edge" else None
    grid = grid or case.grid
    return grid, grid[0] * grid[1]


def _gradients(case: Case, layer: Layer, x: Tensor, queries: Tensor) -> Tensor:
    """The influence of each token of ``x``, (B, T, C), on the output of one of them: (B, T), on the CPU."""
    x = x.requires_grad_()
    out = case.call(layer, x, grad=True)
    asked = out[torch.arange(len(x), device=case.device), queries.to(case.device)][:, None]
    (gradient,) = gradients_of(case, asked, [x])
    if gradient is None:
        raise NotApplicable("the output does not depend on the input")
    return gradient.abs().amax(-1).cpu()


def _everywhere(case: Case, layer: Layer, T: int) -> Tensor:
    """Gradients of all outputs at once: each of the T copies of the input in a batch is asked for another output."""
    copies = max(1, min(2 if case.subject.traits.normalisation == "row" else _COPIES, 4000 // T**2))
    single = torch.empty(copies, T, case.dim, dtype=case.precise, device=case.device)
    x = case.normal(single).repeat_interleave(T, 0)
    influence = _gradients(case, layer, x, torch.arange(T).repeat(copies))
    return influence.unflatten(0, (copies, T)).amax(0)


def _at_the_edge(case: Case, layer: Layer, expected: Tensor) -> Tensor:
    """The influence on one query that sees both ends of its window, (T, T), NaN in the rows of all others."""
    T, traits = len(expected), case.subject.traits
    query = T - 1 if traits.causal else T // 2
    influence = torch.full((T, T), torch.nan, dtype=case.precise)
    ends = [key for key in boundary(expected[query]) if key != query]
    x = _standing_out(case, T, query, ends, 0)
    influence[query] = _gradients(case, layer, x, torch.full((2,), query)).amax(0)
    return influence


def _standing_out(case: Case, T: int, query: int, keys: list[int], draw: int) -> Tensor:
    """Two inputs, (2, T, C): all tokens alike but some keys, which differ one way and the other, and the query.

    Attention to the largest few takes those keys in one of the two, whatever the length.
    """
    drawn = case.normal(torch.empty(3, case.dim, dtype=case.precise, device=case.device), 3 + draw)
    x = drawn[0].expand(2, T, -1).clone()
    if draw % 3 < 2:
        x[:, query] = drawn[2]
    x[0, keys] = drawn[0] + drawn[1]
    x[1, keys] = drawn[0] - drawn[1]
    return x


def _ever_reached(case: Case, layer: Layer, T: int, query: int, key: int) -> bool:
    """Whether the key, standing out, reaches the output of the query in any of many draws."""
    queries = torch.full((2,), query)
    for draw in range(_DRAWS):
        x = _standing_out(case, T, query, [key], 1 + draw)
        if (_gradients(case, layer, x, queries)[:, key] > NOTHING).any():
            return True
    return False
