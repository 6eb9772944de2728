"""Masks: their kinds, the support that traits promise, and operators of other makes under the promises about them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import find, given, settings
from torch import Tensor
from torch.nn import functional

from biases.attention import attend
from biases.testing import Decay, Traits, check_attention, kinds
from biases.testing.masks import MASKS, WITH_KEYS, additive, expected_support, make_mask, masks
from biases.testing.properties import PROPERTIES

SHAPES = [(1, 1), (5, 5), (2, 6), (6, 2), (2, 3, 4, 7)]
OURS = {"operators", "masking", "mask_forms", "support"}
OWN = [name for name, each in PROPERTIES.items() if each.check.__module__.rpartition(".")[2] in OURS]


class TestKinds:
    @pytest.mark.parametrize("kind", MASKS)
    def test_shape_dtype_and_repeatability(self, kind: str) -> None:
        for shape in SHAPES:
            mask = make_mask(kind, shape, seed=3)
            assert mask.shape == shape
            assert mask.dtype == torch.bool
            assert torch.equal(mask, make_mask(kind, shape, seed=3))

    @pytest.mark.parametrize("kind", WITH_KEYS)
    def test_every_query_is_left_a_key(self, kind: str) -> None:
        for shape, seed in product(SHAPES, range(20)):
            assert make_mask(kind, shape, seed).any(-1).all()

    def test_empty_rows_has_one_at_least(self) -> None:
        for shape, seed in product(SHAPES, range(20)):
            assert not make_mask("empty-rows", shape, seed).any(-1).all(-1).any()
        assert not make_mask("empty", (3, 4)).any()

    def test_padding_hides_the_end_and_left_padding_the_beginning(self) -> None:
        right, left = (make_mask(kind, (50, 1, 1, 6), 1)[:, 0, 0] for kind in ("padding", "left-padding"))
        assert torch.equal(right, right.sort(-1, descending=True).values)
        assert torch.equal(left, left.sort(-1).values)
        assert len(right.sum(-1).unique()) == 6

    def test_one_key(self) -> None:
        assert (make_mask("one-key", (4, 5, 6), 2).sum(-1) == 1).all()

    @pytest.mark.parametrize("bad", [("none", (2, 2)), ("all", (2,)), ("all", (0, 2))])
    def test_bad_arguments_raise(self, bad: tuple[str, tuple[int, ...]]) -> None:
        with pytest.raises(ValueError, match=r"kind of mask|shape of a mask"):
            make_mask(*bad)

    def test_additive(self) -> None:
        mask = torch.tensor([[True, False]])
        assert additive(mask, torch.float64).tolist() == [[0.0, float("-inf")]]
        assert additive(mask, torch.float32, -1e9).dtype == torch.float32


class TestStrategy:
    def test_shrinks_to_the_simplest(self) -> None:
        assert find(masks((3, 3)), lambda mask: True).all()
        found = find(masks((2, 4)), lambda mask: not mask.any())
        assert not found.any()

    @settings(max_examples=30, deadline=None, database=None)
    @given(masks((2, 3, 5), WITH_KEYS))
    def test_draws_masks_of_the_shape(self, mask: Tensor) -> None:
        assert mask.shape == (2, 3, 5)
        assert mask.any(-1).all()

    def test_unknown_kinds_raise(self) -> None:
        with pytest.raises(ValueError, match="kind of mask"):
            masks((2, 2), ["none"])


def rows(*seen: str) -> Tensor:
    """Rows of a support as text, x where the key is seen."""
    return torch.tensor([[mark == "x" for mark in row] for row in seen])


class TestExpectedSupport:
    def test_without_a_rule_everything_is_seen(self) -> None:
        assert expected_support(Traits(), 3, 5).all()
        assert expected_support(Traits(domain="image"), 2, 3).shape == (6, 6)
        assert expected_support(Traits(domain="image"), 2, 3).all()

    def test_causal(self) -> None:
        assert torch.equal(expected_support(Traits(causal=True), 3, 3), rows("x..", "xx.", "xxx"))

    def test_alignments(self) -> None:
        upper, lower = (Traits(causal=True, alignment=name) for name in ("upper-left", "lower-right"))
        assert torch.equal(expected_support(upper, 2, 4), rows("x...", "xx.."))
        assert torch.equal(expected_support(lower, 2, 4), rows("xxx.", "xxxx"))
        assert torch.equal(expected_support(upper, 4, 2), rows("x.", "xx", "xx", "xx"))
        assert torch.equal(expected_support(lower, 4, 2), rows("..", "..", "x.", "xx"))

    def test_a_window_counts_the_query_itself(self) -> None:
        causal = Traits(causal=True, window=2, alignment="lower-right")
        assert torch.equal(expected_support(causal, 3, 3), rows("x..", "xx.", ".xx"))
        assert torch.equal(expected_support(causal, 1, 3), rows(".xx"))
        assert torch.equal(expected_support(causal.but(window=1), 3, 3), torch.eye(3, dtype=torch.bool))
        assert torch.equal(expected_support(causal.but(window=9), 3, 3), rows("x..", "xx.", "xxx"))

    def test_a_two_sided_window_is_symmetric(self) -> None:
        three = expected_support(Traits(window=3), 4, 4)
        assert torch.equal(three, rows("xx..", "xxx.", ".xxx", "..xx"))
        assert torch.equal(expected_support(Traits(window=4), 4, 4), three)
        for window in range(1, 8):
            found = expected_support(Traits(window=window), 7, 7)
            assert torch.equal(found, found.T)

    def test_no_alignment_for_other_lengths_raises(self) -> None:
        with pytest.raises(ValueError, match="alignment"):
            expected_support(Traits(causal=True), 2, 3)
        with pytest.raises(ValueError, match="first"):
            expected_support(Traits(), 0, 3)

    def test_windows_of_an_image(self) -> None:
        row = expected_support(Traits(domain="image", window=2), 1, 5)
        assert torch.equal(row, rows("xx...", "xx...", "..xx.", "..xx.", "....x"))
        shifted = expected_support(Traits(domain="image", window=2, shift=1), 1, 5)
        assert torch.equal(shifted, rows("x....", ".xx..", ".xx..", "...xx", "...xx"))

    @pytest.mark.parametrize(("window", "shift"), [(2, 1), (3, 1), (4, 2), (4, 3)])
    def test_shifted_windows_are_those_of_swin(self, window: int, shift: int) -> None:
        """Against the published construction: pad, number the regions, roll, cut into windows."""
        traits = Traits(domain="image", window=window, shift=shift)
        for height, width in product(range(1, 10), (1, 3, 4, 8)):
            assert torch.equal(expected_support(traits, height, width), swin(height, width, window, shift))

    def test_the_result_is_the_caller_s_own(self) -> None:
        traits = Traits(domain="image", window=2)
        expected_support(traits, 2, 2).zero_()
        assert expected_support(traits, 2, 2).all()


def swin(height: int, width: int, window: int, shift: int) -> Tensor:
    padded = [-size % window + size for size in (height, width)]
    places = torch.arange(height * width).view(height, width)
    number = torch.full(padded, -1)
    number[:height, :width] = places
    number = number.roll((-shift, -shift), (0, 1))
    region = torch.zeros(padded, dtype=torch.long)
    cuts = [slice(0, -window), slice(-window, -shift), slice(-shift, None)]
    for count, (down, across) in enumerate(product(cuts, cuts)):
        region[down, across] = count
    seen = torch.zeros(height * width, height * width, dtype=torch.bool)
    for top, left in product(range(0, padded[0], window), range(0, padded[1], window)):
        cut = slice(top, top + window), slice(left, left + window)
        inside, of = number[cut].flatten(), region[cut].flatten()
        for a, b in product(range(len(inside)), repeat=2):
            if inside[a] >= 0 and inside[b] >= 0 and of[a] == of[b]:
                seen[inside[a], inside[b]] = True
    return seen


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = functional.elu(q) + 1, functional.elu(k) + 1
    return (q @ (k.mT @ v)) / (q @ k.sum(2)[..., None] + 1e-6)


def linear_recurrent(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = functional.elu(q) + 1, functional.elu(k) + 1
    states, sums = (k[..., None] * v[..., None, :]).cumsum(2), k.cumsum(2)
    return (q[..., None, :] @ states)[..., 0, :] / (q * sums).sum(-1, keepdim=True)


def relu_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).relu().tril() @ v


def top_three(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.mT / q.shape[-1] ** 0.5
    future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    logits = logits.masked_fill(future, float("-inf"))
    least = logits.topk(min(3, k.shape[2]), -1).values[..., -1:]
    return logits.masked_fill(logits < least, float("-inf")).softmax(-1) @ v


def alibi_both_sides(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads, L, S = q.shape[1], q.shape[2], k.shape[2]
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    distance = (torch.arange(L)[:, None] - torch.arange(S)).abs()
    return (q @ k.mT / q.shape[-1] ** 0.5 - (slopes[:, None, None] * distance).to(q)).softmax(-1) @ v


def lowest(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -1e9)
    return logits.softmax(-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return attend(q, k, v, mask=mask, causal=True, alignment="lower-right")


ROW = Traits(normalisation="row", position="none", equivariant_to=("heads",))
CAUSAL = ROW.but(causal=True)
BOOLEAN = ROW.but(mask=("boolean",))
RIGHT: dict[str, tuple[Callable[..., Tensor], Traits, set[str]]] = {
    "linear": (linear, ROW, set()),
    "linear-recurrent": (linear_recurrent, CAUSAL, set()),
    "relu": (relu_causal, CAUSAL.but(normalisation="none", alignment="upper-left"), set()),
    "top-three": (top_three, CAUSAL.but(alignment="upper-left"), set()),
    "alibi": (
        alibi_both_sides,
        Traits(normalisation="row", alignment="upper-left", decay=Decay("linear", "absolute", "logits", "alibi")),
        set(),
    ),
    "lowest": (lowest, BOOLEAN.but(empty_row="mean"), set()),
    "lowest-of-any": (lowest, BOOLEAN.but(empty_row="mean", masked_values="any"), {"masked-nan-independence"}),
    "sdpa": (sdpa, BOOLEAN.but(mask=("boolean", "additive"), empty_row="zero"), set()),
    "ours": (ours, BOOLEAN.but(causal=True, alignment="lower-right", empty_row="zero"), set()),
}


class TestOperatorsOfOtherMakes:
    @pytest.mark.parametrize("name", RIGHT)
    def test_what_is_right_keeps_its_promises(self, name: str) -> None:
        operator, traits, leaks = RIGHT[name]
        results = check_attention(kinds.operator(operator, traits), max_examples=8, properties=OWN)
        assert {each.property for each in results if each.status == "failed"} == leaks
        assert not [each.message for each in results if each.status == "error"]
        assert sum(each.status == "passed" for each in results) >= 4

    def test_nothing_is_asked_of_traits_that_are_not_declared(self) -> None:
        results = check_attention(kinds.operator(sdpa, Traits()), max_examples=3, properties=OWN)
        assert {each.status for each in results} == {"not_applicable"}
        assert all(each.message for each in results)

    def test_an_operator_that_refuses_other_lengths_may(self) -> None:
        def square(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if q.shape != k.shape:
                raise ValueError("one length only")
            return sdpa(q, k, v)

        for result in check_attention(kinds.operator(square, ROW), max_examples=8, properties=OWN):
            assert result.status in ("passed", "not_applicable"), result.message
        declared = check_attention(
            kinds.operator(square, ROW.but(alignment="upper-left")), properties=["cross-lengths"], max_examples=8
        )
        assert declared[0].status == "failed"

    def test_the_message_names_the_pair(self) -> None:
        wide = Traits(causal=True, window=2)
        (result,) = check_attention(kinds.operator(relu_causal, wide), properties=["support"])
        assert "query 2 sees [0, 1, 2], expected [1, 2]" in result.message


class Windowed(torch.nn.Module):
    """Causal attention in a window of any length; ``None``: without one."""

    def __init__(self, window: int | None, sharpness: float = 1.0, largest: int | None = None) -> None:
        super().__init__()
        self.window, self.sharpness, self.largest = window, sharpness, largest

    def forward(self, x: Tensor) -> Tensor:
        unit = functional.normalize(x, dim=-1)
        # Queries are other than keys: a token is not always nearest to itself.
        logits = self.sharpness * unit.roll(1, -1) @ unit.mT
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        seen = seen if self.window is None else seen.triu(1 - self.window)
        logits = logits.masked_fill(~seen, float("-inf"))
        if self.largest is not None:
            least = logits.topk(min(self.largest, x.shape[1]), -1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        return logits.softmax(-1) @ x


class TestPastTheWindow:
    """A window longer than the sequences that are drawn is put to longer ones."""

    @pytest.mark.parametrize(
        ("declared", "actual"), [(20, 21), (22, 21), (64, None), (64, 32), (500, None), (500, 499)]
    )
    def test_a_layer_with_another_window_is_caught(self, declared: int, actual: int | None) -> None:
        traits = Traits(causal=True, window=declared, normalisation="row")
        (wrong,) = check_attention(lambda dim, heads: Windowed(actual), traits, properties=["receptive-field"])
        assert wrong.status == "failed", wrong.message
        (right,) = check_attention(lambda dim, heads: Windowed(declared), traits, properties=["receptive-field"])
        assert right.status == "passed", right.message

    @pytest.mark.parametrize(("declared", "actual"), [(16, None), (16, 17), (200, 199), (200, 100)])
    def test_an_operator_with_another_window_is_caught(self, declared: int, actual: int | None) -> None:
        def operator(window: int | None) -> Callable[..., Tensor]:
            def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                back = torch.arange(k.shape[2])[-q.shape[2] :, None] - torch.arange(k.shape[2])
                return sdpa(q, k, v, (back >= 0) & (back < (window or back.numel())))

            return windowed

        traits = CAUSAL.but(window=declared)
        (wrong,) = check_attention(kinds.operator(operator(actual), traits), properties=["support"])
        assert wrong.status == "failed", wrong.message
        assert not wrong.raised
        (right,) = check_attention(kinds.operator(operator(declared), traits), properties=["support"])
        assert right.status == "passed", right.message

    @pytest.mark.parametrize("window", [128, 1000])
    def test_a_mask_with_another_window_is_caught(self, window: int) -> None:
        def mask(L: int, S: int) -> Tensor:
            return torch.ones(L, S, dtype=torch.bool).tril().triu(-window)

        right, wrong = Traits(causal=True, window=window + 1), Traits(causal=True, window=window)
        (result,) = check_attention(kinds.mask(mask, right), properties=["mask-support"])
        assert result.status == "passed", result.message
        (result,) = check_attention(kinds.mask(mask, wrong), properties=["mask-support"])
        assert result.status == "failed"
        assert f"query {window}, key 0" in result.message

    def test_a_map_beyond_a_wide_window_is_tried(self) -> None:
        traits = Traits(domain="image", window=16)

        def mask(height: int, width: int) -> Tensor:
            return expected_support(traits.but(window=17), height, width)

        (result,) = check_attention(kinds.mask(mask, traits), properties=["mask-support"])
        assert result.status == "failed"

    @pytest.mark.parametrize(
        ("traits", "number"),
        [
            (Traits(causal=True, window=1000), "1000"),
            (Traits(causal=True, window=16, max_length=16), "16"),
            (Traits(domain="image", window=40), "40"),
        ],
    )
    def test_what_cannot_be_reached_is_said(self, traits: Traits, number: str) -> None:
        reason = PROPERTIES["receptive-field"].applies(traits)
        assert reason is not None
        assert number in reason


class TestWeightsThatMayBeNothing:
    @pytest.mark.parametrize("window", [6, 20, 300])
    @pytest.mark.parametrize("options", [{"largest": 2}, {"sharpness": 100.0}], ids=["largest-two", "sharp"])
    def test_a_sparse_layer_keeps_its_window(self, window: int, options: dict[str, Any]) -> None:
        traits = Traits(causal=True, window=window, normalisation="row")
        for seed in range(3):
            (result,) = check_attention(
                lambda dim, heads: Windowed(window, **options), traits, properties=["receptive-field"], seed=seed
            )
            assert result.status == "passed", result.message

    def test_a_sparse_layer_with_a_key_too_few_is_caught(self) -> None:
        traits = Traits(causal=True, window=6)
        (result,) = check_attention(lambda dim, heads: Windowed(5, largest=2), traits, properties=["receptive-field"])
        assert result.status == "failed"
        assert "may see, and does not" in result.message

    def test_a_sparse_pattern_may_be_causal(self) -> None:
        def every_other(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            back = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])
            hidden = (back < 0) | (back % 2 == 1)
            return (q @ k.mT).masked_fill(hidden, float("-inf")).softmax(-1) @ v

        (result,) = check_attention(kinds.operator(every_other, Traits(causal=True)), properties=["support"])
        assert result.status == "passed", result.message


class TestLayers:
    def test_a_gate_that_sees_further_is_not_asked(self) -> None:
        assert PROPERTIES["receptive-field"].applies(Traits(window=3, gate_sees="window")) is not None
        assert PROPERTIES["receptive-field"].applies(Traits(window=3, gate_sees="token")) is None

    def test_weights_that_are_often_zero_are_no_fault(self) -> None:
        def make(dim: int, heads: int) -> Callable[[Tensor], Tensor]:
            def layer(x: Tensor) -> Tensor:
                return x + (x @ x.mT).relu().tril().triu(-2) @ x

            return layer

        (right,) = check_attention(make, Traits(causal=True, window=3), properties=["receptive-field"])
        assert right.status == "passed", right.message
        (wrong,) = check_attention(make, Traits(causal=True, window=4), properties=["receptive-field"])
        assert wrong.status == "failed"

    def test_a_pixel_that_sees_itself_only_is_found(self) -> None:
        (result,) = check_attention(
            lambda dim, heads: torch.nn.Identity(), Traits(domain="image", window=3), properties=["receptive-field"]
        )
        assert result.status == "failed"
        assert "in a map 1 x 2, the output of pixel 0 sees [0], expected [0, 1]" in result.message
