"""Inputs: every regime is what it says, shrinks, and leaves global state alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from biases.testing import REGIMES, make_tensor
from biases.testing.strategies import WIDTHS, examples, regimes, seeds, shapes

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@given(shapes(), regimes(), seeds(), st.sampled_from(DTYPES))
def test_tensors_are_finite_repeatable_and_of_the_dtype(shape, regime, seed, dtype) -> None:
    x = make_tensor((*shape, 4), regime, seed, dtype)
    assert x.shape == (*shape, 4)
    assert x.dtype == dtype
    assert x.isfinite().all()
    assert torch.equal(x, make_tensor((*shape, 4), regime, seed, dtype))


def test_regimes_are_what_they_say() -> None:
    made = {regime: make_tensor((2, 5, 4), regime, 3) for regime in REGIMES}
    assert not made["zeros"].any()
    assert (made["equal-tokens"] == made["equal-tokens"][:, :1]).all()
    assert not torch.equal(made["equal-tokens"][0], made["equal-tokens"][1])
    assert torch.equal(made["one-hot"].sum(-1), torch.ones(2, 5))
    assert set(made["one-hot"].unique().tolist()) == {0.0, 1.0}
    assert (made["alternating-sign"][:, ::2] > 0).all()
    assert (made["alternating-sign"][:, 1::2] < 0).all()
    assert made["tiny"].abs().max() < 1e-5
    assert made["tiny"].all()
    assert made["large"].abs().max() > 1e4
    assert not made["non-contiguous"].is_contiguous()
    assert torch.equal(made["non-contiguous"], made["normal"])
    assert all(x.is_contiguous() for regime, x in made.items() if regime != "non-contiguous")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_values_stay_moderate_in_half_types(dtype: torch.dtype) -> None:
    assert 1e2 < make_tensor((2, 5, 4), "large", 3, dtype).abs().max() < 1e3


def test_the_global_generator_is_not_used() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    make_tensor((2, 3, 4), "normal", 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(make_tensor((2, 3, 4), seed=1), make_tensor((2, 3, 4), seed=2))


def test_dtypes_agree_up_to_rounding() -> None:
    exact = make_tensor((2, 3, 4), dtype=torch.float64)
    assert torch.equal(make_tensor((2, 3, 4), dtype=torch.bfloat16), exact.to(torch.bfloat16))


@given(examples(min_length=2, min_batch=2, cut=True, choices={"change": ("small", "large")}))
def test_examples_hold_what_a_case_needs(example) -> None:
    assert 2 <= example["length"] <= 12
    assert 2 <= example["batch"] <= 3
    assert 0 <= example["position"] <= example["length"] - 2
    assert example["change"] in ("small", "large")
    assert (example["dim"], example["heads"]) in WIDTHS


def test_examples_shrink_to_the_plainest() -> None:
    smallest = find(examples(), lambda example: True, settings=settings(database=None))
    assert smallest == {
        "length": 1,
        "batch": 1,
        "dim": 16,
        "heads": 2,
        "regime": "normal",
        "parameters": "initial",
        "seed": 0,
    }
    long = find(examples(), lambda example: example["length"] > 4, settings=settings(database=None))
    assert long["length"] == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_tensor((2, 3), "norml"), "did you mean 'normal'"),
        (lambda: make_tensor((3,)), "at least 2 axes"),
        (lambda: make_tensor((2, 3), dtype=torch.int64), "floating dtype"),
        (lambda: regimes(["nothing"]), "regime: expected one of"),
        (lambda: examples(cut=True), "at least 2"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
