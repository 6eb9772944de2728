"""The layers of Gated-SwinRMT (arXiv 2604.06014): every switch against its formula, and what the gates, the decay, the
windows and the norms promise.

What a layer should give is computed here on the whole map, without cutting it into windows: attention along an axis
joins two pixels where ``floor((place - shift) / side)`` agrees, and distances are those of the map.
"""

from __future__ import annotations

import copy
import importlib
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from biases import set_backend, specification, zoo
from biases.axial import attend_decomposed, decomposed_weights
from biases.layers import GatedSwinRetention, GatedSwinSigmoid
from biases.layers.gated_swin import GatedSwin
from biases.positions import Rotary, ThetaShift, rotate
from biases.testing import assert_close_to, assert_same, assert_within, make_tensor
from biases.testing.strategies import seeds

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
# Weights of e^-100 are below rounding; an even number of heads is balanced under either.
WITHOUT_EFFECT = ("mask_value", "odd_heads")


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


@given(layers, sides, sides, st.integers(1, 4), st.sampled_from([(8, 2), (6, 1), (12, 3)]), seeds())
def test_a_layer_is_its_equations(drawn, height, width, window, shape, seed):
    """Any combination of switches, on any map, with and without an input of the block."""
    kind, options = drawn
    heads = shape[1]
    if options.get("odd_heads") == "error" and heads % 2 and options["alibi"]:
        with pytest.raises(ValueError, match="an even number to balance the signs"):
            build(kind, seed, *shape, window=window, **options)
        return
    assume(options["theta_shift"] == "none" or shape[0] // heads % 2 == 0)
    layer = build(kind, seed, *shape, window=window, **options)
    x, block_input = images(seed, height, width, shape[0]), images(seed + 1, height, width, shape[0])
    definition = Definition(kind, layer, options, height, width)
    equal(layer(x), definition(x))
    equal(layer(x, block_input=block_input), definition(x, block_input))


@pytest.mark.parametrize(
    ("kind", "switch", "value"),
    [(kind, name, value) for kind, table in SWITCHES.items() for name, values in table.items() for value in values],
)
def test_every_switch_does_something(kind, switch, value):
    """Each candidate is what its formula says, and another one than the default changes the output."""
    x, block_input = images(0, 7, 8), images(1, 7, 8)
    base = {"window": 3, "shifted": switch != "shifted"}
    layer = build(kind, **base | {switch: value})
    out = layer(x, block_input=block_input)
    equal(out, Definition(kind, layer, base | {switch: value}, 7, 8)(x, block_input))
    default = build(kind, **base)(x, block_input=block_input)
    if value == SWITCHES[kind][switch][0]:
        assert_same(out, default)
    elif switch not in WITHOUT_EFFECT:
        assert (out - default).abs().max() > 1e-3 * default.abs().max()


@pytest.mark.parametrize(("kind", "switch"), [(kind, name) for kind, table in SWITCHES.items() for name in table])
def test_the_table_of_switches_is_that_of_the_zoo(kind, switch):
    """No option without a test: what is listed here, and window, is all there is."""
    variant = zoo.get({"retention": "gated-swin-retention", "sigmoid": "gated-swin-swat"}[kind])
    assert set(variant.options) == {*SWITCHES[kind], "window"}
    assert variant.options[switch] == SWITCHES[kind][switch][0]


@pytest.mark.parametrize(("kind", "switch"), [(kind, name) for kind, table in SWITCHES.items() for name in table])
def test_unknown_values_are_refused(kind, switch):
    with pytest.raises(ValueError, match="expected"):
        build(kind, **{switch: -3 if switch in ("initial", "span", "enhancement") else "other"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "a multiple of heads=3"),
        ({"window": 0}, "window: expected an integer of at least 1"),
        ({"enhancement": 4}, "an odd integer"),
        ({"enhancement": False}, r"enhancement \(0 for none\): expected an integer of at least 1, got False"),
        ({"enhancement": None}, r"enhancement \(0 for none\): expected an integer of at least 1, got None"),
        ({"initial": "2"}, "initial: expected a positive finite number, got '2'"),
        ({"span": None}, "span: expected a finite number of at least 0, got None"),
        ({"theta_shift": "axis", "attention": "full"}, "'decomposed', which has axes"),
        ({"dim": 6, "theta_shift": "axis"}, "an even integer"),
        ({"backend": "fast"}, "backend: expected one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        KINDS[kind](**{"dim": 8, "heads": 2, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_other_inputs_are_refused(kind):
    layer = KINDS[kind](8, 2)
    for shape in ((2, 4, 8), (2, 4, 4, 6), (2, 0, 4, 8)):
        with pytest.raises(ValueError, match=f"{KINDS[kind].__name__} x"):
            layer(torch.zeros(shape))
    for wrong in (torch.zeros(2, 4, 5, 8), 3):
        with pytest.raises(ValueError, match="block_input: expected shape"):
            layer(torch.zeros(2, 4, 4, 8), block_input=wrong)
    for dtype in (F64, torch.bfloat16, torch.int64):
        with pytest.raises(ValueError, match=r"block_input dtype: expected torch\.float32, as x, got"):
            layer(torch.zeros(2, 4, 4, 8), block_input=torch.zeros(2, 4, 4, 8, dtype=dtype))
    with torch.device("meta"):
        shapes_only = KINDS[kind](8, 2)
        assert shapes_only(torch.zeros(2, 4, 4, 8), block_input=torch.zeros(2, 4, 4, 8)).shape == (2, 4, 4, 8)
        with pytest.raises(ValueError, match="block_input dtype"):
            shapes_only(torch.zeros(2, 4, 4, 8), block_input=torch.zeros(2, 4, 4, 8, dtype=F64))
    with torch.autocast("cpu", torch.bfloat16):
        given_low = layer(torch.zeros(2, 4, 4, 8), block_input=torch.zeros(2, 4, 4, 8, dtype=torch.bfloat16))
        assert given_low.shape == (2, 4, 4, 8)
        with pytest.raises(ValueError, match="block_input dtype"):
            layer(torch.zeros(2, 4, 4, 8), block_input=torch.zeros(2, 4, 4, 8, dtype=torch.int64))


@given(layers, sides, sides, st.integers(1, 4), seeds())
def test_a_pixel_reaches_exactly_its_region(drawn, height, width, window, seed):
    """Without local enhancement, changing a pixel changes the outputs of its region, and no bit of any other."""
    kind, options = drawn
    options |= {"enhancement": 0, "window": window}
    if kind == "retention":
        options["mask_value"] = None
    layer = build(kind, seed, **options)
    x = images(seed, height, width, batch=1).expand(height * width, -1, -1, -1).contiguous()
    pixel = torch.eye(height * width, dtype=F64).view(-1, height, width, 1)
    changed = (layer(x + pixel) != layer(x)).any(-1)
    definition = Definition(kind, layer, options, height, width)
    rows, columns = (definition.meeting(axis)[1] for axis in (0, 1))
    region = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)
    assert torch.equal(changed, region)


@given(kinds, st.integers(1, 6), st.integers(1, 6), st.sampled_from(["adaptive", "clamp", "divisor"]), seeds())
def test_one_window_is_decomposed_attention_over_the_map(kind, height, width, rule, seed):
    """A window of at least the map: nothing is shifted, and all is attend_decomposed over the whole map."""
    if rule == "clamp":
        width = height
    layer = build(kind, seed, window=6, window_rule=rule, shifted=True, enhancement=0, gate=False)
    windows = layer.windows(height, width)
    assert windows.count == 1
    assert windows.rows.shift == windows.columns.shift == 0
    x = images(seed, height, width)
    q, k, v = (part(x).unflatten(-1, (2, -1)).permute(0, 3, 1, 2, 4) for part in (layer.query, layer.key, layer.value))
    bias = () if layer.alibi is None else (layer.alibi,)
    y = attend_decomposed(q, k, v, bias=bias, weights=layer.weights, decay=layer.decay)
    y = y.permute(0, 2, 3, 1, 4).flatten(3)
    equal(layer(x), layer.output(layer.output_norm(y) if kind == "sigmoid" else y))


@given(seeds(), st.sampled_from(["elementwise", "headwise"]), st.booleans())
def test_one_pixel_retains_its_value(seed, granularity, given_block):
    """On a 1 x 1 map, retention gives W_O ((v + LCE(v)) . gate) + b_O, to the bit."""
    layer = build("retention", seed, gate_granularity=granularity)
    x, block_input = images(seed, 1, 1), images(seed + 1, 1, 1) if given_block else None
    v = layer.value(x)
    gate = layer.output_gate.gate((block_input if given_block else x).flatten(1, 2))[:, :, 0]
    gated = (v + layer.enhancement(v)).unflatten(-1, (2, 4)) * gate[:, None, None]
    assert_same(layer(x, block_input=block_input), layer.output(gated.flatten(-2)))


@given(seeds(), st.sampled_from(["none", "row"]))
def test_one_pixel_under_a_sigmoid(seed, norm):
    """On a 1 x 1 map the two passes give sigmoid(q . k / sqrt(D))^2 v, and v with rows normalised."""
    layer = build("sigmoid", seed, gate=False, enhancement=0, output_norm="none", weights_norm=norm)
    x = images(seed, 1, 1)
    q, k, v = (part(x).unflatten(-1, (2, 4)) for part in (layer.query, layer.key, layer.value))
    weight = torch.sigmoid((q * k).sum(-1, keepdim=True) / 2.0) ** 2 if norm == "none" else 1.0
    equal(layer(x), layer.output((weight * v).flatten(-2)))


@pytest.mark.parametrize("attention", ["decomposed", "full"])
@pytest.mark.parametrize("decay", [True, False])
def test_rows_of_sigmoids_that_underflow_are_still_averages(attention, decay):
    """Logits of -200 are far below what float32 holds of a sigmoid; divided by its sum, a row is an average of values
    with the weights of the decay."""
    options = {"attention": attention, "decay": decay, "weights_norm": "row", "output_norm": "none", "window": 3}
    options |= {"alibi": False, "gate": False, "enhancement": 0}
    layer = build("sigmoid", 0, **options)
    with torch.no_grad():
        for part, bias in ((layer.query, 10.0), (layer.key, -10.0)):
            part.weight.zero_()
            part.bias.fill_(bias)
    x = images(0, 6, 7)
    expected = Definition("sigmoid", layer, options, 6, 7)(x)
    assert expected.std() > 0.1
    for each in (layer, specification(layer)):
        equal(each(x), expected)
    out = layer.float()(x.float())
    assert_close_to(out, expected.float(), scale=expected.abs().max().item(), ulps=200)


@given(
    st.sampled_from(
        [{}, {"order": "height-first"}, {"theta_shift": "axis"}, {"theta_shift": "raster"}, {"attention": "full"}]
    ),
    st.integers(0, 3),
    seeds(),
)
def test_minus_one_hundred_leaks_and_exclusion_does_not(options, corner, seed):
    """A value of 1e90 in one corner of the map reaches the other three, brought beside it by the roll, times e^-100;
    where attention is decomposed the opposite corner is two masked steps away, e^-200. Excluded, it reaches none."""
    x = images(seed, 4, 4, batch=1)
    y, c = ((0, 0), (0, 3), (3, 0), (3, 3))[corner]
    x[..., 7] = 0.0
    large = x.clone()
    large[:, y, c, 7] = 1e90
    for mask_value in (None, -100.0):
        # Without decay, which takes these pairs for neighbours, as they stand in the window.
        chosen = options | {"window": 2, "shifted": True, "enhancement": 0, "decay": False, "mask_value": mask_value}
        layer = build("retention", seed, **chosen)
        with torch.no_grad():
            layer.query.weight[:, 7] = 0.0
            layer.key.weight[:, 7] = 0.0
        definition = Definition("retention", layer, chosen, 4, 4)
        moved, expected = (each(large) - each(x) for each in (layer, definition))
        moved[:, y, c] = expected[:, y, c] = 0.0
        if mask_value is None:
            assert torch.count_nonzero(moved) == 0
            continue
        reached = moved[0].abs().amax(-1)
        corners = reached[[0, 0, 3, 3], [0, 3, 0, 3]]
        assert torch.count_nonzero(corners) == torch.count_nonzero(reached) == 3
        # What stood there before is lost to the rounding of what came.
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["none", "row"])
@pytest.mark.parametrize("distance", [None, "signed", "absolute", "negative-absolute"])
@pytest.mark.parametrize("heads", [2, 4, 5])
def test_decay_is_declared_where_influence_falls(norm, distance, heads):
    """At zero queries, weights along a line never rise with the distance where the trait says so; in heads with a
    positive slope they do."""
    options = {"alibi": distance is not None, "weights_norm": norm} | ({"alibi_distance": distance} if distance else {})
    variant = zoo.get("gated-swin-swat")
    traits = variant.traits_of({**variant.options, **options})
    layer = build("sigmoid", 0, 4 * heads, heads, **options)
    zero = torch.zeros(1, heads, 1, 9, 4, dtype=F64)
    bias = () if layer.alibi is None else (layer.alibi,)
    weights = decomposed_weights(zero, zero, bias=bias, weights=layer.weights, decay=layer.decay)[0]
    steps = torch.arange(9)
    away = (steps[:, None] - steps).abs()
    further, nearer = (weights[:, :, 1:], weights[:, :, :-1])
    change = torch.where((away.diff(dim=-1) > 0), further - nearer, nearer - further)
    assert (change.max() <= 1e-15) == (traits.decay is not None)
    assert variant.traits_of({**variant.options, **options, "decay": False}).decay is None


def formulations(layer: GatedSwin, height: int, width: int) -> set[str]:
    """Names of the formulations that the layer runs on a map."""
    module, names = importlib.import_module("biases.backends.fused"), set()

    def recorded(problem: Any) -> Any:
        plan = module_formulate(problem)
        names.add(plan.name)
        return plan

    module_formulate = module.formulate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "formulate", recorded)
        layer(images(0, height, width))
    return names


STOCK = {"sdpa", "key-bias", "mask"}
PATHS = [
    {"shifted": shifted, "window_rule": rule, "attention": attention, "decay": decay}
    for shifted in (False, True)
    for rule in ("adaptive", "clamp", "divisor")
    for attention in ("decomposed", "full")
    for decay in (True, False)
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", PATHS, ids=lambda options: "-".join(map(str, options.values())))
def test_the_declared_fast_path_is_the_one_that_runs(kind, options):
    """On a map that windows divide, one that they do not, and one of a single window: tiles are named where there are
    any, and so are views and kernels."""
    variant = zoo.get({"retention": "gated-swin-retention", "sigmoid": "gated-swin-swat"}[kind])
    for mask_value in (None, -100.0) if kind == "retention" else (None,):
        chosen = options | ({"mask_value": mask_value} if kind == "retention" else {})
        words = variant.traits_of({**variant.options, **chosen}).fast_path
        layer = build(kind, window=3, **chosen)
        whole, other, single = (formulations(layer, *size) for size in ((6, 6), (9, 8), (3, 3)))
        ran = whole | other | single
        assert ("tiles" in ran) == ("tiles of queries" in words)
        assert ("toeplitz" in ran) == ("Toeplitz" in words)
        assert bool(ran & STOCK) == ("stock attention" in words)
        if "Toeplitz" in words:
            assert ("tiles" in whole) == ("shifted" in words)
            padded = formulations(build(kind, window=3, **chosen | {"shifted": False}), 9, 8)
            assert ("tiles" in padded) == ("padded" in words)


gates = st.sampled_from(["elementwise", "headwise"])


@given(gates, sides, sides, seeds())
def test_an_output_gate_without_weights_halves(granularity, height, width, seed):
    """W_G = b_G = 0: sigmoid(0) is exactly one half, of attention and local enhancement together (R2)."""
    options = {"window": 3, "shifted": True, "gate_granularity": granularity}
    layer, plain = build("retention", seed, **options), build("retention", seed, **options)
    for parameter in layer.output_gate.parameters():
        torch.nn.init.zeros_(parameter)
    plain.output_gate = None
    for each in (layer, plain):
        torch.nn.init.zeros_(each.output.bias)
    x = images(seed, height, width)
    assert_same(layer(x), plain(x) / 2)


@given(gates, sides, sides, seeds(), st.booleans())
def test_an_output_gate_opens_and_closes(granularity, height, width, seed, shifted):
    """b_G -> +inf gives the ungated layer and b_G -> -inf the bias of the output, to the bit."""
    layer = build("retention", seed, window=3, shifted=shifted, gate_granularity=granularity)
    x = images(seed, height, width)
    torch.nn.init.constant_(layer.output_gate.projection.bias, -math.inf)
    assert torch.equal(layer(x), layer.output.bias.expand_as(x))
    torch.nn.init.constant_(layer.output_gate.projection.bias, math.inf)
    opened = layer(x)
    layer.output_gate = None
    assert_same(opened, layer(x))


@given(gates, sides, sides, seeds())
def test_an_output_gate_only_weakens(granularity, height, width, seed):
    """0 < gate < 1, so each number before the output projection shrinks and keeps its sign; by one factor a head, where
    the gate is headwise."""
    layer = build("retention", seed, window=3, gate_granularity=granularity)
    with torch.no_grad():
        layer.output.weight.copy_(torch.eye(8))
        layer.output.bias.zero_()
    x = images(seed, height, width)
    gated = layer(x)
    layer.output_gate = None
    ungated = layer(x)
    assert (gated.abs() < ungated.abs()).all()
    assert (gated.sign() == ungated.sign()).all()
    ratio = (gated / ungated).unflatten(-1, (2, 4))
    spread = (ratio.amax(-1) - ratio.amin(-1)).max()
    assert spread < 1e-12 if granularity == "headwise" else spread > 1e-3


@given(sides, sides, seeds())
def test_the_output_gate_reads_the_input_of_the_block(height, width, seed):
    """With gate_input="block" only the gate sees block_input; with "normalised" nothing does."""
    x, one, other = images(seed, height, width), images(seed + 1, height, width), images(seed + 2, height, width)
    layer = build("retention", seed, window=3)
    assert (layer(x, block_input=one) != layer(x, block_input=other)).any()
    assert_same(layer(x, block_input=x), layer(x))
    for kind in KINDS:
        blind = build(kind, seed, window=3, gate_input="normalised")
        assert_same(blind(x, block_input=one), blind(x))


@given(st.integers(1, 8), st.integers(1, 8), seeds())
def test_swiglu_without_weights_leaves_no_value(height, width, seed):
    """SiLU(0) = 0: without weights of the gate there are no values, and without its norm the output is b_O."""
    layer = build("sigmoid", seed, window=3, output_norm="none", enhancement=0)
    torch.nn.init.zeros_(layer.value_gate.projection.weight)
    x = images(seed, height, width)
    assert torch.equal(layer(x), layer.output.bias.expand_as(x))


@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from([2, 3, 4]), seeds(), st.booleans())
def test_decay_bounds_what_a_sigmoid_lets_through(height, width, heads, seed, shifted):
    """0 < B < gamma^(|dy| + |dx|) for both passes, and rows sum to less than ((1 + gamma) / (1 - gamma))^2 whatever the
    window, so that values of 1 give outputs below that."""
    dim = 4 * heads
    options = {"window": 4, "shifted": shifted, "gate": False, "enhancement": 0, "output_norm": "none"}
    layer = build("sigmoid", seed, dim, heads, **options)
    gamma = torch.exp(-layer.decay.slopes)
    q, k = (make_tensor((2, heads, height, width, 4), seed=seed + step, dtype=F64) for step in (0, 1))
    weights = decomposed_weights(q, k, bias=(layer.alibi,), weights=layer.weights, decay=layer.decay)
    y, x = torch.arange(height * width) // width, torch.arange(height * width) % width
    steps = (y[:, None] - y).abs() + (x[:, None] - x).abs()
    assert (weights > 0).all()
    assert (weights < gamma[:, None, None] ** steps).all()
    with torch.no_grad():
        layer.value.weight.zero_()
        layer.value.bias.fill_(1.0)
        layer.output.weight.copy_(torch.eye(dim))
        layer.output.bias.zero_()
    sums = layer(5 * images(seed, height, width, dim))
    assert (sums > 0).all()
    assert (sums < (((1 + gamma) / (1 - gamma)) ** 2).repeat_interleave(4)).all()


@given(kinds, sides, sides, seeds(), st.booleans())
def test_normalised_rows_sum_to_one(kind, height, width, seed, shifted):
    """Values of 1 come out as 1: under a softmax, and under a sigmoid with its rows divided by their sums."""
    options = {"window": 3, "shifted": shifted, "gate": False, "enhancement": 0}
    if kind == "sigmoid":
        options |= {"output_norm": "none", "weights_norm": "row"}
    layer = build(kind, seed, **options)
    with torch.no_grad():
        layer.value.weight.zero_()
        layer.value.bias.fill_(1.0)
        layer.output.weight.copy_(torch.eye(8))
        layer.output.bias.zero_()
    equal(layer(images(seed, height, width)), torch.ones(2, height, width, 8, dtype=F64))


FLIPS: dict[str, Any] = {"window": 3, "window_rule": "divisor", "enhancement": 0}


def flip_gap(kind: str, options: dict[str, Any], seed: int, height: int, width: int) -> float:
    """How far the layer is from flipping with the map, along either side."""
    layer, x = build(kind, seed, **FLIPS | options), images(seed, height, width)
    return max((layer(x.flip(axis)).flip(axis) - layer(x)).abs().max().item() for axis in (1, 2))


symmetric = st.sampled_from(
    [
        ("retention", {}),
        ("retention", {"attention": "full", "gate_granularity": "headwise"}),
        ("sigmoid", {"alibi_distance": "absolute"}),
        ("sigmoid", {"alibi_distance": "negative-absolute", "weights_norm": "row"}),
        ("sigmoid", {"alibi": False}),
    ]
)


@given(symmetric, st.integers(1, 3), st.integers(1, 3), seeds())
def test_flipping_the_map_flips_the_output(drawn, rows, columns, seed):
    """Where nothing tells left from right: no rotation, no signed slope, no shift, no padding, no learned kernel."""
    kind, options = drawn
    assert (
        "flip"
        in zoo.get(f"gated-swin-{'swat' if kind == 'sigmoid' else kind}")
        .traits_of({name: values[0] for name, values in SWITCHES[kind].items()} | FLIPS | options)
        .equivariant_to
    )
    assert flip_gap(kind, options, seed, 3 * rows, 3 * columns) < 1e-12


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sigmoid", {}),
        ("retention", {"theta_shift": "raster"}),
        ("retention", {"shifted": True}),
        ("retention", {"enhancement": 5}),
        ("retention", {"window_rule": "clamp", "window": 4}),
    ],
)
def test_what_breaks_flipping(kind, options):
    """Signed slopes, the raster rotation, a shift, a learned kernel and padding each tell left from right."""
    assert flip_gap(kind, options, 0, 6, 6) > 1e-4


@given(st.integers(1, 3), st.integers(1, 3), seeds())
def test_axis_rotations_are_relative(rows, columns, seed):
    """Rotation along each axis moves with whole windows, as it sees differences of places alone."""
    layer = build("retention", seed, window=3, theta_shift="axis", enhancement=0)
    x = images(seed, 3 * rows, 3 * columns)
    equal(layer(x.roll((3, 3), (1, 2))), layer(x).roll((3, 3), (1, 2)))


@given(kinds, st.integers(1, 2), st.integers(1, 2), seeds())
def test_local_enhancement_differs_at_borders_alone(kind, rows, columns, seed):
    """A 5 x 5 kernel reaches over the border of a window from less than 2 pixels away, in the domain "map"."""
    layer = build(kind, seed, window=6, window_rule="divisor")
    v = images(seed, 6 * rows, 6 * columns)
    results = {}
    for domain in ("map", "window", "rolled"):
        layer.enhancement_domain = domain
        results[domain] = layer._local(v, layer.windows(6 * rows, 6 * columns))
    gap = (results["map"] - results["window"]).abs().amax((0, 3))
    away = [torch.arange(6 * count) % 6 for count in (rows, columns)]
    inner = torch.logical_and(*torch.meshgrid(*((place >= 2) & (place < 4) for place in away), indexing="ij"))
    assert gap[inner].max() < 1e-12
    # Borders of a window that are borders of the map see zeros either way.
    down, side = torch.zeros(6 * rows, dtype=torch.bool), torch.zeros(6 * columns, dtype=torch.bool)
    down[4:8], side[4:8] = rows == 2, columns == 2
    assert torch.equal(gap > 1e-9, down[:, None] | side)
    # Unshifted and unpadded, rolling does nothing.
    assert_same(results["rolled"], results["map"])


@given(
    layers,
    st.sampled_from([F64, torch.float32, torch.bfloat16]),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 4),
    seeds(),
)
def test_the_fast_path_is_the_specification(drawn, dtype, height, width, window, seed):
    """Forward and backward, as near to float64 as the dense formulas in the dtype of the layer."""
    kind, options = drawn
    fast = build(kind, seed, window=window, **options).to(dtype)
    dense = set_backend(copy.deepcopy(fast), "dense")
    x, block_input, direction = (images(seed + step, height, width).to(dtype) for step in range(3))
    results = [outcome(layer, x, block_input, direction) for layer in (fast, specification(fast), dense)]
    # Some gradients are zero, as larger terms cancel, an error that the dense formulas do not have on a map of one
    # pixel. Some are sums over the map.
    slack = 2.0 if dtype == torch.bfloat16 else 32.0
    size = slack * max(exact.abs().max().item() for exact in results[1].values())
    for name, exact in results[1].items():
        assert_within(results[0][name], exact, results[2][name], what=name, magnitude=size)


def outcome(layer: GatedSwin, x: Tensor, block_input: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """Output and gradients, by name."""
    dtype = next(layer.parameters()).dtype
    given = x.to(dtype).requires_grad_()
    out = layer(given, block_input=block_input.to(dtype))
    names, parameters = zip(*layer.named_parameters(), strict=True)
    gradients = torch.autograd.grad(out, [given, *parameters], direction.to(dtype))
    return {"output": out.detach(), **dict(zip(("x", *names), gradients, strict=True))}


@given(layers, sides, sides, seeds(), st.sampled_from(["channels-first", "width-first", "cropped"]))
def test_the_layout_of_a_map_does_not_matter(drawn, height, width, seed, layout):
    kind, options = drawn
    layer = build(kind, seed, window=3, **options)
    x = images(seed, height, width)
    if layout == "cropped":
        laid_out = F.pad(x, (0, 0, 0, 2, 1, 0))[:, 1:, :-2]
    else:
        order = (0, 3, 1, 2) if layout == "channels-first" else (0, 2, 1, 3)
        back = (0, 2, 3, 1) if layout == "channels-first" else (0, 2, 1, 3)
        laid_out = x.permute(order).contiguous().permute(back)
    equal(layer(laid_out, block_input=laid_out), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_small_maps_have_one_window(kind):
    """D1: with windows of about 7, the maps of CIFAR-10 (8, 4, 2, 1) are one window each, and not shifted."""
    layer = build(kind, shifted=True)
    assert [layer.windows(side, side).count for side in (8, 4, 2, 1)] == [1, 1, 1, 1]
    assert layer.windows(56, 56).size == (7, 7)
    assert layer.windows(56, 56).rows.shift == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["decomposed", "full"])
def test_the_backend_is_the_one_that_is_set(kind, attention):
    layer = build(kind, window=2, attention=attention)
    set_backend(layer, "dense")
    assert layer.backend == "dense"
    layer.backend = "none such"
    with pytest.raises(ValueError, match="backend: expected one of"):
        layer(images(0, 3, 3))


@pytest.mark.parametrize("norm", SWITCHES["sigmoid"]["output_norm"])
def test_an_empty_batch_stays_empty(norm):
    for kind, options in (("retention", {}), ("sigmoid", {"output_norm": norm})):
        layer = build(kind, window=2, shifted=True, **options)
        assert layer(torch.zeros(0, 5, 4, 8, dtype=F64)).shape == (0, 5, 4, 8)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("gated-swin-retention", lambda C, n: 26 * C + C * C + C),
        ("gated-swin-retention[gate_granularity=headwise]", lambda C, n: 26 * C + n * (C + 1)),
        ("gated-swin-retention[gate=False,enhancement=0]", lambda C, n: 0),
        ("gated-swin-swat", lambda C, n: 26 * C + C * C + 2 * C),
        ("gated-swin-swat[output_norm=none,gate=False,enhancement=3]", lambda C, n: 10 * C),
        ("gated-swin-swat[output_norm=rms,enhancement=0]", lambda C, n: C * C + C),
        ("gated-swin-swat[output_norm=head,enhancement=0]", lambda C, n: C * C + 2 * C),
    ],
)
@pytest.mark.parametrize(("dim", "heads"), [(16, 2), (24, 3), (6, 1)])
def test_parameters(name, extra, dim, heads):
    """Four linear maps with bias, and what gates, kernels and norms add: decay and slopes have none."""
    layer = zoo.layer(name, dim, heads)
    assert sum(p.numel() for p in layer.parameters()) == 4 * (dim * dim + dim) + extra(dim, heads)
