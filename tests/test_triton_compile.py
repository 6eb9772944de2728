"""The Triton kernels compile for a GPU where there is none, and what they hold fits into its shared memory."""

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

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
# Bytes of shared memory that a program may take on compute capability 9.0.
SHARED = 227 * 1024
STRIDES = {"q": 4, "k": 4, "v": 4, "out": 4, "grad": 4, "dq": 4, "dk": 4, "dv": 4, "inside": 3, "between": 3}
HALF = {"q", "k", "v", "out", "grad", "dq", "dk", "dv", "dy_first"}
COUNTS = {"heads", "queries", "keys", "offset", "window"}
LENGTHS = {"queries", "keys", "offset"}


def compile_for_h100(name: str, constants: dict[str, Any], missing: set[str], options: dict[str, int]) -> int:
    """Compile a kernel of bfloat16 for compute capability 9.0; bytes of shared memory that a program takes.

    Pointers, strides and lengths are multiples of 16, as launches on the tensors of a layer tell the compiler: only
    then are tiles copied asynchronously, each stage into shared memory of its own.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, function = name.rpartition(".")
    kernel = getattr(importlib.import_module(f"biases.backends.triton.{module}"), function)
    maps = module.startswith("decomposed")
    signature: dict[str, Any] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    aligned: list[tuple[int, ...]] = []
    for index, argument in enumerate(kernel.arg_names):
        stem = argument.removesuffix("_strides")
        if argument in constants or argument in missing:
            signature[argument], fixed[(index,)] = "constexpr", constants.get(argument)
        elif stem != argument:
            count = 5 if maps else STRIDES[stem]
            signature[argument] = ("i32",) * (count - 1) + ("constexpr",)
            fixed[(index, count - 1)] = 1
            aligned += [(index, n) for n in range(count - 1)]
        elif argument == "masks":
            signature[argument] = ("i32", "i32")
        elif argument in COUNTS:
            signature[argument] = "i32"
            if argument in LENGTHS:
                aligned.append((index,))
        elif argument == "scale":
            signature[argument] = "fp32"
        else:
            signature[argument] = "*i32" if argument.endswith("_bits") else "*bf16" if argument in HALF else "*fp32"
            aligned.append((index,))
    attributes = {place: [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
    return int(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared)


def shared_memory(describe: Callable[..., tuple[Any, ...]], *arguments: Any) -> int:
    """Bytes of shared memory that a program of the described kernel takes."""
    return compile_for_h100(*describe(*arguments))


def as_described(*description: Any) -> tuple[Any, ...]:
    return description


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


@pytest.mark.parametrize("name", PAIR_KERNELS)
def test_kernels_of_pairs_compile(compiler, name: str) -> None:
    """Every construct of the kernels: all terms, all gradients, in the smallest blocks."""
    assert compiler(pair_kernel, name, 16, "log-sigmoid", True, 7, True) <= SHARED


def test_the_compiled_kernel_is_the_one_with_stages(compiler) -> None:
    """Each tile in flight has memory of its own, which it has only where loads are known to be aligned."""
    name, constants, missing, options = pair_kernel("forward", 16, "sigmoid", False, 0, True)
    one, three = (
        compiler(as_described, name, constants, missing, options | {"num_stages": stages}) for stages in (1, 3)
    )
    assert one < three


@pytest.mark.parametrize(("name", "side"), [("forward", 3), ("backward_columns", 3), ("backward_rows", 9)])
def test_kernels_of_maps_compile(compiler, name: str, side: int) -> None:
    assert compiler(map_kernel, name, side, side, 16, "log-sigmoid", 7) <= SHARED


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "log-sigmoid"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("name", PAIR_KERNELS)
def test_blocks_of_pairs_fit_on_an_h100(compiler, name: str, width: int, causal: bool, kind: str) -> None:
    """Every row of the table of block sizes, in bfloat16."""
    assert compiler(pair_kernel, name, width, kind, causal, 5, False) <= SHARED


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "head"), [(7, 7, 32), (14, 14, 32), (16, 16, 64), (16, 16, 128)])
@pytest.mark.parametrize("name", ["forward", "backward_columns", "backward_rows"])
def test_tiles_of_maps_fit_on_an_h100(compiler, name: str, height: int, width: int, head: int) -> None:
    assert compiler(map_kernel, name, height, width, head, "softmax", 5) <= SHARED
