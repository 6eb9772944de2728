"""SWAT: the sliding window of ``attend``, sigmoid weights with and without row sums, balanced slopes, and the layer."""

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

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, LowRankBias, attend, formulation, specification, zoo
from biases.attention import pair_weights
from biases.backends.tiles import TILE
from biases.bench import peak_bytes
from biases.decays import alibi_slopes
from biases.layers.swat import swat_bias
from biases.testing import assert_close_to, assert_same, assert_within, make_tensor
from biases.testing.strategies import seeds

F64 = torch.float64
BACKENDS = ("auto", "dense", "reference")
WEIGHTS = ("softmax", "sigmoid", "sigmoid-normalised", "linear")
SIGMOIDS = ("sigmoid", "sigmoid-normalised")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ALIGNMENTS = ("upper-left", "lower-right")
# Just below, at and above one tile of queries, and two.
TILE_EDGES = [tiles * TILE + step for tiles in (1, 2) for step in (-1, 0, 1)]
lengths = st.integers(1, 12)
windows = st.integers(1, 14)
weights_functions = st.sampled_from(WEIGHTS)
any_backend = st.sampled_from(BACKENDS)


def qkv(seed: int, L: int, S: int | None = None, heads: int = 2, dtype: torch.dtype = F64) -> list[Tensor]:
    sizes = (L, S or L, S or L)
    return [make_tensor((2, heads, size, 4), seed=seed + n, dtype=dtype) for n, size in enumerate(sizes)]


def seen_by_hand(L: int, S: int, window: int, alignment: str = "upper-left") -> Tensor:
    """Which keys each query sees, (L, S) bool: a query at p sees p - window + 1 .. p (arXiv 2502.18845 Eq. 5)."""
    offset = S - L if alignment == "lower-right" else 0
    rows = [[p - window + 1 <= j <= p for j in range(S)] for p in range(offset, offset + L)]
    return torch.tensor(rows).view(L, S)


def weights_of(L: int, S: int, q: Tensor, k: Tensor, **options: Any) -> Tensor:
    """The weights of any backend, (B, H, L, S), as the output for values that are units."""
    units = torch.eye(S, dtype=q.dtype).expand(*q.shape[:2], S, S)
    return attend(q, k, units, **options)


# The window.


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


# Fast path and specification.


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


# Sigmoid weights, normalised and not.


@given(any_backend, lengths, windows, seeds())
def test_normalised_rows_sum_to_one_and_keep_the_ratios(backend, length, window, seed):
    """sigmoid-normalised is sigmoid divided by the sum of its row."""
    q, k, _ = qkv(seed, length)
    options = {"causal": True, "window": window, "backend": backend, "bias": ALiBi(2, balanced=True)}
    plain = weights_of(length, length, q, k, weights="sigmoid", **options)
    normalised = weights_of(length, length, q, k, weights="sigmoid-normalised", **options)
    assert_close_to(normalised.sum(-1), torch.ones_like(normalised[..., 0]), scale=1.0)
    assert_close_to(normalised, plain / plain.sum(-1, keepdim=True), scale=1.0)


@given(any_backend, lengths, windows, seeds(), st.floats(-3, 3))
def test_constant_values_give_the_row_sum(backend, length, window, seed, value):
    """Weights that are not normalised carry their sum into the output, at most that of the window; normalised ones keep
    the constant."""
    q, k, v = qkv(seed, length)
    options = {"causal": True, "window": window, "backend": backend}
    constant = torch.full_like(v, value)
    sums = pair_weights(q, k, weights="sigmoid", causal=True, window=window).sum(-1, keepdim=True)
    keys = seen_by_hand(length, length, window).sum(-1, keepdim=True)
    assert ((sums > 0) & (sums < keys)).all()
    assert_close_to(attend(q, k, constant, weights="sigmoid", **options), value * sums.expand_as(v), scale=3.0 * window)
    assert_close_to(attend(q, k, constant, weights="sigmoid-normalised", **options), constant, scale=3.0)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [-200.0, -2e3])
def test_normalised_sigmoids_keep_their_limit_where_all_underflow(backend, level, dtype):
    """Far below 0 a sigmoid is an exponential, so the normalised weights become those of a softmax."""
    q, k, v = qkv(3, 7, dtype=dtype)
    shut = KeyBias(torch.full((1, 1, 7), level, dtype=dtype))
    out = attend(q, k, v, weights="sigmoid-normalised", bias=shut, backend=backend)
    # Logits near ``level`` are rounded at its size.
    assert_close_to(out, attend(q, k, v), scale=abs(level))
    if level < -1e3:
        assert torch.count_nonzero(attend(q, k, v, weights="sigmoid", bias=shut, backend=backend)) == 0


@given(any_backend, lengths, windows, seeds())
def test_placements_of_a_decay_mean_what_they_say(backend, length, window, seed):
    """Inside the sigmoid; on the normalised weights; on them and normalised once more."""
    q, k, _ = qkv(seed, length)
    log_rates = torch.log(torch.tensor([0.5, 0.9], dtype=F64))
    seen = seen_by_hand(length, length, window)
    position = torch.arange(length)
    log = log_rates[:, None, None] * (position[:, None] - position).clamp(min=0)
    logits = q @ k.mT / 2.0

    def rows(x: Tensor) -> Tensor:
        return x / x.sum(-1, keepdim=True)

    plain = rows(torch.sigmoid(logits) * seen)
    expected = {
        "logits": rows(torch.sigmoid(logits + log) * seen),
        "weights": plain * log.exp(),
        "weights-renormalised": rows(plain * log.exp()),
    }
    for placement, wanted in expected.items():
        options = {"decay": ExponentialDecay(log_rates, placement=placement), "weights": "sigmoid-normalised"}
        found = weights_of(length, length, q, k, causal=True, window=window, backend=backend, **options)
        assert_close_to(found, wanted, scale=1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_renormalised_decay_and_underflowing_sigmoids_make_up_for_each_other(backend):
    """The far key has a logit of 0 and a decay of e^-1200, the near one a logit of -1000 and no decay: near wins."""
    q = torch.ones(1, 1, 1, 1, dtype=F64)
    k = torch.tensor([0.0, -1000.0], dtype=F64).view(1, 1, 2, 1)
    v = torch.tensor([1.0, 2.0], dtype=F64).view(1, 1, 2, 1)
    decay = ExponentialDecay(torch.tensor([-1200.0], dtype=F64), placement="weights-renormalised")
    options = {"weights": "sigmoid-normalised", "decay": decay, "causal": True, "alignment": "lower-right"}
    assert attend(q, k, v, backend=backend, **options).item() == 2.0


@pytest.mark.parametrize("weights", SIGMOIDS)
@given(st.integers(2, 9), seeds())
def test_a_row_constant_matters_to_a_sigmoid(weights, length, seed):
    """Under a softmax ALiBi may be replaced by m j; under a sigmoid, normalised or not, the difference is real."""
    q, k, _ = qkv(seed, length)
    slopes = alibi_slopes(2, "halving")
    difference = ALiBi(slopes)
    key_only = KeyBias((slopes[:, None] * torch.arange(length))[None])
    true, shortcut = (pair_weights(q, k, weights=weights, causal=True, bias=b) for b in (difference, key_only))
    assert (true - shortcut).abs().max() > 1e-3
    # The two are one function once the constant of each row is put back.
    rows = LowRankBias(slopes[:, None, None] * torch.arange(length)[:, None], -torch.ones(2, length, 1, dtype=F64))
    back = pair_weights(q, k, weights=weights, causal=True, bias=(key_only, rows))
    assert_close_to(back, true, scale=length)
    soft, soft_shortcut = (pair_weights(q, k, causal=True, bias=b) for b in (difference, key_only))
    assert_close_to(soft_shortcut, soft, scale=length)


# Slopes.


@given(st.integers(1, 33), st.sampled_from(["press", "geometric", "halving"]))
def test_balanced_slopes_are_opposite_pairs(heads, rule):
    """Half positive, half negative, sum 0 (arXiv 2502.18845 Eq. 4); the head left over by an odd number has none."""
    slopes = alibi_slopes(heads, rule, balanced=True, odd="zero")
    half = heads // 2
    assert slopes.shape == (heads,)
    assert slopes.dtype == F64
    assert torch.equal(slopes[:half], -slopes[half : 2 * half])
    assert bool((slopes[:half] > 0).all())
    assert slopes[2 * half :].tolist() == [0.0] * (heads % 2)
    assert math.fsum(slopes.tolist()) == 0.0
    if half:
        assert torch.equal(slopes[:half], alibi_slopes(half, rule))


@given(st.integers(1, 12))
def test_swat_bias_is_equation_4(heads):
    """s_k (m - n) with s_k = -2^-k on one half of the heads and 2^-k on the other."""
    half = heads // 2
    falls = [-(2.0**-k) for k in range(1, half + 1)]
    expected = [*falls, *(-s for s in falls), *[0.0] * (heads % 2)]
    assert swat_bias(heads).dense(2, 2)[0, :, 1, 0].tolist() == expected
    negative = [-(2.0**-k) for k in range(1, heads + 1)]
    assert swat_bias(heads, "negative").dense(2, 2)[0, :, 1, 0].tolist() == negative
    assert swat_bias(heads, "positive").dense(2, 2)[0, :, 1, 0].tolist() == [-s for s in negative]


@pytest.mark.parametrize("heads", [1, 3, 7])
def test_odd_numbers_of_heads_are_an_error_unless_allowed(heads):
    for build in (
        lambda: alibi_slopes(heads, balanced=True),
        lambda: ALiBi(heads, balanced=True),
        lambda: swat_bias(heads, odd_heads="error"),
    ):
        with pytest.raises(ValueError, match=f"expected an even number to balance the signs.*got {heads}"):
            build()
    assert ALiBi(heads, balanced=True, odd="zero").slopes[-1] == 0.0
    with pytest.raises(ValueError, match="alibi_slopes odd: expected one of 'error', 'zero', got 'none'"):
        alibi_slopes(heads, balanced=True, odd="none")


@given(st.integers(1, 8), st.integers(2, 20), windows, seeds())
def test_weights_are_monotone_in_distance_with_the_sign_of_the_slope(heads, length, window, seed):
    """Equal keys: the odds of a weight change by exp(s) a token, upwards into the past where s > 0."""
    q, k, _ = qkv(seed, length, heads=heads)
    k = k[:, :, :1].expand_as(k)
    bias = swat_bias(heads)
    weights = pair_weights(q, k, weights="sigmoid", causal=True, window=window, bias=bias)[:, :, -1]
    seen = weights[..., max(0, length - window) :]
    change, slopes = seen.diff(dim=-1), bias.slopes.view(1, heads, 1)
    level = (slopes == 0).expand_as(change)
    assert bool((change[level].abs() <= 4 * torch.finfo(F64).eps).all())
    assert torch.equal(change[~level].sign(), slopes.expand_as(change)[~level].sign())
    odds = torch.log(seen) - torch.log1p(-seen)
    # Near 1 a weight has lost the digits of its odds.
    known = seen[..., 1:].clamp(min=seen[..., :-1]) < 0.99
    steps = torch.where(known, odds.diff(dim=-1), slopes.expand_as(change))
    assert_close_to(steps, slopes.expand_as(change), scale=1e3)


# The layer.

OPTIONS = [
    {},
    {"normalise": True},
    {"slopes": "negative"},
    {"slopes": "positive", "rotary": False},
    {"rule": "press", "normalise": True},
    {"window": None},
]


def build(dim: int, heads: int, seed: int, **options: Any) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return zoo.layer("swat", dim, heads, **options).double()


def by_hand(layer: torch.nn.Module, x: Tensor, window: int, slopes: list[float], rotary: bool, normalise: bool):
    """Eq. 5 of arXiv 2502.18845 as printed, by loops over queries and keys; x (T, C)."""
    size, rows = layer.dim // layer.heads, []
    frequency = [10000.0 ** (-2 * t / size) for t in range(size // 2)]

    def turned(vector: Tensor, position: int) -> Tensor:
        pairs = torch.view_as_complex(vector.view(-1, 2).contiguous())
        angles = torch.tensor([position * f if rotary else 0.0 for f in frequency], dtype=F64)
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()

    q, k, v = (projection(x).unflatten(-1, (layer.heads, size)) for projection in (layer.query, layer.key, layer.value))
    for m in range(len(x)):
        heads = []
        for h, s in enumerate(slopes):
            keys = range(max(0, m - window + 1), m + 1)
            logits = [turned(q[m, h], m) @ turned(k[n, h], n) / math.sqrt(size) + s * (m - n) for n in keys]
            weights = [1 / (1 + torch.exp(-logit)) for logit in logits]
            total = sum(weights) if normalise else 1.0
            heads.append(sum(w / total * v[n, h] for w, n in zip(weights, keys, strict=True)))
        rows.append(torch.cat(heads))
    return layer.output(torch.stack(rows))


@settings(max_examples=15)
@given(st.integers(1, 7), st.integers(1, 8), st.booleans(), st.booleans(), seeds())
def test_the_layer_is_the_printed_formula(length, window, rotary, normalise, seed):
    layer = build(12, 3, seed, window=window, rotary=rotary, normalise=normalise)
    x = make_tensor((1, length, 12), seed=seed, dtype=F64)
    expected = by_hand(layer, x[0], window, [-0.5, 0.5, 0.0], rotary, normalise)
    for module in (layer, specification(layer)):
        assert_close_to(module(x)[0], expected, scale=8.0 * max(1.0, expected.abs().max().item()))


@given(st.integers(1, 4), st.integers(1, 3), seeds())
def test_layers_see_one_window_after_another(window, depth, seed):
    """The receptive field of l layers is 1 + (w - 1) l (arXiv 2502.18845 section 3)."""
    stack = torch.nn.Sequential(*(build(8, 2, seed + n, window=window) for n in range(depth)))
    length = 12
    x = make_tensor((1, length, 8), seed=seed, dtype=F64).requires_grad_()
    (slope,) = torch.autograd.grad(stack(x)[:, -1].square().sum(), x)
    reached = (slope[0] != 0).any(-1)
    assert reached.sum().item() == min(length, 1 + (window - 1) * depth)
    assert reached.tolist() == sorted(reached.tolist())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_traits_follow_the_options(options):
    name = f"swat[{', '.join(f'{key}={value}' for key, value in options.items())}]"
    variant = zoo.get(name)
    traits, layer = variant.traits, zoo.layer(name, 12, 3)
    assert traits.window == layer.window == {**{"window": 128}, **options}["window"]
    assert (traits.normalisation == "row") == (layer.weights == "sigmoid-normalised")
    assert (traits.decay is None) == bool((layer.bias[0].slopes <= 0).any())
    assert sum(p.numel() for p in layer.parameters()) == sum(
        p.numel() for p in zoo.layer("standard", 12, 3).parameters()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slopes": "both"}, "SWAT slopes: expected one of 'balanced', 'negative', 'positive', got 'both'"),
        ({"rule": "doubling"}, "rule: expected one of"),
        ({"odd_heads": "error"}, "expected an even number to balance the signs"),
        ({"window": 0}, "SelfAttention window: expected an integer of at least 1, got 0"),
        ({"normalise": "sometimes"}, "SWAT normalise: expected one of True, False"),
        ({"rotary": "half"}, "SWAT rotary: expected one of True, False"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.layer("swat", 12, 3, **options)
