"""The terms of an attention problem, and the structured forms that a fast path can use.

A bias or decay is a :class:`PairTerm`: one number for every (query position, key position). Its :meth:`PairTerm.values`
is the specification; its :meth:`PairTerm.form` says, where it can, that the numbers depend on the key only
(:class:`PerKey`), on the distance only (:class:`Toeplitz`), on a relative position (:class:`RelativeTable`) or have low
rank (:class:`LowRank`), so that no L x S tensor is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from biases._checks import fail, one_of, rank
from biases.backends.forms import Form, LowRank, PerKey, Toeplitz
from biases.backends.forms import RelativeTable as RelativeTable
from biases.backends.geometry import Geometry

PLACEMENTS = ("logits", "weights", "weights-renormalised")
WEIGHTS = ("softmax", "sigmoid", "sigmoid-normalised", "linear")


ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(score, b, h, q_idx, kv_idx) -> score``, as FlexAttention takes it."""


class PairTerm(ABC):
    """One number for every query and key: added to the logits, or the logarithm of a multiplier."""

    heads: int | None = None
    #: whether it depends on where queries and keys stand
    positional: bool = True

    @abstractmethod
    def values(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        """The term at query positions ``i`` (L, 1) and key positions ``j`` (1, S): (B or 1, H or 1, L or 1, S)."""

    def form(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, row_free: bool) -> Form | None:
        """The structured form, or ``None`` where there is none.

        Args:
            geometry: lengths and alignment.
            dtype: dtype in which logits are accumulated.
            device: where the queries are.
            row_free: a constant added to a whole row changes nothing (true under a softmax, false under a sigmoid).
        """
        return None

    def score_mod(
        self, geometry: Geometry, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> ScoreMod | None:
        """What adds the term to a score in FlexAttention, out of its form; ``None`` where it has none."""
        from biases.backends.score_mods import from_form

        form = self.form(geometry, dtype, device, row_free=False)
        return None if form is None else from_form(form, geometry)

    def check(self, geometry: Geometry, batch: int, heads: int) -> None:
        """Raise ``ValueError`` where the term does not fit the problem."""
        if self.heads not in (None, 1, heads):
            fail(f"{type(self).__name__} heads", f"1 or {heads}", self.heads)

    def dense(self, L: int, S: int, *, offset: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """The whole term, (B or 1, H or 1, L, S)."""
        i, j = Geometry(L, S, offset).positions(torch.device("cpu"))
        full = self.values(i, j, dtype)
        return full.expand(*full.shape[:2], L, S)


class KeyBias(PairTerm):
    """A bias of the key alone: ``b_j`` is added to the logits of key ``j`` for every query.

    Args:
        values: (B or 1, H or 1, S); ``-inf`` excludes a key. May carry gradients. A large finite number such as
            ``finfo.min`` is no exclusion: a query that sees only such keys attends to all of them, which fused kernels
            get wrong (their log-sum-exp cannot hold both the number and the count).
    """

    positional = False

    def __init__(self, values: Tensor) -> None:
        self.tensor = rank("KeyBias values", values, "B H S")
        self.heads = values.shape[1]

    def values(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        return self.tensor[:, :, j[0].to(self.tensor.device)].to(dtype)[:, :, None, :]

    def form(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, row_free: bool) -> Form:
        return PerKey(self.tensor.to(dtype))

    def check(self, geometry: Geometry, batch: int, heads: int) -> None:
        super().check(geometry, batch, heads)
        if self.tensor.shape[0] not in (1, batch) or self.tensor.shape[2] != geometry.S:
            fail(
                "KeyBias values",
                f"shape ({batch} or 1, {heads} or 1, {geometry.S})",
                tuple(self.tensor.shape),
            )


class LowRankBias(PairTerm):
    """A bias ``sum_r left[h, i, r] right[h, j, r]``.

    Args:
        left: (H or 1, L, r).
        right: (H or 1, S, r).
    """

    positional = False

    def __init__(self, left: Tensor, right: Tensor) -> None:
        rank("LowRankBias left", left, "H L r")
        rank("LowRankBias right", right, "H S r")
        if left.shape[0] != right.shape[0] or left.shape[2] != right.shape[2]:
            fail("LowRankBias right", f"shape ({left.shape[0]}, S, {left.shape[2]})", tuple(right.shape))
        self.left, self.right = left, right
        self.heads = left.shape[0]

    def values(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        left = self.left[:, i[:, 0].to(self.left.device)]
        right = self.right[:, j[0].to(self.right.device)]
        return (left.to(dtype) @ right.to(dtype).mT)[None]

    def form(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, row_free: bool) -> Form:
        return LowRank(self.left.to(dtype), self.right.to(dtype))

    def check(self, geometry: Geometry, batch: int, heads: int) -> None:
        super().check(geometry, batch, heads)
        if geometry.offset:
            fail(
                "LowRankBias",
                "upper-left alignment (its rows are query indices)",
                f"offset {geometry.offset}",
            )
        if self.left.shape[1] != geometry.L or self.right.shape[1] != geometry.S:
            got = f"left {tuple(self.left.shape)}, right {tuple(self.right.shape)}"
            fail("LowRankBias", f"{geometry.L} rows on the left and {geometry.S} on the right", got)


class RelativeTerm(PairTerm):
    """A term of the distance ``i - j`` alone (a Toeplitz matrix)."""

    @abstractmethod
    def by_distance(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        """The term at signed distances i - j, of any shape: ``(H or 1, *distance.shape)``."""

    def values(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        return self.by_distance(i - j, dtype)[None]

    def form(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, row_free: bool) -> Form:
        return Toeplitz(self.by_distance(geometry.distances(device), dtype))


class LinearTerm(RelativeTerm):
    """``-slope * (i - j)``, or ``-slope * |i - j|`` if symmetric.

    Args:
        slopes: (H,), any sign; may carry gradients.
        symmetric: use the absolute distance.
    """

    # A per-key form replaces -m (i - j) by m (j - S + 1). Far from the last key a logit then is a small difference of
    # large numbers; up to this magnitude the rounding of the sum stays near that of the logits themselves.
    EXACT_RANGE = 8.0
    #: of the tensor kept: -1 where that holds minus the slopes
    _sign = 1.0

    def __init__(self, slopes: Tensor, *, symmetric: bool = False) -> None:
        rank(f"{type(self).__name__} slopes", slopes, "H")
        if not bool(torch.isfinite(slopes).all()):
            fail(f"{type(self).__name__} slopes", "finite numbers", slopes.tolist())
        self._slopes = slopes
        self.symmetric = symmetric
        self.heads = slopes.shape[0]
        self._steepest = None if slopes.requires_grad else float(slopes.abs().max())

    @property
    def slopes(self) -> Tensor:
        """(H,)."""
        return self._slopes

    def by_distance(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        slopes = self.slopes.to(device=distance.device, dtype=dtype)
        steps = (distance.abs() if self.symmetric else distance).to(dtype)
        return -slopes.view(-1, *[1] * distance.ndim) * steps

    def affine(self, geometry: Geometry) -> bool:
        """Whether the term is ``-slope * (i - j)`` for every pair that may attend."""
        return not self.symmetric or geometry.causal

    def form(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, row_free: bool) -> Form:
        if row_free and self.affine(geometry) and self._steepest_slope() * geometry.S <= self.EXACT_RANGE:
            steps = torch.arange(geometry.S, device=device, dtype=dtype) - (geometry.S - 1)
            return PerKey((self.slopes.to(device=device, dtype=dtype)[:, None] * steps)[None])
        return super().form(geometry, dtype, device, row_free)

    def _steepest_slope(self) -> float:
        # Learned slopes move; those that do not are looked at once.
        return float(self.slopes.detach().abs().max()) if self._steepest is None else self._steepest

    def score_mod(
        self, geometry: Geometry, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> ScoreMod | None:
        from biases.backends.score_mods import carries_gradient, linear, on_device

        if carries_gradient(self._slopes):
            return super().score_mod(geometry, device, dtype)
        return linear(self._sign * on_device(self._slopes, device, dtype), geometry, symmetric=self.symmetric)


class DecayTerm(PairTerm):
    """A decay: its values are logarithms (at most 0), its ``placement`` says where it acts.

    * ``"logits"``: the logarithm is added to the logits;
    * ``"weights"``: the weights are multiplied by it and not renormalised;
    * ``"weights-renormalised"``: multiplied, then every row is divided by its sum. Under a softmax this equals
      ``"logits"``.
    """

    placement: str = "logits"


@dataclass(frozen=True)
class KeyGate:
    """A gate on the keys: weights become ``A_ij g_j``, renormalised by row or not.

    Attributes:
        log: logarithm of the gate, (B or 1, H or 1, S), at most 0 for a gate in (0, 1).
        renormalise: divide every row by its sum afterwards.
        eps: added to that sum, in the limit 0 by default. Published EGA uses 1e-8, which matters only to a row whose
            gated weights sum to about as little.
    """

    log: Tensor
    renormalise: bool = True
    eps: float = 0.0

    def __post_init__(self) -> None:
        rank("KeyGate log", self.log, "B H S")
        if not self.eps >= 0:
            fail("KeyGate eps", "at least 0", self.eps)
        if self.eps and not self.renormalise:
            fail("KeyGate eps", "0 for a gate that is not renormalised", self.eps)

    def check(self, batch: int, heads: int, keys: int) -> None:
        b, h, s = self.log.shape
        if b not in (1, batch) or h not in (1, heads) or s != keys:
            fail("KeyGate log", f"shape ({batch} or 1, {heads} or 1, {keys})", (b, h, s))


@dataclass(frozen=True)
class Problem:
    """One call of :func:`biases.attend`, validated and broadcast.

    Attributes:
        q: (B, H, L, D); k: (B, H, S, D); v: (B, H, S, Dv).
        geometry: lengths, alignment, causality.
        scale: factor of q . k.
        weights: one of :data:`WEIGHTS`.
        biases: terms added to the logits.
        decay: decay, or ``None``.
        key_gate: gate on the keys, or ``None``.
        keep: keys that may be attended by any query at all, (B or 1, H or 1, S), or ``None``.
        mask: pairs that may attend, (B or 1, H or 1, L, S), or ``None``.
        dropout: probability with which a weight is dropped.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    geometry: Geometry
    scale: float
    weights: str = "softmax"
    biases: tuple[PairTerm, ...] = ()
    decay: DecayTerm | None = None
    key_gate: KeyGate | None = None
    keep: Tensor | None = None
    mask: Tensor | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        one_of("weights", self.weights, WEIGHTS)
