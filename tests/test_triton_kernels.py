"""The Triton kernels from outside: what they refuse, what they say, and how terms are brought to them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, LowRankBias, ManhattanDecay, attend
from biases.attention import _problem
from biases.axial import attend_decomposed
from biases.backends import Problem, triton
from biases.backends.triton import decomposed, support
from biases.backends.triton.blocks import precision
from biases.backends.triton.plan import plan_terms
from biases.positions import Rotary

installed = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not installed, reason="triton is not installed")


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
    assert reason in str(decomposed.why_not(q, q, q, **terms))


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


def transforms() -> dict[str, Callable[..., Any]]:
    """Name -> (x, function) -> calls ``function`` with ``x`` under a transform."""

    def batched(x: torch.Tensor, function: Callable[[torch.Tensor], Any]) -> None:
        torch.func.vmap(lambda y: (function(y), y)[1])(x[None])

    def dual(x: torch.Tensor, function: Callable[[torch.Tensor], Any]) -> None:
        with forward_ad.dual_level():
            function(forward_ad.make_dual(x, torch.ones_like(x)))

    return {"vmap": batched, "forward mode": dual}


@pytest.mark.parametrize("transform", ["vmap", "forward mode"])
@pytest.mark.parametrize("which", range(5))
def test_transformed_tensors_are_refused(monkeypatch: pytest.MonkeyPatch, which: int, transform: str) -> None:
    """Wherever in the problem they are; without a transform the kernels would run."""
    monkeypatch.setattr(triton, "why_no_kernels", lambda x: None)
    x, keys = torch.ones(1, 2, 4, 8), torch.zeros(1, 2, 4)

    def why(parts: list[torch.Tensor]) -> str | None:
        q, k, v, bias, log = parts
        gate = KeyGate(log, renormalise=False)
        return triton.why_not(
            _problem(q, k, v, KeyBias(bias), gate, "sigmoid", None, None, False, None, None, 0.0, None)
        )

    parts, found = [x, x, x, keys, keys], []
    assert why(parts) is None
    transforms()[transform](parts[which], lambda y: found.append(why([*parts[:which], y, *parts[which + 1 :]])))
    assert found == [triton.TRANSFORMED]


@pytest.mark.parametrize("transform", ["vmap", "forward mode"])
@pytest.mark.parametrize("which", range(4))
def test_transformed_maps_are_refused(monkeypatch: pytest.MonkeyPatch, which: int, transform: str) -> None:
    monkeypatch.setattr(decomposed, "why_no_kernels", lambda x: None)
    x, rates, found = torch.ones(1, 2, 3, 3, 8), torch.tensor([-0.1, -0.2]), []

    def why(parts: list[torch.Tensor]) -> str | None:
        decay = ExponentialDecay(torch.tensor([-0.1, -0.2]), symmetric=True)
        decay._slopes = parts[3]
        return decomposed.why_not(*parts[:3], biases=(), weights="softmax", decay=decay)

    parts = [x, x, x, rates]
    assert why(parts) is None
    transforms()[transform](parts[which], lambda y: found.append(why([*parts[:which], y, *parts[which + 1 :]])))
    assert found == [triton.TRANSFORMED]


@pytest.fixture
def _precision() -> Iterator[None]:
    """Both ways to choose the precision of products in float32 are as they were afterwards."""
    yield
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("_precision")
def test_products_are_as_exact_as_the_user_asked() -> None:
    """By the older function and by the newer attribute, after which the older one can no longer be asked."""
    assert precision(torch.float32) == "ieee"
    torch.set_float32_matmul_precision("high")
    assert precision(torch.float32) == "tf32"
    assert precision(torch.bfloat16) == "ieee"
    torch.set_float32_matmul_precision("highest")
    assert precision(torch.float32) == "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert precision(torch.float32) == "tf32"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert precision(torch.float32) == "ieee"


@needs_triton
@pytest.mark.parametrize(
    ("capability", "version", "reason"),
    [
        ((8, 0), "3.5.0", None),
        ((9, 0), "3.10.1", None),
        ((7, 5), "3.9.0", "the device has (7, 5)"),
        ((9, 0), "3.4.0", "triton 3.4.0 is older than 3.5"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_device_is_asked_while_compiling_too(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], version: str, reason: str | None, compiled: bool
) -> None:
    """A device or a Triton that is too old is told in traced functions as anywhere."""
    import triton as package

    from biases.backends.triton import traced

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(package, "__version__", version)

    # Compiled functions are kept by their code.
    torch.compiler.reset()

    def told(x: torch.Tensor) -> torch.Tensor:
        why = traced.why_unsupported if compiled else support.why_unsupported
        return x if why("cuda", 0) is None else x + 1

    run = torch.compile(told, fullgraph=True, backend="eager", dynamic=False) if compiled else told
    assert bool(run(torch.zeros(1))) == (reason is not None)
    assert reason is None or reason in str(support.why_unsupported("cuda", 0))


def test_tensors_of_the_cpu_are_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed slopes, key biases and gates that were made on the CPU: each call would wait for the device otherwise."""
    decay = ExponentialDecay(torch.tensor([-0.1, -0.2]), symmetric=True, placement="logits")
    terms = (ALiBi(torch.ones(2)), KeyBias(torch.zeros(1, 2, 4)))
    gate, meta = KeyGate(torch.zeros(1, 2, 4)), torch.device("meta")
    copied, real = [], torch.Tensor.to

    def counted(x: torch.Tensor, *to: Any, **options: Any) -> torch.Tensor:
        if x.device.type == "cpu" and meta in to:
            copied.append(x)
        return real(x, *to, **options)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    for _ in range(3):
        made = plan_terms("sigmoid-normalised", terms, decay, gate, 2, meta)
        assert all(x is not None and x.device == meta for x in (made.inside, made.key_inside, made.key_between))
    assert len(copied) == 4


def test_terms_are_brought_to_their_form_in_traced_functions() -> None:
    decay = ExponentialDecay(torch.tensor([-0.1, -0.2]), symmetric=True, placement="logits")
    terms, gate = (ALiBi(torch.ones(2)), KeyBias(torch.ones(1, 2, 4))), KeyGate(torch.full((1, 2, 4), -1.0))

    def numbers(x: torch.Tensor) -> list[torch.Tensor | None]:
        made = plan_terms("sigmoid-normalised", terms, decay, gate, 2, x.device)
        return [made.inside, made.key_inside, made.key_between]

    x = torch.zeros(1)
    compiled = torch.compile(numbers, fullgraph=True, backend="eager")(x)
    assert all(torch.equal(a, b) for a, b in zip(compiled, numbers(x), strict=True))


@pytest.mark.parametrize("side", [1, 5, 31, 32])
def test_masks_are_packed_bit_by_bit(side: int) -> None:
    mask = torch.rand(3, side, side, generator=torch.Generator().manual_seed(side)) < 0.5
    words = decomposed.pack(mask)
    assert words.dtype == torch.int32
    unpacked = [[[bool((int(word) >> bit) & 1) for bit in range(side)] for word in row] for row in words]
    assert torch.equal(torch.tensor(unpacked), mask)
