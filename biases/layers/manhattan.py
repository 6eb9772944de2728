"""Manhattan self-attention (MaSA) of RMT (arXiv 2309.11523 Eq. 5-7): softmax attention over a map, with spatial decay.

Full (Eq. 5): attention over all pixels with the decay ``gamma_h^(|y - y'| + |x - x'|)``. Decomposed (Eq. 6): one pass
along the rows, whose result takes the place of the values, and one along the columns, each with ``gamma_h^|d|``. The
decay is the same in both forms; the attention is not, unless the content term splits (see :mod:`biases.axial`).

Where the paper and its code (qhfan/RMT, commit 32ea214) contradict each other, the defaults follow the code:

* the code adds ``log gamma |d|`` to the logits; as printed, the decay multiplies the weights after the softmax, and the
  rows are not renormalised, so that they sum to less than 1: ``placement="weights"``. With renormalisation the two
  agree;
* the code rotates queries and keys by the raster index, the "theta shift", which Eq. 5-6 do not show: ``theta_shift``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from biases._checks import divides, fail, feature_map, one_of
from biases.attention import BACKENDS, attend, check_decay
from biases.axial import ORDERS, attend_decomposed
from biases.backends import WEIGHTS
from biases.decays.exponential import rmt_log_rates
from biases.decays.manhattan import ManhattanDecay
from biases.layers.local_enhancement import local_enhancement
from biases.positions.theta_shift import ThetaShift
from biases.registry import register
from biases.traits import Decay, Traits

FORMS = ("decomposed", "full")
SWITCH = (False, True)


class ManhattanAttention(nn.Module):
    """Manhattan self-attention, (B, H, W, C) -> the same, for any H, W >= 1.

    ``output(concat_h(attention) + enhancement(value(x)))`` (Eq. 7). Queries, keys, values and output are linear maps
    C -> C with bias, as in the code; decay and theta shift have no parameters.

    Args:
        dim: C.
        heads: number of heads, dividing C.
        form: ``"decomposed"`` (Eq. 6) or ``"full"`` (Eq. 5).
        initial, span: a and b - a of ``gamma_h = 1 - 2^(-a - (b - a) h / heads)`` (Eq. 8), see
            :func:`~biases.decays.rmt_log_rates`; ``span`` is the code's ``heads_range``.
        placement: of the decay, in both passes: ``"logits"`` (the code), ``"weights"`` (as printed) or
            ``"weights-renormalised"``, which equals the first under a softmax.
        weights: ``"softmax"`` (RMT), or another of :func:`biases.attend` (ours).
        theta_shift: rotate queries and keys by the raster index, once, before both passes.
        enhancement: side of the depthwise convolution of the values (LCE), odd; 0 for none.
        order: of the passes of the decomposed form, ``"width-first"`` (the code) or ``"height-first"``; the full form
            has none.
        backend: see :func:`biases.attend`.

    Raises:
        ValueError: heads not dividing dim, an odd head width with the theta shift, an even kernel, unknown options.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        form: str = "decomposed",
        initial: float = 2.0,
        span: float = 4.0,
        placement: str = "logits",
        weights: str = "softmax",
        theta_shift: bool = True,
        enhancement: int = 5,
        order: str = "width-first",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.head_dim = divides("ManhattanAttention", dim, heads)
        one_of("ManhattanAttention form", form, FORMS)
        one_of("ManhattanAttention weights", weights, WEIGHTS)
        one_of("ManhattanAttention order", order, ORDERS)
        one_of("ManhattanAttention backend", backend, BACKENDS)
        one_of("ManhattanAttention theta_shift", theta_shift, SWITCH)
        if theta_shift and self.head_dim % 2:
            fail("ManhattanAttention head width", "even, as the theta shift rotates pairs of channels", self.head_dim)
        self.dim, self.heads, self.form = dim, heads, form
        self.weights, self.order, self.backend = weights, order, backend
        # The rates are no buffer: ``.half()`` must not round them.
        self.decay = ManhattanDecay(1, 1, rmt_log_rates(heads, initial, span), placement=placement)
        self.axis_decay, _ = self.decay.axes()
        check_decay(self.decay, weights)
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))
        self.theta_shift = ThetaShift(self.head_dim) if theta_shift else None
        self.enhancement = local_enhancement("ManhattanAttention", dim, enhancement)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (B, H, W, C), float32, float64, bfloat16 or float16.

        Returns:
            Shape and dtype of ``x``.

        Raises:
            ValueError: another shape or dtype.
        """
        feature_map("ManhattanAttention x", x, self.dim)
        v = self.value(x)
        y = self._attend(*(self._split(part) for part in (self.query(x), self.key(x), v)))
        y = y.permute(0, 2, 3, 1, 4).flatten(3)
        return self.output(y if self.enhancement is None else y + self.enhancement(v))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, H, W, D) -> the same."""
        if self.theta_shift is not None:
            q, k = self.theta_shift.on_map(q), self.theta_shift.on_map(k)
        if self.form == "decomposed":
            return attend_decomposed(
                q, k, v, weights=self.weights, decay=self.axis_decay, order=self.order, backend=self.backend
            )
        height, width = q.shape[2:4]
        tokens = (part.flatten(2, 3) for part in (q, k, v))
        decay = self.decay.resized(height, width)
        return attend(*tokens, weights=self.weights, decay=decay, backend=self.backend).unflatten(2, (height, width))

    def _split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, heads, H, W, D)."""
        return x.unflatten(-1, (self.heads, self.head_dim)).permute(0, 3, 1, 2, 4)

    def extra_repr(self) -> str:
        order = f", order={self.order!r}" if self.form == "decomposed" else ""
        return (
            f"dim={self.dim}, heads={self.heads}, form={self.form!r}, placement={self.decay.placement!r}, "
            f"weights={self.weights!r}{order}, backend={self.backend!r}"
        )


def manhattan_traits(options: Mapping[str, Any], form: str) -> Traits:
    """The traits of both forms.

    The learned convolution is symmetric in no direction, and the theta shift knows where rows begin: either breaks the
    symmetries of the map. A decomposed form has its passes in an order, which a transposition reverses. Where it goes
    by tiles, it holds the weights of each line whose length is at most a tile's, H W (H or W) numbers a head: its
    memory is then neither linear nor quadratic in the pixels, and not declared.

    Raises:
        ValueError: ``theta_shift`` other than True or False.
    """
    one_of("theta_shift", options["theta_shift"], SWITCH)
    placement, weights = options["placement"], options["weights"]
    row = weights in ("softmax", "sigmoid-normalised") and placement != "weights"
    row = row or placement == "weights-renormalised"
    symmetric = not options["theta_shift"] and not options["enhancement"]
    full = form == "full"
    source = ", as printed" if placement == "weights" else " and its code"
    source += "" if weights == "softmax" else " (weights: ours)"
    fused = weights == "softmax" and placement != "weights" and not full
    return Traits(
        domain="image",
        normalisation="row" if row else "none",
        decay=Decay("exponential", "manhattan", "logits" if placement == "logits" else "weights"),
        position="relative",
        equivariant_to=(("flip", "transpose") if full else ("flip",)) if symmetric else (),
        memory="linear" if full or fused else None,
        fast_path="Toeplitz view along each axis" if fused else "tiles of queries",
        published=f"2309.11523 Eq. {5 if full else 6}-8{source}",
    )


_NOTES = (
    "The code adds the logarithm of the decay before the softmax; the paper prints a product after it, whose rows sum "
    "to less than 1 (placement=weights).",
    "The code rotates queries and keys by the raster index, which the equations do not show; along a column the angle "
    "depends on the width of the map.",
)
_PARAMETERS = "26 * dim (depthwise 5 x 5 convolution), beside the biases of query, key and value"


@register(
    "manhattan",
    family="layers",
    summary="softmax attention over the whole map with decay by Manhattan distance",
    traits=lambda options: manhattan_traits(options, "full"),
    parameters=_PARAMETERS,
    notes=_NOTES,
)
def manhattan(
    dim: int,
    heads: int,
    *,
    initial: float = 2.0,
    span: float = 4.0,
    placement: str = "logits",
    weights: str = "softmax",
    theta_shift: bool = True,
    enhancement: int = 5,
) -> ManhattanAttention:
    return ManhattanAttention(
        dim,
        heads,
        form="full",
        initial=initial,
        span=span,
        placement=placement,
        weights=weights,
        theta_shift=theta_shift,
        enhancement=enhancement,
    )


@register(
    "manhattan-decomposed",
    family="layers",
    summary="softmax attention along the rows, then along the columns, with decay by distance",
    traits=lambda options: manhattan_traits(options, "decomposed"),
    parameters=_PARAMETERS,
    notes=(
        *_NOTES,
        "Called linear in the number of pixels N; it is in H W (H + W), that is N^(3/2) on square maps.",
    ),
)
def manhattan_decomposed(
    dim: int,
    heads: int,
    *,
    initial: float = 2.0,
    span: float = 4.0,
    placement: str = "logits",
    weights: str = "softmax",
    theta_shift: bool = True,
    enhancement: int = 5,
    order: str = "width-first",
) -> ManhattanAttention:
    return ManhattanAttention(
        dim,
        heads,
        form="decomposed",
        initial=initial,
        span=span,
        placement=placement,
        weights=weights,
        theta_shift=theta_shift,
        enhancement=enhancement,
        order=order,
    )
