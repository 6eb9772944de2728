"""Gated-SwinRMT-SWAT (arXiv 2604.06014 abstract): sigmoid attention inside shifted windows, its values gated.

The reconstruction, for one head of width D in a window, with z the normalised input:

    v~ = SiLU(z W_g) . (z W_V + b_V)
    B[j, j'] = sigmoid(q_ij . k_ij' / sqrt(D) + s (j - j')) gamma^|j - j'|,   u_ij = sum B[j, j'] v~_ij',
    and the same along the columns over u, giving y;    out = Norm(y + LCE(v~)) W_O + b_O.

The abstract states the sigmoid in place of softmax (S1), balanced ALiBi slopes with multiplicative post-activation
spatial decay (S2), values gated via SwiGLU (S3), and that "the Normalized output implicitly suppresses uninformative
attention scores" (S4). The slopes are those of SWAT (arXiv 2502.18845 Eq. 3-4). Pairs that may not attend are excluded
exactly: adding a large negative number to a logit leaves a sigmoid more than nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from biases._checks import divides, one_of
from biases.decays.alibi import ALiBi, alibi_slopes
from biases.gates.swiglu import ValueGate
from biases.layers.gated_swin import GATE_INPUTS, PUBLISHED, SWITCH, UNKNOWNS, GatedSwin
from biases.layers.gated_swin_retention import equivariances
from biases.registry import register
from biases.traits import Decay, Traits

DISTANCES = ("signed", "absolute", "negative-absolute")
SLOPE_RULES = ("halving", "press")
ODD_HEADS = ("zero", "error")
WEIGHTS_NORMS = ("none", "row")
OUTPUT_NORMS = ("layer", "none", "rms", "head")
EPS = 1e-6


class HeadGroupNorm(nn.GroupNorm):
    """Group norm of each pixel by itself, a group a head: (..., C) -> the same."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.reshape(-1, input.shape[-1])).view(input.shape)


class GatedSwinSigmoid(GatedSwin):
    """Sigmoid attention inside shifted windows with gated values: (B, H, W, C) -> the same.

    "Paper" below is the abstract of arXiv 2604.06014; everything else is our reading.

    Args:
        dim, heads, window, shifted, window_rule, attention, order, theta_shift: as for
            :class:`~biases.layers.GatedSwinRetention`. Where ``theta_shift`` is concerned, SWAT rotates and the
            abstract names no rotation.
        decay, initial, span, enhancement, enhancement_domain, backend: likewise. For the decay, paper (S2,
            multiplicative, after the sigmoid).
        alibi: have the bias. Paper (S2): yes; ``False`` for ablations.
        alibi_distance: what the slopes multiply, along the axis of each pass (with ``attention="full"``, the sum over
            both axes): ``"signed"``, ``s (j - j')`` as in SWAT Eq. 3, which is causal there; ``"absolute"``,
            ``s |j - j'|`` with slopes of both signs; ``"negative-absolute"``, ``-|s| |j - j'|`` in all heads. Not
            stated.
        slope_rule: of half the heads, the others having the opposite sign: ``"halving"``, 2^-k, k = 1, 2, ... (SWAT
            Eq. 4), or ``"press"`` (arXiv 2108.12409), see :func:`~biases.decays.alibi_slopes`. Paper (S2): balanced;
            the sequence is not stated.
        odd_heads: an odd number of heads cannot be balanced: ``"zero"`` gives the last one slope 0, ``"error"`` raises.
        gate: gate the values. Paper (S3): yes; ``False`` for ablations.
        gate_input: what the gate of the values is projected from: ``"normalised"``, what the values are projected from
            (SwiGLU has one input), or ``"block"``, the un-normalised input of the block (ours).
        gates_enhancement: the local enhancement reads gated values; ``False``: the values as projected. Not stated.
        weights_norm: ``"none"`` (SWAT), or ``"row"``: the weights of each row are divided by their sum. Paper (S4)
            says that something is normalised, not what: at least one of this and ``output_norm``.
        output_norm: before the output projection: ``"layer"`` (LayerNorm), ``"rms"`` (RMSNorm), ``"head"`` (GroupNorm,
            one group a head) or ``"none"``. Paper (S4, "the Normalized output").

    Raises:
        ValueError: heads not dividing dim, an odd head width where there is a rotation, an odd number of heads with
            ``odd_heads="error"``, an even kernel, unknown option.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        window: int = 7,
        shifted: bool = False,
        window_rule: str = "adaptive",
        attention: str = "decomposed",
        order: str = "width-first",
        theta_shift: str = "none",
        decay: bool = True,
        initial: float = 2.0,
        span: float = 4.0,
        alibi: bool = True,
        alibi_distance: str = "signed",
        slope_rule: str = "halving",
        odd_heads: str = "zero",
        gate: bool = True,
        gate_input: str = "normalised",
        gates_enhancement: bool = True,
        weights_norm: str = "none",
        output_norm: str = "layer",
        enhancement: int = 5,
        enhancement_domain: str = "map",
        backend: str = "auto",
    ) -> None:
        for option, value, choices in (
            ("alibi", alibi, SWITCH),
            ("alibi_distance", alibi_distance, DISTANCES),
            ("slope_rule", slope_rule, SLOPE_RULES),
            ("odd_heads", odd_heads, ODD_HEADS),
            ("gate", gate, SWITCH),
            ("gate_input", gate_input, GATE_INPUTS),
            ("gates_enhancement", gates_enhancement, SWITCH),
            ("weights_norm", weights_norm, WEIGHTS_NORMS),
            ("output_norm", output_norm, OUTPUT_NORMS),
        ):
            one_of(f"GatedSwinSigmoid {option}", value, choices)
        divides("GatedSwinSigmoid", dim, heads)
        row = weights_norm == "row"
        super().__init__(
            dim,
            heads,
            window=window,
            shifted=shifted,
            window_rule=window_rule,
            attention=attention,
            order=order,
            theta_shift=theta_shift,
            decay=decay,
            initial=initial,
            span=span,
            placement="weights-renormalised" if row else "weights",
            # With row sums, normalised before the decay as well: all sigmoids of a row may underflow.
            weights="sigmoid-normalised" if row else "sigmoid",
            alibi=balanced_alibi(heads, alibi_distance, slope_rule, odd_heads) if alibi else None,
            mask_value=None,
            enhancement=enhancement,
            enhancement_domain=enhancement_domain,
            backend=backend,
        )
        self.gate_input, self.gates_enhancement = gate_input, gates_enhancement
        self.value_gate = ValueGate(dim) if gate else None
        self.output_norm = _norm(output_norm, dim, heads)

    def forward(self, x: Tensor, *, block_input: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: what the norm of the block gives, (B, H, W, C), any H and W of at least 1; float32, float64, bfloat16 or
                float16.
            block_input: the un-normalised input of the block, of the same shape and dtype, read where ``gate_input`` is
                ``"block"``; ``None``: ``x``.

        Returns:
            (B, H, W, C).

        Raises:
            ValueError: another shape, a ``block_input`` of another dtype than ``x`` outside autocast.
        """
        source = self._inputs(x, block_input)
        windows, v = self.windows(x.shape[1], x.shape[2]), self.value(x)
        gated = v if self.value_gate is None else self.value_gate(v, source if self.gate_input == "block" else x)
        y, local = self._attend(x, gated, windows), self._local(gated if self.gates_enhancement else v, windows)
        return self.output(self.output_norm(y if local is None else y + local))

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, weights={self.weights!r}, alibi={self.alibi is not None}, "
            f"gate_input={self.gate_input!r}, gates_enhancement={self.gates_enhancement}"
        )


def balanced_alibi(heads: int, distance: str, rule: str, odd: str) -> ALiBi:
    """ALiBi whose slopes are balanced, by ``alibi_distance`` (see :class:`GatedSwinSigmoid`)."""
    slopes = alibi_slopes(heads, rule, balanced=True, odd=odd)
    if distance == "negative-absolute":
        slopes = slopes.abs()
    return ALiBi(slopes, symmetric=distance != "signed", allow_negative=True)


def _norm(kind: str, dim: int, heads: int) -> nn.Module:
    match kind:
        case "layer":
            return nn.LayerNorm(dim, eps=EPS)
        case "rms":
            return nn.RMSNorm(dim, eps=EPS)
        case "head":
            return HeadGroupNorm(heads, dim, eps=EPS)
        case _:
            return nn.Identity()


def _traits(options: Mapping[str, Any]) -> Traits:
    # No trait `window`: the side of the windows depends on the map under every rule.
    symmetric = not options["alibi"] or options["alibi_distance"] != "signed"
    # A positive slope may outweigh the decay, and influence then rises with the distance.
    falls = options["decay"] and (not options["alibi"] or options["alibi_distance"] == "negative-absolute")
    return Traits(
        domain="image",
        normalisation="row" if options["weights_norm"] == "row" else "none",
        gate_sees="token" if options["gate"] else None,
        decay=Decay("exponential", "manhattan", "weights") if falls else None,
        position="relative",
        equivariant_to=equivariances(options, symmetric),
        # Windows have sides of at most 1.5 M, whatever the map.
        memory="linear",
        fast_path="windows as a batch, by tiles of queries",
        published=PUBLISHED,
    )


register(
    "gated-swin-swat",
    family="layers",
    summary="sigmoid attention along the axes of shifted windows, balanced slopes, decay after it, gated values",
    traits=_traits,
    parameters="dim^2 (value gate), 26 * dim (enhancement), 2 * dim (norm), 3 * dim (biases of query, key and value)",
    notes=(
        *UNKNOWNS,
        "What 'the Normalized output' is, rows of weights or the output, is not stated.",
        "Sign, sequence and two-dimensional meaning of the balanced slopes are not stated; SWAT is causal.",
        "Bias and decay act on the same distance: in heads whose slope favours far keys they pull in opposite "
        "directions.",
    ),
)(GatedSwinSigmoid)
