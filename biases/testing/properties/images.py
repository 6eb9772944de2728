"""Promises of layers of maps, (B, H, W, C), and of layers and biases that declare a symmetry of the map or sequence.

Catalogue of published faults of this kind: Neighborhood-Attention-Transformer#46 (maps smaller than the window).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import assert_alike, promises
from biases.testing.properties.generated import bias_of, sizes
from biases.testing.properties.interface import assert_finite
from biases.testing.strategies import MODERATE
from biases.testing.subject import Layer, NotApplicable
from biases.traits import Traits


def not_flippable(traits: Traits) -> str | None:
    return None if "flip" in traits.equivariant_to else "Traits.equivariant_to lacks 'flip'"


def not_transposable(traits: Traits) -> str | None:
    return None if "transpose" in traits.equivariant_to else "Traits.equivariant_to lacks 'transpose'"


@promises(
    "flip-equivariance",
    "Flipping the map along either side, or reversing the sequence, flips the outputs.",
    trait="Traits.equivariant_to has 'flip'",
    reason=not_flippable,
    kinds=("layer", "operator", "bias"),
    min_length=2,
    choices={"side": ("width", "height")},
)
def flip_equivariance(case: Case) -> None:
    tokens = torch.arange(case.length)
    if case.grid is None:
        order, what = tokens.flip(0), "the sequence reversed"
    else:
        side = case.example["side"]
        order = tokens.reshape(case.grid).flip(0 if side == "height" else 1).flatten()
        what = f"the map flipped along its {side}"
    _assert_reordered(case, case.grid, order, what)


@promises(
    "transpose-equivariance",
    "Transposing the map transposes the outputs.",
    trait="Traits.equivariant_to has 'transpose'",
    reason=not_transposable,
    kinds=("layer", "bias"),
    domains=("image",),
    min_length=2,
)
def transpose_equivariance(case: Case) -> None:
    assert case.grid is not None
    height, width = case.grid
    order = torch.arange(case.length).reshape(case.grid).T.flatten()
    _assert_reordered(case, (width, height), order, f"the map of {height} x {width} transposed")


def _assert_reordered(case: Case, grid: tuple[int, int] | None, order: Tensor, what: str) -> None:
    """Assert that the tokens in another order, laid out on ``grid``, have the outputs in that order."""
    if case.subject.kind == "bias":
        _assert_bias_reordered(case, grid, order, what)
        return
    if case.subject.kind == "operator" and grid is not None:
        raise NotApplicable("an operator does not know which map its tokens are")
    layer, x, out = case.run(case.precise)
    other = case.subject.seen_as_layer(case.raw(case.precise), case.heads, grid)
    got = case.call(other, x[:, order])
    assert_alike(case, layer, x, out, (got, out[:, order]), f"output for {what}")


def _assert_bias_reordered(case: Case, grid: tuple[int, int] | None, order: Tensor, what: str) -> None:
    layer, (first, second) = case.raw(case.single), sizes(case)
    if grid is None:
        second = first
    found = bias_of(case, layer, first, second)
    moved = found if grid is None else bias_of(case, layer, *grid)
    expected = found.values[:, order][:, :, order]
    assert_tolerance(moved.values, expected, tolerance=2 * found.tolerance, what=f"bias for {what}")


@promises(
    "map-layout",
    "The output for a map does not depend on how it lies in memory.",
    trait="every layer of maps must",
    kinds=("layer",),
    domains=("image",),
    min_length=2,
    choices={"layout": ("channels-first", "width-first", "part of a larger map")},
)
def map_layout(case: Case) -> None:
    assert case.grid is not None
    x = case.input(case.precise)
    raw = case.raw(case.precise)
    on_map = x.unflatten(1, case.grid).contiguous()
    out = _map_output(case, raw, on_map)
    got = _map_output(case, raw, _laid_out(on_map, case.example["layout"]), as_laid_out=True)
    what = f"output for a map laid out {_HOW[case.example['layout']]}"
    assert_alike(case, case.layer(case.precise), x, out, (got, out), what)


_HOW = {
    "channels-first": "with its channels first",
    "width-first": "with its columns before its rows",
    "part of a larger map": "as part of a larger map",
}


def _map_output(case: Case, raw: Layer, on_map: Tensor, *, as_laid_out: bool = False) -> Tensor:
    return case.check_form(case.invoke(raw, on_map, as_laid_out=as_laid_out), on_map).flatten(1, 2)


def _laid_out(on_map: Tensor, layout: str) -> Tensor:
    """The same values, (B, H, W, C), with other strides."""
    match layout:
        case "channels-first":
            return on_map.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        case "width-first":
            return on_map.transpose(1, 2).contiguous().transpose(1, 2)
        case _:
            batch, height, width, channels = on_map.shape
            larger = on_map.new_zeros(batch, height + 2, width + 1, channels)
            larger[:, 1:-1, 1:] = on_map
            return larger[:, 1:-1, 1:]


def _around_the_window(traits: Traits) -> Mapping[str, Any]:
    """Sides that end just before, at and after one window and two; other than that, thin maps."""
    window = min(traits.window or 4, 8)
    sides = sorted({1, 2, window - 1, window, window + 1, 2 * window - 1, 2 * window, window + traits.shift} - {0})
    return {"among": MODERATE, "max_batch": 2, "max_length": 2, "choices": {"rows": sides, "columns": sides}}


@promises(
    "map-sizes",
    "A map of any height and width, a single row and one smaller than the window included, has a finite output.",
    trait="every layer of maps must",
    kinds=("layer",),
    domains=("image",),
    drawn=_around_the_window,
)
def map_sizes(case: Case) -> None:
    rows, columns = case.example["rows"], case.example["columns"]
    most = case.subject.traits.max_length
    if most is not None and rows * columns > most:
        raise NotApplicable(f"Traits.max_length is {most}, and the map has {rows} x {columns} tokens")
    on_map = case.tensor((case.example["batch"], rows * columns, case.dim), case.single).unflatten(1, (rows, columns))
    out = _map_output(case, case.raw(case.single), on_map)
    assert_finite(out, f"output for a map of {rows} x {columns}")
