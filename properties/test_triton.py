"""The Triton kernels equal the specification: in Triton's interpreter on the CPU, and compiled on a GPU.

Inputs are views into memory full of NaN, and results are written into memory full of NaN: a number read from outside
would make a result NaN, and one written outside is counted.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton_cases import Maps, Pairs, compare

from biases import attend
from biases.testing import assert_close_to
from biases.testing.strategies import seeds

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

WEIGHTS = ("sigmoid", "sigmoid-normalised", "softmax")
PLACEMENTS = (None, "logits", "weights", "weights-renormalised")


@pytest.fixture(scope="module")
def interpreter():
    """A process in which kernels are interpreted."""
    settings_of_child = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with mock.patch.dict(os.environ, settings_of_child):
            # The process starts with its first task.
            assert pool.submit(os.getenv, "TRITON_INTERPRET").result(timeout=120) == "1"
        yield lambda case: pool.submit(compare, case).result(timeout=240)


@st.composite
def pairs(draw: st.DrawFn) -> Pairs:
    L = draw(st.integers(1, 34))
    S = L if draw(st.booleans()) else draw(st.integers(1, 34))
    causal, weights = draw(st.booleans()), draw(st.sampled_from(WEIGHTS))
    decay = draw(st.sampled_from(PLACEMENTS))
    names = ("alibi", "alibi-symmetric", "key")
    gate = draw(st.sampled_from([None, "renormalised", "plain"]))
    # A decay of the past alone makes a problem causal, but where the weights were normalised over the future before.
    normalised = decay == "weights" and weights != "sigmoid" and gate != "renormalised"
    return Pairs(
        L,
        S,
        None if L == S else draw(st.sampled_from(["upper-left", "lower-right"])),
        D=draw(st.sampled_from([8, 20, 33])),
        Dv=draw(st.sampled_from([8, 12, 40])),
        weights=weights,
        causal=causal,
        window=draw(st.sampled_from([None, 1, 5, 21])) if causal else None,
        bias=tuple(name for name in names if draw(st.booleans())),
        gate=gate,
        decay=decay,
        symmetric=(normalised and not causal) or draw(st.booleans()),
        keep=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "float16"])),
        blocks=draw(st.sampled_from([(16, 16), (32, 16), (16, 32)])),
        heads_last=draw(st.booleans()),
        seed=draw(seeds()),
    )


FULL = ("alibi", "alibi-symmetric", "key")


@settings(max_examples=10)
@example(Pairs(1, 1, None, 8, 8, "sigmoid", decay="weights", bias=FULL, blocks=(16, 16)))
@example(Pairs(21, 18, "lower-right", 8, 8, "sigmoid", decay="weights", symmetric=False, blocks=(16, 16)))
@example(Pairs(70, 70, None, 24, 16, "sigmoid", True, 30, bias=FULL, decay="weights", blocks=(16, 16), heads=1))
@example(Pairs(35, 51, "lower-right", 8, 8, "softmax", bias=FULL, decay="weights", keep=True, blocks=(16, 16)))
@example(Pairs(40, 17, "lower-right", 64, 8, "sigmoid-normalised", True, None, decay="weights", blocks=(16, 16)))
@example(Pairs(33, 49, "upper-left", 8, 64, "sigmoid", False, gate="renormalised", bias=FULL, decay="weights-renormalised", blocks=(16, 16)))  # fmt: skip  # noqa: E501
@given(pairs())
def test_pairs_equal_the_specification(interpreter, case: Pairs) -> None:
    """Output and gradients by queries, keys, values, slopes, rates, key biases and gates."""
    learned = {"alibi": "slopes", "alibi-symmetric": "symmetric", "key": "key"}
    expected = {"output", "q", "k", "v", *(learned[name] for name in case.bias)}
    expected |= {"gate"} if case.gate else set()
    expected |= {"rates"} if case.decay else set()
    assert set(interpreter(case)) == expected


@st.composite
def maps(draw: st.DrawFn) -> Maps:
    count = st.sampled_from([0, 0, 1, 2])
    return Maps(
        draw(st.integers(1, 7)),
        draw(st.integers(1, 7)),
        D=draw(st.sampled_from([8, 20])),
        Dv=draw(st.sampled_from([8, 12])),
        weights=draw(st.sampled_from(WEIGHTS)),
        order=draw(st.sampled_from(["width-first", "height-first"])),
        bias=draw(st.sampled_from([None, "alibi", "alibi-symmetric"])),
        decay=draw(st.sampled_from(PLACEMENTS)),
        masks=(draw(count), draw(count)),
        heads=draw(st.integers(1, 2)),
        dtype=draw(st.sampled_from(["float32", "float16"])),
        tile=draw(st.sampled_from([16, 64])),
        heads_last=draw(st.booleans()),
        seed=draw(seeds()),
    )


@settings(max_examples=10)
@example(Maps(1, 1, 8, 8, "softmax"))
@example(Maps(7, 7, 24, 24, "sigmoid", bias="alibi", decay="weights", masks=(2, 1), tile=64))
@example(Maps(14, 3, 8, 8, "softmax", decay="weights", masks=(1, 2), tile=16, heads=1))
@example(Maps(3, 14, 8, 8, "sigmoid-normalised", "height-first", "alibi-symmetric", "logits", (2, 2), tile=16, heads=1))
@given(maps())
def test_maps_equal_the_specification(interpreter, case: Maps) -> None:
    """Both passes in one kernel: output and gradients by queries, keys, values, slopes and rates."""
    expected = {"output", "q", "k", "v"} | ({"slopes"} if case.bias else set()) | ({"rates"} if case.decay else set())
    assert set(interpreter(case)) == expected


GPU_PAIRS = [
    *((weights, 64, dtype) for weights in WEIGHTS for dtype in ("bfloat16", "float32")),
    *(("sigmoid", width, dtype) for width in (20, 128, 256) for dtype in ("bfloat16", "float32")),
    ("sigmoid-normalised", 128, "bfloat16"),
    ("sigmoid", 64, "float16"),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("weights", "D", "dtype"), GPU_PAIRS)
def test_pairs_on_a_gpu(weights: str, D: int, dtype: str) -> None:
    """The compiled kernels with their own block sizes: causal, windowed, and over everything."""
    common = {"D": D, "Dv": D, "dtype": dtype, "device": "cuda", "decay": "weights", "heads_last": True}
    for L in (257, 4096):
        compare(Pairs(L, L, None, weights=weights, causal=True, bias=("alibi", "key"), **common))
        compare(Pairs(L, L, None, weights=weights, causal=True, window=200, symmetric=False, keep=True, **common))
        compare(Pairs(L, L + 3, "lower-right", weights=weights, bias=FULL, gate="renormalised", **common))


GPU_MAPS = [(7, 7, 32), (8, 8, 64), (7, 14, 20), (14, 14, 32), (16, 16, 64), (32, 8, 32), (16, 16, 128)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("height", "width", "D"), GPU_MAPS)
def test_maps_on_a_gpu(height: int, width: int, D: int, dtype: str) -> None:
    """The compiled kernels with their own tiles."""
    common = {"D": D, "Dv": D, "dtype": dtype, "device": "cuda", "batch": 4, "heads_last": True}
    compare(Maps(height, width, weights="softmax", decay="logits", **common))
    terms = {"bias": "alibi", "decay": "weights", "masks": (2, 4), "order": "height-first"}
    compare(Maps(height, width, weights="sigmoid", **terms, **common))
    if height * width <= 64:
        compare(Maps(height, width, weights="sigmoid-normalised", **terms, **common))


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31_on_a_gpu() -> None:
    """The last rows of a tensor of more than 2^31 numbers are those of a small one."""
    heads, length, width = 2, 2**20 + 128, 1152
    whole = torch.zeros(1, length, heads, width, dtype=torch.bfloat16, device="cuda")
    assert whole.numel() > 2**31
    generator = torch.Generator("cuda").manual_seed(0)
    whole[:, -64:, :, :64] = torch.randn(1, 64, heads, 64, device="cuda", generator=generator).bfloat16()
    x = whole.transpose(1, 2)[..., :64]
    options = {"weights": "sigmoid", "causal": True, "window": 32, "backend": "triton"}
    out = attend(x, x, x, **options)[:, :, -32:]
    small = x[:, :, -128:].clone()
    expected = attend(small, small, small, **options)[:, :, -32:]
    assert_close_to(out, expected, scale=float(expected.abs().max()), ulps=4)
