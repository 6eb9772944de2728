"""Gated-SwinRMT-Retention (arXiv 2604.06014 abstract): softmax retention inside shifted windows, gated at its output.

The reconstruction, for one head of width D in a window, with q, k, v linear maps of the normalised input:

    A[j, j'] = softmax over j' of (q_ij . k_ij' / sqrt(D) + |j - j'| log gamma),   u_ij = sum A[j, j'] v_ij',
    and the same along the columns over u, giving y;    out = ((y + LCE(v)) . sigmoid(G)) W_O + b_O.

The abstract states softmax-normalised retention with an additive log-space decay bias (R1), and an explicit G1 sigmoid
gate, projected from the block input and applied after the local enhancement (LCE) but before W_O (R2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from biases.gates.output import OutputGate
from biases.layers.gated_swin import GATE_INPUTS, PUBLISHED, SWITCH, UNKNOWNS, GatedSwin
from biases.layers.window_attention import MASK_VALUES
from biases.registry import register
from biases.traits import Decay, Traits

GRANULARITIES = ("elementwise", "headwise")


class GatedSwinRetention(GatedSwin):
    """Softmax retention inside shifted windows with an output gate: (B, H, W, C) -> the same.

    "Paper" below is the abstract of arXiv 2604.06014; everything else is our reading.

    Args:
        dim: C.
        heads: n, dividing C.
        window: M, about the side of a window. Not stated; 7 is Swin's.
        shifted: shift the windows by half a window. Paper (A2): windows are shifted; that layers alternate is Swin's.
        window_rule: ``"adaptive"``, ``"clamp"`` (Swin's code) or ``"divisor"``, see :meth:`biases.windows.Windows.of`.
            Paper (D1): adaptive; the rule itself is ours.
        attention: ``"decomposed"``, paper (A2), or ``"full"``, over all pixels of a window (ours, for ablations).
        order: ``"width-first"``, paper (A2), or ``"height-first"`` (ours).
        theta_shift: rotation of queries and keys: ``"none"``, as the abstract names none; ``"raster"``, by the raster
            index inside the window (RMT's code, on its whole map); ``"axis"``, by the place along the axis of each
            pass (decomposed only). The last two need an even head width.
        decay: have the decay. Paper (A3, R1): yes; ``False`` for ablations.
        initial, span: of the rates ``gamma_h = 1 - 2^(-initial - span h / n)`` (RMT Eq. 8; not stated).
        mask_value: what is done with pairs that only the cyclic shift brought into one window: ``None`` excludes them
            (ours, exact), ``-100.0`` adds that to their logits (Swin's code). Not stated.
        gate: have the output gate. Paper (R2): yes; ``False`` for ablations.
        gate_input: ``"block"``, the un-normalised input of the block, paper (R2), or
            ``"normalised"``, what its norm gives (the G1 gate of arXiv 2505.06708).
        gate_granularity: ``"elementwise"`` (G1's recommended form) or ``"headwise"``, one number a head. Not stated.
        gates_enhancement: the gate acts on attention plus local enhancement, paper (R2); ``False``: on
            attention alone.
        enhancement: kernel of the local enhancement, odd (5: RMT's code), or 0 for none. Paper (R2): there is one.
        enhancement_domain: ``"map"``, the whole map as in RMT; ``"window"``, each window by itself with zeros around
            it; ``"rolled"``, the map after the cyclic shift. Not stated.
        backend: see :func:`biases.attend`.

    Raises:
        ValueError: heads not dividing dim, an odd head width where there is a rotation, an even kernel, unknown option.
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
        mask_value: float | None = None,
        gate: bool = True,
        gate_input: str = "block",
        gate_granularity: str = "elementwise",
        gates_enhancement: bool = True,
        enhancement: int = 5,
        enhancement_domain: str = "map",
        backend: str = "auto",
    ) -> None:
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
            placement="logits",
            weights="softmax",
            alibi=None,
            mask_value=mask_value,
            enhancement=enhancement,
            enhancement_domain=enhancement_domain,
            backend=backend,
        )
        self._check("mask_value", mask_value, MASK_VALUES)
        self._check("gate", gate, SWITCH)
        self._check("gate_input", gate_input, GATE_INPUTS)
        self._check("gate_granularity", gate_granularity, GRANULARITIES)
        self._check("gates_enhancement", gates_enhancement, SWITCH)
        self.gate_input, self.gates_enhancement = gate_input, gates_enhancement
        self.output_gate = OutputGate(dim, heads, granularity=gate_granularity) if gate else None

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
        y, local = self._attend(x, v, windows), self._local(v, windows)
        if local is not None and self.gates_enhancement:
            y = y + local
        y = self._gated(y, source if self.gate_input == "block" else x)
        if local is not None and not self.gates_enhancement:
            y = y + local
        return self.output(y)

    def _gated(self, y: Tensor, source: Tensor) -> Tensor:
        if self.output_gate is None:
            return y
        by_head = y.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        gated = self.output_gate(by_head, source.flatten(1, 2))
        return gated.transpose(1, 2).flatten(2).view_as(y)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, mask_value={self.mask_value}, gate_input={self.gate_input!r}, "
            f"gates_enhancement={self.gates_enhancement}"
        )


def flips(options: Mapping[str, Any]) -> bool:
    """Whether flipping any map flips the output: nothing learned in space, no rotation, no padding, no shift."""
    return (
        options["window_rule"] == "divisor"
        and not options["shifted"]
        and options["enhancement"] == 0
        and options["theta_shift"] == "none"
    )


def equivariances(options: Mapping[str, Any], symmetric: bool = True) -> tuple[str, ...]:
    """What the layers of Gated-SwinRMT are equivariant to on every map, ``symmetric`` meaning their bias."""
    if not (symmetric and flips(options)):
        return ()
    return ("flip", "transpose") if options["attention"] == "full" else ("flip",)


def _fast_path(options: Mapping[str, Any]) -> str:
    if not options["decay"]:
        return "windows as a batch; stock attention, with a mask where windows are shifted or padded"
    if options["attention"] == "full":
        return "windows as a batch, by tiles of queries"
    toeplitz = "windows as a batch; decay as a Toeplitz view along each axis"
    # The mask of a shift is one over pairs, but for -100, which goes by channels of queries and keys.
    masked = [
        cause
        for cause, there in (
            ("shifted", options["shifted"] and options["mask_value"] is None),
            ("padded", options["window_rule"] != "divisor"),
        )
        if there
    ]
    return f"{toeplitz}, or by tiles of queries where windows are {' or '.join(masked)}" if masked else toeplitz


def _traits(options: Mapping[str, Any]) -> Traits:
    # No trait `window`: the side of the windows depends on the map under every rule.
    return Traits(
        domain="image",
        normalisation="row",
        gate_range=(0.0, 1.0) if options["gate"] else None,
        gate_sees="token" if options["gate"] else None,
        decay=Decay("exponential", "manhattan", "logits") if options["decay"] else None,
        position="relative",
        equivariant_to=equivariances(options),
        # Windows have sides of at most 1.5 M, whatever the map.
        memory="linear",
        fast_path=_fast_path(options),
        published=PUBLISHED,
    )


register(
    "gated-swin-retention",
    family="layers",
    summary="softmax retention along the axes of shifted windows, gated by the block's input after local enhancement",
    traits=_traits,
    parameters="dim^2 + dim (gate), 26 * dim (enhancement), and 3 * dim for the biases of query, key and value",
    notes=(
        *UNKNOWNS,
        "Whether the gate reads the block's input before or after its norm, and by channel or by head, is not stated.",
    ),
)(GatedSwinRetention)
