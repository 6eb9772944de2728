"""Retention: its three forms are one function, and the layer is what torchscale computes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from biases import ExponentialDecay, attend, formulation, zoo
from biases.decays import retention_chunkwise, retention_parallel, retention_recurrent, retnet_log_rates
from biases.gates import HeadNorm
from biases.testing import assert_close_to, assert_within, make_tensor
from biases.testing.strategies import seeds

F64 = torch.float64
EXTREME_RATES = (0.0, 1e-300, 1e-30, 1e-8, 0.5, 1 - 2**-24, 1.0)
lengths = st.integers(1, 9)
rates = st.lists(st.one_of(st.floats(0.0, 1.0), st.sampled_from(EXTREME_RATES)), min_size=1, max_size=3)


def inputs(seed: int, heads: int, length: int, dim: int = 3, width: int = 2, dtype: torch.dtype = F64):
    """q, k (2, H, L, D) and v (2, H, L, Dv)."""
    shapes = ((2, heads, length, dim), (2, heads, length, dim), (2, heads, length, width))
    return tuple(make_tensor(shape, "normal", seed + n, dtype) for n, shape in enumerate(shapes))


def printed_sum(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """o_n = D^(-1/2) sum_{m <= n} gamma^(n - m) (q_n . k_m) v_m, one term after another."""
    rows = []
    for n in range(q.shape[2]):
        row = torch.zeros_like(v[:, :, 0])
        for m in range(n + 1):
            score = (q[:, :, n] * k[:, :, m]).sum(-1, keepdim=True) / math.sqrt(q.shape[3])
            row = row + gamma[:, None] ** (n - m) * score * v[:, :, m]
        rows.append(row)
    return torch.stack(rows, 2)


def printed_chunks(q: Tensor, k: Tensor, v: Tensor, gamma: float, chunk: int, *, zeta: bool) -> Tensor:
    """The chunkwise form as printed, of one head: q, k (L, D), v (L, Dv). ``zeta`` is the factor that the first
    version of arXiv 2307.08621 lacks."""
    length, state, rows = q.shape[0], torch.zeros(q.shape[1], v.shape[1], dtype=q.dtype), []
    for start in range(0, length, chunk):
        Q, K, V = (x[start : start + chunk] for x in (q / math.sqrt(q.shape[1]), k, v))
        step = torch.arange(Q.shape[0], dtype=F64)
        inner = torch.tril(gamma ** (step[:, None] - step).clamp(min=0))
        rows.append((Q @ K.T * inner) @ V + (Q @ state) * gamma ** (step[:, None] + 1))
        weight = gamma ** (chunk - 1 - step[:, None]) if zeta else 1.0
        state = K.T @ (V * weight) + gamma**chunk * state
    return torch.cat(rows)


def with_gradients(form, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, seed: int) -> list[Tensor]:
    """The output and the gradients of q, k, v and gamma."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v, gamma)]
    out = form(*leaves)
    received = make_tensor(out.shape, "normal", seed + 7, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, received)]


def assert_relative(actual: Tensor, expected: Tensor, magnitude: Tensor, what: str) -> None:
    assert (actual - expected).abs().max() <= 1e-12 * magnitude.abs().max().clamp(min=1e-300), what


@given(lengths, rates, seeds())
@example(9, [0.0, 0.5, 1.0], 0)
@example(1, [0.0], 0)
def test_parallel_recurrent_and_chunkwise_are_one_function(length, gamma, seed):
    """All three forms give the printed sum and its gradients, of gamma too, for every chunk length up to three beyond
    the sequence (arXiv 2309.11523 Eq. 1-2; RetNet, arXiv 2307.08621)."""
    gamma = torch.tensor(gamma, dtype=F64)
    q, k, v = inputs(seed, len(gamma), length)
    expected = with_gradients(printed_sum, q, k, v, gamma, seed)
    # Terms of both signs cancel, so rounding is measured against the sum of their magnitudes.
    sizes = with_gradients(printed_sum, q.abs(), k.abs(), v.abs(), gamma, seed)
    scale = [torch.maximum(a.abs().max(), b.abs().max()) for a, b in zip(expected, sizes, strict=True)]

    def chunkwise(chunk):
        return lambda *x: retention_chunkwise(*x, chunk=chunk)

    forms = {"parallel": retention_parallel, "recurrent": retention_recurrent}
    forms |= {f"chunks of {n}": chunkwise(n) for n in range(1, length + 4)}
    for name, form in forms.items():
        got = with_gradients(form, q, k, v, gamma, seed)
        for what, *pair in zip(("output", "dq", "dk", "dv", "dgamma"), got, expected, scale, strict=True):
            assert_relative(*pair, f"{what} of {name}")


@pytest.mark.parametrize("length", [63, 64, 65, 127, 129, 150])
def test_the_default_chunk_handles_lengths_around_its_multiples(length):
    """Lengths that are no multiple of the chunk of 64 are padded without a trace."""
    gamma = retnet_log_rates(2).exp()
    q, k, v = inputs(0, 2, length)
    expected = retention_parallel(q, k, v, gamma)
    magnitude = retention_parallel(q.abs(), k.abs(), v.abs(), gamma)
    assert_relative(retention_chunkwise(q, k, v, gamma), expected, magnitude, "output")


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 0.95), seeds())
def test_the_printed_chunks_with_zeta_are_the_parallel_form(length, chunk, gamma, seed):
    """R_i = K^T (V . zeta) + gamma^B R_{i-1}, zeta_j = gamma^(B - 1 - j), is exact (arXiv 2307.08621, corrected)."""
    q, k, v = (x[:1, :1] for x in inputs(seed, 1, length))
    expected = retention_parallel(q, k, v, torch.tensor([gamma], dtype=F64))[0, 0]
    got = printed_chunks(q[0, 0], k[0, 0], v[0, 0], gamma, chunk, zeta=True)
    magnitude = retention_parallel(q.abs(), k.abs(), v.abs(), torch.tensor([gamma], dtype=F64))
    assert_relative(got, expected, magnitude, "output")


@given(st.integers(2, 6), st.integers(1, 6), st.floats(0.3, 0.9), seeds())
def test_without_zeta_the_chunkwise_form_is_another_function(chunk, more, gamma, seed):
    """The first version of arXiv 2307.08621 lacks zeta: with positive inputs the outputs beyond the first chunk are too
    large by a part that cannot cancel."""
    length = chunk + more
    q, k, v = (0.5 + torch.sigmoid(x[0, 0]) for x in inputs(seed, 1, length))
    expected = printed_chunks(q, k, v, gamma, chunk, zeta=True)
    got = printed_chunks(q, k, v, gamma, chunk, zeta=False)
    assert torch.equal(got[:chunk], expected[:chunk])
    # The oldest key of the chunk before counts gamma^(1 - B) times too much.
    surplus = (1 - gamma ** (chunk - 1)) * gamma * (q[chunk] @ k[0]) / math.sqrt(q.shape[1]) * v[0]
    assert (got[chunk] - expected[chunk] >= 0.99 * surplus).all()
    product = retention_chunkwise(*(x[None, None] for x in (q, k, v)), torch.tensor([gamma], dtype=F64), chunk=chunk)
    assert (got - product[0, 0]).abs().max() > 1e-3


def test_without_zeta_chunks_of_one_are_right():
    """zeta is 1 for chunks of a single token, which is how the fault stays hidden."""
    q, k, v = (x[0, 0] for x in inputs(0, 1, 7))
    right, wrong = (printed_chunks(q, k, v, 0.9, 1, zeta=zeta) for zeta in (True, False))
    assert torch.equal(right, wrong)


@given(lengths, seeds(), st.integers(1, 12))
def test_a_rate_of_one_is_linear_attention(length, seed, chunk):
    """gamma = 1: o_n = q_n sum_{m <= n} k_m^T v_m."""
    q, k, v = inputs(seed, 2, length)
    states = (k[..., :, None] * v[..., None, :]).cumsum(2)
    expected = (q[..., None, :] @ states)[..., 0, :] / math.sqrt(q.shape[3])
    for form in (retention_parallel, retention_recurrent):
        assert_close_to(form(q, k, v, torch.ones(2, dtype=F64)), expected, scale=10.0 * length, ulps=100)
    got = retention_chunkwise(q, k, v, torch.ones(2, dtype=F64), chunk=chunk)
    assert_close_to(got, expected, scale=10.0 * length, ulps=100)


@given(lengths, seeds(), st.integers(1, 12), st.sampled_from([0.0, 1e-300, 1e-25]))
def test_a_rate_of_nought_keeps_the_diagonal_alone(length, seed, chunk, rate):
    """gamma -> 0: o_n = (q_n . k_n) v_n; 0^0 counts as 1."""
    q, k, v = inputs(seed, 2, length)
    expected = (q * k).sum(-1, keepdim=True) / math.sqrt(q.shape[3]) * v
    gamma = torch.full((2,), rate, dtype=F64)
    for got in (
        retention_parallel(q, k, v, gamma),
        retention_recurrent(q, k, v, gamma),
        retention_chunkwise(q, k, v, gamma, chunk=chunk),
    ):
        assert_close_to(got, expected, scale=20.0, ulps=100)


@given(st.integers(1, 40))
def test_rates_are_those_of_torchscale(heads):
    """gamma_h = 1 - 2^(-5 - h), by the series of the logarithm, which does not cancel for late heads."""
    steps = [2.0 ** (-5 - h) for h in range(heads)]
    expected = [-sum(x**n / n for n in range(1, 12)) for x in steps]
    assert retnet_log_rates(heads).tolist() == pytest.approx(expected, rel=1e-15)
    assert (retnet_log_rates(heads).diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("form", [retention_parallel, retention_recurrent, retention_chunkwise])
def test_extreme_rates_have_finite_gradients(form, dtype):
    """From gamma = 0 to gamma = 1, over 70 tokens, no power or its derivative overflows or is undefined."""
    gamma = torch.tensor(EXTREME_RATES, dtype=dtype)
    q, k, v = inputs(3, len(gamma), 70, dtype=dtype)
    for part in with_gradients(form, q, k, v, gamma, 3):
        assert part.isfinite().all()


@given(st.integers(1, 20), st.sampled_from([-1e4, -745.0, -50.0, -1e-12, 0.0]), seeds())
def test_attend_is_finite_at_extreme_log_rates(length, log_rate, seed):
    """attend runs retention chunk by chunk; its gradients stay finite from gamma = 1 down to below the smallest
    float."""
    q, k, v = inputs(seed, 1, length)
    leaves = [x.requires_grad_() for x in (q, k, v, torch.tensor([log_rate], dtype=F64))]

    def run(backend):
        decay = ExponentialDecay(leaves[3], placement="weights")
        options = {"weights": "linear", "decay": decay, "causal": True}
        if backend == "auto":
            assert formulation(q, k, v, **options).name == "chunkwise"
        out = attend(q, k, v, backend=backend, **options)
        return [out, *torch.autograd.grad(out.sum(), leaves)]

    for fast, slow in zip(run("auto"), run("reference"), strict=True):
        assert fast.isfinite().all()
        assert_close_to(fast, slow, scale=50.0 * length**2, ulps=100)


def test_long_sequences_stay_finite_and_accurate_in_float32():
    """Powers of gamma underflow, never overflow: 1500 tokens in float32 are as good as the parallel form."""
    gamma = torch.cat([retnet_log_rates(2).exp(), torch.tensor([0.1, 1.0], dtype=F64)]).float()
    q, k, v = inputs(0, 4, 1500, dim=2, dtype=torch.float32)
    q, k, v = q[:1], k[:1], v[:1]
    exact = retention_parallel(q.double(), k.double(), v.double(), gamma.double())
    honest = retention_parallel(q, k, v, gamma)
    assert_within(retention_chunkwise(q, k, v, gamma), exact, honest, what="chunkwise")


def pairwise_rotation(x: Tensor) -> Tensor:
    """Channels (2 t, 2 t + 1) of (B, T, D) turned by p 10000^(-2 t / D) at position p, as complex numbers."""
    dim = x.shape[-1]
    frequency = torch.tensor([10000.0 ** (-2 * t / dim) for t in range(dim // 2)], dtype=F64)
    angle = torch.arange(x.shape[1])[:, None] * frequency
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


def torchscale_layer(layer, x: Tensor, gamma: list[float], *, eps: float, divisions: bool) -> Tensor:
    """The layer from its weights, one head after another. ``divisions``: torchscale's, by the square root of the row
    sums of D and by the clamped absolute row sums of the scores."""
    dim, heads = x.shape[-1], len(gamma)
    size, length = dim // heads, x.shape[1]
    step = torch.arange(length, dtype=F64)
    outputs = []
    for h, rate in enumerate(gamma):
        rows = slice(h * size, (h + 1) * size)
        q, k = (pairwise_rotation(x @ w.weight[rows].T) for w in (layer.query, layer.key))
        decay = torch.tril(rate ** (step[:, None] - step).clamp(min=0))
        if divisions:
            decay = decay / decay.sum(-1, keepdim=True).sqrt()
        scores = q @ k.mT / math.sqrt(size) * decay
        if divisions:
            scores = scores / scores.abs().sum(-1, keepdim=True).clamp(1.0, 5e4)
        y = scores @ (x @ layer.value.weight[rows].T)
        y = y / ((y**2).mean(-1, keepdim=True) + eps).sqrt()
        gate = x @ layer.output_gate.projection.weight[rows].T
        outputs.append(gate / (1 + torch.exp(-gate)) * y)
    return torch.cat(outputs, -1) @ layer.output.weight.T + layer.output.bias


@given(lengths, st.sampled_from([(8, 2), (12, 3), (16, 4), (4, 1)]), seeds())
def test_the_layer_is_the_printed_computation(length, shape, seed):
    """The zoo's retention is rotation, decayed scores, RMS norm of each head, swish gate and output projection
    (arXiv 2307.08621; conventions of torchscale, commit 4d1e0e8)."""
    dim, heads = shape
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = zoo.layer("retention", dim, heads).double()
    x = make_tensor((2, length, dim), "normal", seed, F64)
    gamma = [1 - 2.0 ** (-5 - h) for h in range(heads)]
    expected = torchscale_layer(layer, x, gamma, eps=1e-6, divisions=False)
    # The norm enlarges the rounding of a small row by up to 1 / sqrt(eps) = 1000.
    assert_close_to(layer(x), expected, scale=1e3 * max(1.0, expected.abs().max().item()), ulps=100)


@given(st.integers(2, 9), seeds())
def test_the_head_norm_removes_the_divisions_of_torchscale(length, seed):
    """torchscale divides the rows of D and of the scores by positive numbers. With a norm of epsilon 0 that changes
    nothing (torchscale issue 40), which is why the layer leaves the divisions out."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = zoo.layer("retention", 8, 2).double()
    layer.head_norm = HeadNorm(eps=0.0)
    x = make_tensor((2, length, 8), "normal", seed, F64)
    expected = torchscale_layer(layer, x, [1 - 2.0**-5, 1 - 2.0**-6], eps=0.0, divisions=True)
    assert (layer(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_the_divisions_count_where_epsilon_is_not_nought():
    """With the default epsilon a row of small values keeps a trace of its scale, so the two are not bit for bit
    alike: at inputs of 0.3 they differ visibly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = zoo.layer("retention", 8, 2).double()
    x = 0.3 * make_tensor((2, 6, 8), "normal", 0, F64)
    with_divisions = torchscale_layer(layer, x, [1 - 2.0**-5, 1 - 2.0**-6], eps=1e-6, divisions=True)
    assert (layer(x) - with_divisions).abs().max() > 1e-6
