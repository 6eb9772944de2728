"""The layers of Gated-SwinRMT (arXiv 2604.06014): switches against formulas, single pixels, and refusals."""

from __future__ import annotations

import pytest
import torch
from gated_swin_definition import F64, KINDS, SWITCHES, Definition, build, equal, images, kinds, layers, sides
from hypothesis import assume, given
from hypothesis import strategies as st

from biases import set_backend, specification, zoo
from biases.axial import attend_decomposed, decomposed_weights
from biases.testing import assert_close_to, assert_same
from biases.testing.strategies import seeds

# Weights of e^-100 are below rounding; an even number of heads is balanced under either.
WITHOUT_EFFECT = ("mask_value", "odd_heads")


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
