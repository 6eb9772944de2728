"""``attend``: the one attention operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from biases._calls import STAND_IN
from biases._calls import recorded as recorded
from biases._calls import replaced as replaced
from biases._checks import boolean, fail, one_of, positive_int, rank
from biases.backends import (
    WEIGHTS,
    DecayTerm,
    Formulation,
    Geometry,
    KeyGate,
    PairTerm,
    Problem,
    choice,
    fused,
    reference,
)
from biases.backends.reference import dense_weights

BACKENDS = ("auto", "native", "fused", "flex", "triton", "dense", "reference")
ALIGNMENTS = ("upper-left", "lower-right")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: PairTerm | Sequence[PairTerm] | None = None,
    key_gate: KeyGate | None = None,
    weights: str = "softmax",
    decay: DecayTerm | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    alignment: str | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention with inductive biases.

    Args:
        q: queries, (B, H, L, D); float32, float64, bfloat16 or float16.
        k: keys, (B, G, S, D), where G divides H: every key head serves H / G query heads.
        v: values, (B, G, S, Dv).
        bias: object or objects added to the logits.
        key_gate: gate on the keys.
        weights: ``"softmax"``, ``"sigmoid"``, ``"sigmoid-normalised"`` (sigmoids divided by the sum of their row) or
            ``"linear"`` (the logits themselves).
        decay: decay with distance; its ``placement`` says where it acts: inside the softmax or sigmoid, or on the
            finished weights, normalised ones included.
        mask: boolean, True = may attend, broadcastable to (B, H, L, S). Padding of keys is ``keep[:, None, None, :]``
            with ``keep`` (B, S); such keys are excluded whatever they hold, NaN included. A query without any key gives
            zeros, and finite gradients.
        causal: query ``i`` sees keys at its position and before.
        window: with ``causal``, how many keys a query sees, that at its own position included; ``None`` for all. Later
            keys and those before the window weigh exactly 0, whatever finite numbers they hold.
        alignment: needed where L != S and positions matter: ``"upper-left"`` (query i stands at key i, as
            ``scaled_dot_product_attention(is_causal=True)``) or ``"lower-right"`` (the last query stands at the last
            key, as in decoding).
        dropout: probability with which a weight is dropped, survivors being divided by ``1 - dropout``. It acts before
            the key gate, whose renormalisation removes that factor (as in the released EGA).
        scale: factor of q . k, default ``1 / sqrt(D)``.
        backend: ``"auto"``, the fastest of the following that can run the problem (:mod:`biases.backends.choice`);
            ``"native"`` (a C++ kernel for the CPU), ``"fused"`` (algebra over stock kernels), ``"flex"``
            (FlexAttention) or ``"triton"``; ``"dense"`` (the specification in the dtype of the inputs) or
            ``"reference"`` (the specification in float64). Second derivatives need ``"dense"``: in a module,
            :func:`biases.set_backend`.

    Returns:
        (B, H, L, Dv), in the dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, stating expected and got; a problem that the named
            backend cannot run, stating why.
    """
    if not torch.compiler.is_compiling() and (stand_in := STAND_IN.get()) is not None:
        options: dict[str, Any] = {"bias": bias, "key_gate": key_gate, "weights": weights, "decay": decay, "mask": mask}
        options |= {"causal": causal, "window": window, "alignment": alignment, "dropout": dropout, "scale": scale}
        return stand_in(q, k, v, **options, backend=backend)
    problem = _problem(q, k, v, bias, key_gate, weights, decay, mask, causal, window, alignment, dropout, scale)
    one_of("backend", backend, BACKENDS)
    if problem.q.numel() == 0 or problem.v.numel() == 0:
        return problem.q.sum(-1, keepdim=True).expand(*problem.q.shape[:3], problem.v.shape[-1]) * 0.0
    device = q.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        # Each formulation chooses the precision of its parts; autocast would choose another for some of them.
        with torch.autocast(device, enabled=False):
            return _run(problem, backend)
    return _run(problem, backend)


def _run(problem: Problem, backend: str) -> Tensor:
    if backend == "reference":
        return reference(problem)
    if backend == "dense":
        return reference(problem, problem.q.dtype)
    if backend == "fused":
        return fused(problem)
    if backend == "auto":
        return choice.run(problem)
    reason = choice.why_not(backend, problem)
    if reason is not None:
        fail(f"attend backend {backend!r}", "a problem that it can run", reason)
    return choice.backend_of(backend).run(problem)


def formulation(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: PairTerm | Sequence[PairTerm] | None = None,
    key_gate: KeyGate | None = None,
    weights: str = "softmax",
    decay: DecayTerm | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    alignment: str | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Formulation:
    """How ``attend(..., backend="auto")`` with these arguments would be run, and why."""
    problem = _problem(q, k, v, bias, key_gate, weights, decay, mask, causal, window, alignment, dropout, scale)
    return choice.choose(problem)


def pair_weights(
    q: Tensor,
    k: Tensor,
    *,
    bias: PairTerm | Sequence[PairTerm] | None = None,
    key_gate: KeyGate | None = None,
    weights: str = "softmax",
    decay: DecayTerm | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    alignment: str | None = None,
    scale: float | None = None,
) -> Tensor:
    """What multiplies the values in :func:`attend`, by the specification: (B, H, L, S), float64."""
    problem = _problem(q, k, k, bias, key_gate, weights, decay, mask, causal, window, alignment, 0.0, scale)
    i, j = problem.geometry.positions(q.device)
    return dense_weights(problem, problem.q, problem.k, i, j, torch.float64)


def _problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PairTerm | Sequence[PairTerm] | None,
    key_gate: KeyGate | None,
    weights: str,
    decay: DecayTerm | None,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    alignment: str | None,
    dropout: float,
    scale: float | None,
) -> Problem:
    _check_tensors(q, k, v)
    (batch, heads, L, D), S = q.shape, k.shape[2]
    one_of("weights", weights, WEIGHTS)
    if not isinstance(causal, bool):
        fail("attend causal", "True or False", repr(causal))
    if not 0.0 <= dropout < 1.0:
        fail("attend dropout", "a probability in [0, 1)", dropout)
    if scale is None:
        # Not checked: compilers may know D by its name alone.
        scale = 1.0 / math.sqrt(D)
    elif not (math.isfinite(scale := float(scale)) and scale > 0):
        fail("attend scale", "a positive finite number", scale)
    biases = terms(bias)
    if decay is not None:
        check_decay(decay, weights)
    check_window("attend", window, causal)
    offset = _offset(L, S, alignment, causal, biases, decay)
    # A window that holds every key before every query takes nothing away.
    limits = window is not None and window < L + offset
    geometry = Geometry(L, S, offset, causal, window if limits else None)
    for term in (*biases, *([decay] if decay is not None else [])):
        term.check(geometry, batch, heads)
    if key_gate is not None:
        if not isinstance(key_gate, KeyGate):
            fail("attend key_gate", "a KeyGate", type(key_gate).__name__)
        key_gate.check(batch, heads, S)
        if weights == "linear" and key_gate.renormalise:
            fail("attend key_gate", "renormalise=False with linear weights, whose rows have no sign", "True")
    group = heads // k.shape[1]
    if group > 1:
        k, v = (x.repeat_interleave(group, 1) if x.shape[1] > 1 else x.expand(-1, heads, -1, -1) for x in (k, v))
    keep, pairs = _split_mask(mask, batch, heads, L, S)
    if keep is not None:
        # An excluded key takes no part even where it holds NaN, which 0 * NaN would not undo.
        gone = ~keep[..., None]
        k, v = k.masked_fill(gone, 0.0), v.masked_fill(gone, 0.0)
        if key_gate is not None:
            key_gate = replace(key_gate, log=torch.where(keep, key_gate.log, 0.0))
    return Problem(q, k, v, geometry, scale, weights, biases, decay, key_gate, keep, pairs, float(dropout))


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    rank("attend q", q, "B H L D")
    rank("attend k", k, "B H S D")
    rank("attend v", v, "B H S Dv")
    batch, heads, _, D = q.shape
    if q.dtype not in DTYPES:
        fail("attend q dtype", "float32, float64, bfloat16 or float16", q.dtype)
    if D < 1 or heads < 1:
        fail("attend q", "at least one head of at least one channel", tuple(q.shape))
    if k.shape[0] != batch or k.shape[3] != D or k.shape[1] < 1 or heads % k.shape[1]:
        expected = f"shape ({batch}, H' dividing {heads}, S, {D}), to match q {tuple(q.shape)}"
        fail("attend k", expected, tuple(k.shape))
    if v.shape[:3] != k.shape[:3]:
        fail("attend v", f"shape ({', '.join(map(str, k.shape[:3]))}, Dv), to match k", tuple(v.shape))
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype or x.device != q.device:
            fail(f"attend {name}", f"{q.dtype} on {q.device}, as q", f"{x.dtype} on {x.device}")


def terms(bias: PairTerm | Sequence[PairTerm] | None) -> tuple[PairTerm, ...]:
    """The biases as a tuple, each checked to be an object."""
    found = tuple(bias) if isinstance(bias, (list, tuple)) else () if bias is None else (bias,)
    for term in found:
        if not isinstance(term, PairTerm):
            fail("attend bias", "objects such as ALiBi(...) or KeyBias(...)", type(term).__name__)
    return found


def check_decay(decay: DecayTerm, weights: str) -> None:
    """Check that ``decay`` is an object, placed where these weights allow it."""
    if not isinstance(decay, DecayTerm):
        fail(
            "attend decay",
            "an object such as ExponentialDecay(...) or ManhattanDecay(...)",
            type(decay).__name__,
        )
    if weights == "linear" and decay.placement != "weights":
        fail("decay placement with linear weights", "'weights'", repr(decay.placement))


def check_window(what: str, window: object, causal: bool) -> None:
    """Check that ``window`` is ``None``, or a number of keys and that attention is causal."""
    if window is None:
        return
    positive_int(f"{what} window", window)
    if not causal:
        fail(f"{what} window", "None where causal is False", window)


def _offset(
    L: int,
    S: int,
    alignment: str | None,
    causal: bool,
    biases: tuple[PairTerm, ...],
    decay: DecayTerm | None,
) -> int:
    """Position of query 0 in the coordinates of the keys."""
    if alignment is not None:
        one_of("attend alignment", alignment, ALIGNMENTS)
        return S - L if alignment == "lower-right" else 0
    positional = causal or decay is not None or any(term.positional for term in biases)
    if L != S and positional:
        fail(f"attend alignment for L={L}, S={S}", "'upper-left' or 'lower-right' where positions matter", None)
    return 0


def _split_mask(mask: Tensor | None, batch: int, heads: int, L: int, S: int) -> tuple[Tensor | None, Tensor | None]:
    """``(keep, pairs)``: a mask over keys, (B or 1, H or 1, S), or a mask over pairs, (B or 1, H or 1, L, S)."""
    if mask is None:
        return None, None
    boolean("attend mask", mask)
    full = mask[(None,) * (4 - mask.ndim)] if mask.ndim <= 4 else mask
    wanted = (batch, heads, L, S)
    if full.ndim != 4 or any(got not in (1, want) for got, want in zip(full.shape, wanted, strict=True)):
        fail("attend mask", f"broadcastable to (B, H, L, S) = {wanted}", tuple(mask.shape))
    full = full.expand(-1, -1, -1, S)
    if full.shape[2] == 1:
        return full[:, :, 0], None
    return None, full
