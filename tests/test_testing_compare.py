"""The comparators: what they let through and what they must not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from biases.testing import assert_close_to, assert_same, assert_tolerance, assert_within, error_budget

NAN, INF = float("nan"), float("inf")


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_budget_is_twice_the_honest_error_and_one_rounding_of_the_largest() -> None:
    reference = double(1.0, -4.0)
    low = torch.tensor([1.5, -4.0])
    assert error_budget(reference, low) == pytest.approx(2 * (0.5 + 4 * torch.finfo(torch.float32).eps))
    assert error_budget(reference, low.to(torch.bfloat16)) == pytest.approx(2 * (0.5 + 4 * 2.0**-7))


def test_budget_ignores_what_is_not_finite() -> None:
    assert error_budget(double(1.0, INF), torch.tensor([1.0, INF])) < 1e-6
    assert error_budget(double(1.0, 2.0), torch.tensor([1.0, NAN])) < 1e-6
    assert error_budget(double(NAN), torch.tensor([NAN])) == 0
    assert error_budget(double(), torch.tensor([])) == 0


@pytest.mark.parametrize(
    ("reference", "low"),
    [
        (torch.zeros(2), torch.zeros(2)),
        (double(0.0, 0.0), torch.zeros(3)),
        (double(0.0, 0.0), torch.zeros(2, dtype=torch.int64)),
    ],
)
def test_budget_rejects_what_is_no_reference(reference: torch.Tensor, low: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected .*, got"):
        error_budget(reference, low)


@given(st.integers(0, 2**16), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_rounding_once_more_is_within_and_ten_times_the_budget_is_not(seed: int, dtype: torch.dtype) -> None:
    reference = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low = reference.to(dtype)
    assert_within(low.double().mul(1).to(dtype), reference, low)
    worse = low.clone()
    worse[1, 2] += 10 * error_budget(reference, low)
    with pytest.raises(AssertionError, match=r"index \(1, 2\)"):
        assert_within(worse, reference, low)


def test_message_says_what_got_expected_where_and_both_errors() -> None:
    reference, low = double(1.0, 2.0).reshape(1, 2), torch.tensor([[1.0, 2.25]])
    with pytest.raises(AssertionError) as caught:
        assert_within(torch.tensor([[1.0, 5.0]]), reference, low, what="logits")
    text = str(caught.value)
    for part in ("logits", "got 3 at index (0, 1)", "got 5, expected 2", "shape (1, 2)", "off by 0.25", "1 of 2"):
        assert part in text


@pytest.mark.parametrize(
    ("actual", "expected", "equal", "nan_equal"),
    [
        (INF, INF, True, False),
        (INF, -INF, False, True),
        (NAN, NAN, False, False),
        (NAN, NAN, True, True),
        (NAN, 1.0, False, True),
        (1.0, NAN, False, True),
        (INF, 1.0, False, True),
        (1.0, -INF, False, True),
        (NAN, INF, False, True),
    ],
)
def test_values_that_are_not_finite(actual: float, expected: float, equal: bool, nan_equal: bool) -> None:
    def compare() -> None:
        assert_tolerance(double(0.0, actual), double(0.0, expected), tolerance=1e300, nan_equal=nan_equal)
        low = double(0.0, expected)
        assert_within(double(0.0, actual), low, low, nan_equal=nan_equal)

    if equal:
        compare()
    else:
        with pytest.raises(AssertionError, match=r"index \(1,\)"):
            compare()


def test_one_sided_nan_outranks_a_larger_error() -> None:
    with pytest.raises(AssertionError, match=r"got nan at index \(2,\)"):
        assert_tolerance(double(0.0, 1e9, NAN), double(0.0, 0.0, 0.0), tolerance=0.1)


@pytest.mark.parametrize("compare", [assert_same, lambda a, b: assert_tolerance(a, b, tolerance=1.0)])
def test_shape_and_dtype_must_match(compare) -> None:
    with pytest.raises(AssertionError, match=r"expected shape \(2, 1\), got \(2,\)"):
        compare(torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(AssertionError, match=r"expected dtype torch.float64, got torch.float32"):
        compare(torch.zeros(2), torch.zeros(2, dtype=torch.float64))


def test_same_is_bitwise() -> None:
    assert_same(torch.tensor([NAN, INF, 1.0]), torch.tensor([NAN, INF, 1.0]))
    assert_same(torch.tensor([True, False]), torch.tensor([True, False]))
    assert_same(torch.arange(6).reshape(2, 3).T, torch.arange(6).reshape(2, 3).T.contiguous())
    for left, right in ((0.0, -0.0), (1.0, 1.0 + 2**-23), (NAN, 1.0)):
        with pytest.raises(AssertionError, match="the same bits"):
            assert_same(torch.tensor([left]), torch.tensor([right]))
    with pytest.raises(AssertionError, match=r"index \(1,\)"):
        assert_same(torch.tensor([3, 4]), torch.tensor([3, 5]))


def test_close_to_counts_roundings_at_the_scale() -> None:
    eps = torch.finfo(torch.float32).eps
    expected = torch.tensor(1.0)
    assert_close_to(expected + 100 * eps, expected, scale=10.0)
    with pytest.raises(AssertionError, match="16 roundings at magnitude 1"):
        assert_close_to(expected + 100 * eps, expected, scale=1.0)
    with pytest.raises(ValueError, match="floating dtype"):
        assert_close_to(torch.tensor(1), torch.tensor(1), scale=1.0)


@pytest.mark.parametrize("tolerance", [-1.0, NAN, INF])
def test_a_tolerance_that_allows_anything_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        assert_tolerance(torch.zeros(1), torch.zeros(1), tolerance=tolerance)
