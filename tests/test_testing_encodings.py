"""Promises of encodings, decoders and slopes: what is not put to a subject, and what is left as it was."""

import pytest
import torch

from biases.testing import Traits, check_attention, kinds
from biases.testing.mutants.decoders import Decoder
from biases.testing.mutants.encodings import ABSOLUTE, RELATIVE, TF32, Learned, Rotary
from biases.testing.mutants.slopes import ALIBI, Slopes
from biases.testing.mutants.tables import Interpolated, TableRefuses, WrapsAt512
from biases.traits import Decay

FAR = ["position-budget", "autocast-keeps-positions", "relative-shift-at-large-positions", "extrapolates-finite"]


def statuses(make, traits, properties, kind, **arguments):
    results = check_attention(make, traits, properties=properties, kind=kind, max_examples=10, **arguments)
    return {result.property: result for result in results}


def test_a_table_that_does_not_say_where_it_ends_may_refuse_large_positions():
    found = statuses(Learned, ABSOLUTE, [*FAR, "positions-respected", "absolute-added"], "encoding")
    assert found["position-budget"].status == found["extrapolates-finite"].status == "not_applicable"
    assert "Traits.max_length says how far it goes" in found["position-budget"].message
    assert found["positions-respected"].status == found["absolute-added"].status == "passed"


def test_a_table_that_ends_before_it_says_is_caught():
    found = statuses(Learned, ABSOLUTE.but(max_length=200), ["position-budget"], "encoding")
    assert found["position-budget"].status == "failed"
    assert found["position-budget"].raised


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_short_sequences_are_enough(longest):
    properties = [
        *FAR,
        "relative-shift",
        "norm-preservation",
        "positions-respected",
        "table-growth",
        "distinct-positions",
    ]
    found = statuses(Rotary, Traits(position="relative", max_length=longest), properties, "encoding")
    assert {each.status for each in found.values()} <= {"passed", "not_applicable"}
    assert found["norm-preservation"].status == "passed"
    found = statuses(Decoder, Traits(causal=True, max_length=longest), ["chunks-agree"], "decoder")
    assert found["chunks-agree"].status == "passed"


def test_a_table_that_refuses_large_positions_is_held_to_those_that_it_takes():
    properties = ["relative-shift", "distinct-positions", "relative-shift-at-large-positions"]
    found = statuses(TableRefuses, RELATIVE, properties, "encoding")
    assert [found[name].status for name in properties] == ["passed", "passed", "not_applicable"]

    class Wraps(TableRefuses):
        def row_of(self, positions):
            if int(positions.max()) >= self.rows:
                raise IndexError("beyond the table")
            return positions % 512

    found = statuses(Wraps, RELATIVE, properties, "encoding")
    assert found["relative-shift"].status == found["distinct-positions"].status == "failed"
    assert not found["relative-shift"].raised


@pytest.mark.parametrize("longest", [64, 65, 100])
def test_no_position_beyond_the_end_declared_is_asked_for(longest):
    class Recorded(Rotary):
        def forward(self, x, positions):
            asked.append(int(positions.max()))
            return super().forward(x, positions)

    for name in ("relative-shift", "distinct-positions"):
        asked: list[int] = []
        found = statuses(Recorded, RELATIVE.but(max_length=longest), [name], "encoding")
        assert found[name].status == "passed"
        assert 32 <= max(asked) < longest


def test_near_positions_of_a_low_precision_are_told_apart():
    found = statuses(Interpolated, RELATIVE, ["distinct-positions", "relative-shift"], "encoding", dtype=torch.bfloat16)
    assert {each.status for each in found.values()} == {"passed"}
    found = statuses(WrapsAt512, RELATIVE, ["distinct-positions"], "encoding", dtype=torch.bfloat16)
    assert found["distinct-positions"].status == "failed"


def test_the_precision_of_matmuls_is_put_back():
    before = torch.get_float32_matmul_precision()
    found = statuses(TF32, Traits(position="relative"), ["matmul-precision-agreement"], "encoding")
    assert found["matmul-precision-agreement"].status == "failed"
    assert torch.get_float32_matmul_precision() == before


def test_a_scaled_rotation_keeps_norms():
    class Scaled(Rotary):
        def rotate(self, x, cos, sin):
            return 1.2 * super().rotate(x, cos, sin)

    properties = ["norm-preservation", "relative-shift", *FAR]
    found = statuses(Scaled, Traits(position="relative"), properties, "encoding")
    assert {each.status for each in found.values()} == {"passed"}


def test_one_number_of_heads_is_enough_for_slopes():
    def make(dim, heads):
        if heads != 8:
            raise ValueError(f"heads: expected 8, got {heads}")
        return Slopes(dim, heads)

    properties = ["slopes-reference", "slopes-isolated"]
    found = statuses(make, ALIBI, properties, "slopes", widths=[(64, 8)])
    assert found["slopes-reference"].status == "passed"
    assert found["slopes-isolated"].status == "not_applicable"


def test_slopes_are_held_to_numbers_where_numbers_are_declared():
    for rates, status in (((0.5, 0.0), "passed"), ((0.5, 0.1), "failed")):
        traits = Traits(decay=Decay("linear", "past", "logits", rates))
        factory = kinds.slopes(lambda heads: [0.5, 0.0][:heads])
        found = statuses(factory, traits, ["slopes-reference"], "slopes")
        assert found["slopes-reference"].status == status


def test_a_decoder_that_returns_no_pair_is_told():
    found = statuses(lambda dim, heads: lambda x, state: x, Traits(), ["decode-agrees-with-prefill"], "decoder")
    assert "expected a pair (out, state)" in found["decode-agrees-with-prefill"].message
