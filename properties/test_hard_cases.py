"""Corners that broke a fast path once, here or elsewhere: derivatives of derivatives, underflow, junk at padding."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, SelfAttention, attend, zoo
from biases.backends import keybias
from biases.bench import peak_bytes
from biases.testing.compare import assert_within
from biases.testing.strategies import make_tensor, seeds

BACKENDS = ("auto", "dense", "reference")


def qkv(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [make_tensor(shape, seed=seed + n, dtype=dtype) for n in range(3)]


def test_second_derivatives_are_an_error_and_never_wrong() -> None:
    """The fused kernel has none. ``autograd.grad`` with named inputs must not leave attention's part out in silence."""
    q, k, v = qkv(0, (1, 1, 6, 8))
    gate = KeyGate(torch.nn.functional.logsigmoid(make_tensor((1, 1, 6), seed=4, dtype=torch.float64)))

    def second(backend: str) -> Tensor:
        a = q.clone().requires_grad_()
        (first,) = torch.autograd.grad(
            attend(a, k, v, key_gate=gate, backend=backend).square().sum(), a, create_graph=True
        )
        return torch.autograd.grad((first * a).sum(), a)[0]

    assert torch.allclose(second("dense"), second("reference"))
    with pytest.raises(NotImplementedError, match=r"attend\(..., backend='dense'\)"):
        second("auto")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", ["softmax", "sigmoid"])
@pytest.mark.parametrize("length", [200, 1200])
def test_renormalised_decay_keeps_its_limit_where_it_underflows(backend: str, weights: str, length: int) -> None:
    """All near keys are padding: what is left of gamma^distance is 1e-57 or 0, its ratios are not."""
    q, k, v = qkv(1, (1, 1, length, 8), torch.float32)
    keep = (torch.arange(length) < 10)[None, None, None]
    decay = ExponentialDecay.from_rates(torch.tensor([0.5]), placement="weights-renormalised")
    out = attend(q, k, v, mask=keep, causal=True, decay=decay, weights=weights, backend=backend)[0, 0, -1]
    logits = (q[0, 0, -1] @ k[0, 0, :10].T / 8**0.5).double()
    log = torch.arange(10).double() * torch.log(torch.tensor(2.0)).double()
    log = log + (logits if weights == "softmax" else torch.nn.functional.logsigmoid(logits))
    # The logarithms themselves, up to length * log 2, are rounded in float32.
    rounding = torch.finfo(torch.float32).eps * length
    assert torch.allclose(out.double(), torch.softmax(log, 0) @ v[0, 0, :10].double(), rtol=0, atol=1e-6 + 2 * rounding)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [-110.0, -1e4, -1e30])
def test_a_constant_gate_is_no_gate_however_small(backend: str, level: float) -> None:
    """The renormalisation is taken in the limit eps -> 0 (arXiv 2605.21842 Eq. 4 with a constant gate)."""
    q, k, v = qkv(2, (1, 2, 9, 4), torch.float32)
    for weights in ("softmax", "sigmoid"):
        gated, unit = (
            attend(q, k, v, weights=weights, causal=True, backend=backend, key_gate=KeyGate(torch.full((1, 2, 9), g)))
            for g in (level, 0.0)
        )
        assert torch.allclose(gated, unit, rtol=1e-5, atol=1e-6)


@given(seeds(), st.sampled_from([1.0, 30.0, 120.0]), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_keys_left_out_as_negligible_are_negligible(seed: int, size: float, dtype: torch.dtype) -> None:
    """Adversarial directions: the far key has the largest logit that is possible, the own key the smallest."""
    u = make_tensor((1, 8), seed=seed, dtype=torch.float64)[0]
    u = (u / u.norm() * size).to(dtype)
    q, k = u.expand(1, 1, 2, 8).contiguous(), torch.stack([u, -u])[None, None]
    v = torch.tensor([[1.0], [2.0]]).repeat(1, 8)[None, None].to(dtype)
    reach = float(u.double() @ u.double()) / 8**0.5
    for slope in (1.99 * reach, 2.0 * reach, 2.0 * reach + 20):
        bias = ALiBi(torch.tensor([slope], dtype=torch.float64))
        out, low = (attend(q, k, v, bias=bias, causal=True, backend=b) for b in ("auto", "dense"))
        exact = attend(q.double(), k.double(), v.double(), bias=bias, causal=True, backend="reference")
        assert_within(out, exact, low, magnitude=2.0 * max(1.0, reach))


@pytest.mark.parametrize("path", ["kernel", "channels"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("level", [9e3, -9e3, -1e4])
def test_large_key_biases_fit_into_half_precision(
    path: str, dtype: torch.dtype, level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """b / scale exceeds 65504: one such key, and all of them, by both formulations of the key bias."""
    if path == "channels":
        monkeypatch.setattr(keybias, "_CPU_FORWARD", None)
    q, k, v = qkv(3, (1, 2, 7, 64), dtype)
    one = torch.zeros(1, 1, 7)
    one[..., 2] = level
    for values in (one, torch.full((1, 1, 7), level)):
        for bias in (KeyBias(values), (KeyBias(values), ALiBi(2, symmetric=True))):
            out, low = (attend(q, k, v, bias=bias, backend=b) for b in ("auto", "dense"))
            exact = attend(q.double(), k.double(), v.double(), bias=bias, backend="reference")
            # The dense formulas in half precision round such logits themselves; the fast path must not.
            assert_within(out, exact, attend(q.float(), k.float(), v.float(), bias=bias, backend="dense").to(dtype))
            assert bool(torch.isfinite(low).all())


@given(seeds(), st.booleans(), st.booleans())
def test_extra_channels_equal_the_kernel(seed: int, causal: bool, padded: bool) -> None:
    """The formulation for devices without the CPU's kernel, forward and backward, with excluded keys and empty rows."""
    tensors = [x.requires_grad_() for x in qkv(seed, (2, 2, 7, 4))]
    b = make_tensor((2, 2, 7), seed=seed + 3, dtype=torch.float64).requires_grad_()
    keep = torch.rand(2, 7, generator=torch.Generator().manual_seed(seed)) < 0.5
    keep[0] = False
    mask = keep[:, None, None] if padded else None

    def grads() -> list[Tensor]:
        out = attend(*tensors, bias=KeyBias(b), causal=causal, mask=mask)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [*tensors, b])]

    kernel = grads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keybias, "_CPU_FORWARD", None)
        channels = grads()
    for a, c in zip(kernel, channels, strict=True):
        assert torch.allclose(a, c, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_biases_and_gates_of_padded_keys_do_not_count(backend: str) -> None:
    """NaN in the bias or the gate of a padded key is as excluded as NaN in the key."""
    q, k, v = qkv(4, (1, 2, 6, 4))
    keep = torch.tensor([True, True, False, True, False, True])
    junk = torch.zeros(1, 2, 6, dtype=torch.float64).masked_fill(~keep, float("nan"))
    clean = attend(q, k, v, mask=keep, backend=backend)
    for options in (
        {"bias": KeyBias(junk)},
        {"key_gate": KeyGate(junk)},
        {"key_gate": KeyGate(junk, renormalise=False)},
    ):
        assert torch.allclose(attend(q, k, v, mask=keep, backend=backend, **options), clean)


@pytest.mark.parametrize("name", zoo.names("layer", "sequence"))
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name: str, side: str) -> None:
    """A sequence gives the same with junk beside it that ``keep`` marks as padding."""
    layer = zoo.layer(name, 16, 2).double().eval()
    with torch.no_grad():
        for n, parameter in enumerate(layer.parameters()):
            parameter.add_(0.3 * make_tensor((1, *parameter.shape), seed=n, dtype=torch.float64)[0])
    x = make_tensor((1, 11, 16), seed=7, dtype=torch.float64)
    junk = make_tensor((1, 5, 16), seed=8, dtype=torch.float64)
    there, gone = torch.ones(1, 11, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.bool)
    if side == "left":
        out = layer(torch.cat([junk, x], 1), torch.cat([gone, there], 1))[:, 5:]
    else:
        out = layer(torch.cat([x, junk], 1), torch.cat([there, gone], 1))[:, :11]
    assert torch.allclose(out, layer(x), rtol=1e-9, atol=1e-11)


def test_column_major_inputs_keep_the_fast_path() -> None:
    """Stock attention takes its dense path on them; the formulations with a mask must not hand them on."""

    def peak(v: Tensor) -> int:
        q, k = (make_tensor((1, 2, 2048, 8), seed=n) for n in range(2))
        return peak_bytes(lambda: attend(q, k, v, bias=ALiBi(2, symmetric=True)))

    row_major = make_tensor((1, 2, 2048, 8), seed=2)
    assert peak(make_tensor((1, 2, 8, 2048), seed=2).mT) < peak(row_major) + 2 * row_major.numel() * 4


@pytest.mark.parametrize("term", ["bias", "decay"])
def test_learned_terms_belong_to_the_layer(term: str) -> None:
    """They are trained, saved, moved, copied; a tensor that the layer could not save is refused."""
    rates = nn.Parameter(torch.tensor([-0.3, -0.1]))
    learned = {"bias": lambda x: ALiBi(-x), "decay": ExponentialDecay}[term]
    if term == "bias":
        slopes = nn.Parameter(torch.tensor([0.3, 0.1]))
        layer, parameter = SelfAttention(16, 2, bias=ALiBi(slopes)), slopes
    else:
        layer, parameter = SelfAttention(16, 2, decay=ExponentialDecay(rates)), rates
    assert any(p is parameter for p in layer.parameters())
    assert "learned_terms.0" in layer.state_dict()
    x = make_tensor((1, 9, 16), seed=1)
    for _ in range(2):
        layer(x).square().sum().backward()
    assert bool((parameter.grad != 0).any())
    twin = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    with torch.no_grad():
        twin.learned_terms[0].mul_(3.0)
    assert not torch.allclose(twin(x), layer(x))
    assert layer.double()(x.double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"expected an nn.Parameter.*got another tensor"):
        SelfAttention(16, 2, **{term: learned(rates * 1.0)})


def test_function_transforms() -> None:
    """``torch.func``: per-example gradients and stacked models, through the own backward of the key bias."""
    layer = zoo.layer("ega", 16, 2)
    parameters = dict(layer.named_parameters())
    x = make_tensor((3, 1, 7, 16), seed=5)

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, p, (x,)).square().sum()

    per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for n in range(3):
        alone = torch.autograd.grad(loss(parameters, x[n]), list(parameters.values()))
        for name, expected in zip(parameters, alone, strict=True):
            assert torch.allclose(per_example[name][n], expected, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("name", zoo.names("layer", "sequence"))
def test_autocast_changes_no_more_than_its_projections(name: str) -> None:
    """Under bfloat16 autocast the layer is as accurate as one in bfloat16, and gives finite numbers."""
    layer = zoo.layer(name, 16, 2).eval()
    x = make_tensor((1, 40, 16), seed=6)
    exact = copy.deepcopy(layer).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    low = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    error, budget = ((y.double() - exact).abs().max().item() for y in (out, low))
    assert error <= 2 * budget + 1e-3


@pytest.mark.parametrize("name", zoo.names("layer", "sequence"))
def test_meta_device(name: str) -> None:
    """Layers can be built and run without memory, as large models are planned."""
    with torch.device("meta"):
        layer = zoo.layer(name, 16, 2)
        assert layer(torch.randn(1, 9, 16)).shape == (1, 9, 16)
