"""What is put to operators (q, k, v[, mask]) -> out, and to which of them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.masks import additive, expected_support, make_mask
from biases.testing.properties.base import magnitude
from biases.testing.subject import Layer, NotApplicable, Raised
from biases.traits import Traits

OPERATOR = ("operator",)
ROW = "Traits.normalisation is 'row'"


def not_row(traits: Traits) -> str | None:
    """Why the weights of a query need not sum to 1."""
    return None if traits.normalisation == "row" else "it needs weights that sum to 1: Traits.normalisation 'row'"


def not_weights(traits: Traits) -> str | None:
    """Why the output need not be a weighted sum of the values."""
    return None if traits.normalisation is not None else "Traits.normalisation is not declared"


def not_placeless(traits: Traits) -> str | None:
    """Why it may matter where keys and queries stand."""
    if traits.position != "none":
        return f"it needs Traits.position 'none', and it is {traits.position!r}"
    placed = [name for name in ("causal", "window", "decay") if getattr(traits, name)]
    return f"places matter: Traits.{placed[0]} is declared" if placed else None


def tolerates_lengths(case: Case) -> bool:
    """Whether the traits say what L != S means: an alignment, or places that do not matter."""
    traits = case.subject.traits
    return traits.alignment is not None or not_placeless(traits) is None


def lengths(case: Case) -> tuple[int, int]:
    """(L, S) of the example: S is L where the traits do not say what another means."""
    return case.length, int(case.example.get("keys", case.length)) if tolerates_lengths(case) else case.length


def operands(case: Case, L: int, S: int, width: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, L, D), k (B, H, S, D) and v (B, H, S, ``width`` or D)."""
    lead, D = (case.example["batch"], case.heads), case.dim // case.heads
    q, k = case.tensor((*lead, L, D), case.precise), case.tensor((*lead, S, D), case.precise, 1)
    return q, k, case.tensor((*lead, S, width or D), case.precise, 2)


def run(
    case: Case, op: Layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, grad: bool = False
) -> Tensor:
    """The operator's output, its form checked; the mask is given only where there is one.

    Raises:
        NotApplicable: it refused L != S, without a promise to serve it.
        Violation: it raised, or returned something else than (B, H, L, Dv).
    """
    given: tuple[Any, ...] = (q, k, v) if mask is None else (q, k, v, mask)
    L, S = q.shape[2], k.shape[2]
    try:
        with warnings.catch_warnings():
            # What is warned of is what is checked.
            warnings.simplefilter("ignore")
            out = case.invoke(op, *given, grad=grad)
    except Raised as error:
        if L == S or case.subject.traits.alignment is not None:
            raise
        raise NotApplicable(f"it does not serve L {L} with S {S}, and declares no alignment: {error}") from error
    return case.check_form(out, torch.empty(1, dtype=v.dtype).expand(*q.shape[:3], v.shape[3]))


def support(case: Case, L: int, S: int, mask: Tensor | None = None) -> Tensor:
    """Which pairs may meet, (1, 1, L, S) or as ``mask`` broadcasts: by the traits and by the mask."""
    seen = expected_support(case.subject.traits, L, S).to(case.device)[None, None]
    return seen if mask is None else seen & mask


def drawn_mask(case: Case, L: int, S: int) -> Tensor:
    """The example's mask, bool, True = may attend: (B, 1, 1, S) for padding, else (B, H, L, S)."""
    kind = case.example["mask"]
    padding = kind in ("padding", "left-padding")
    shape = (case.example["batch"], 1 if padding else case.heads, 1 if padding else L, S)
    return make_mask(kind, shape, case.example["seed"]).to(case.device)


def in_form(case: Case, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask in the form that the example asks for, or in the one that is declared."""
    declared = case.subject.traits.mask
    form = case.example.get("form", declared[0])
    return mask if (form if form in declared else declared[0]) == "boolean" else additive(mask, dtype)


def maybe_masked(case: Case, L: int, S: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """A mask to call with, ``None`` where none is taken, and the pairs that may then meet."""
    if not case.subject.traits.mask:
        return None, support(case, L, S)
    mask = drawn_mask(case, L, S)
    return in_form(case, mask, dtype), support(case, L, S, mask)


def slack(case: Case, op: Layer, given: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, out: Tensor) -> float:
    """How far rounding explains two results of one computation to be apart, (q, k, v) being ``given``.

    As in :func:`biases.testing.properties.base.assert_alike`: 16 roundings of the largest value, and 8 times what
    rounding q, k and v does to the output.
    """
    eps = max(torch.finfo(torch.float32).eps, torch.finfo(out.dtype).eps)
    moved = 0.0
    for draw in range(2):
        generator = case.generator(10 + draw)
        signs = [torch.rand(x.shape, generator=generator, dtype=torch.float64).round() * 2 - 1 for x in given]
        q, k, v = (x * (1 + eps * sign.to(x)) for x, sign in zip(given, signs, strict=True))
        moved = max(moved, magnitude(run(case, op, q, k, v, mask) - out))
    floor = 1e-6 if out.dtype == torch.float64 else 0.1
    return 16 * eps * max(magnitude(given[2]), magnitude(out), floor) + 8 * moved


def require(condition: bool, reason: str) -> None:
    """Raise NotApplicable where the example lacks what the promise is about."""
    if not condition:
        raise NotApplicable(reason)
