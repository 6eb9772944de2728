"""The layers of Gated-SwinRMT: the formulations that run are those declared, and equal the specification."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from gated_swin_definition import F64, KINDS, build, equal, images, layers, sides
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from biases import set_backend, specification, zoo
from biases.layers.gated_swin import GatedSwin
from biases.testing import assert_within
from biases.testing.strategies import seeds


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
