"""The Triton kernels from outside: what they refuse and say, and that they compile for a GPU where there is none."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import pytest
import torch

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, LowRankBias, ManhattanDecay, attend
from biases.attention import _problem
from biases.axial import attend_decomposed
from biases.backends import Problem, triton
from biases.backends.triton import decomposed
from biases.positions import Rotary

installed = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not installed, reason="triton is not installed")
# Bytes of shared memory that a program may take on compute capability 9.0.
SHARED = 227 * 1024


def problem(
    bias: Any = None,
    gate: KeyGate | None = None,
    weights: str = "sigmoid",
    decay: Any = None,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    width: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    q = torch.randn(1, 2, 6, width, dtype=dtype)
    return _problem(q, q, q, bias, gate, weights, decay, mask, False, None, None, dropout, None)


past = ExponentialDecay(torch.tensor([-0.1, -0.2]), placement="weights")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mask": torch.ones(6, 6, dtype=torch.bool)}, "a mask over pairs"),
        ({"dropout": 0.1}, "dropout"),
        ({"weights": "linear"}, "linear weights"),
        ({"bias": LowRankBias(torch.ones(2, 6, 1), torch.ones(2, 6, 1))}, "LowRankBias is neither linear"),
        ({"decay": ManhattanDecay(2, 3, 2)}, "ManhattanDecay is neither linear"),
        ({"gate": KeyGate(torch.zeros(1, 1, 6), eps=1e-3)}, "a gate with eps > 0"),
        ({"weights": "softmax", "decay": past}, "a decay of the past alone after weights"),
        ({"width": 257}, "wider than 256"),
        ({"dtype": torch.float64}, "not in torch.float64"),
        ({}, "interpreter only" if installed else "not installed"),
    ],
)
def test_what_the_kernels_refuse(options: dict[str, Any], reason: str) -> None:
    """``why_not`` says why, and the named backend raises it."""
    given = problem(**options)
    assert reason in str(triton.why_not(given))
    with pytest.raises(ValueError, match="backend 'triton'"):
        triton.run(given)


def test_a_named_backend_that_cannot_run_says_why() -> None:
    q = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"backend 'triton': .*float64"):
        attend(q, q, q, weights="sigmoid", backend="triton")


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((1, 2, 17, 16, 8), {}, "a map of 17 x 16"),
        ((1, 2, 33, 2, 8), {}, "a map of 33 x 2"),
        ((1, 2, 4, 4, 129), {}, "wider than 128"),
        ((1, 2, 4, 4, 8), {"rotated": True}, "turned along its axis"),
        ((1, 2, 4, 4, 8), {"biases": (KeyBias(torch.zeros(1, 2, 4)),)}, "KeyBias is not linear"),
        ((1, 2, 4, 4, 8), {"decay": past}, "a decay of the past alone"),
        ((1, 2, 4, 4, 8), {"weights": "linear"}, "linear weights"),
        ((1, 2, 16, 16, 128), {}, "interpreter only" if installed else "not installed"),
    ],
)
def test_what_one_kernel_for_both_passes_refuses(shape: tuple[int, ...], options: dict[str, Any], reason: str) -> None:
    q = torch.randn(shape)
    terms = {"biases": (), "weights": "softmax", "decay": None} | options
    assert reason in str(decomposed.why_not(q, q, **terms))


def test_passes_that_no_kernel_takes_whole_go_one_by_one() -> None:
    """The named backend then refuses each pass by itself, and says why; others do not ask."""
    q = torch.randn(1, 2, 3, 4, 8)
    with pytest.raises(ValueError, match="backend 'triton'"):
        attend_decomposed(q, q, q, rotation=Rotary(8), backend="triton")
    assert attend_decomposed(q, q, q, rotation=Rotary(8)).shape == q.shape


@pytest.mark.parametrize(
    "options",
    [
        {"bias": (ALiBi(3),)},
        {"weights": "soft"},
        {"scale": -1.0},
        {"order": "depth-first"},
        {"masks": (None, torch.ones(1, 3, 3, dtype=torch.bool))},
    ],
)
def test_both_ways_refuse_the_same_arguments(options: dict[str, Any]) -> None:
    """The one kernel validates as the two passes do."""
    q = torch.randn(1, 2, 3, 4, 8)
    with pytest.raises(ValueError, match="expected") as two:
        attend_decomposed(q, q, q, backend="fused", **options)
    with pytest.raises(ValueError, match="expected") as one:
        attend_decomposed(q, q, q, backend="triton", **options)
    assert str(one.value) == str(two.value)


@pytest.mark.parametrize("side", [1, 5, 31, 32])
def test_masks_are_packed_bit_by_bit(side: int) -> None:
    mask = torch.rand(3, side, side, generator=torch.Generator().manual_seed(side)) < 0.5
    words = decomposed.pack(mask)
    assert words.dtype == torch.int32
    unpacked = [[[bool((int(word) >> bit) & 1) for bit in range(side)] for word in row] for row in words]
    assert torch.equal(torch.tensor(unpacked), mask)


STRIDES = {"q": 4, "k": 4, "v": 4, "out": 4, "grad": 4, "dq": 4, "dk": 4, "dv": 4, "inside": 3, "between": 3}
HALF = {"q", "k", "v", "out", "grad", "dq", "dk", "dv", "dy_first"}
COUNTS = {"heads", "queries", "keys", "offset", "window"}


def compile_for_h100(name: str, constants: dict[str, Any], missing: set[str], options: dict[str, int]) -> int:
    """Compile a kernel of bfloat16 for compute capability 9.0; bytes of shared memory that a program takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, function = name.rpartition(".")
    kernel = getattr(importlib.import_module(f"biases.backends.triton.{module}"), function)
    maps = module.startswith("decomposed")
    signature: dict[str, Any] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    for index, argument in enumerate(kernel.arg_names):
        stem = argument.removesuffix("_strides")
        if argument in constants or argument in missing:
            signature[argument], fixed[(index,)] = "constexpr", constants.get(argument)
        elif stem != argument:
            count = 5 if maps else STRIDES[stem]
            signature[argument] = ("i32",) * (count - 1) + ("constexpr",)
            fixed[(index, count - 1)] = 1
        elif argument == "masks":
            signature[argument] = ("i32", "i32")
        elif argument in COUNTS:
            signature[argument] = "i32"
        elif argument == "scale":
            signature[argument] = "fp32"
        else:
            signature[argument] = "*i32" if argument.endswith("_bits") else "*bf16" if argument in HALF else "*fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    return int(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared)


def shared_memory(describe: Callable[..., tuple[Any, ...]], *arguments: Any) -> int:
    """Bytes of shared memory that a program of the described kernel takes."""
    return compile_for_h100(*describe(*arguments))


@pytest.fixture(scope="module")
def compiler():
    """A process in which kernels are compiled, whatever this one was told."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "0", "PYTHONWARNINGS": "ignore"}):
            assert pool.submit(os.getenv, "TRITON_INTERPRET").result(timeout=120) == "0"
        yield lambda *arguments: pool.submit(shared_memory, *arguments).result(timeout=280)


def pair_kernel(name: str, width: int, kind: str, causal: bool, places: int, small: bool) -> tuple[Any, ...]:
    from biases.backends.triton.blocks import blocks, padded

    table = {"forward": "forward", "backward_queries": "queries", "backward_keys": "keys"}
    chosen = blocks(table[name], width, 2)
    constants = {
        "KIND": kind,
        "CAUSAL": causal,
        "WINDOW": causal,
        "WITH_KEYS": places & 3,
        "LEARNED": places & 3 if name == "backward_keys" else places,
        "QUERIES": 16 if small else chosen.queries,
        "KEYS": 16 if small else chosen.keys,
        **{"D": width, "DV": width, "WIDTH": padded(width), "V_WIDTH": padded(width), "PRECISION": "ieee"},
    }
    missing = {prefix + stem for n, stem in enumerate(("inside", "between", "outside")) if not places >> n & 1
               for prefix in ("", "key_")}  # fmt: skip
    module = "pairwise_keys" if name == "backward_keys" else "pairwise_kernels"
    options = {"num_warps": 4 if small else chosen.warps, "num_stages": chosen.stages}
    return f"{module}.{name}", constants, missing, options


def map_kernel(name: str, height: int, width: int, head: int, kind: str, places: int) -> tuple[Any, ...]:
    from biases.backends.triton import decomposed_ops

    q = torch.empty(1, 1, height, width, head, dtype=torch.bfloat16)
    sides = (width, height) if name == "backward_rows" else (height, width)
    constants = decomposed_ops._settings(q, q, *sides) | {"KIND": kind, "LEARNED": places}
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages")}
    missing = {stem for n, stem in enumerate(("inside", "between", "outside")) if not places >> n & 1}
    module = "decomposed_kernels" if name == "forward" else "decomposed_backward"
    return f"{module}.{name}", constants, missing, options


PAIR_KERNELS = ("forward", "backward_queries", "backward_keys")


@needs_triton
@pytest.mark.parametrize("name", PAIR_KERNELS)
def test_kernels_of_pairs_compile(compiler, name: str) -> None:
    """Every construct of the kernels: all terms, all gradients, in the smallest blocks."""
    assert compiler(pair_kernel, name, 16, "log-sigmoid", True, 7, True) <= SHARED


@needs_triton
@pytest.mark.parametrize(("name", "side"), [("forward", 3), ("backward_columns", 3), ("backward_rows", 9)])
def test_kernels_of_maps_compile(compiler, name: str, side: int) -> None:
    assert compiler(map_kernel, name, side, side, 16, "log-sigmoid", 7) <= SHARED


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "log-sigmoid"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("name", PAIR_KERNELS)
def test_blocks_of_pairs_fit_on_an_h100(compiler, name: str, width: int, causal: bool, kind: str) -> None:
    """Every row of the table of block sizes, in bfloat16."""
    assert compiler(pair_kernel, name, width, kind, causal, 5, False) <= SHARED


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "head"), [(7, 7, 32), (14, 14, 32), (16, 16, 64), (16, 16, 128)])
@pytest.mark.parametrize("name", ["forward", "backward_columns", "backward_rows"])
def test_tiles_of_maps_fit_on_an_h100(compiler, name: str, height: int, width: int, head: int) -> None:
    assert compiler(map_kernel, name, height, width, head, "softmax", 5) <= SHARED
