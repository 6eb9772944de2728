"""Tensors that are kept: made once, and never inside something that would keep a hold on them."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from biases import ManhattanDecay, attend
from biases._cache import kept
from biases.testing.strategies import make_tensor


def counted():
    """A kept function, and the sizes it was run for."""
    made: list[int] = []

    @kept
    def ramp(n: int) -> torch.Tensor:
        made.append(n)
        return torch.arange(n, device="cpu")

    return ramp, made


def test_equal_sizes_are_made_once():
    ramp, made = counted()
    assert ramp(3) is ramp(3)
    assert ramp(4).tolist() == [0, 1, 2, 3]
    assert made == [3, 4]


def test_what_a_mode_or_a_transform_made_is_not_kept():
    ramp, made = counted()
    with FakeTensorMode():
        ramp(3)
    torch.func.vmap(lambda x: x + ramp(3))(torch.zeros(2, 3))
    torch.func.grad(lambda x: (x * ramp(3)).sum())(torch.ones(3))
    assert made == [3, 3, 3]
    assert type(ramp(3)) is torch.Tensor
    assert made == [3, 3, 3, 3]


def test_what_was_made_in_inference_mode_takes_part_in_gradients_later():
    ramp, _ = counted()
    with torch.inference_mode():
        first = ramp(3)
    x = torch.ones(3, requires_grad=True)
    (x * ramp(3)).sum().backward()
    assert ramp(3) is first
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_a_learned_decay_has_its_gradient_after_use_in_inference_mode(backend):
    q, k, v = (make_tensor((1, 2, 35, 8), seed=n) for n in range(3))
    rates = torch.tensor([-0.25, -0.5])
    with torch.inference_mode():
        attend(q, k, v, decay=ManhattanDecay(5, 7, rates), backend=backend)
    rates.requires_grad_()
    attend(q, k, v, decay=ManhattanDecay(5, 7, rates), backend=backend).sum().backward()
    assert rates.grad is not None
    assert bool(rates.grad.abs().sum() > 0)
