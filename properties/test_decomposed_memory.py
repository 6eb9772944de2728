"""``attend_decomposed`` and the layers made of it hold no tensor over pairs of pixels."""

from __future__ import annotations

import pytest
import torch
from decomposed_maps import PLACEMENTS, WEIGHTS, decay_of, normal, qkv, split_masks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from biases import zoo
from biases.axial import attend_decomposed


class Largest(TorchDispatchMode):
    """The largest number of elements in any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                # A view of few numbers, as that of a Toeplitz table, holds few.
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("backend", ["auto", "dense", "reference"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("masked", [False, True])
def test_no_tensor_over_pairs_of_pixels_is_held(backend, weights, masked):
    """Forward and backward, the largest tensor has H W (H or W) numbers a head; the specification has (H W)^2."""
    heads, height, width = 2, 12, 20
    pixels = height * width
    q, k, v = (x[:1].requires_grad_() for x in qkv(0, heads, height, width))
    masks = split_masks(height, width, 5, 7) if masked else (None, None)
    with Largest() as largest:
        out = attend_decomposed(q, k, v, weights=weights, decay=decay_of(heads), masks=masks, backend=backend)
        out.sum().backward()
    if backend == "reference":
        assert largest.numel >= heads * pixels**2
    else:
        assert largest.numel <= heads * pixels * max(height, width)


def largest_of_layer(name: str, dim: int, heads: int, side: int) -> int:
    """Of a layer of the zoo on a square map, forward and backward, with respect to the map and to all parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = zoo.layer(name, dim, heads)
    x = normal(0, 1, side, side, dim, dtype=torch.float32).requires_grad_()
    with Largest() as largest:
        layer(x).square().sum().backward()
    return largest.numel


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("manhattan-decomposed", 0),
        ("manhattan-decomposed[order=height-first]", 0),
        ("manhattan-decomposed[placement=weights]", 56),
        *(
            (f"gated-swin-{kind}[{options}]", 7)
            for kind in ("retention", "swat")
            for options in ("", "shifted=True", "shifted=True, theta_shift=axis", "window=5, window_rule=clamp")
        ),
    ],
)
def test_layers_hold_no_tensor_over_pairs_of_pixels(name, line):
    """At 56 x 56 pixels, forward and backward: H W C numbers, those of a map, where the kernel is fused, and otherwise
    one number a head for each pixel and each place of its line or window. (H W)^2 would be thirty times more or over.
    """
    side, dim, heads = 56, 32, 2
    # Windows of 5 pad 56 to 60.
    pixels = 60**2 if "clamp" in name else side**2
    bound = pixels * max(dim, heads * line)
    assert largest_of_layer(name, dim, heads, side) <= bound
    assert 25 * bound < heads * side**4


@pytest.mark.parametrize("name", ["manhattan", "manhattan-decomposed"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_linear_memory_is_declared_just_where_it_is(name, weights, placement, monkeypatch):
    """Without the native kernel, whose memory is linear throughout: the largest tensor per pixel is the same on a map
    of four times the pixels; where the decomposed form goes by tiles it is twice as large, as lines are."""
    monkeypatch.setenv("BIASES_NATIVE", "0")
    named = f"{name}[weights={weights}, placement={placement}]"
    small, large = (largest_of_layer(named, 4, 2, side) / side**2 for side in (16, 32))
    # Tables of offsets have (2 H - 1) (2 W - 1) numbers, a little under four for each pixel.
    assert large == pytest.approx(small if zoo.get(named).traits.memory == "linear" else 2 * small, rel=0.05)
    assert ("ours" in zoo.get(named).traits.published) == (weights != "softmax")
