"""FlexAttention: which blocks of pairs are visited, and what is kept from call to call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from flex_problems import problem, tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from biases.backends import Geometry, Problem, block_masks, score_mods
from biases.backends.block_masks import BLOCK, block_mask
from biases.backends.score_mods import on_device
from biases.testing.strategies import seeds


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Blocks of 4, so that drawn lengths, offsets and windows end at every place in a block."""
    monkeypatch.setattr(block_masks, "BLOCK", 4)
    block_masks._cached.cache_clear()
    yield 4
    block_masks._cached.cache_clear()


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_block_is_left_out_and_none_is_whole_that_is_not(small_blocks: int, data: st.DataObject) -> None:
    block = small_blocks
    L, S = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13))
    causal, window = data.draw(st.booleans()), data.draw(st.none() | st.integers(1, 13))
    masked = data.draw(st.sampled_from([None, (2, 1, 1, S), (1, 1, L, S)]))
    q, k = torch.zeros(2, 1, L, 1), torch.zeros(2, 1, S, 1)
    # Mostly allowed, so that whole blocks occur.
    mask = None if masked is None else tensor(*masked, seed=data.draw(seeds())) > -1.5
    placed = {"causal": causal, "window": window if causal else None, "alignment": data.draw(st.sampled_from(ALIGNED))}
    each = problem(q, k, k, mask=mask, **placed)
    blocks = block_mask(each)
    i, j = each.geometry.positions(torch.device("cpu"))
    allowed = each.geometry.allowed(i - j)
    allowed = torch.ones(L, S, dtype=torch.bool) if allowed is None else allowed
    allowed = (allowed if mask is None else allowed & mask).expand(2, 1, L, S)
    if blocks is None:
        assert allowed.all()
        return
    padded = torch.nn.functional.pad(allowed, (0, -S % block, 0, -L % block))
    tiles = padded.unflatten(3, (-1, block)).unflatten(2, (-1, block))
    some, every = tiles.any(5).any(3), tiles.all(5).all(3)
    partial, whole = (_listed(blocks, name, some) for name in ("kv", "full_kv"))
    assert not (partial & whole).any()
    assert not (whole & ~every).any()
    assert not (some & ~(partial | whole)).any()
    if mask is None:
        torch.testing.assert_close(partial | whole, some)
        torch.testing.assert_close(whole, every)


ALIGNED = ("upper-left", "lower-right")


def _listed(blocks: Any, name: str, like: Tensor) -> Tensor:
    """The blocks of a list as booleans, (2, 1, L / BLOCK, S / BLOCK)."""
    count, order = getattr(blocks, f"{name}_num_blocks"), getattr(blocks, f"{name}_indices")
    listed = torch.arange(order.shape[-1]) < count[..., None]
    return torch.zeros(order.shape, dtype=torch.bool).scatter(-1, order.long(), listed).expand_as(like)


def test_blocks_are_those_of_the_mask_over_all_pairs(small_blocks: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    for offset, window in itertools.product(range(-5, 6), (None, *range(1, 13))):
        geometry = Geometry(13, 10, offset, True, window)
        q, k = torch.zeros(1, 1, geometry.L, 1), torch.zeros(1, 1, geometry.S, 1)
        ours = block_mask(Problem(q, k, k, geometry, 1.0))
        assert ours is not None
        sizes = {"Q_LEN": geometry.L, "KV_LEN": geometry.S, "BLOCK_SIZE": small_blocks}
        theirs = create_block_mask(ours.mask_mod, None, None, **sizes, device="cpu")
        for name in names:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), (name, geometry)


def test_no_mask_over_all_pairs_is_made() -> None:
    """One boolean a pair would be 256 MiB."""
    from biases.bench import peak_bytes

    q = torch.zeros(1, 1, 1 << 14, 1)
    each = problem(q, q, q, causal=True, window=777)
    assert peak_bytes(lambda: block_mask(each)) < (1 << 14) ** 2 // BLOCK


def test_a_copy_on_another_device_is_made_once_for_each_state() -> None:
    x, there = torch.ones(3), torch.device("meta")
    first = on_device(x, there, torch.float32)
    assert first.device == there
    assert on_device(x, there, torch.float32) is first
    assert on_device(x, there, torch.float64).dtype == torch.float64
    x.mul_(2)
    assert on_device(x, there, torch.float32) is not first
    learned = torch.ones(3, requires_grad=True)
    assert on_device(learned, there, torch.float32).requires_grad


def test_what_inference_keeps_training_can_use() -> None:
    x, there = torch.ones(3), torch.device("meta")
    q = tensor(1, 1, 261, 1, seed=1)
    with torch.inference_mode():
        kept, blocks = on_device(x, there, torch.float32), block_mask(problem(q, q, q, causal=True))
    assert on_device(x, there, torch.float32) is kept
    assert block_mask(problem(q, q, q, causal=True)) is blocks
    assert not kept.is_inference()
    assert blocks is not None
    assert not blocks.kv_indices.is_inference()


def test_nothing_of_a_captured_graph_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors hold nothing before it is replayed, and kept ones that are dropped are read by it all the same."""
    x, there = torch.ones(3), torch.device("meta")
    each = problem(*[tensor(1, 1, 263, 1, seed=1)] * 3, causal=True)
    for module in (score_mods, block_masks):
        monkeypatch.setattr(module, "capturing", lambda device: True)
    during = on_device(x, there, torch.float32), block_mask(each)
    for module in (score_mods, block_masks):
        monkeypatch.setattr(module, "capturing", lambda device: False)
    after = on_device(x, there, torch.float32), block_mask(each)
    assert after[0] is not during[0]
    assert after[1] is not during[1]
    assert block_mask(each) is after[1]


def test_what_is_kept_is_finished_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another stream may be the next to read it."""
    waited: list[torch.device] = []
    for module in (score_mods, block_masks):
        monkeypatch.setattr(module, "finished", waited.append)
    x, there, here = torch.ones(3), torch.device("meta"), torch.device("cpu")
    each = problem(*[tensor(1, 1, 265, 1, seed=1)] * 3, causal=True)
    for _ in range(2):
        on_device(x, there, torch.float32)
        block_mask(each)
    assert waited == [there, here]
