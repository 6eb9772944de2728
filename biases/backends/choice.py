"""Which backend runs a problem: the table of ``attend(backend="auto")``, with its evidence.

A row of :data:`ORDER` names, for a device and a family of problems, the backends in the order in which they are tried;
one that says :func:`why_not` is passed over, and ``fused`` ends every row, as it runs anything anywhere.
:data:`MEASURED` overrules the order where a backend was measured to be the fastest; ``python -m benchmarks.gpu
--print-table`` prints that dict from the results of ``make gpu``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from biases._checks import one_of
from biases.backends.flex import CompilationFailed
from biases.backends.fused import Formulation, formulate, fused
from biases.backends.score_mods import learned
from biases.backends.terms import KeyBias, LowRankBias, Problem, RelativeTerm

BACKENDS = ("native", "flex", "triton", "fused")
FAMILIES = {
    "plain": "no bias",
    "folded": "a gate that is not renormalised, and nothing else",
    "key": "a bias or renormalised gate of the key, or keys left out",
    "key-learned": "the same with gradients",
    "relative": "a bias or decay of the distance, or a window",
    "relative-learned": "the same with gradients",
    "map": "a bias or decay of the places on a map, or of unknown structure",
    "map-learned": "the same with gradients",
    "small": "a bias, keys left out, or a mask over pairs with either, of at most SMALL queries or keys (windows, "
    "decoding)",
    "low-rank": "a low-rank bias",
    "mask": "a mask over pairs and nothing else",
    "masked": "a mask over pairs with a bias or causality",
    "sigmoid": "sigmoid weights, normalised or not",
    "linear": "linear weights (retention)",
    "after": "softmax weights with what needs their plain row sums: decay after them, dropout, a gate with eps",
    "decomposed": "rows, then columns of a map of at most MAP_PIXELS pixels (attend_decomposed)",
    "decomposed-large": "rows, then columns of a larger map",
}
# FlexAttention pads queries and keys to blocks of 128; a dense tile of so few costs no more memory than the inputs.
SMALL = 128
# One kernel for both passes reads and writes half of what two passes do, and launches once. It multiplies tiles of
# T x T, T being 64 in half precision and 32 in float32: with n tiles to a map and p programs, p (2 n + 2) of them. Two
# passes multiply at least two such tiles for each row and each column, as their kernels pad short lines: 2 (H + W).
# Up to these pixels, whatever the sides, the former are no more than the latter (16 x 16 in half precision: 40 and 64);
# from there on the product grows as the square of the pixels: in float32, 16 x 16 takes 144 for 64.
MAP_PIXELS = {2: 256, 4: 64}
"""Bytes of a number -> most pixels of a map that is for one kernel."""


@dataclass(frozen=True)
class Row:
    """The backends in the order in which they are tried, and why in this order."""

    order: tuple[str, ...]
    evidence: str


_UNMEASURED = "documentation, not measured: "
_CPU = "one kernel for all biases, benchmarks/results/ratios_cpu.json"
_CPU_REST = "not measured; one kernel for all biases, as in the families that ratios_cpu.json has"
_CHUNKS = "chunk by chunk as in fused, with the state in cache, benchmarks/results/ratios_cpu.json"
_STOCK = "the stock kernel itself is the floor"
_FLEX = _UNMEASURED + "the bias is computed inside one kernel; a dense mask would rule out the flash backend"
_ATOMIC = _UNMEASURED + "channels over the flash kernel, as FlexAttention adds a key's gradient by atomic operations"
_REDUCED = (
    _UNMEASURED + "own kernel adds up the gradients of slopes; FlexAttention's atomic additions are spread over a table"
)
_SCATTER = _UNMEASURED + "FlexAttention's atomic additions are spread over a table; the other way is dense tiles"
_PASSES = "two passes, each of a family of its own"
_ONE_KERNEL = _UNMEASURED + "one kernel for both passes moves half the bytes, for no more products of padded tiles"
_TRITON = _UNMEASURED + "own kernel for what neither stock attention nor FlexAttention computes"

_STOCK_ON_CPU = ("plain", "linear", "decomposed")
_NOT_MEASURED_ON_CPU = ("low-rank", "mask", "masked", "after")

ORDER: dict[tuple[str, str], Row] = {
    ("cpu", "plain"): Row((), _STOCK),
    ("cpu", "linear"): Row(("native",), _CHUNKS),
    ("cpu", "decomposed"): Row((), _PASSES),
    ("cpu", "decomposed-large"): Row((), _PASSES),
    **{
        ("cpu", name): Row(("native",), _CPU_REST if name in _NOT_MEASURED_ON_CPU else _CPU)
        for name in FAMILIES
        if name.partition("-")[0] not in _STOCK_ON_CPU
    },
    ("cuda", "plain"): Row((), _UNMEASURED + _STOCK),
    ("cuda", "folded"): Row((), _UNMEASURED + _STOCK),
    ("cuda", "key"): Row(("flex",), _FLEX),
    ("cuda", "key-learned"): Row((), _ATOMIC),
    ("cuda", "relative"): Row(("flex",), _FLEX),
    ("cuda", "relative-learned"): Row(("triton", "flex"), _REDUCED),
    ("cuda", "map"): Row(("flex",), _FLEX),
    ("cuda", "map-learned"): Row(("flex",), _SCATTER),
    ("cuda", "small"): Row((), _UNMEASURED + "FlexAttention pads to blocks of 128"),
    ("cuda", "low-rank"): Row((), _UNMEASURED + "channels over the flash kernel"),
    ("cuda", "mask"): Row((), _UNMEASURED + "the stock kernel takes the mask as it is"),
    ("cuda", "masked"): Row(("flex",), _FLEX),
    ("cuda", "sigmoid"): Row(("triton",), _TRITON),
    ("cuda", "linear"): Row((), _UNMEASURED + "chunkwise does less work than any kernel over pairs"),
    ("cuda", "after"): Row(("triton",), _TRITON),
    ("cuda", "decomposed"): Row(("triton",), _ONE_KERNEL),
    ("cuda", "decomposed-large"): Row((), _UNMEASURED + "one kernel would multiply more than two passes do"),
}
"""(device type, family) -> row. Devices that are not in it run ``fused``."""

MEASURED: dict[tuple[str, str, str], str] = {}
"""(family, dtype, direction) -> the backend measured to be the fastest of the correct ones on CUDA, from
``benchmarks/results/gpu_choice.json``; empty until there is a measurement."""
MEASURED_EVIDENCE = "benchmarks/results/gpu_choice.json"


def family(problem: Problem) -> str:
    """The family of ``problem``, a key of :data:`FAMILIES`."""
    decay, gate, geometry = problem.decay, problem.key_gate, problem.geometry
    if problem.weights == "linear":
        return "linear"
    if problem.weights != "softmax":
        return "sigmoid"
    if problem.dropout or (gate is not None and gate.eps) or (decay is not None and decay.placement == "weights"):
        return "after"
    biases = problem.biases if decay is None else (*problem.biases, decay)
    gated = gate is not None and gate.renormalise
    small = min(geometry.L, geometry.S) <= SMALL
    if problem.mask is not None:
        alone = not biases and not gated and problem.keep is None and not geometry.causal
        return "mask" if alone else "small" if small else "masked"
    others = [term for term in biases if not isinstance(term, KeyBias | LowRankBias)]
    # A causal mask that the stock kernel does not have is a Toeplitz bias.
    shifted = geometry.causal and (geometry.offset != 0 or geometry.window is not None)
    if others or shifted:
        if small:
            return "small"
        name = "relative" if all(isinstance(term, RelativeTerm) for term in others) else "map"
        return f"{name}-learned" if any(learned(term) for term in biases) else name
    if any(isinstance(term, LowRankBias) for term in biases):
        return "low-rank"
    if biases or gated or problem.keep is not None:
        if small:
            return "small"
        gradient = any(learned(term) for term in biases) or (gated and gate.log.requires_grad)  # type: ignore[union-attr]
        return "key-learned" if gradient and torch.is_grad_enabled() else "key"
    return "plain" if gate is None else "folded"


def family_of_map(q: Tensor) -> str:
    """The family of :func:`biases.attend_decomposed` with queries ``q``, (B, heads, H, W, D)."""
    most = MAP_PIXELS.get(q.element_size(), 0)
    return "decomposed" if q.shape[2] * q.shape[3] <= most else "decomposed-large"


def direction(problem: Problem) -> str:
    """``"forward+backward"`` where gradients of the queries, keys or values will be asked for, else ``"forward"``."""
    return _direction(problem.q, problem.k, problem.v)


def _direction(*tensors: Tensor) -> str:
    asked = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return "forward+backward" if asked else "forward"


def one_kernel(q: Tensor, k: Tensor, v: Tensor, *, device: str | None = None) -> bool:
    """Whether ``attend_decomposed(backend="auto")`` asks the kernel that runs both passes before it makes them.

    Args:
        q, k: (B, heads, H, W, D); v: (B, heads, H, W, Dv).
        device: type of the device, that of ``q`` by default.
    """
    device = q.device.type if device is None else device
    row = _row(device, family_of_map(q), q.dtype, _direction(q, k, v))
    return bool(row) and row[0][0] == "triton"


def why_not(name: str, problem: Problem) -> str | None:
    """Why the backend ``name`` cannot run ``problem``; ``None`` if it can.

    Raises:
        ValueError: a name that is not in :data:`BACKENDS`.
    """
    one_of("backend", name, BACKENDS)
    return None if name == "fused" else backend_of(name).why_not(problem)


def choose(problem: Problem) -> Formulation:
    """How ``attend(backend="auto")`` runs ``problem``: the backend's name, or that of the formulation of ``fused``."""
    for name, evidence in _order(problem):
        if not _known_broken(name, problem) and backend_of(name).why_not(problem) is None:
            return Formulation(name, evidence)
    return formulate(problem)


def run(problem: Problem) -> Tensor:
    """The output of ``problem``, (B, H, L, Dv), by the first backend of its row that can run it.

    Where a kernel does not compile the next backend takes over, with one warning a kernel.
    """
    for name, _ in _order(problem):
        backend = backend_of(name)
        if _known_broken(name, problem) or backend.why_not(problem) is not None:
            continue
        if name == "native" or torch.compiler.is_compiling():
            # Compiled by now, or part of what is being compiled.
            return backend.run(problem)
        try:
            return backend.run(problem)
        except Exception as error:
            if not _of_compiler(error):
                raise
            _broken.add((name, *_kernel(problem)))
            what = f"attend: backend {name!r} failed to compile, another formulation is used: {error}"
            warnings.warn(what, RuntimeWarning, stacklevel=3)
    return fused(problem)


# Of this process; a kernel that did not compile is not tried again.
_broken: set[tuple[Any, ...]] = set()


def _known_broken(name: str, problem: Problem) -> bool:
    return bool(_broken) and (name, *_kernel(problem)) in _broken


def _kernel(problem: Problem) -> tuple[Any, ...]:
    """What problems share a kernel, or ought to fail alike."""
    q = problem.q
    return family(problem), q.dtype, q.device, q.shape[-1], problem.v.shape[-1], direction(problem)


def _of_compiler(error: Exception) -> bool:
    """Whether a kernel was not compiled, as opposed to one that ran and failed."""
    return isinstance(error, CompilationFailed) or type(error).__module__.partition(".")[0] == "triton"


def _row(device: str, kind: str, dtype: torch.dtype, asked: str) -> list[tuple[str, str]]:
    """The backends of a row, with the evidence for each; a measurement comes before the order."""
    row = ORDER.get((device, kind), Row((), ""))
    order = [(name, row.evidence) for name in row.order]
    fastest = MEASURED.get((kind, str(dtype).removeprefix("torch."), asked)) if device == "cuda" else None
    if fastest == "fused":
        return []
    if fastest is None:
        return order
    return [(fastest, MEASURED_EVIDENCE), *(each for each in order if each[0] != fastest)]


def _order(problem: Problem) -> Iterator[tuple[str, str]]:
    """The backends to try before ``fused``, with the evidence for each."""
    order = _row(problem.q.device.type, family(problem), problem.q.dtype, direction(problem))
    for name, evidence in order:
        half = problem.q.dtype in (torch.float16, torch.bfloat16)
        # In half precision the native kernel works by way of float32, which pays only where nothing is fused.
        if name == "native" and half and formulate(problem).name != "tiles":
            continue
        yield name, evidence


def backend_of(name: str) -> Any:
    """The module, imported when first asked for."""
    if name == "flex":
        from biases.backends import flex

        return flex
    if name == "triton":
        from biases.backends import triton

        return triton
    from biases.backends import native

    return native
