"""RMT, Swin and Gated-SwinRMT: sizes, stages, windows, specification, any image size."""

from __future__ import annotations

import functools
import itertools
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vision_models import (
    COUNTS,
    DIGITS,
    GATED,
    NAMES,
    SIDES,
    SMALL,
    blocks,
    close,
    images,
    on_meta,
    parameters,
    small,
)

from biases import specification, zoo
from biases.layers.manhattan import ManhattanAttention
from biases.models import (
    RMT,
    GatedSwinRMT,
    gated_swinrmt,
    rmt,
)
from biases.models.vision_parts import (
    LayerScale,
)

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
