"""The contract of ``attend``: masks, alignment, heads, dropout, memory, and which formulation is taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, LowRankBias, ManhattanDecay, attend, formulation
from biases.bench import peak_bytes
from biases.testing.strategies import make_tensor, seeds

BACKENDS = ("auto", "dense", "reference")


def qkv(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (make_tensor(shape, seed=seed + n, dtype=dtype) for n in range(3))
    return q, k, v


def brute_force(q: Tensor, k: Tensor, v: Tensor, allowed: Callable[[int, int], bool]) -> Tensor:
    """Softmax attention by loops: q, k, v (L, D) and (S, D)."""
    out = torch.zeros(q.shape[0], v.shape[1], dtype=q.dtype)
    for i in range(q.shape[0]):
        seen = [j for j in range(k.shape[0]) if allowed(i, j)]
        if seen:
            weights = torch.softmax(torch.stack([q[i] @ k[j] for j in seen]) / q.shape[1] ** 0.5, 0)
            out[i] = sum(w * v[j] for w, j in zip(weights, seen, strict=True))
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@given(seeds(), st.integers(1, 9), st.integers(1, 9), st.sampled_from(["upper-left", "lower-right"]))
def test_support_is_that_of_brute_force(backend: str, seed: int, L: int, S: int, alignment: str) -> None:
    """Causal under both alignments, for every L and S, with the rows that see nothing zero."""
    q, (k, v) = qkv(seed, (1, 1, L, 4))[0], qkv(seed + 5, (1, 1, S, 4))[1:]
    offset = S - L if alignment == "lower-right" else 0
    expected = brute_force(q[0, 0], k[0, 0], v[0, 0], lambda i, j: j <= i + offset)
    out = attend(q, k, v, causal=True, alignment=alignment, backend=backend)
    assert torch.allclose(out[0, 0], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("weights", ["softmax", "sigmoid", "linear"])
@pytest.mark.parametrize("backend", BACKENDS)
@given(seeds(), st.integers(1, 9), st.booleans())
def test_queries_without_keys_give_zeros_and_finite_gradients(
    backend: str, weights: str, seed: int, length: int, causal: bool
) -> None:
    """Padding of a whole example; the contract of stock attention, which gives zeros for a row masked everywhere."""
    q, k, v = (x.requires_grad_() for x in qkv(seed, (2, 2, length, 4), torch.float32))
    keep = torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < 0.6
    keep[0] = False
    out = attend(q, k, v, weights=weights, mask=keep[:, None, None, :], causal=causal, backend=backend)
    assert bool((out[0] == 0).all())
    out.square().sum().backward()
    for x in (q, k, v):
        assert bool(torch.isfinite(x.grad).all())
        assert bool((x.grad[0] == 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
@given(seeds(), st.sampled_from([float("nan"), float("inf"), 1e30]), st.booleans(), st.booleans())
def test_padded_keys_take_no_part_whatever_they_hold(
    backend: str, seed: int, poison: float, causal: bool, alibi: bool
) -> None:
    """NaN in a masked key leaks through stock attention (0 * NaN); it must not leak here."""
    q, k, v = qkv(seed, (2, 2, 7, 4), torch.float32)
    keep = torch.rand(2, 7, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask, gone = keep[:, None, None, :], ~keep[:, None, :, None]
    bias = ALiBi(2, symmetric=True) if alibi else None
    clean = attend(q, k, v, bias=bias, mask=mask, causal=causal, backend=backend)
    dirty = attend(
        q,
        k.masked_fill(gone, poison),
        v.masked_fill(gone, poison),
        bias=bias,
        mask=mask,
        causal=causal,
        backend=backend,
    )
    assert torch.equal(clean, dirty)


@given(seeds(), st.integers(1, 12), st.sampled_from([1, 2, 4]))
def test_key_heads_serve_groups_of_query_heads(seed: int, length: int, groups: int) -> None:
    """Key head g serves query heads g H / G to (g + 1) H / G - 1, as in grouped-query attention."""
    q = qkv(seed, (1, 4, length, 4))[0]
    _, k, v = qkv(seed, (1, groups, length, 4))
    expected = attend(q, k.repeat_interleave(4 // groups, 1), v.repeat_interleave(4 // groups, 1), causal=True)
    assert torch.equal(attend(q, k, v, causal=True), expected)


@given(seeds(), st.integers(1, 12), st.permutations(range(4)))
def test_strides_do_not_matter(seed: int, length: int, order: list[int]) -> None:
    """Any layout in memory of the same values, with and without a bias."""
    tensors = qkv(seed, (2, 4, length, 8), torch.float32)
    back = [order.index(axis) for axis in range(4)]
    laid = [x.permute(order).contiguous().permute(back) for x in tensors]
    for bias in (None, ALiBi(4), ALiBi(4, symmetric=True)):
        assert torch.allclose(attend(*laid, bias=bias), attend(*tensors, bias=bias), rtol=1e-5, atol=1e-6)


def test_dropout_drops_weights_before_the_gate() -> None:
    """With values that are the identity the output is the weights: each is 0 or A / (1 - p); with a renormalised gate
    the survivors of a row sum to 1, whatever p (released code of arXiv 2605.21842)."""
    torch.manual_seed(0)
    q, k, _ = qkv(0, (1, 2, 40, 4))
    v = torch.eye(40, dtype=torch.float64).expand(1, 2, 40, 40)
    weights = attend(q, k, v)
    dropped = attend(q, k, v, dropout=0.25)
    kept = dropped != 0
    assert torch.allclose(dropped[kept], weights[kept] / 0.75)
    assert 0.70 < kept.double().mean() < 0.80
    gate = KeyGate(torch.nn.functional.logsigmoid(make_tensor((1, 2, 40), seed=3, dtype=torch.float64)))
    assert torch.allclose(
        attend(q, k, v, dropout=0.25, key_gate=gate).sum(-1), torch.ones(1, 2, 40, dtype=torch.float64)
    )


@given(seeds(), st.floats(-30, 30), st.booleans())
def test_a_constant_added_to_a_row_changes_nothing_under_softmax(seed: int, shift: float, causal: bool) -> None:
    """Why causal ALiBi may drop its row constant; the sigmoid does see it."""
    q, k, v = qkv(seed, (1, 2, 6, 4))
    constant = KeyBias(torch.full((1, 1, 6), shift, dtype=torch.float64))
    assert torch.allclose(attend(q, k, v, causal=causal), attend(q, k, v, causal=causal, bias=constant), rtol=1e-11)
    if abs(shift) > 1:
        plain, moved = (attend(q, k, v, weights="sigmoid", bias=b) for b in (None, constant))
        assert float((plain - moved).abs().max()) > 1e-3


def cases(length: int, heads: int = 2) -> dict[str, tuple[str, dict]]:
    """Problem -> (formulation, arguments)."""
    height = 2 ** (length.bit_length() // 2)
    learned = make_tensor((1, heads, length), seed=5).requires_grad_()
    rates = torch.log(torch.linspace(0.8, 0.99, heads, dtype=torch.float64))
    steep, gentle = torch.tensor([0.5, 0.25]), torch.tensor([4.0, 2.0]) / length
    left, right = make_tensor((heads, length, 3), seed=6), make_tensor((heads, length, 3), seed=7)
    keep = (torch.arange(length) % 3 > 0)[None, None, None]
    gate = torch.nn.functional.logsigmoid
    return {
        "no bias": ("sdpa", {}),
        "no bias, causal": ("sdpa", {"causal": True}),
        "gate folded into the values": ("sdpa", {"key_gate": KeyGate(gate(learned), renormalise=False)}),
        "renormalised gate (EGA)": ("key-bias", {"key_gate": KeyGate(gate(learned)), "causal": True}),
        "learned key bias": ("key-bias", {"bias": KeyBias(learned)}),
        "padding": ("key-bias", {"mask": keep}),
        "gentle causal ALiBi": ("key-bias", {"bias": ALiBi(gentle), "causal": True}),
        "learned gentle slopes": ("key-bias", {"bias": ALiBi(gentle.clone().requires_grad_()), "causal": True}),
        "steep causal ALiBi": ("toeplitz", {"bias": ALiBi(steep), "causal": True}),
        "symmetric ALiBi": ("toeplitz", {"bias": ALiBi(steep, symmetric=True)}),
        "Toeplitz and padding": ("toeplitz", {"bias": ALiBi(steep, symmetric=True), "mask": keep}),
        "exponential decay": ("toeplitz", {"decay": ExponentialDecay(rates), "causal": True}),
        "low rank": ("channels", {"bias": LowRankBias(left, right)}),
        "retention": (
            "chunkwise",
            {"decay": ExponentialDecay(rates, placement="weights"), "causal": True, "weights": "linear"},
        ),
        "sigmoid": ("tiles", {"weights": "sigmoid", "bias": ALiBi(heads, symmetric=True)}),
        "decay after the softmax": ("tiles", {"decay": ExponentialDecay(rates, symmetric=True, placement="weights")}),
        "Manhattan": ("tiles", {"decay": ManhattanDecay(height, length // height, rates)}),
        "dropout": ("tiles", {"dropout": 0.1, "causal": True}),
    }


@pytest.mark.parametrize("name", list(cases(16)))
def test_formulation_is_the_documented_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which formulation ``attend`` takes without the native kernel; where it is tiles, it says why."""
    monkeypatch.setenv("BIASES_NATIVE", "0")
    wanted, options = cases(64)[name]
    plan = formulation(*qkv(0, (1, 2, 64, 8), torch.float32), **options)
    assert plan.name == wanted
    assert bool(plan.reason) == (wanted == "tiles")


@pytest.mark.parametrize("native", ["0", "1"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", list(cases(16)))
def test_no_formulation_holds_a_square(name: str, direction: str, native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory beyond the inputs stays below one N x N tensor of one head, and no more than doubles with N: O(N)."""
    monkeypatch.setenv("BIASES_NATIVE", native)

    def peak(length: int) -> int:
        _, options = cases(length)[name]
        tensors = [x.requires_grad_(direction == "backward") for x in qkv(0, (1, 2, length, 8), torch.float32)]

        def run() -> None:
            out = attend(*tensors, **options)
            if direction == "backward":
                out.sum().backward()

        return peak_bytes(run)

    short, long = peak(1024), peak(2048)
    assert long < 4 * 2048 * 2048
    assert long < 2.2 * short


def test_a_mask_over_pairs_is_handed_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own N x N mask costs what it costs; nothing of its size is added to it without need."""
    monkeypatch.setenv("BIASES_NATIVE", "0")
    mask = torch.ones(16, 16, dtype=torch.bool).tril(3)
    plan = formulation(*qkv(0, (1, 2, 16, 8), torch.float32), mask=mask)
    assert plan.name == "mask"


@pytest.mark.parametrize(("causal", "gated"), list(itertools.product([False, True], repeat=2)))
def test_gradcheck(causal: bool, gated: bool) -> None:
    """Analytic gradients against finite differences, through the own backward of the key bias."""
    q, k, v = (x.requires_grad_() for x in qkv(1, (1, 2, 5, 4)))
    b = make_tensor((1, 2, 5), seed=9, dtype=torch.float64).requires_grad_()

    def run(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
        terms = {"key_gate": KeyGate(torch.nn.functional.logsigmoid(b))} if gated else {"bias": KeyBias(b)}
        return attend(q, k, v, causal=causal, **terms)

    assert torch.autograd.gradcheck(run, (q, k, v, b))
