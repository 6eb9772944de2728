"""The layers of Gated-SwinRMT (arXiv 2604.06014) by their formulas, and every switch that they have.

What a layer should give is computed here on the whole map, without cutting it into windows: attention along an axis
joins two pixels where ``floor((place - shift) / side)`` agrees, and distances are those of the map.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from biases.layers import GatedSwinRetention, GatedSwinSigmoid
from biases.layers.gated_swin import GatedSwin
from biases.positions import Rotary, ThetaShift, rotate
from biases.testing import assert_close_to, make_tensor

F64 = torch.float64
KINDS: dict[str, type[GatedSwin]] = {"retention": GatedSwinRetention, "sigmoid": GatedSwinSigmoid}
kinds = st.sampled_from(sorted(KINDS))
sides = st.integers(1, 9)

# Every switch and its candidates, the default first.
COMMON: dict[str, tuple[Any, ...]] = {
    "shifted": (False, True),
    "window_rule": ("adaptive", "clamp", "divisor"),
    "attention": ("decomposed", "full"),
    "order": ("width-first", "height-first"),
    "theta_shift": ("none", "raster", "axis"),
    "decay": (True, False),
    "initial": (2.0, 1.0),
    "span": (4.0, 0.0),
    "gate": (True, False),
    "gates_enhancement": (True, False),
    "enhancement": (5, 0, 3),
    "enhancement_domain": ("map", "window", "rolled"),
}
SWITCHES: dict[str, dict[str, tuple[Any, ...]]] = {
    "retention": {
        **COMMON,
        "mask_value": (None, -100.0),
        "gate_input": ("block", "normalised"),
        "gate_granularity": ("elementwise", "headwise"),
    },
    "sigmoid": {
        **COMMON,
        "alibi": (True, False),
        "alibi_distance": ("signed", "absolute", "negative-absolute"),
        "slope_rule": ("halving", "press"),
        "odd_heads": ("zero", "error"),
        "gate_input": ("normalised", "block"),
        "weights_norm": ("none", "row"),
        "output_norm": ("layer", "none", "rms", "head"),
    },
}


def build(kind: str, seed: int = 0, dim: int = 8, heads: int = 2, **options: Any) -> GatedSwin:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = KINDS[kind](dim, heads, **options).double()
        for parameter in layer.parameters():
            # Far enough from the start that gates and logits vary.
            parameter.data.mul_(2.0)
    return layer


def images(seed: int, height: int, width: int, dim: int = 8, batch: int = 2) -> Tensor:
    return make_tensor((batch, height, width, dim), seed=seed, dtype=F64)


def equal(actual: Tensor, expected: Tensor) -> None:
    assert_close_to(actual, expected, scale=max(1.0, expected.abs().max().item()), ulps=2000)


def switches(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Every combination of switches that is allowed."""
    drawn = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SWITCHES[kind].items()})
    return drawn.filter(lambda o: not (o["theta_shift"] == "axis" and o["attention"] == "full"))


layers = kinds.flatmap(lambda kind: st.tuples(st.just(kind), switches(kind)))


class Definition:
    """A layer from the equations of its module, over the whole map."""

    def __init__(self, kind: str, layer: GatedSwin, options: dict[str, Any], height: int, width: int) -> None:
        self.kind, self.layer = kind, layer
        self.o = {name: values[0] for name, values in SWITCHES[kind].items()} | options
        windows = layer.windows(height, width)
        self.axes = (windows.rows, windows.columns)
        self.size = (height, width)
        span = self.o["span"] * torch.arange(layer.heads, dtype=F64) / layer.heads
        self.log_rates = torch.log1p(-(2.0 ** -(self.o["initial"] + span)))

    def __call__(self, x: Tensor, block_input: Tensor | None = None) -> Tensor:
        layer, o = self.layer, self.o
        source = x if block_input is None or o["gate_input"] == "normalised" else block_input
        v = raw = x @ layer.value.weight.T + layer.value.bias
        if self.kind == "sigmoid" and o["gate"]:
            g = source @ layer.value_gate.projection.weight.T
            v = g / (1 + torch.exp(-g)) * raw
        y = self.attention(x, v)
        local = self.local(raw if self.kind == "sigmoid" and not o["gates_enhancement"] else v)
        if self.kind == "sigmoid":
            return self.normed(y + local) @ layer.output.weight.T + layer.output.bias
        gate = torch.ones_like(x)
        if o["gate"]:
            projection = layer.output_gate.projection
            gate = 1 / (1 + torch.exp(-(source @ projection.weight.T + projection.bias)))
            gate = gate.repeat_interleave(x.shape[-1] // gate.shape[-1], -1)
        y = (y + local) * gate if o["gates_enhancement"] else y * gate + local
        return y @ layer.output.weight.T + layer.output.bias

    def attention(self, x: Tensor, v: Tensor) -> Tensor:
        layer = self.layer
        q, k = (x @ part.weight.T + part.bias for part in (layer.query, layer.key))
        q, k, v = (part.unflatten(-1, (layer.heads, -1)).permute(0, 3, 1, 2, 4) for part in (q, k, v))
        if self.o["theta_shift"] == "raster":
            q, k = self.turned(q, k, self.raster().flatten(), ThetaShift)
        if self.o["attention"] == "full":
            y = self.full(q, k, v)
        else:
            axes = (1, 0) if self.o["order"] == "width-first" else (0, 1)
            y = self.along(axes[1], q, k, self.along(axes[0], q, k, v))
        return y.permute(0, 2, 3, 1, 4).flatten(3)

    def turned(self, q: Tensor, k: Tensor, positions: Tensor, rotary: type[Rotary]) -> tuple[Tensor, Tensor]:
        """q and k, (B, n, H, W, D), turned by the position of each pixel in raster order."""
        frequencies = rotary(q.shape[-1]).frequencies()
        return tuple(rotate(x.flatten(2, 3), positions, frequencies).view_as(x) for x in (q, k))

    def along(self, axis: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention along the columns (axis 0) or the rows (axis 1)."""
        if self.o["theta_shift"] == "axis":
            places = (self.place(axis)[:, None] if axis == 0 else self.place(axis)).expand(self.size)
            q, k = self.turned(q, k, places.flatten(), Rotary)
        # Lines go before the heads.
        q, k, v = (x.permute((0, 3, 1, 2, 4) if axis == 0 else (0, 2, 1, 3, 4)) for x in (q, k, v))
        weights = self.weights(q @ k.mT / math.sqrt(q.shape[-1]), self.distance(axis), *self.meeting(axis))
        return (weights @ v).permute((0, 2, 3, 1, 4) if axis == 0 else (0, 2, 1, 3, 4))

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, flat = (x.flatten(2, 3) for x in (q, k, v))
        (together, near), (across, beside) = self.meeting(0), self.meeting(1)
        height, width = self.size

        def pairs(down: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
            rows, columns = torch.arange(height * width) // width, torch.arange(height * width) % width
            return down[rows][:, rows], side[columns][:, columns]

        dy, dx = pairs(self.distance(0), self.distance(1))
        window = torch.logical_and(*pairs(together, across))
        region = torch.logical_and(*pairs(near, beside))
        weights = self.weights(q @ k.mT / math.sqrt(q.shape[-1]), torch.stack([dy, dx]), window, region)
        return (weights @ flat).view_as(v)

    def weights(self, logits: Tensor, distance: Tensor, window: Tensor, region: Tensor) -> Tensor:
        """Weights of pairs in one ``window`` and in one ``region``, at signed distances, (T, T) or for both axes."""
        steps = distance if distance.ndim == 3 else distance[None]
        log_decay = self.log_rates[:, None, None] * steps.abs().sum(0) * self.o["decay"]
        if self.kind == "retention":
            soft = self.o["mask_value"] is not None
            logits = logits + log_decay + (-100.0 * ~region if soft else 0.0)
            return torch.softmax(logits.masked_fill(~(window if soft else region), -torch.inf), -1)
        weights = torch.exp(log_decay) * region / (1 + torch.exp(-(logits + self.alibi(steps))))
        return weights / weights.sum(-1, keepdim=True) if self.o["weights_norm"] == "row" else weights

    def alibi(self, steps: Tensor) -> Tensor:
        if not self.o["alibi"]:
            return torch.zeros(())
        half = self.layer.heads // 2
        rule = 1.0 if self.o["slope_rule"] == "halving" else 8.0 / max(half, 1)
        slopes = 2.0 ** -(rule * torch.arange(1, half + 1, dtype=F64))
        slopes = torch.cat([-slopes, slopes, slopes.new_zeros(self.layer.heads % 2)])
        kind = self.o["alibi_distance"]
        slopes = -slopes.abs() if kind == "negative-absolute" else slopes
        return slopes[:, None, None] * (steps if kind == "signed" else steps.abs()).sum(0)

    def distance(self, axis: int) -> Tensor:
        place = torch.arange(self.size[axis])
        return place[:, None] - place

    def meeting(self, axis: int) -> tuple[Tensor, Tensor]:
        """Which places are in one window once the map is rolled, and which are neighbours in the map as well."""
        each, place = self.axes[axis], torch.arange(self.size[axis])
        window = (place - each.shift) % each.padded // each.size
        region = (place - each.shift).div(each.size, rounding_mode="floor")
        return window[:, None] == window, region[:, None] == region

    def place(self, axis: int) -> Tensor:
        """Of each place of the map, inside its window."""
        each = self.axes[axis]
        return (torch.arange(self.size[axis]) - each.shift) % each.padded % each.size

    def raster(self) -> Tensor:
        return self.place(0)[:, None] * self.axes[1].size + self.place(1)

    def local(self, v: Tensor) -> Tensor:
        """Every pixel gathers its neighbours, one offset of the kernel after another."""
        kernel, domain = self.o["enhancement"], self.o["enhancement_domain"]
        if not kernel:
            return torch.zeros_like(v)
        weight, bias = self.layer.enhancement.convolution.weight, self.layer.enhancement.convolution.bias
        each = [torch.arange(side) for side in self.size]
        if domain != "map":
            each = [(place - axis.shift) % axis.padded for place, axis in zip(each, self.axes, strict=True)]
        out = bias.expand_as(v)
        for dy in range(-(kernel // 2), kernel // 2 + 1):
            for dx in range(-(kernel // 2), kernel // 2 + 1):
                gathered = v
                for axis, by in ((0, dy), (1, dx)):
                    gathered = self.neighbour(gathered, axis, each[axis], by, domain == "window")
                out = out + gathered * weight[:, 0, dy + kernel // 2, dx + kernel // 2]
        return out

    def neighbour(self, v: Tensor, axis: int, place: Tensor, by: int, inside: bool) -> Tensor:
        """What stands ``by`` after each place, places being numbered by ``place``; zero where there is nothing."""
        found = place[None, :] == place[:, None] + by
        if inside:
            window = place // self.axes[axis].size
            found = found & (window[:, None] == window)
        return torch.einsum("ij,bjwc->biwc" if axis == 0 else "ij,bhjc->bhic", found.to(v), v)

    def normed(self, y: Tensor) -> Tensor:
        kind, norm, eps = self.o["output_norm"], self.layer.output_norm, 1e-6
        if kind == "none":
            return y
        if kind == "rms":
            return y / (y.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight
        groups = y.unflatten(-1, (self.layer.heads if kind == "head" else 1, -1))
        centred = groups - groups.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled.flatten(-2) * norm.weight + norm.bias
