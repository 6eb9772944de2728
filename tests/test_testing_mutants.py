"""The battery on layers that are right, and on layers with one planted fault each."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from biases.testing import PROPERTIES, Result, Traits, check_attention, exit_code, summary

CAUSAL = Traits(causal=True)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Plain(nn.Module):
    """Causal multi-head attention; the faults below are overrides of one step of it."""

    causal = True

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim: expected a multiple of heads={heads}, got {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = self.weights(q @ k.mT / q.shape[-1] ** 0.5) @ self.value(v)
        return self.after(self.out(y.transpose(1, 2).flatten(2)))

    def mask(self, logits: Tensor) -> Tensor:
        return torch.ones(logits.shape[-2:], dtype=torch.bool).tril()

    def weights(self, logits: Tensor) -> Tensor:
        if self.causal:
            logits = logits.masked_fill(~self.mask(logits), float("-inf"))
        return logits.softmax(-1)

    def before(self, x: Tensor) -> Tensor:
        return x

    def value(self, v: Tensor) -> Tensor:
        return v

    def after(self, y: Tensor) -> Tensor:
        return y


class Wrapped(nn.Module):
    """torch.nn.MultiheadAttention with a causal mask."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


class Symmetric(Plain):
    causal = False


class Centred(Symmetric):
    """Cancels to nothing but rounding where the tokens are equal."""

    def after(self, y: Tensor) -> Tensor:
        return y - y.mean(1, keepdim=True)


class Unprojected(nn.Module):
    """Attention without parameters."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (B, T, C), got {tuple(x.shape)}")
        h = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(h, h, h, is_causal=True)
        return y.transpose(1, 2).flatten(2)


def function(dim: int, heads: int):
    """A callable that is no module: attention with equal weights."""

    def attend(x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (B, T, C), got {tuple(x.shape)}")
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None].to(x)

    return attend


class Float32Softmax(Plain):
    """Upcasts, or downcasts, to float32 inside, as many layers do."""

    def weights(self, logits: Tensor) -> Tensor:
        masked = logits.float().masked_fill(~self.mask(logits), float("-inf"))
        return masked.softmax(-1).to(logits.dtype)


class Windowed(Plain):
    def mask(self, logits: Tensor) -> Tensor:
        return super().mask(logits).triu(-2)


class Peek(Plain):
    def mask(self, logits: Tensor) -> Tensor:
        return torch.ones(logits.shape[-2:], dtype=torch.bool).tril(1)


class MaskAfterSoftmax(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) * self.mask(logits)


class SmallMask(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        return (logits - 1e4 * ~self.mask(logits)).softmax(-1)


class WindowStatistics(Plain):
    """An energy gate normalised over the whole window, as in the published EGA."""

    def value(self, v: Tensor) -> Tensor:
        energy = v.square().mean(-1, keepdim=True)
        spread = energy.std(-2, keepdim=True, correction=0)
        return v * torch.sigmoid((energy - energy.mean(-2, keepdim=True)) / (spread + 1e-6))


class ZeroInitLeak(Plain):
    """A window summary behind a gain that starts at zero."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.gain = nn.Parameter(torch.zeros(()))

    def after(self, y: Tensor) -> Tensor:
        return y + self.gain * y.mean(1, keepdim=True)


class DetachedLeak(Plain):
    def before(self, x: Tensor) -> Tensor:
        return x / (1 + x.detach().abs().amax(1, keepdim=True))


class BatchStatistics(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y - y.mean(0, keepdim=True)


class BatchOrder(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y * torch.arange(1, len(y) + 1)[:, None, None]


class FirstCache(Plain):
    """Keeps the first layer's scale on the class, under a key that lacks the layer."""

    seen: ClassVar[dict[int, Tensor]] = {}

    def after(self, y: Tensor) -> Tensor:
        return y * self.seen.setdefault(y.shape[-1], self.out.weight[0, 0].detach().double())


class LastCache(Plain):
    """Keeps the last built layer on the class."""

    latest: ClassVar[list[nn.Module]] = []

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.latest[:] = [self.out]

    def after(self, y: Tensor) -> Tensor:
        return y * (1 + self.latest[0].weight[0, 0].item())


class Counter(Plain):
    def after(self, y: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return y * self.calls


class InPlace(Plain):
    def before(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)


class Noisy(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y + 1e-3 * torch.randn_like(y)


class NaNs(Plain):
    """The unbiased deviation of one token is 0 / 0."""

    def after(self, y: Tensor) -> Tensor:
        return y / (1 + y.std(1, keepdim=True))


class InfiniteGradient(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y * (y - y).abs().sqrt() + y


class Tupled(Plain):
    def after(self, y: Tensor) -> Tensor:
        return (y, None)


class Transposed(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2)


class Raising(Plain):
    def before(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            raise RuntimeError("an even length is needed")
        return x


class HiddenHalf(Plain):
    def value(self, v: Tensor) -> Tensor:
        return v.half().to(v.dtype)


class BFloat16Table(Plain):
    """A position table that loses its precision with the layer's."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.register_buffer("angle", 37.1 * torch.arange(1.0, 65.0))

    def before(self, x: Tensor) -> Tensor:
        return x * self.angle[: x.shape[1], None].cos()


class AlwaysFloat32(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y.float()


class Unsaved(Plain):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.scale = torch.rand(()).item()

    def after(self, y: Tensor) -> Tensor:
        return y * self.scale


class Strides(Plain):
    def before(self, x: Tensor) -> Tensor:
        return torch.as_strided(x, x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1), 0)


class Numbered(Symmetric):
    def after(self, y: Tensor) -> Tensor:
        return y + torch.arange(y.shape[1])[:, None]


class WindowSlides(Windowed):
    def after(self, y: Tensor) -> Tensor:
        return y + torch.arange(y.shape[1])[:, None]


class WrongRank(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[None])[0, :1] if x.ndim == 2 else super().forward(x)


WINDOW = Traits(causal=True, window=3, equivariant_to=("shift",))
SET = Traits(equivariant_to=("permutation",))

RIGHT = {
    "plain": (Plain, CAUSAL),
    "torch": (Wrapped, CAUSAL),
    "symmetric": (Symmetric, SET),
    "float32-softmax": (Float32Softmax, CAUSAL),
    "windowed": (Windowed, WINDOW),
    "centred": (Centred, SET),
    "unprojected": (Unprojected, CAUSAL),
    "function": (function, CAUSAL),
}
WRONG = [
    (Peek, CAUSAL, "future-independence"),
    (Peek, CAUSAL, "future-gradient"),
    (Peek, CAUSAL, "prefix-consistency"),
    (MaskAfterSoftmax, CAUSAL, "future-independence"),
    (SmallMask, CAUSAL, "future-independence"),
    (WindowStatistics, CAUSAL, "future-independence"),
    (WindowStatistics, CAUSAL, "future-gradient"),
    (WindowStatistics, CAUSAL, "prefix-consistency"),
    (ZeroInitLeak, CAUSAL, "future-independence"),
    (DetachedLeak, CAUSAL, "future-independence"),
    (BatchStatistics, CAUSAL, "batch-independence"),
    (BatchOrder, CAUSAL, "batch-permutation"),
    (FirstCache, CAUSAL, "no-hidden-state"),
    (LastCache, CAUSAL, "no-hidden-state"),
    (Counter, CAUSAL, "no-hidden-state"),
    (Counter, CAUSAL, "deterministic"),
    (Noisy, CAUSAL, "deterministic"),
    (InPlace, CAUSAL, "input-unchanged"),
    (NaNs, Traits(), "finite-output"),
    (NaNs, Traits(), "single-token"),
    (InfiniteGradient, CAUSAL, "finite-gradient"),
    (Tupled, CAUSAL, "shape-dtype-device"),
    (Transposed, CAUSAL, "shape-dtype-device"),
    (AlwaysFloat32, CAUSAL, "shape-dtype-device"),
    (Raising, CAUSAL, "single-token"),
    (HiddenHalf, CAUSAL, "float64-agreement"),
    (BFloat16Table, CAUSAL, "bfloat16-budget"),
    (Unsaved, CAUSAL, "state-dict-round-trip"),
    (Strides, CAUSAL, "noncontiguous-input"),
    (Numbered, SET, "permutation-equivariance"),
    (WindowSlides, WINDOW, "shift-equivariance"),
    (WrongRank, CAUSAL, "invalid-arguments"),
]


def failures(results: list[Result]) -> str:
    return "\n\n".join(r.message for r in results if r.status in ("failed", "error"))


@pytest.mark.parametrize("name", RIGHT)
def test_right_layers_pass(name: str) -> None:
    make_layer, traits = RIGHT[name]
    results = check_attention(make_layer, traits)
    assert not failures(results)
    assert exit_code(results) == 0
    assert [r.property for r in results] == list(PROPERTIES)
    skipped = {p.name for p in PROPERTIES.values() if p.applies(traits) is not None}
    skipped |= {"state-dict-round-trip"} if name == "function" else set()
    assert {r.property for r in results if r.status == "not_applicable"} == skipped


@pytest.mark.parametrize("name", ["plain", "torch"])
@pytest.mark.parametrize("seed", range(1, 11))
def test_right_layers_pass_for_every_seed(name: str, seed: int) -> None:
    make_layer, traits = RIGHT[name]
    assert not failures(check_attention(make_layer, traits, seed=seed, max_examples=4))


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize(("make_layer", "traits", "caught_by"), WRONG, ids=[f"{m.__name__}-{p}" for m, _, p in WRONG])
def test_wrong_layers_are_caught_by_the_property_that_names_the_fault(make_layer, traits, caught_by) -> None:
    (result,) = check_attention(make_layer, traits, properties=[caught_by])
    assert result.status == "failed", result
    assert PROPERTIES[caught_by].promise in result.message
    assert result.counterexample is not None
    assert result.examples >= 1


@pytest.mark.parametrize(("make_layer", "longest"), [(Peek, 2), (MaskAfterSoftmax, 2), (WindowStatistics, 3)])
@pytest.mark.parametrize("name", ["future-independence", "future-gradient", "prefix-consistency"])
def test_a_leak_shrinks_to_a_tiny_sequence(make_layer, longest: int, name: str) -> None:
    (result,) = check_attention(make_layer, CAUSAL, properties=[name])
    assert result.counterexample is not None
    assert 2 <= result.counterexample["length"] <= longest
    assert result.counterexample["batch"] == 1


def test_every_property_has_a_planted_fault() -> None:
    assert {caught_by for _, _, caught_by in WRONG} == set(PROPERTIES)


def test_a_fault_leaves_the_other_properties_running() -> None:
    results = check_attention(Tupled, CAUSAL)
    assert len(results) == len(PROPERTIES)
    assert summary(results)["failed"] > 10
    assert exit_code(results) == 1
    assert "a tuple of (Tensor, NoneType)" in results[0].message
    assert "future-independence: expected" not in failures(results)


def test_a_batch_fault_does_not_break_causality() -> None:
    results = check_attention(BatchStatistics, CAUSAL)
    failed = {r.property for r in results if r.status == "failed"}
    assert failed == {"batch-independence"}


def test_a_factory_may_hand_out_one_layer() -> None:
    layer = Plain(16, 2).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    results = check_attention(lambda dim, heads: layer, CAUSAL, widths=[(16, 2)], max_examples=4)
    assert not [r for r in results if r.status == "failed" and r.property != "state-dict-round-trip"]
    assert layer.training
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_the_check_leaves_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_attention(LastCache, CAUSAL, properties=["no-hidden-state", "deterministic"], max_examples=3)
    assert torch.equal(torch.rand(3), expected)
    assert LastCache.latest == []
