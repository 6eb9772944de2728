"""RMT, Swin and Gated-SwinRMT: sizes, stages, official names, specification, any image size, errors."""

from __future__ import annotations

import functools
import itertools
import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases import specification, zoo
from biases.ablation.training import initialise
from biases.layers.manhattan import ManhattanAttention
from biases.layers.swin import SwinAttention
from biases.models import (
    RMT,
    GatedSwinRMT,
    StageSize,
    Swin,
    gated_swinrmt,
    load_official,
    official_names,
    parameter_groups,
    rmt,
)
from biases.models.backbone import Backbone, Block, drop_path_rates
from biases.models.vision_parts import (
    ConditionalPosition,
    ConvolutionalFeedForward,
    ConvolutionalStem,
    DropPath,
    LayerScale,
    PatchEmbedding,
    PatchMerging,
)

COUNTS = {
    "rmt-t": 14_334_216,
    "rmt-s": 26_967_240,
    "rmt-b": 54_154_896,
    "rmt-l": 95_464_864,
    "swin-t": 28_288_354,
    "swin-s": 49_606_258,
    "swin-b": 87_768_224,
}
GATED = ["gated-swinrmt-retention", "gated-swinrmt-swat"]
NAMES = [*COUNTS, "rmt-digits", "swin-digits", *GATED]
DIGITS = ["rmt-digits", "swin-digits", *(f"{name}[size=digits]" for name in GATED)]
SMALL = [*DIGITS, *(f"{name}[size=test]" for name in GATED)]
SIDES = [(8, 8), (7, 9), (5, 3), (1, 1), (2, 11)]

# gamma of each head, stage by stage: RMT Table 12 and Eq. 8, worked out to the digits shown.
FOUR, FIVE = ".75 .875 .9375 .96875", ".75 .875 .9375 .96875 .98438"
EIGHT = ".75 .85135 .91161 .94744 .96875 .98142 .98895 .99343"
TEN = ".75 .83506 .89118 .92821 .95263 .96875 .97938 .9864 .99103 .99408"
SEVEN = ".75 .86199 .92381 .95794 .97678 .98718 .99292"
SIXTEEN = ".75 .80722 .85135 .88537 .91161 .93184 .94744 .95947 .96875 .9759 .98142 .98567 .98895 .99148 .99343 .99493"
FOURTEEN = ".75 .81425 .86199 .89746 .92381 .94339 .95794 .96875 .97678 .98275 .98718 .99048 .99292 .99474"
TWENTY = (
    ".75 .79694 .83506 .86603 .89118 .91161 .92821 .94169 .95263 .96153 "
    ".96875 .97462 .97938 .98325 .9864 .98895 .99103 .99271 .99408 .99519"
)
RATES = {
    "rmt-t": (FOUR, FOUR, EIGHT, SIXTEEN),
    "rmt-s": (FOUR, FOUR, EIGHT, SIXTEEN),
    "rmt-b": (FIVE, FIVE, TEN, SIXTEEN),
    "rmt-l": (SEVEN, SEVEN, FOURTEEN, TWENTY),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@functools.cache
def on_meta(name: str, **options) -> Backbone:
    """The model without memory for its parameters; shared by tests, which only look at it."""
    with torch.device("meta"):
        return zoo.model(name, **options)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Values that keep every part at work: fresh models have logits near 0, statistics of 0 and 1, scales of 1e-6."""
    draw = generator(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=draw)
        if name.endswith("running_var"):
            value.copy_(1.0 + 0.5 * noise.tanh())
        elif value.ndim > 1 and len(value) > 1:
            value.copy_(noise / math.sqrt(value[0].numel()))
        else:
            value.copy_(value.clamp(0.5) + 0.2 * noise if name.endswith("weight") else 0.2 * noise)
    return model.eval()


def small(name: str, seed: int = 0, **options) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomise(zoo.model(name, **options), seed)


def images(channels: int, height: int, width: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=generator(seed))


def blocks(model: Backbone) -> list[list[Block]]:
    return [list(stage.blocks) for stage in model.stages]


def close(found: Tensor, expected: Tensor, roundings: float) -> None:
    """Within so many roundings of ``found``'s dtype, relative to the largest number."""
    error = (found.double() - expected.double()).abs().max().item()
    assert error <= roundings * torch.finfo(found.dtype).eps * expected.abs().max().item()


# --- sizes


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_published_ones(name):
    model = on_meta(name)
    assert parameters(model) == COUNTS[name]
    assert model.channels == 3
    assert model.head.output.out_features == 1000


def rmt_formula(stages, classes, channels=3, projection=1024, gate=lambda C: 0):
    """Parameters of an RMT-like backbone, part by part."""

    def convolution(into, out, kernel):
        return into * out * kernel**2 + out

    def block(size):
        C, hidden = size.dim, int(size.ratio * size.dim)
        feed_forward = 2 * C * hidden + hidden + C + 10 * hidden
        scales = 2 * C if size.layer_scale else 0
        return 4 * C + 4 * (C * C + C) + 26 * C + feed_forward + 10 * C + scales + gate(C)

    half, C = stages[0].dim // 2, stages[0].dim
    stem = convolution(channels, half, 3) + convolution(half, half, 3) + convolution(half, C, 3) + convolution(C, C, 3)
    norms = 2 * (half + half + C + C)
    down = sum(convolution(a.dim, b.dim, 3) + 2 * b.dim for a, b in itertools.pairwise(stages))
    head = stages[-1].dim * projection + 3 * projection + projection * classes + classes
    return stem + norms + sum(size.depth * block(size) for size in stages) + down + head


@pytest.mark.parametrize("size", rmt.SIZES)
def test_rmt_has_the_parameters_of_its_formula(size):
    given = rmt.SIZES[size]
    classes, channels = given.get("classes", 1000), given.get("channels", 3)
    expected = rmt_formula(given["stages"], classes, channels, given.get("projection", 1024))
    assert parameters(on_meta(f"rmt-{size}")) == expected


@pytest.mark.parametrize("size", gated_swinrmt.SIZES)
@pytest.mark.parametrize(("kind", "gate"), [("retention", lambda C: C * C + C), ("swat", lambda C: C * C + 2 * C)])
def test_gated_backbones_add_a_gate_to_each_block(size, kind, gate):
    """An output gate with bias; gated values without, and a normalisation of the output."""
    given = gated_swinrmt.SIZES[size]
    channels, projection = given.get("channels", 3), given.get("projection", 1024)
    expected = rmt_formula(given["stages"], given["classes"], channels, projection, gate)
    assert parameters(on_meta(f"gated-swinrmt-{kind}[size={size}]")) == expected


@pytest.mark.parametrize("block", gated_swinrmt.BLOCKS)
@pytest.mark.parametrize("name", GATED)
def test_gated_backbones_have_the_papers_size(name, block):
    model = on_meta(name, block=block)
    assert model.head.output.out_features == 100
    assert 77_000_000 <= parameters(model) <= 79_000_000


def test_the_papers_gated_backbones_have_balanced_heads():
    for size in gated_swinrmt.SIZES["paper"]["stages"]:
        assert size.heads % 2 == 0
        assert size.dim // size.heads in (24, 32)


def test_digits_models_are_comparable():
    counts = [parameters(on_meta(name)) for name in DIGITS]
    assert max(counts) <= 150_000
    assert max(counts) <= 1.15 * min(counts)
    assert max(parameters(on_meta(f"{name}[size=test]")) for name in GATED) < 10_000


@pytest.mark.parametrize("name", NAMES)
def test_the_zoo_states_the_number_of_parameters(name):
    stated = re.findall(r"\d+,[\d,]*\d", zoo.get(name).parameters)
    found = [parameters(on_meta(name))]
    if name in GATED:
        found.append(parameters(on_meta(f"{name}[size=digits]")))
    assert stated == [f"{count:,}" for count in found]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_takes_classes_and_channels(name):
    model = on_meta(name, classes=7, channels=2, drop_path=0.4)
    assert model.head.output.out_features == 7
    first = next(module for module in model.embedding.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == model.channels == 2
    traits = zoo.get(name).traits
    assert traits.domain == "image"
    assert traits.training_differs is (name != "swin-digits")


@pytest.mark.parametrize("name", ["rmt-t", "swin-t"])
def test_published_models_take_images_of_any_size(name):
    model = small(name, classes=7)
    for height, width in ((32, 32), (33, 47)):
        out = model(images(3, height, width))
        assert out.shape == (2, 7)
        assert out.isfinite().all()


# --- stages


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("rmt-t", ["decomposed", "decomposed", "full", "full"]),
        ("rmt-s", ["decomposed", "decomposed", "decomposed", "full"]),
        ("rmt-b", ["decomposed", "decomposed", "decomposed", "full"]),
        ("rmt-l", ["decomposed", "decomposed", "decomposed", "full"]),
        ("rmt-digits", ["decomposed", "full"]),
    ],
)
def test_stages_of_rmt_have_their_form(name, forms):
    assert [{b.attention.form for b in stage} for stage in blocks(on_meta(name))] == [{form} for form in forms]


@pytest.mark.parametrize("name", RATES)
def test_decay_rates_are_those_of_the_paper(name):
    for stage, rates in zip(blocks(on_meta(name)), RATES[name], strict=True):
        expected = [float(rate) for rate in rates.split()]
        for block in stage:
            assert block.attention.decay.log_rates.exp().tolist() == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize("name", GATED)
def test_gated_backbones_decay_as_rmt_does(name):
    for stage, size in zip(blocks(on_meta(name)), gated_swinrmt.SIZES["paper"]["stages"], strict=True):
        h = torch.arange(size.heads, dtype=torch.float64)
        rates = (1 - 2 ** (-2 - size.span * h / size.heads)).tolist()
        for block in stage:
            assert (-block.attention.decay.slopes).exp().tolist() == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_depth_grows_linearly(name):
    model = on_meta(name, classes=7, channels=2, drop_path=0.4)
    rates = [block.drop_path.rate for stage in blocks(model) for block in stage]
    assert rates == pytest.approx(torch.linspace(0, 0.4, len(rates), dtype=torch.float64).tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("rmt-t", 0.1),
        ("rmt-s", 0.15),
        ("rmt-b", 0.4),
        ("rmt-l", 0.5),
        ("swin-t", 0.2),
        ("swin-s", 0.3),
        ("swin-b", 0.5),
    ],
)
def test_stochastic_depth_ends_at_the_published_rate(name, rate):
    assert blocks(on_meta(name))[-1][-1].drop_path.rate == rate


def test_layer_scale_stands_in_the_last_stages_of_the_large_sizes():
    for name, scaled in {"rmt-t": 0, "rmt-s": 0, "rmt-b": 2, "rmt-l": 2}.items():
        for number, stage in enumerate(blocks(on_meta(name))):
            for scale in (scale for block in stage for scale in (block.scale1, block.scale2)):
                assert isinstance(scale, LayerScale) == (number >= 4 - scaled)
    assert torch.equal(LayerScale(3).weight, torch.full((1, 1, 1, 3), 1e-6))


@pytest.mark.parametrize("name", ["swin-t", "swin-s", "swin-b", *DIGITS[1:], *GATED])
def test_every_second_block_is_shifted(name):
    for stage in blocks(on_meta(name)):
        assert [block.attention.shifted for block in stage] == [number % 2 == 1 for number in range(len(stage))]


@pytest.mark.parametrize("name", ["swin-digits", *(f"{n}[size=digits]" for n in GATED)])
def test_digits_models_really_shift(name):
    model = zoo.model(name)
    (height, width), last = model.map_sizes(8, 8)
    assert (height, width, last) == (8, 8, (4, 4))
    plain, shifted = (block.attention.windows(height, width) for block in model.stages[0].blocks)
    assert plain.size == shifted.size == (4, 4)
    assert (plain.rows.shift, shifted.rows.shift, shifted.columns.shift) == (0, 2, 2)


@pytest.mark.parametrize("name", GATED)
def test_windows_are_global_on_the_maps_of_cifar(name):
    """arXiv 2604.06014: adaptive windows "collapse attention to global scope" there."""
    model = on_meta(name)
    maps = model.map_sizes(32, 32)
    assert maps == [(8, 8), (4, 4), (2, 2), (1, 1)]
    for stage, size in zip(blocks(model), maps, strict=True):
        for block in stage:
            windows = block.attention.windows(*size)
            assert (windows.size, windows.count, windows.rows.shift, windows.columns.shift) == (size, 1, 0, 0)


@pytest.mark.parametrize("name", [*GATED, "swin-t"])
def test_windows_are_seven_at_the_resolution_of_imagenet(name):
    model = on_meta(name)
    maps = model.map_sizes(224, 224)
    assert maps == [(56, 56), (28, 28), (14, 14), (7, 7)]
    for stage, size in zip(blocks(model), maps, strict=True):
        for block in stage:
            windows = block.attention.windows(*size)
            assert windows.size == (7, 7)
            assert windows.rows.shift == (3 if block.attention.shifted and size != (7, 7) else 0)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_maps_have_the_stated_sizes(name, height, width):
    model, seen = small(name), []
    for stage in model.stages:
        stage.blocks[0].register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[1:3])))
    model(images(model.channels, height, width))
    assert seen == model.map_sizes(height, width)


# --- parts


def test_drop_path_keeps_the_mean_example_by_example():
    drop, x = DropPath(0.3).train(), torch.ones(20_000, 2, 1, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = drop(x)
    each = out.flatten(1)
    assert torch.equal(each, each[:, :1].expand_as(each))
    assert sorted(each.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    # Five standard errors of the share of examples that are dropped.
    assert (each[:, 0] == 0).double().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 20_000))


def test_drop_path_is_the_identity_in_evaluation_and_at_rate_0():
    x = torch.randn(4, 2, 2, 3, generator=generator())
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_both_branches_of_a_block_are_dropped():
    model = small("rmt-digits", drop_path=0.99)
    last = model.stages[-1].blocks[-1]
    x = torch.randn(4, 3, 3, 64, generator=generator())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = last.train()(x)
    assert torch.equal(dropped, last.position(x))
    assert not torch.allclose(last.eval()(x), last.position(x))


def test_models_are_deterministic_in_evaluation_only():
    model = small("swin-digits", drop_path=0.5)
    x = images(1, 8, 8, batch=8)
    assert torch.equal(model(x), model(x))
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(model(x), model(x))


def test_drop_path_rates_are_split_by_stage():
    assert drop_path_rates(0.3, [1, 2, 1]) == [[0.0], pytest.approx([0.1, 0.2]), [pytest.approx(0.3)]]
    assert drop_path_rates(0.3, [1]) == [[0.0]]


def test_patch_merging_concatenates_two_by_two():
    merge, x = PatchMerging(3, 5), torch.randn(2, 5, 4, 3, generator=generator())
    padded = F.pad(x, (0, 0, 0, 0, 0, 1))
    out = merge(x)
    assert out.shape == (2, 3, 2, 5)
    for i in range(3):
        for j in range(2):
            four = [padded[:, 2 * i + di, 2 * j + dj] for dj in (0, 1) for di in (0, 1)]
            expected = merge.reduction(F.layer_norm(torch.cat(four, -1), (12,)))
            torch.testing.assert_close(out[:, i, j], expected)


def test_patches_are_embedded_one_by_one():
    embed, x = PatchEmbedding(2, 6, 3), images(2, 5, 7)
    padded, out = F.pad(x, (0, 2, 0, 1)), embed(x)
    assert out.shape == (2, 2, 3, 6)
    for i in range(2):
        for j in range(3):
            patch = padded[:, :, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].flatten(1)
            linear = patch @ embed.projection.weight.flatten(1).T + embed.projection.bias
            torch.testing.assert_close(out[:, i, j], F.layer_norm(linear, (6,)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("strides", "expected"), [((2, 2), (3, 2)), ((1, 1), (9, 7)), ((2, 1), (5, 4))])
def test_the_stem_strides(strides, expected):
    stem = ConvolutionalStem(3, 8, strides)
    assert stem(images(3, 9, 7)).shape == (2, *expected, 8)
    assert stem.stride == strides[0] * strides[1]
    assert [type(layer) for layer in stem.layers] == ([nn.Conv2d, nn.BatchNorm2d, nn.GELU] * 4)[:-1]


def test_depthwise_parts_are_residual():
    """A kernel that is a delta doubles what it is added to; a zero kernel leaves it."""
    x = torch.randn(2, 4, 5, 6, generator=generator())
    position, feed_forward = ConditionalPosition(6), ConvolutionalFeedForward(6, 8)
    for part in (position, feed_forward):
        nn.init.zeros_(part.convolution.weight)
        nn.init.zeros_(part.convolution.bias)
    hidden = F.gelu(feed_forward.expand(x))
    assert torch.equal(position(x), x)
    torch.testing.assert_close(feed_forward(x), feed_forward.contract(hidden))
    for part in (position, feed_forward):
        part.convolution.weight.data[:, :, 1, 1] = 1.0
    torch.testing.assert_close(position(x), 2 * x)
    torch.testing.assert_close(feed_forward(x), feed_forward.contract(2 * hidden))


# --- the blocks of Gated-SwinRMT


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("block", gated_swinrmt.BLOCKS)
def test_attention_gets_the_input_of_the_blocks_normalisation(name, block):
    model, seen = small(name, size="test", block=block), []
    first = model.stages[0].blocks[1]
    first.attention.register_forward_pre_hook(lambda m, args, kw: seen.append((args, kw)), with_kwargs=True)
    first.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(images(3, 8, 8))
    entered, ((given,), keywords) = seen
    assert set(keywords) == {"block_input"}
    source = keywords["block_input"]
    torch.testing.assert_close(given, first.norm1(source))
    torch.testing.assert_close(source, first.position(entered))
    assert isinstance(first.position, nn.Identity) == (block == "swin")


@pytest.mark.parametrize("name", GATED)
def test_the_gate_reads_the_input_that_it_is_told_to(name):
    x = images(3, 8, 8)
    block, normalised = (
        small(name, size="test", attention_options={"gate_input": source})(x) for source in ("block", "normalised")
    )
    assert not torch.allclose(block, normalised, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rmt-digits", {"form": "full", "theta_shift": False}),
        ("rmt-digits", {"placement": "weights", "span": 1.0}),
        ("swin-digits", {"shifted": False}),
        ("gated-swinrmt-retention[size=digits]", {"shifted": False, "theta_shift": "axis"}),
        ("gated-swinrmt-swat[size=digits]", {"weights_norm": "row", "output_norm": "none"}),
    ],
)
def test_attention_options_reach_every_layer(name, options):
    found = small(name, attention_options=options)
    plain = small(name)
    x = images(1, 8, 8)
    assert not torch.equal(found(x), plain(x))
    layer = type(plain.stages[0].blocks[0].attention)
    for block in itertools.chain(*blocks(found)):
        width = block.attention.query.in_features
        assert set(block.attention.state_dict()) == set(layer(width, block.attention.heads, **options).state_dict())


@pytest.mark.parametrize("name", SMALL)
def test_the_backend_reaches_every_layer(name):
    for backend in ("auto", "reference"):
        model = zoo.model(name, backend=backend)
        assert {block.attention.backend for block in itertools.chain(*blocks(model))} == {backend}


@pytest.mark.parametrize(
    "build",
    [RMT.of, functools.partial(GatedSwinRMT.of, kind="retention"), functools.partial(GatedSwinRMT.of, kind="swat")],
)
def test_the_initial_rate_reaches_every_layer(build):
    """gamma of the first head is 1 - 2^-a."""
    for block in itertools.chain(*blocks(build("digits", initial=3.0))):
        decay = block.attention.decay
        logarithm = decay.log_rates if isinstance(block.attention, ManhattanAttention) else -decay.slopes
        assert logarithm[0].exp().item() == pytest.approx(1 - 2**-3, rel=1e-12)


@pytest.mark.parametrize(("name", "eps"), [(name, 1e-5 if name.startswith("swin") else 1e-6) for name in SMALL])
def test_normalisations_of_the_blocks_have_the_stated_eps(name, eps):
    for block in itertools.chain(*blocks(zoo.model(name))):
        assert (block.norm1.eps, block.norm2.eps) == (eps, eps)


# --- specification, gradients, state


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_models_agree_with_their_specification(name, height, width):
    model = small(name)
    exact = specification(model)
    x = images(model.channels, height, width)
    expected = exact(x.double())
    close(model(x), expected, roundings=500)
    close(model.double()(x.double()), expected, roundings=500)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_agree_with_the_specification(name):
    model = small(name).double()
    exact, x = specification(model), images(model.channels, 7, 9).double()
    grads = []
    for each in (model, exact):
        given = x.clone().requires_grad_()
        (each(given) * torch.linspace(-1, 1, 10, dtype=torch.float64)).sum().backward()
        grads.append([given.grad, *(p.grad for p in each.parameters())])
    largest = max(grad.abs().max().item() for grad in grads[1])
    for found, expected in zip(*grads, strict=True):
        assert (found - expected).abs().max().item() <= 1e4 * torch.finfo(torch.float64).eps * largest


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_takes_part_in_training(name):
    model = small(name).train()
    F.cross_entropy(model(images(model.channels, 8, 8, batch=4)), torch.arange(4)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        # Softmax does not see what is the same for all keys; a bias before batch statistics is taken out again.
        if not re.search(r"key\.bias|head\.projection\.bias|downsampling.*\.bias|layers\.\d+\.bias", parameter_name):
            assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_runs(name):
    model = small(name).to(torch.bfloat16)
    out = model(images(model.channels, 7, 6).to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_memory_format_does_not_matter(name):
    model = small(name)
    x = images(model.channels, 8, 6, batch=3)
    expected = model(x)
    close(model(x.contiguous(memory_format=torch.channels_last)), expected, roundings=500)
    close(model(images(model.channels, 8, 6, batch=3).transpose(2, 3).contiguous().transpose(2, 3)), expected, 500)


@pytest.mark.parametrize("name", SMALL)
def test_the_state_is_the_whole_model(name):
    model, other = small(name, seed=0), small(name, seed=1)
    x = images(model.channels, 8, 8)
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))


# --- starting values, weight decay


def started(name: str, built_under: int, seed: int = 0, **options) -> dict[str, Tensor]:
    """Parameters as the trainings of the ablation start them, by name."""
    with torch.random.fork_rng():
        torch.manual_seed(built_under)
        model = zoo.model(name, **options)
    initialise(model, seed)
    return dict(model.named_parameters())


def shared(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name in one.keys() & other.keys() if one[name].shape == other[name].shape}


@pytest.mark.parametrize("name", DIGITS)
def test_whatever_starts_at_random_says_how(name):
    """What is not drawn anew from the seed is the same in models built under different random states."""
    one, other = started(name, 1), started(name, 2)
    assert one.keys() == other.keys()
    assert [n for n in one if not torch.equal(one[n], other[n])] == []
    different = started(name, 1, seed=1)
    linear_weights = [n for n, m in on_meta(name).named_modules() if isinstance(m, nn.Linear)]
    assert all(not torch.equal(one[f"{n}.weight"], different[f"{n}.weight"]) for n in linear_weights)


@pytest.mark.parametrize("other", [f"{name}[size=digits]" for name in GATED])
def test_models_of_one_seed_share_what_has_the_same_name_and_shape(other):
    one, two = started("rmt-digits", 0), started(other, 0)
    same = shared(one, two)
    assert {"embedding.layers.0.weight", "embedding.layers.0.bias", "stages.1.blocks.1.attention.key.weight"} <= same
    assert [n for n in sorted(same) if not torch.equal(one[n], two[n])] == []


def test_arms_of_one_seed_share_what_has_the_same_name_and_shape():
    arms = [
        started("gated-swinrmt-retention[size=digits]", 0, attention_options={"gate_granularity": granularity})
        for granularity in ("elementwise", "headwise")
    ]
    same = shared(*arms)
    assert arms[0].keys() == arms[1].keys()
    assert len(same) < len(arms[0])
    assert [n for n in sorted(same) if not torch.equal(arms[0][n], arms[1][n])] == []


@pytest.mark.parametrize("name", DIGITS)
def test_models_start_as_declared(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.model(name)
    drawn = {n: model.initial_std(n) for n, _ in model.named_parameters() if model.initial_std(n) is not None}
    expected = {}
    for n, module in model.named_modules():
        if isinstance(module, nn.Linear):
            expected[f"{n}.weight"] = 0.02
            assert module.bias is None or torch.count_nonzero(module.bias) == 0
        if isinstance(module, nn.Conv2d):
            area = module.in_channels // module.groups * math.prod(module.kernel_size)
            expected[f"{n}.weight"] = expected[f"{n}.bias"] = 1 / math.sqrt(3 * area)
        if isinstance(module, SwinAttention):
            expected[f"{n}.relative_position"] = 0.02
    assert drawn == pytest.approx(expected, rel=1e-12)
    kinds = {n: ("table" if n.endswith("position") else value.ndim) for n, value in model.named_parameters()}
    for kind in {kinds[n] for n in drawn}:
        parts = [
            p.detach().flatten() / drawn[n] for n, p in model.named_parameters() if n in drawn and kinds[n] == kind
        ]
        values = torch.cat(parts)
        # Five standard errors of the estimate.
        assert values.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * values.numel())), kind


@pytest.mark.parametrize("groups", [1, 16])
def test_convolutions_have_the_variance_that_pytorch_gives_them(groups):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Conv2d(64, 256, 3, groups=groups)
    model = zoo.model("rmt-digits")
    model.embedding.layers[0] = plain
    for name, value in plain.named_parameters():
        # The fourth moment of a uniform is 9/5 of its squared variance: five standard errors.
        error = 5 * math.sqrt((9 / 5 - 1) / 4 / value.numel())
        assert value.std().item() == pytest.approx(model.initial_std(f"embedding.layers.0.{name}"), rel=error)


@pytest.mark.parametrize("name", DIGITS)
def test_parameter_groups_cover_every_parameter_once(name):
    model = zoo.model(name)
    decayed, kept = model.parameter_groups(0.05)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    grouped = [id(p) for group in (decayed, kept) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = {id(p): n for n, p in model.named_parameters()}
    assert all(p.ndim > 1 for p in decayed["params"])
    assert {names[id(p)] for p in kept["params"]} >= {n for n in names.values() if n.endswith("bias") or ".norm" in n}


def test_tables_of_relative_position_are_not_decayed():
    model = zoo.model("swin-digits")
    decayed, kept = ({id(p) for p in group["params"]} for group in model.parameter_groups(0.05))
    tables = [p for n, p in model.named_parameters() if n.endswith("relative_position")]
    assert len(tables) == 4
    assert {id(p) for p in tables} <= kept - decayed


class Sharing(nn.Module):
    """Two modules that share a matrix, of which one exempts it, a matrix of its own and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.exempting = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.exempting.weight = self.plain.weight
        self.exempting.no_weight_decay = ("weight",)
        self.matrix = nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize("decay_vectors", [False, True])
def test_groups_of_any_module(decay_vectors):
    model = Sharing()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = {
        group["weight_decay"]: [names[id(p)] for p in group["params"]]
        for group in parameter_groups(model, 0.3, decay_vectors=decay_vectors)
    }
    bias = ["plain.bias"]
    assert groups == {
        0.3: ["matrix", *(bias if decay_vectors else [])],
        0.0: ["plain.weight", *([] if decay_vectors else bias)],
    }


def test_empty_groups_are_left_out():
    (group,) = parameter_groups(nn.Linear(2, 2, bias=False), 0.3, decay_vectors=False)
    assert group["weight_decay"] == 0.3
    assert parameter_groups(nn.Identity(), 0.3, decay_vectors=False) == []


# --- Swin against its equations


def swin_logits(state: dict[str, Tensor], x: Tensor, depths, heads, window: int, patch: int) -> Tensor:
    """Swin in float64 from its state, for maps that the window divides, with the mask of its code: nine regions."""

    def linear(name, y):
        return F.linear(y, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name, y):
        return F.layer_norm(y, y.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def attention(name, y, H, shift, M):
        B, height, width, C = y.shape
        q, k, v = (linear(f"{name}.{part}", y.roll((-shift, -shift), (1, 2))) for part in ("query", "key", "value"))
        slices = [(torch.arange(n) >= n - M).long() + (torch.arange(n) >= n - shift) for n in (height, width)]
        label = 3 * slices[0][:, None] + slices[1]
        out, at = torch.zeros_like(y), torch.arange(M * M)
        down, across = (at[:, None] // M - at // M), (at[:, None] % M - at % M)
        side = math.isqrt(state[f"{name}.relative_position"].shape[0])
        index = (down + side // 2) * side + across + side // 2
        bias = state[f"{name}.relative_position"][index].permute(2, 0, 1)
        for i in range(0, height, M):
            for j in range(0, width, M):
                rows, columns = slice(i, i + M), slice(j, j + M)
                region = label[rows, columns].flatten()
                masked = bias + torch.where(region[:, None] == region, 0.0, -math.inf)
                a, b, c = (t[:, rows, columns].reshape(B, M * M, H, -1).transpose(1, 2) for t in (q, k, v))
                weights = (a @ b.mT / math.sqrt(C // H) + masked).softmax(-1)
                out[:, rows, columns] = (weights @ c).transpose(1, 2).reshape(B, M, M, C)
        return linear(f"{name}.output", out.roll((shift, shift), (1, 2)))

    y = F.conv2d(x, state["embedding.projection.weight"], state["embedding.projection.bias"], stride=patch)
    y = norm("embedding.norm", y.permute(0, 2, 3, 1))
    for s, depth in enumerate(depths):
        M = min(window, *y.shape[1:3])
        for b in range(depth):
            name, shift = f"stages.{s}.blocks.{b}", M // 2 if b % 2 and min(y.shape[1:3]) > window else 0
            y = y + attention(f"{name}.attention", norm(f"{name}.norm1", y), heads[s], shift, M)
            hidden = F.gelu(linear(f"{name}.feed_forward.expand", norm(f"{name}.norm2", y)))
            y = y + linear(f"{name}.feed_forward.contract", hidden)
        if s + 1 < len(depths):
            four = torch.cat([y[:, 0::2, 0::2], y[:, 1::2, 0::2], y[:, 0::2, 1::2], y[:, 1::2, 1::2]], -1)
            y = linear(f"stages.{s}.downsampling.reduction", norm(f"stages.{s}.downsampling.norm", four))
    return linear("head.output", norm("head.norm", y).mean((1, 2)))


def test_swin_is_what_its_equations_say():
    model = randomise(Swin(8, (2, 3), (2, 4), window=3, patch=2, classes=5, channels=2)).double()
    x = images(2, 24, 12).double()
    expected = swin_logits(model.state_dict(), x, (2, 3), (2, 4), 3, 2)
    close(model(x), expected, roundings=2000)


# --- RMT against its code's names and equations

STAGES = (
    StageSize(8, 2, 2, ratio=3, span=4),
    StageSize(12, 1, 3, ratio=2.5, span=5, layer_scale=True),
    StageSize(16, 2, 2, ratio=1, span=6, layer_scale=True),
)
FORMS = ("decomposed", "full", "decomposed")


def small_rmt(**options) -> RMT:
    return RMT(STAGES, forms=FORMS, **{"classes": 5, "channels": 2, "projection": 10, **options}).eval()


def official_shapes(stages, classes=1000, channels=3, projection=1024) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official state: qhfan/RMT, commit 32ea214, classfication_release/RMT.py."""

    def affine(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    def batch_norm(name, C):
        statistics = {f"{name}.running_mean": (C,), f"{name}.running_var": (C,), f"{name}.num_batches_tracked": ()}
        return {**affine(name, C), **statistics}

    found, C = {}, stages[0].dim
    widths = [channels, C // 2, C // 2, C, C]
    for place, (into, out) in enumerate(itertools.pairwise(widths)):
        found |= affine(f"patch_embed.proj.{3 * place}", out, into, 3, 3)
        found |= batch_norm(f"patch_embed.proj.{3 * place + 1}", out)
    for s, size in enumerate(stages):
        C, hidden = size.dim, int(size.ratio * size.dim)
        found |= {f"layers.{s}.Relpos.angle": (C // size.heads,), f"layers.{s}.Relpos.decay": (size.heads,)}
        for b in range(size.depth):
            block = f"layers.{s}.blocks.{b}"
            for norm in ("retention_layer_norm", "final_layer_norm"):
                found |= affine(f"{block}.{norm}", C)
            for projection_name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                found |= affine(f"{block}.retention.{projection_name}", C, C)
            found |= affine(f"{block}.retention.lepe.conv", C, 1, 5, 5)
            found |= affine(f"{block}.ffn.fc1", hidden, C)
            found |= affine(f"{block}.ffn.fc2", C, hidden)
            found |= affine(f"{block}.ffn.dwconv.conv", hidden, 1, 3, 3)
            found |= affine(f"{block}.pos.conv", C, 1, 3, 3)
            if size.layer_scale:
                found |= {f"{block}.gamma_1": (1, 1, 1, C), f"{block}.gamma_2": (1, 1, 1, C)}
        if s + 1 < len(stages):
            found |= affine(f"layers.{s}.downsample.reduction", stages[s + 1].dim, C, 3, 3)
            found |= batch_norm(f"layers.{s}.downsample.norm", stages[s + 1].dim)
    return found | affine("proj", projection, C) | batch_norm("norm", projection) | affine("head", classes, projection)


def official_state(seed: int = 0) -> dict[str, Tensor]:
    """A state of the small configuration with the official names, in float32 as released."""
    draw, state = generator(seed), {}
    for name, shape in official_shapes(STAGES, classes=5, channels=2, projection=10).items():
        noise = torch.randn(shape, generator=draw)
        state[name] = noise / math.sqrt(noise[0].numel()) if noise.ndim > 1 and "gamma" not in name else noise
        if name.endswith("running_var"):
            state[name] = 1.0 + 0.5 * noise.tanh()
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(int(100 * noise.abs()))
    for s, size in enumerate(STAGES):
        angle = 1.0 / 10000 ** torch.linspace(0, 1, size.dim // size.heads // 2)
        heads = torch.arange(size.heads, dtype=torch.float)
        state[f"layers.{s}.Relpos.angle"] = angle.repeat_interleave(2)
        state[f"layers.{s}.Relpos.decay"] = torch.log(1 - 2 ** (-2 - size.span * heads / size.heads))
    return state


def official_logits(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """RMT by its equations, in float64, from the official names."""
    state = {name: value.double() for name, value in state.items()}

    def linear(name, y):
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    def layer_norm(name, y):
        return F.layer_norm(y, y.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def batch_norm(name, y):
        scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
        return (y - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]

    def convolution(name, y, stride=1):
        weight = state[f"{name}.weight"]
        groups = y.shape[-1] // weight.shape[1]
        y = F.conv2d(y.movedim(-1, 1), weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2, groups=groups)
        return y.movedim(1, -1)

    def masa(name, y, H, decay, form):
        B, height, width, C = y.shape
        raster = torch.arange(height * width, dtype=torch.float64).view(height, width)
        theta = 10000.0 ** -torch.linspace(0, 1, C // H // 2, dtype=torch.float64)
        turn = torch.polar(torch.ones(()).double(), raster[..., None, None] * theta)
        value = linear(f"{name}.v_proj", y)
        q, k = (linear(f"{name}.{part}", y).view(B, height, width, H, -1, 2) for part in ("q_proj", "k_proj"))
        q, k = (torch.view_as_real(torch.view_as_complex(t) * turn).flatten(-2) for t in (q, k))
        k, v = k / math.sqrt(C // H), value.view(B, height, width, H, -1)
        rows, columns = ((torch.arange(n)[:, None] - torch.arange(n)).abs() for n in (height, width))
        if form == "full":
            distance = rows[:, None, :, None] + columns[None, :, None, :]
            logits = torch.einsum("bijhd,bkmhd->bhijkm", q, k) + decay.view(-1, 1, 1, 1, 1) * distance
            weights = logits.flatten(-2).softmax(-1).view_as(logits)
            out = torch.einsum("bhijkm,bkmhd->bijhd", weights, v)
        else:
            across = torch.einsum("bijhd,bimhd->bihjm", q, k) + decay.view(-1, 1, 1) * columns
            v = torch.einsum("bihjm,bimhd->bijhd", across.softmax(-1), v)
            down = torch.einsum("bijhd,bkjhd->bjhik", q, k) + decay.view(-1, 1, 1) * rows
            out = torch.einsum("bjhik,bkjhd->bijhd", down.softmax(-1), v)
        return linear(f"{name}.out_proj", out.flatten(3) + convolution(f"{name}.lepe.conv", value))

    y = x.movedim(1, -1)
    for place, stride in ((0, 2), (3, 1), (6, 2), (9, 1)):
        y = batch_norm(f"patch_embed.proj.{place + 1}", convolution(f"patch_embed.proj.{place}", y, stride))
        y = y if place == 9 else F.gelu(y)
    for s, (size, form) in enumerate(zip(STAGES, FORMS, strict=True)):
        decay = torch.log(1 - 2 ** (-2 - size.span * torch.arange(size.heads).double() / size.heads))
        for b in range(size.depth):
            name = f"layers.{s}.blocks.{b}"
            one, two = (state.get(f"{name}.gamma_{g}", torch.ones(()).double()) for g in (1, 2))
            y = y + convolution(f"{name}.pos.conv", y)
            y = y + one * masa(
                f"{name}.retention", layer_norm(f"{name}.retention_layer_norm", y), size.heads, decay, form
            )
            hidden = F.gelu(linear(f"{name}.ffn.fc1", layer_norm(f"{name}.final_layer_norm", y)))
            y = y + two * linear(f"{name}.ffn.fc2", hidden + convolution(f"{name}.ffn.dwconv.conv", hidden))
        if s + 1 < len(STAGES):
            y = batch_norm(f"layers.{s}.downsample.norm", convolution(f"layers.{s}.downsample.reduction", y, 2))
    return linear("head", F.silu(batch_norm("norm", linear("proj", y))).mean((1, 2)))


@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
def test_official_names_and_shapes(size):
    model = on_meta(f"rmt-{size}")
    names = official_names(model)
    assert set(names) == set(model.state_dict())
    assert len(set(names.values())) == len(names)
    found = {names[name]: tuple(value.shape) for name, value in model.state_dict().items()}
    expected = official_shapes(rmt.SIZES[size]["stages"])
    constants = {name for name in expected if ".Relpos." in name}
    assert found == {name: shape for name, shape in expected.items() if name not in constants}
    learned = [n for n in expected if n not in constants and "running" not in n and "num_batches" not in n]
    assert sum(math.prod(expected[name]) for name in learned) == COUNTS[f"rmt-{size}"]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 21), (4, 9)])
def test_an_official_state_gives_the_official_logits(height, width):
    state, x = official_state(), images(2, height, width).double()
    model = load_official(small_rmt().double(), state)
    close(model(x), official_logits(state, x), roundings=5000)


def test_official_values_arrive_in_their_tensors():
    state = official_state()
    model = load_official(small_rmt(), state)
    block, official = model.stages[1].blocks[0], "layers.1.blocks.0"
    assert torch.equal(block.attention.key.weight, state[f"{official}.retention.k_proj.weight"])
    assert torch.equal(block.attention.enhancement.convolution.bias, state[f"{official}.retention.lepe.conv.bias"])
    assert torch.equal(block.norm1.weight, state[f"{official}.retention_layer_norm.weight"])
    assert torch.equal(block.feed_forward.contract.weight, state[f"{official}.ffn.fc2.weight"])
    assert torch.equal(block.scale2.weight, state[f"{official}.gamma_2"])
    assert torch.equal(model.stages[0].downsampling.norm.running_var, state["layers.0.downsample.norm.running_var"])
    assert torch.equal(model.embedding.layers[6].weight, state["patch_embed.proj.6.weight"])
    assert model.embedding.layers[10].num_batches_tracked == state["patch_embed.proj.10.num_batches_tracked"]
    assert torch.equal(model.head.output.bias, state["head.bias"])


def test_the_constants_of_an_official_state_may_be_left_out():
    state = official_state()
    bare = {name: value for name, value in state.items() if ".Relpos." not in name}
    found, expected = (load_official(small_rmt(), each).state_dict() for each in (bare, state))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def without(name):
    return lambda state: state.pop(name)


def changed(name, value):
    return lambda state: state.update({name: value(state.get(name))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("head.bias"), r"expected none missing, got 1: head\.bias$"),
        (changed("extra.weight", lambda _: torch.ones(1)), r"expected none unknown, got 1: extra\.weight$"),
        (changed("layers.3.Relpos.angle", lambda _: torch.ones(1)), r"expected none unknown, got 1: layers\.3"),
        (changed("proj.weight", lambda w: w[1:]), r"proj\.weight: expected \(10, 16\), got \(9, 16\)"),
        (changed("layers.1.Relpos.decay", lambda d: 1.001 * d), r"layers\.1\.Relpos\.decay: expected \["),
        (changed("layers.0.Relpos.angle", lambda a: a.flip(0)), r"layers\.0\.Relpos\.angle: expected \["),
        (changed("layers.0.Relpos.angle", lambda a: a[:2]), r"layers\.0\.Relpos\.angle: expected \["),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(change, message):
    state, model = official_state(), small_rmt()
    change(state)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_official(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({**official_state(), "head.bias": [0.0] * 5}, r"expected none other than tensors, got 1: head\.bias: list$"),
        ({"model": official_state()}, r"released files hold it under 'model', got a mapping with the key 'model'"),
        (list(official_state().items()), r"expected a mapping from names to tensors, got list"),
    ],
)
def test_what_is_no_official_state_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        load_official(small_rmt(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "weights"}, r"placement .*stages\.0\.blocks\.0: expected 'logits', .*got 'weights'"),
        ({"placement": "weights-renormalised"}, r"placement .*got 'weights-renormalised'"),
        ({"weights": "sigmoid-normalised"}, r"weights .*expected 'softmax', .*got 'sigmoid-normalised'"),
        ({"theta_shift": False}, r"theta_shift .*expected True, .*got False"),
        ({"order": "height-first"}, r"order .*expected 'width-first', .*got 'height-first'"),
    ],
)
def test_a_model_with_other_attention_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_official(small_rmt(attention_options=options), official_state())


def test_the_order_of_a_form_that_has_none_is_no_reason_to_refuse():
    options = {"form": "full", "order": "height-first"}
    assert load_official(small_rmt(attention_options=options), official_state())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: RMT.of("s", forms=("decomposed",) * 4),
            r"form .*stages\.3\.blocks\.0: expected 'full', .*'decomposed'",
        ),
        (lambda: RMT.of("t", forms=rmt.DECOMPOSED_TO_THE_LAST), r"form .*stages\.2\.blocks\.0: expected 'full', "),
        (lambda: RMT.of("b", initial=3.0), r"rates of decay in stages\.0\.blocks\.0: expected \["),
        (lambda: Swin.of("t"), r"expected an RMT, got Swin"),
    ],
)
def test_a_published_size_has_its_forms_and_rates(model, message):
    with torch.device("meta"):
        built = model()
    with pytest.raises(ValueError, match=message):
        load_official(built, {})


@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
def test_published_sizes_take_their_official_states(size):
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in official_shapes(rmt.SIZES[size]["stages"]).items()}
        model = RMT.of(size)
    loaded = load_official(model, {name: value for name, value in state.items() if ".Relpos." not in name})
    assert loaded is model


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected none missing, got \d+: .* and \d+ more"):
        load_official(RMT.of("digits"), official_state())


# --- errors

STAGE = (StageSize(8, 1, 2),)
WRONG = {
    "heads not dividing": lambda: StageSize(8, 1, 3),
    "no depth": lambda: StageSize(8, 0, 2),
    "no feed-forward": lambda: StageSize(8, 1, 2, ratio=0.1),
    "negative ratio": lambda: StageSize(8, 1, 2, ratio=-1),
    "ratio that is no number": lambda: StageSize(8, 1, 2, ratio=math.nan),
    "ratio that is a word": lambda: StageSize(8, 1, 2, ratio="4"),
    "span that is a word": lambda: StageSize(8, 1, 2, span="4"),
    "span that is no number": lambda: StageSize(8, 1, 2, span=math.nan),
    "negative span": lambda: StageSize(8, 1, 2, span=-1),
    "stages that are numbers": lambda: RMT(((8, 1, 2),), forms=("full",)),
    "RMT with a number of stages": lambda: RMT(3, forms=("full",)),
    "RMT with forms None": lambda: RMT.of("digits", forms=None),
    "RMT with one form for all": lambda: RMT.of("digits", forms="full"),
    "RMT with one stride": lambda: RMT.of("digits", strides=5),
    "RMT with an initial rate that is a word": lambda: RMT.of("digits", initial="x"),
    "RMT with a negative initial rate": lambda: RMT.of("digits", initial=-5.0),
    "RMT with attention options that are a number": lambda: RMT.of("digits", attention_options=5),
    "RMT with attention options that are pairs": lambda: RMT.of("digits", attention_options=[("order", 1)]),
    "Swin with a number of blocks": lambda: Swin(8, 3, (2,)),
    "Swin with a number of heads": lambda: Swin(8, (1,), 2),
    "Swin without depths": lambda: Swin(8, None, None),
    "Swin with one stride": lambda: Swin(8, (1,), (2,), strides=5),
    "Gated-SwinRMT with a number of stages": lambda: GatedSwinRMT(3, kind="swat"),
    "Gated-SwinRMT without strides": lambda: GatedSwinRMT.of("test", kind="swat", strides=None),
    "Gated-SwinRMT with an initial rate that is a word": lambda: GatedSwinRMT.of("test", kind="swat", initial="x"),
    "RMT without stages": lambda: RMT((), forms=()),
    "RMT with too few forms": lambda: RMT(STAGE, forms=()),
    "RMT of unknown form": lambda: RMT(STAGE, forms=("axial",)),
    "RMT of unknown size": lambda: RMT.of("xl"),
    "RMT of odd width": lambda: RMT((StageSize(7, 1, 1),), forms=("full",)),
    "RMT of odd head width": lambda: RMT((StageSize(6, 1, 2),), forms=("full",)),
    "RMT without classes": lambda: RMT.of("digits", classes=0),
    "RMT without channels": lambda: RMT.of("digits", channels=0),
    "RMT with three strides": lambda: RMT.of("digits", strides=(2, 2, 2)),
    "RMT with stride 0": lambda: RMT.of("digits", strides=(0, 1)),
    "RMT without projection": lambda: RMT.of("digits", projection=0),
    "RMT with drop path 1": lambda: RMT.of("digits", drop_path=1.0),
    "RMT of unknown option": lambda: RMT.of("digits", attention_options={"orders": 1}),
    "RMT of unknown backend": lambda: RMT.of("digits", backend="flash"),
    "Swin of unknown size": lambda: Swin.of("xl"),
    "Swin without stages": lambda: Swin(8, (), ()),
    "Swin with too few heads": lambda: Swin(8, (1, 1), (2,)),
    "Swin of no width": lambda: Swin(0, (1,), (1,)),
    "Swin without a window": lambda: Swin.of("digits", window=0),
    "Swin without patches": lambda: Swin(8, (1,), (1,), patch=0),
    "Swin of odd width with a stem": lambda: Swin(7, (1,), (1,), strides=(1, 1)),
    "Swin without classes": lambda: Swin.of("digits", classes=0),
    "Swin of unknown option": lambda: Swin.of("digits", attention_options={"shift": 1}),
    "Gated-SwinRMT of unknown kind": lambda: GatedSwinRMT.of("test", kind="swa"),
    "Gated-SwinRMT of unknown size": lambda: GatedSwinRMT.of("large", kind="swat"),
    "Gated-SwinRMT of unknown block": lambda: GatedSwinRMT.of("test", kind="swat", block="vit"),
    "Gated-SwinRMT without stages": lambda: GatedSwinRMT((), kind="swat"),
    "Gated-SwinRMT of unknown option": lambda: GatedSwinRMT.of("test", kind="swat", attention_options={"gates": 1}),
    "unknown option of a model": lambda: zoo.model("rmt-t", depth=3),
    "drop path below 0": lambda: DropPath(-0.1),
    "drop path that is a switch": lambda: DropPath(True),
    "rates above 1": lambda: drop_path_rates(1.5, [2]),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_configurations_state_expected_and_got(name):
    with pytest.raises(ValueError, match=r"expected .*got "):
        WRONG[name]()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda c: torch.zeros(c, 8, 8), r"4 axes, got .*3 axes"),
        (lambda c: torch.zeros(1, c + 1, 8, 8), r"expected \d channels.*got \(1, \d, 8, 8\)"),
        (lambda c: torch.zeros(1, c, 8, 8, dtype=torch.int64), r"expected a floating dtype, got torch\.int64"),
        (
            lambda c: torch.zeros(1, c, 8, 8, dtype=torch.float64),
            r"dtype: expected torch\.float32, that of the parameters, got torch\.float64",
        ),
        (lambda c: torch.zeros(1, c, 0, 8), r"sides of at least 1 pixels, got 0 x 8"),
        (lambda c: [[1.0]], r"expected a tensor .*got list"),
    ],
)
def test_bad_images_state_expected_and_got(name, bad, message):
    model = zoo.model(name)
    with pytest.raises(ValueError, match=message):
        model(bad(model.channels))


@pytest.mark.parametrize("name", SMALL)
def test_autocast_takes_images_of_another_dtype(name):
    model = small(name)
    x = images(model.channels, 8, 8)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            # A rounding of bfloat16 at each of a few dozen layers.
            assert (model(x.to(dtype)).float() - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    "model",
    [
        lambda: small_rmt(),
        lambda: Swin(8, (1, 1), (2, 2), classes=3, channels=2).eval(),
        lambda: GatedSwinRMT(STAGES[:1], kind="swat", channels=2).eval(),
    ],
)
def test_images_hold_a_patch_at_least(model):
    built = model()
    with pytest.raises(ValueError, match=r"images: expected sides of at least 4 pixels, got 3 x 9"):
        built(images(2, 3, 9))
    for side in ((4, 4), (5, 30), (31, 6)):
        assert built(images(2, *side)).isfinite().all()
