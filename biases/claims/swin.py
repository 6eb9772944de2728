"""Swin Transformer (arXiv 2103.14030): shifted windows."""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise, product
from typing import cast

import torch
from torch import Tensor

from biases.attention import attend
from biases.claims._judge import EXACT, exponent, gap, influence, judged, multiply_adds, normal, parameters
from biases.claims.evidence import Evidence
from biases.claims.ledger import claim
from biases.layers import SwinAttention, specification
from biases.models import Swin
from biases.positions import RelativePositionBias
from biases.windows import Windows

PAPER = "2103.14030"
SIDE, WINDOW, DIM, HEADS = 8, 4, 8, 2
SIZES = ("t", "s", "b")
PARAMETERS = {"t": 28, "s": 50, "b": 88}  # in 10^6
FLOPS = {"t": 4.5, "s": 8.7, "b": 15.4}  # in 10^9


def _layer(shifted: bool, mask_value: float | None = None) -> SwinAttention:
    torch.manual_seed(0)
    layer = SwinAttention(DIM, HEADS, window=WINDOW, shifted=shifted, mask_value=mask_value)
    with torch.no_grad():
        layer.relative_position.normal_()
    return cast(SwinAttention, specification(layer))


@claim(
    id="swin-complexity",
    paper=PAPER,
    location="costs of MSA and W-MSA; location in the paper not known to us",
    kind="count",
    statement="On a map of h x w, attention costs 4 h w C^2 + 2 (h w)^2 C and attention in windows of M x M 4 h w C^2 "
    "+ 2 M^2 h w C: the latter is linear in h w.",
)
def complexity() -> Evidence:
    dim, window = 16, 7

    def cost(height: int, width: int, side: int) -> int:
        with torch.device("meta"):
            layer = SwinAttention(dim, 2, window=side)
            return multiply_adds(lambda: layer(torch.empty(1, height, width, dim)))

    rows, error = {}, 0
    for height, width in ((14, 14), (28, 28), (14, 56)):
        pixels = height * width
        windows = cost(height, width, window)
        expected = 4 * pixels * dim**2 + 2 * window**2 * pixels * dim
        rows[f"{height} x {width}"] = {"counted": windows, "stated": expected}
        error = max(error, abs(windows - expected))
    whole, expected = cost(14, 14, 14), 4 * 196 * dim**2 + 2 * 196**2 * dim
    rows["14 x 14, one window"] = {"counted": whole, "stated": expected}
    error = max(error, abs(whole - expected))
    power = exponent(lambda side: cost(side, side, window), 14, 56) / 2
    return judged(
        f"Counted and stated multiply-adds differ by {error:,}, over three maps and both forms; with M = {window} they "
        f"grow with the {power:.3f}-th power of h w.",
        error=max(error, abs(power - 1.0)),
        tolerance=1e-9,
        counterexample=rows,
        values={"exponent": power, "counts": rows},
        source="biases.layers.SwinAttention, counted",
    )


def _by_region(layer: SwinAttention, x: Tensor) -> Tensor:
    """Attention of each region of the shifted windows by itself, where it stands on the map: no shift, no mask."""
    q, k, v = (
        part(x).unflatten(-1, (HEADS, -1)).permute(0, 3, 1, 2, 4) for part in (layer.query, layer.key, layer.value)
    )
    cuts = [0, *range(WINDOW // 2, SIDE, WINDOW), SIDE]
    out = torch.empty_like(v)
    for (top, bottom), (left, right) in product(pairwise(cuts), repeat=2):
        region = (slice(None), slice(None), slice(top, bottom), slice(left, right))
        bias = RelativePositionBias(layer.relative_position, bottom - top, right - left)
        alone = attend(*(part[region].flatten(2, 3) for part in (q, k, v)), bias=bias, backend="reference")
        out[region] = alone.unflatten(2, (bottom - top, right - left))
    return layer.output(out.permute(0, 2, 3, 1, 4).flatten(3))


@claim(
    id="swin-cyclic-shift",
    paper=PAPER,
    location="shifted windows; location in the paper not known to us",
    kind="identity",
    statement="Rolling the map, cutting it and masking pairs that are not neighbours gives attention in the shifted "
    "windows, the smaller ones at the border included.",
)
@torch.no_grad()
def cyclic_shift() -> Evidence:
    x, layer = normal(1, 2, SIDE, SIDE, DIM), _layer(True)
    expected = _by_region(layer, x)
    error, added = gap(layer(x), expected), gap(_layer(True, -100.0)(x), expected)
    return judged(
        f"On a map of {SIDE} x {SIDE} with windows of {WINDOW}, rolled and masked attention differs from that of the "
        f"nine regions one by one by at most {error:.0e}; with -100 added to the logits of masked pairs, as the code "
        f"does, by {added:.0e}.",
        error=error,
        tolerance=EXACT,
        counterexample={"largest_difference": error},
        values={"difference_with_minus_100": added},
        source="biases.layers.SwinAttention, specification",
    )


@claim(
    id="swin-window-count",
    paper=PAPER,
    location="shifted windows; location in the paper not known to us",
    kind="count",
    statement="With the cyclic shift the number of windows is that of the regular partition, where shifting alone "
    "would make (h / M + 1) (w / M + 1).",
)
def window_count() -> Evidence:
    rows, error = {}, 0
    for height, width, window in ((8, 8, 4), (56, 56, 7), (14, 28, 7)):
        regular, shifted = (Windows.of(height, width, window, shifted=s, rule="clamp").count for s in (False, True))
        naive = (height // window + 1) * (width // window + 1)
        rows[f"{height} x {width}, M = {window}"] = {"regular": regular, "cyclic": shifted, "naive": naive}
        error = max(error, abs(shifted - regular))
    large = rows["56 x 56, M = 7"]
    return judged(
        f"A map of 56 x 56 with M = 7 has {large['regular']} windows, {large['cyclic']} with the cyclic shift, and "
        f"would have {large['naive']} without.",
        error=error,
        tolerance=0.0,
        counterexample=rows,
        values=rows,
        source="biases.windows.Windows",
    )


@claim(
    id="swin-connections",
    paper=PAPER,
    location="shifted windows; location in the paper not known to us",
    kind="invariance",
    statement="Regular windows alone do not connect; shifted windows in the next layer introduce connections between "
    "neighbouring windows.",
)
def connections() -> Evidence:
    x = normal(2, 1, SIDE, SIDE, DIM)
    regular, shifted = _layer(False), _layer(True)
    windows = torch.arange(SIDE) // WINDOW
    own = (windows[:, None] * 2 + windows).flatten()
    same = own[:, None] == own
    apart = influence(lambda maps: regular(regular(maps)), x)
    joined = influence(lambda maps: shifted(regular(maps)), x)
    leak = apart[~same].max().item()
    reached = [(found > 0).sum(0).float().mean().item() for found in (apart, joined)]
    return judged(
        f"After two regular layers a pixel of another window has an influence of {leak:g}; each pixel is reached by "
        f"{reached[0]:.0f} pixels. With the second layer shifted it is reached by {reached[1]:.0f} of {SIDE * SIDE} on "
        "average.",
        error=leak + (0.0 if reached[1] > reached[0] else 1.0),
        tolerance=0.0,
        counterexample={"influence_across_windows": leak, "pixels_reached": reached},
        values={"pixels_reached": reached},
        source="biases.layers.SwinAttention, specification; each pixel moved in turn",
    )


@claim(
    id="swin-parameters",
    paper=PAPER,
    location="microsoft/Swin-Transformer f82860b",
    kind="count",
    statement="Swin-T, S and B have 28, 50 and 88 million parameters.",
)
def swin_parameters() -> Evidence:
    counted = {size: parameters(_model(size)) for size in SIZES}
    error = max(abs(counted[size] / 1e6 - PARAMETERS[size]) for size in SIZES)
    return judged(
        f"The models have {', '.join(f'{n:,}' for n in counted.values())} parameters, tables of relative position "
        "included.",
        error=error,
        tolerance=0.5,
        counterexample=counted,
        values=counted,
        source="biases.models.Swin",
    )


@claim(
    id="swin-flops",
    paper=PAPER,
    location="microsoft/Swin-Transformer f82860b",
    kind="count",
    statement="Swin-T, S and B take 4.5, 8.7 and 15.4 GFLOPs at 224 x 224.",
)
def swin_flops() -> Evidence:
    image = torch.empty(1, 3, 224, 224, device="meta")
    counted = {size: multiply_adds(partial(_model(size), image)) / 1e9 for size in SIZES}
    error = max(abs(counted[size] - FLOPS[size]) for size in SIZES)
    return judged(
        f"Matrix products and convolutions take {', '.join(f'{n:.2f}' for n in counted.values())} G multiply-adds: the "
        "table counts a multiply-add as one.",
        error=error,
        tolerance=0.05,
        counterexample=counted,
        values=counted,
        source="biases.models.Swin, counted",
    )


@cache
def _model(size: str) -> Swin:
    with torch.device("meta"):
        return Swin.of(size).eval()
