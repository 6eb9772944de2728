"""Parts of image backbones: stochastic depth, merging and embedding of patches, stem, residual convolutions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vision_models import (
    generator,
    images,
    small,
)

from biases.models.backbone import drop_path_rates
from biases.models.vision_parts import (
    ConditionalPosition,
    ConvolutionalFeedForward,
    ConvolutionalStem,
    DropPath,
    PatchEmbedding,
    PatchMerging,
)


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
