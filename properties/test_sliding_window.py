"""The sliding window of ``attend``: which keys are seen, the fast path, and what a window costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from windowed_weights import F64, SIGMOIDS, WEIGHTS, any_backend, lengths, qkv, seen_by_hand, weights_of, windows

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, attend, formulation
from biases.backends.tiles import TILE
from biases.bench import peak_bytes
from biases.testing import assert_close_to, assert_same, assert_within, make_tensor
from biases.testing.strategies import seeds

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ALIGNMENTS = ("upper-left", "lower-right")
# Just below, at and above one tile of queries, and two.
TILE_EDGES = [tiles * TILE + step for tiles in (1, 2) for step in (-1, 0, 1)]
weights_functions = st.sampled_from(WEIGHTS)


@given(any_backend, weights_functions, lengths, lengths, windows, st.sampled_from(ALIGNMENTS), seeds())
@example("auto", "softmax", 12, 3, 2, "upper-left", 0)
@example("auto", "sigmoid", 3, 12, 2, "lower-right", 0)
def test_a_window_of_w_shows_w_keys_the_own_one_included(backend, weights, L, S, window, alignment, seed):
    """Each weight in the window is there and each outside is exactly 0, counted key by key."""
    q, k, _ = qkv(seed, L, S)
    found = weights_of(L, S, q, k, weights=weights, causal=True, window=window, alignment=alignment, backend=backend)
    seen = seen_by_hand(L, S, window, alignment)
    assert torch.equal(found != 0, seen.expand_as(found))
    if L == S:
        assert (found != 0).sum(-1)[0, 0].tolist() == [min(window, p + 1) for p in range(L)]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("length", TILE_EDGES)
@pytest.mark.parametrize("window", [1, 5, TILE - 1, TILE, TILE + 1])
def test_windows_are_right_across_tiles(weights, length, window):
    """Tiles and blocks visit some of the keys: none that a query sees is left out."""
    q, k, v = qkv(length + window, length, dtype=torch.float32)
    found = weights_of(length, length, q, k, weights=weights, causal=True, window=window)
    assert torch.equal(found != 0, seen_by_hand(length, length, window).expand_as(found))
    expected = attend(q.double(), k.double(), v.double(), weights=weights, causal=True, window=window, backend="dense")
    out = attend(q, k, v, weights=weights, causal=True, window=window)
    assert_close_to(out, expected.float(), scale=max(1.0, expected.abs().max().item()) * window**0.5)


@given(any_backend, weights_functions, st.integers(2, 12), windows, st.data())
def test_other_keys_do_not_move_a_bit(backend, weights, length, window, data):
    """Whatever finite numbers a key and its value hold, queries that do not see it give the same bits."""
    seed, dtype = data.draw(seeds()), data.draw(st.sampled_from(DTYPES))
    j = data.draw(st.integers(0, length - 1), label="changed key")
    q, k, v = qkv(seed, length, dtype=dtype)
    options = {"weights": weights, "causal": True, "window": window, "backend": backend}
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :, j], changed_v[:, :, j] = -100 * q[:, :, j], 1e4
    before, after = attend(q, k, v, **options), attend(q, changed_k, changed_v, **options)
    sees = seen_by_hand(length, length, window)[:, j]
    assert_same(after[:, :, ~sees], before[:, :, ~sees])
    assert (after[:, :, sees] != before[:, :, sees]).any(-1).all()


@given(any_backend, st.sampled_from(SIGMOIDS), st.integers(2, 12), windows, seeds())
def test_masked_keys_are_excluded_exactly_whatever_they_hold(backend, weights, length, window, seed):
    """A key under padding weighs 0 and not sigmoid(-100): NaN, infinities and large numbers there change no bit."""
    q, k, v = qkv(seed, length)
    keep = torch.rand(2, 1, 1, length, generator=torch.Generator().manual_seed(seed)) < 0.6
    keep[..., length // 2] = False
    options = {"weights": weights, "causal": True, "window": window, "backend": backend, "mask": keep}
    expected = attend(q, k, v, **options)
    gone = ~keep[:, :, 0, :, None]
    for junk in (math.nan, math.inf, -1e30):
        assert_same(attend(q, k.masked_fill(gone, junk), v.masked_fill(gone, junk), **options), expected)
    found = weights_of(length, length, q, k, **options)
    assert torch.equal(found != 0, (seen_by_hand(length, length, window) & keep).expand_as(found))


def test_a_logit_of_minus_100_is_no_exclusion():
    """sigmoid(-100) = 4e-44 lets a value of 1e44 through, which a window and a mask do not."""
    q, k, v = qkv(0, 3)
    v[:, :, 0] = 1e44
    shut = KeyBias(torch.tensor([-100.0, 0.0, 0.0], dtype=F64).view(1, 1, 3))
    keep = torch.tensor([False, True, True])
    leaking = attend(q, k, v, weights="sigmoid", bias=shut)
    assert leaking.abs().amin(dim=(1, 2, 3)).min() > 0.01
    assert attend(q, k, v, weights="sigmoid", mask=keep).abs().max() < 10
    assert attend(q, k, v, weights="sigmoid", causal=True, window=1)[:, :, 1:].abs().max() < 10


@given(weights_functions, any_backend, lengths, st.integers(0, 3), seeds())
def test_a_window_over_everything_is_none(weights, backend, length, more, seed):
    q, k, v = qkv(seed, length)
    options = {"weights": weights, "causal": True}
    plain = attend(q, k, v, backend=backend, **options)
    assert_same(attend(q, k, v, backend=backend, window=length + more, **options), plain)
    assert formulation(q, k, v, window=length + more, **options) == formulation(q, k, v, **options)


@given(weights_functions, any_backend, st.integers(1, 5), st.integers(0, 7), windows, seeds())
def test_decoding_with_a_window_gives_the_last_rows(weights, backend, L, more, window, seed):
    S = L + more
    q, k, v = qkv(seed, S)
    options = {"weights": weights, "causal": True, "window": window, "bias": ALiBi(2, balanced=True)}
    whole = attend(q, k, v, backend=backend, **options)
    step = attend(q[:, :, more:], k, v, alignment="lower-right", backend=backend, **options)
    assert_close_to(step, whole[:, :, more:], scale=max(1.0, whole.abs().max().item()))


@pytest.mark.parametrize("call", [attend, formulation])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, "attend window: expected None where causal is False, got 4"),
        ({"causal": True, "window": 0}, "attend window: expected an integer of at least 1, got 0"),
        ({"causal": True, "window": True}, "attend window: expected an integer of at least 1, got True"),
        ({"causal": True, "window": 2.0}, "attend window: expected an integer of at least 1, got 2.0"),
    ],
)
def test_unusable_windows_are_refused(call, options, message):
    with pytest.raises(ValueError, match=message):
        call(*qkv(0, 5), **options)


def biases_of(kind: str, leaves: Mapping[str, Tensor]) -> Any:
    return {
        "none": lambda: None,
        "balanced": lambda: ALiBi(2, rule="halving", balanced=True),
        "learned": lambda: ALiBi(leaves["slopes"], allow_negative=True),
        "key": lambda: KeyBias(leaves["key"]),
        "balanced+key": lambda: (ALiBi(2, balanced=True), KeyBias(leaves["key"])),
    }[kind]()


def run(leaves: Mapping[str, Tensor], kinds: Mapping[str, str], backend: str, dtype: torch.dtype, **options: Any):
    """The output and the gradients by name, computed from ``leaves`` cast to ``dtype``."""
    cast = {name: x.detach().to(dtype).requires_grad_() for name, x in leaves.items()}
    gate = KeyGate(torch.nn.functional.logsigmoid(cast["gate"])) if kinds["gate"] == "gate" else None
    rates = torch.log(torch.tensor([0.6, 0.9], dtype=F64))
    decay = None if kinds["decay"] == "none" else ExponentialDecay(rates, placement=kinds["decay"])
    out = attend(
        cast["q"],
        cast["k"],
        cast["v"],
        bias=biases_of(kinds["bias"], cast),
        key_gate=gate,
        decay=decay,
        causal=True,
        backend=backend,
        **options,
    )
    direction = make_tensor(tuple(out.shape), seed=7, dtype=F64).to(leaves["q"].dtype).to(dtype)
    grads = torch.autograd.grad(out, list(cast.values()), direction, allow_unused=True)
    return out.detach(), {name: g for name, g in zip(cast, grads, strict=True) if g is not None}


def largest(*tensors: Tensor) -> float:
    return max(float(x.detach().abs().max()) for x in tensors if x.numel())


def check_against_specification(
    seed: int, L: int, S: int, dtype: torch.dtype, kinds: Mapping[str, str], **options: Any
) -> None:
    q, k, v = qkv(seed, L, S, dtype=dtype)
    leaves = {"q": q, "k": k, "v": v, "slopes": make_tensor((1, 2), seed=seed + 3, dtype=dtype)[0] / 4}
    leaves["key"] = make_tensor((2, 1, S), seed=seed + 4, dtype=dtype)
    leaves["gate"] = make_tensor((2, 2, S), seed=seed + 5, dtype=dtype)
    exact, exact_grads = run(leaves, kinds, "reference", F64, **options)
    low, low_grads = run(leaves, kinds, "dense", dtype, **options)
    out, grads = run(leaves, kinds, "auto", dtype, **options)
    # The dense formulas in float64 are the reference itself and so have no error to measure: some of float64's own.
    slack = 32.0 if dtype == F64 else 1.0
    assert_within(out, exact, low, magnitude=slack * largest(exact, v))
    assert set(grads) == set(exact_grads)
    # A gradient of the logits is a difference of sums over the channels of dO . v.
    scale = slack * max(v.shape[-1] * 4 * largest(v), largest(*exact_grads.values()))
    for name, grad in grads.items():
        assert_within(grad, exact_grads[name], low_grads[name], what=f"gradient of {name}", magnitude=scale)


@settings(max_examples=150)
@given(st.data())
def test_fast_path_equals_the_specification(data):
    """Output and gradients, for all weights, biases, placements of a decay, gates, padding, alignments and dtypes."""
    weights, L = data.draw(weights_functions), data.draw(lengths)
    S = data.draw(lengths) if data.draw(st.booleans()) else L
    kinds = {
        "bias": data.draw(st.sampled_from(["none", "balanced", "learned", "key", "balanced+key"])),
        "gate": data.draw(st.sampled_from(["none", "gate"])) if weights != "linear" else "none",
        "decay": data.draw(st.sampled_from(["none", "logits", "weights", "weights-renormalised"])),
    }
    assume(weights != "linear" or kinds["decay"] in ("none", "weights"))
    seed = data.draw(seeds())
    mask = None
    if data.draw(st.booleans()):
        mask = torch.rand(2, 1, 1, S, generator=torch.Generator().manual_seed(seed)) < 0.7
        mask[0] = False
    options = {
        "weights": weights,
        "window": data.draw(st.none() | windows),
        "alignment": None if L == S else data.draw(st.sampled_from(ALIGNMENTS)),
        "mask": mask,
    }
    check_against_specification(seed, L, S, data.draw(st.sampled_from(DTYPES)), kinds, **options)


def formulations() -> dict[str, tuple[str, dict[str, Any]]]:
    rates = torch.log(torch.tensor([0.6, 0.9], dtype=F64))
    return {
        "softmax": ("toeplitz", {}),
        "softmax with ALiBi": ("toeplitz", {"bias": ALiBi(2)}),
        "softmax with padding": ("toeplitz", {"mask": torch.arange(9) > 1}),
        "learned gentle slopes": ("toeplitz", {"bias": ALiBi(torch.tensor([0.5, 0.1], dtype=F64).requires_grad_())}),
        "learned steep slopes": ("tiles", {"bias": ALiBi(torch.tensor([5.0, 1.0], dtype=F64).requires_grad_())}),
        "sigmoid": ("tiles", {"weights": "sigmoid"}),
        "sigmoid-normalised": ("tiles", {"weights": "sigmoid-normalised"}),
        "retention": ("tiles", {"weights": "linear", "decay": ExponentialDecay(rates, placement="weights")}),
    }


@pytest.mark.parametrize("name", list(formulations()))
def test_formulations_with_a_window(name):
    """Which one is taken, and that it does not forget the window."""
    wanted, options = formulations()[name]
    q, k, v = qkv(5, 9)
    assert formulation(q, k, v, causal=True, window=3, **options).name == wanted
    out, exact = (attend(q, k, v, causal=True, window=3, backend=b, **options) for b in ("auto", "reference"))
    assert_close_to(out, exact, scale=max(1.0, exact.abs().max().item()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", ["balanced", "balanced+key"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("length", TILE_EDGES[1:4])
def test_fast_path_equals_the_specification_at_the_edges_of_tiles(length, weights, bias, dtype):
    kinds = {"bias": bias, "gate": "none", "decay": "none"}
    for window in (3, TILE + 1):
        check_against_specification(length, length, length, dtype, kinds, weights=weights, window=window)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_window_holds_no_square(weights, direction):
    """Twice the tokens, twice the memory, and less than one N x N tensor of one head."""

    def peak(length: int) -> int:
        tensors = [x.requires_grad_(direction == "backward") for x in qkv(0, length, dtype=torch.float32)]

        def call() -> None:
            out = attend(*tensors, weights=weights, causal=True, window=64, bias=ALiBi(2, balanced=True))
            if direction == "backward":
                out.sum().backward()

        return peak_bytes(call)

    short, long = peak(1024), peak(2048)
    assert long < 2048 * 2048 * 4
    assert long <= 2.1 * short


@pytest.mark.parametrize("weights", SIGMOIDS)
@pytest.mark.parametrize("window", [1, 64, 200])
def test_sigmoids_cost_their_window(weights, window):
    """Products of matrices counted: a query costs its window and a tile at most, whatever the length."""
    heads, batch, length = 2, 2, 1024
    q, k, v = qkv(0, length, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        attend(q, k, v, weights=weights, causal=True, window=window)
    per_pair = 2 * (q.shape[-1] + v.shape[-1])
    pairs = counter.get_total_flops() / (batch * heads * per_pair)
    assert length * window * 0.5 < pairs <= length * (window + TILE)


class Written(TorchDispatchMode):
    """Counts the elements of all that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            self.elements += each.numel() if isinstance(each, Tensor) else 0
        return result


@pytest.mark.parametrize("weights", WEIGHTS)
def test_training_with_a_window_writes_in_proportion_to_the_length(weights):
    """Forward and backward: the gradient of a part of the keys is no larger than the part."""

    def written(length: int) -> int:
        q, k, v = (x.requires_grad_() for x in qkv(0, length, dtype=torch.float32))
        with Written() as counter:
            attend(q, k, v, weights=weights, causal=True, window=16).sum().backward()
        return counter.elements

    assert written(4096) <= 2.1 * written(2048)


@pytest.mark.parametrize("window", [1, 64, 200])
def test_a_softmax_costs_its_window(window, monkeypatch):
    """Pairs handed to the stock kernel: a query costs its window and a block, which is no longer than the window or 128
    tokens. The native kernel calls no stock kernel."""
    monkeypatch.setenv("BIASES_NATIVE", "0")
    pairs, stock = [], torch.nn.functional.scaled_dot_product_attention

    def counting(q: Tensor, k: Tensor, *rest: Any, **options: Any) -> Tensor:
        pairs.append(q.shape[2] * k.shape[2])
        return stock(q, k, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    length = 2048
    attend(*qkv(0, length, dtype=torch.float32), causal=True, window=window)
    assert length * window * 0.5 < sum(pairs) <= length * (window + max(window, 128))
