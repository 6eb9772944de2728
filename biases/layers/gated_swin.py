"""Gated-SwinRMT (arXiv 2604.06014): what its two attention layers share.

Only the abstract of the paper and its bibliographic data were available to us: no equations, no configuration, no code.
What the abstract leaves open is an option here. Its docstring says which value is the paper's statement, and the
default is the most literal reading. What the abstract states of both layers:

* A1: the shifted-window attention of Swin with the Manhattan-distance spatial decay of RMT and input-dependent gating;
* A2: consecutive width-wise and height-wise retention passes within each shifted window;
* A3: exponential decay masks, one a head: a two-dimensional locality prior without learned positional biases;
* D1: adaptive windowing, which on small maps (CIFAR-10) collapses attention to global scope.

The rates of the decay are RMT's (arXiv 2309.11523 Eq. 8), as are the local enhancement (its Eq. 7) and one set of
queries and keys for both passes. That they carry over is our reading.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from biases._checks import divides, fail, feature_map, one_of, positive_int
from biases.attention import BACKENDS
from biases.axial import ORDERS
from biases.backends import DecayTerm, PairTerm
from biases.decays.alibi import ALiBi
from biases.decays.exponential import ExponentialDecay, rmt_log_rates
from biases.decays.manhattan import ManhattanDecay
from biases.layers.local_enhancement import local_enhancement
from biases.layers.window_attention import attend_in_windows
from biases.positions.relative_position import AxisSum
from biases.positions.rotary import Rotary
from biases.positions.theta_shift import ThetaShift
from biases.windows import RULES, Windows

THETA_SHIFTS = ("none", "raster", "axis")
ATTENTIONS = ("decomposed", "full")
DOMAINS = ("map", "window", "rolled")
GATE_INPUTS = ("block", "normalised")
SWITCH = (False, True)
PUBLISHED = "2604.06014 abstract"
UNKNOWNS = (
    "Known from its abstract alone: equations, configurations and code were not available, and each free choice is an "
    "option.",
    "The rule of adaptive windowing is ours; the abstract says only that attention becomes global on CIFAR-10.",
    "Whether queries and keys are rotated, and where the local enhancement acts, is not stated.",
)


class GatedSwin(nn.Module):
    """Projections, windows, decay and local enhancement of a gated layer; a base, no layer of its own.

    Args:
        dim, heads, window, shifted, window_rule, attention, order, theta_shift, decay, initial, span, enhancement,
            enhancement_domain, backend: see :class:`~biases.layers.GatedSwinRetention`.
        placement: of the decay.
        weights: see :func:`biases.attend`.
        alibi: bias of the distance along an axis, or ``None``.
        mask_value: see :func:`~biases.layers.window_attention.attend_in_windows`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        window: int,
        shifted: bool,
        window_rule: str,
        attention: str,
        order: str,
        theta_shift: str,
        decay: bool,
        initial: float,
        span: float,
        placement: str,
        weights: str,
        alibi: ALiBi | None,
        mask_value: float | None,
        enhancement: int,
        enhancement_domain: str,
        backend: str,
    ) -> None:
        super().__init__()
        divides(type(self).__name__, dim, heads)
        self._check("shifted", shifted, SWITCH)
        self._check("window_rule", window_rule, RULES)
        self._check("attention", attention, ATTENTIONS)
        self._check("order", order, ORDERS)
        self._check("decay", decay, SWITCH)
        self._check("enhancement_domain", enhancement_domain, DOMAINS)
        self._check("backend", backend, BACKENDS)
        self.dim, self.heads, self.backend = dim, heads, backend
        self.window, self.shifted = positive_int(f"{type(self).__name__} window", window), shifted
        self.window_rule, self.attention, self.order = window_rule, attention, order
        self.weights, self.alibi, self.mask_value = weights, alibi, mask_value
        rates = rmt_log_rates(heads, initial, span)
        self.decay = ExponentialDecay(rates, symmetric=True, placement=placement) if decay else None
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.enhancement = local_enhancement(type(self).__name__, dim, enhancement)
        self.enhancement_domain = enhancement_domain
        self.theta_shift, self.rotary = theta_shift, self._rotary(theta_shift)

    def windows(self, height: int, width: int) -> Windows:
        """How a map of this size is cut."""
        return Windows.of(height, width, self.window, shifted=self.shifted, rule=self.window_rule)

    def _check(self, option: str, value: object, choices: tuple[object, ...]) -> None:
        one_of(f"{type(self).__name__} {option}", value, choices)

    def _rotary(self, theta_shift: str) -> Rotary | None:
        self._check("theta_shift", theta_shift, THETA_SHIFTS)
        if theta_shift == "axis" and self.attention != "decomposed":
            fail(f"{type(self).__name__} attention with theta_shift='axis'", "'decomposed', which has axes", "'full'")
        if theta_shift == "none":
            return None
        return (ThetaShift if theta_shift == "raster" else Rotary)(self.dim // self.heads)

    def _inputs(self, x: Tensor, block_input: Tensor | None) -> Tensor:
        """Check both inputs; the input of the block, which is ``x`` where none is given."""
        name = type(self).__name__
        feature_map(f"{name} x", x, self.dim)
        if block_input is None:
            return x
        if not isinstance(block_input, Tensor) or block_input.shape != x.shape:
            got = tuple(block_input.shape) if isinstance(block_input, Tensor) else type(block_input).__name__
            fail(f"{name} block_input", f"shape {tuple(x.shape)}, as x", got)
        if block_input.dtype != x.dtype and not (_autocasts(x) and block_input.is_floating_point()):
            fail(f"{name} block_input dtype", f"{x.dtype}, as x", block_input.dtype)
        return block_input

    def _attend(self, x: Tensor, v: Tensor, windows: Windows) -> Tensor:
        """Attention of x (B, H, W, C) over the values v (B, H, W, C), both of the whole map: (B, H, W, C)."""
        bias, decay = self._terms(windows)
        return attend_in_windows(
            self.query(x),
            self.key(x),
            v,
            windows,
            self.heads,
            decomposed=self.attention == "decomposed",
            bias=bias,
            weights=self.weights,
            decay=decay,
            rotation=self.rotary if self.theta_shift == "raster" else None,
            axis_rotation=self.rotary if self.theta_shift == "axis" else None,
            order=self.order,
            mask_value=self.mask_value,
            backend=self.backend,
        )

    def _terms(self, windows: Windows) -> tuple[tuple[PairTerm, ...], DecayTerm | None]:
        """The bias and the decay, along an axis or over a window."""
        if self.attention == "decomposed":
            return (() if self.alibi is None else (self.alibi,)), self.decay
        bias = () if self.alibi is None else (AxisSum(self.alibi, *windows.size),)
        if self.decay is None:
            return bias, None
        return bias, ManhattanDecay(*windows.size, -self.decay.slopes, placement=self.decay.placement)

    def _local(self, v: Tensor, windows: Windows) -> Tensor | None:
        """Local enhancement of the values (B, H, W, C), where there is any."""
        if self.enhancement is None:
            return None
        if self.enhancement_domain == "map":
            return self.enhancement(v)
        if self.enhancement_domain == "rolled":
            return windows.unroll(self.enhancement(windows.roll(v)))
        return windows.reverse(self.enhancement(windows.partition(v)))

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, heads={self.heads}, window={self.window}, shifted={self.shifted}, "
            f"window_rule={self.window_rule!r}, attention={self.attention!r}, order={self.order!r}, "
            f"theta_shift={self.theta_shift!r}, decay={self.decay is not None}, backend={self.backend!r}"
        )


def _autocasts(x: Tensor) -> bool:
    """Whether mixed precision is on, under which a norm may give another dtype than it gets."""
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)
