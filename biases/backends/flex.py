"""Softmax attention by FlexAttention on CUDA: one generated Triton kernel, forward and backward, in O(L + S) memory.

Every term gives a ``score_mod`` (:meth:`biases.backends.PairTerm.score_mod`); low-rank terms become channels of the
queries and keys. Causality, window, kept keys and masks over pairs become a ``BlockMask``
(:mod:`biases.backends.block_masks`).

Documented bounds, not measured here: head widths from 16 (narrower ones are padded) to 256; blocks of 128, so that
shorter sequences are padded up; gradients of captured tensors by atomic additions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from biases._checks import fail
from biases.backends.block_masks import block_mask
from biases.backends.keybias import extra_channels, pad_channels
from biases.backends.score_mods import learned
from biases.backends.terms import KeyBias, LowRank, LowRankBias, PairTerm, Problem, ScoreMod
from biases.backends.transforms import transformed

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SMALLEST_WIDTH, LARGEST_WIDTH = 16, 256
OWN_LENGTHS = 2
_HAS_TRITON = importlib.util.find_spec("triton") is not None
Family = tuple[Any, ...]

_lengths: dict[Family, list[tuple[int, int]]] = {}
_kernels: dict[Family, Callable[..., Tensor]] = {}
_proved: set[Family] = set()
_failed: dict[Family, str] = {}


class CompilationFailed(RuntimeError):
    """The kernel of a family of problems could not be compiled here; :func:`why_not` says so from then on."""


class Call(NamedTuple):
    """The arguments of ``flex_attention``.

    Attributes:
        q, k: (B, H, L, E), (B, H, S, E), low-rank terms among their channels.
        v: (B, H, S, Ev), the values padded with zero channels.
        score_mod: adds what the logits get, or ``None``.
        block_mask: which pairs may attend, or ``None`` for all.
        scale: factor of q . k.
        width: channels of the output that count.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    score_mod: ScoreMod | None
    block_mask: BlockMask | None
    scale: float
    width: int


def why_not(problem: Problem) -> str | None:
    """Why FlexAttention cannot run ``problem``; ``None`` if it can."""
    if problem.q.device.type != "cuda":
        return "FlexAttention is used on CUDA only: on the CPU it is slower and has no backward"
    compiling = torch.compiler.is_compiling()
    if not compiling and transformed(problem):
        return "FlexAttention has no rule for torch.func transforms"
    reason = inexpressible(problem)
    if reason is not None:
        return reason
    if problem.q.dtype == torch.float64:
        return "FlexAttention's kernels compute in float32"
    if max(problem.q.shape[-1], problem.v.shape[-1]) > LARGEST_WIDTH:
        return f"FlexAttention's kernels hold heads of at most {LARGEST_WIDTH} channels"
    if compiling:
        return None
    if not _HAS_TRITON:
        return "FlexAttention's kernels need triton, which is not installed"
    failure = _failed.get(_family(problem))
    return None if failure is None else f"FlexAttention's kernel did not compile here: {failure}"


def inexpressible(problem: Problem) -> str | None:
    """Why ``problem`` is none for FlexAttention on whatever device; ``None`` if it is one."""
    if problem.weights != "softmax":
        return f"FlexAttention has softmax weights only, not {problem.weights!r}"
    if problem.dropout:
        return "FlexAttention has no dropout"
    if problem.key_gate is not None and problem.key_gate.eps:
        return "FlexAttention does not give the sum of the gated weights that a gate with eps > 0 needs"
    if problem.decay is not None and problem.decay.placement == "weights":
        return "a decay after the softmax, not renormalised, needs the plain row sums"
    device = problem.q.device
    for term in _logit_terms(problem):
        if not isinstance(term, LowRankBias) and term.score_mod(problem.geometry, device) is None:
            return f"{type(term).__name__} has no score_mod here"
    return None


def run(problem: Problem) -> Tensor:
    """The output of ``problem``, (B, H, L, Dv).

    Raises:
        ValueError: :func:`why_not` says why.
        CompilationFailed: the kernel does not compile here.
    """
    reason = why_not(problem)
    if reason is not None:
        fail("backend 'flex'", "a problem that it can run", reason)
    if torch.compiler.is_compiling():
        call = arguments(problem)
        return _flex(*call[:-1])[..., : call.width]
    return _guarded(lambda: arguments(problem), _family(problem))


def arguments(problem: Problem) -> Call:
    """What ``flex_attention`` is called with for ``problem``, which must not be :func:`inexpressible`."""
    q, k, v, gate = problem.q, problem.k, problem.v, problem.key_gate
    width, geometry = v.shape[-1], problem.geometry
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    added: list[PairTerm] = [term for term in _logit_terms(problem) if not isinstance(term, LowRankBias)]
    if gate is not None and gate.renormalise:
        added.append(KeyBias(gate.log))
    elif gate is not None:
        v = (v.to(dtype) * gate.log.to(dtype).exp()[..., None]).to(v.dtype)
    low_rank = tuple(
        LowRank(term.left.to(dtype), term.right.to(dtype))
        for term in _logit_terms(problem)
        if isinstance(term, LowRankBias)
    )
    if low_rank:
        q, k, _ = extra_channels(q, k, v[..., :0], None, low_rank, problem.scale)
    q, k = (pad_channels(x, max(SMALLEST_WIDTH, x.shape[-1])) for x in (q, k))
    v = pad_channels(v, max(SMALLEST_WIDTH, width))
    mods = [mod for term in added if (mod := term.score_mod(geometry, q.device, dtype)) is not None]
    return Call(q, k, v, _chain(mods), block_mask(problem), problem.scale, width)


def _logit_terms(problem: Problem) -> tuple[PairTerm, ...]:
    return problem.biases if problem.decay is None else (*problem.biases, problem.decay)


def _chain(mods: list[ScoreMod]) -> ScoreMod | None:
    if len(mods) < 2:
        return mods[0] if mods else None

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        for mod in mods:
            score = mod(score, b, h, q_idx, kv_idx)
        return score

    return score_mod


def _flex(
    q: Tensor, k: Tensor, v: Tensor, score_mod: ScoreMod | None, block_mask: BlockMask | None, scale: float
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask, scale=scale)


def _family(problem: Problem) -> Family:
    """What problems share a compiled function.

    Lengths that are constants need no bounds checks in the kernel: the first few of a family have functions of their
    own, all others share one.
    """
    gate, geometry = problem.key_gate, problem.geometry
    tensors = (problem.q, problem.k, problem.v)
    family = (
        *((type(term).__name__, getattr(term, "symmetric", None), learned(term)) for term in _logit_terms(problem)),
        gate is not None and (gate.renormalise, gate.log.requires_grad),
        (geometry.causal, geometry.window is None, problem.keep is None, problem.mask is None),
        (problem.q.dtype, problem.q.device, problem.q.shape[1], problem.q.shape[-1], problem.v.shape[-1]),
        problem.scale,
        torch.is_grad_enabled() and tuple(x.requires_grad for x in tensors),
    )
    known, lengths = _lengths.get(family, []), (geometry.L, geometry.S)
    return (*family, lengths if lengths in known or len(known) < OWN_LENGTHS else None)


def _kernel(family: Family) -> Callable[..., Tensor]:
    """The compiled function of a family, with a code object of its own: the compiler counts recompilations by it."""
    if family not in _kernels:
        if family[-1] is not None:
            _lengths.setdefault(family[:-1], []).append(family[-1])

        def flex(*args: Any) -> Tensor:
            return _flex(*args)

        flex.__code__ = flex.__code__.replace(co_name=f"flex_{len(_kernels)}")
        _kernels[family] = torch.compile(flex, fullgraph=True)
    return _kernels[family]


def _guarded(make: Callable[[], Call], family: Family) -> Tensor:
    kernel = _kernel(family)
    try:
        if family not in _proved:
            # Hidden from hooks around it: torch.utils.checkpoint counts what is saved, and its second run has no proof.
            with torch.autograd.graph.saved_tensors_hooks(_same, _same):
                _prove(kernel, make())
            _proved.add(family)
        call = make()
        return kernel(*call[:-1])[..., : call.width]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # A proved kernel may raise what is none of its own, such as what torch.utils.checkpoint stops by.
        if family in _proved and not _of_compiler(error):
            raise
        _failed[family] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise CompilationFailed(f"FlexAttention: {_failed[family]}") from error


def _of_compiler(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch.fx", "triton"))


def _prove(kernel: Callable[..., Tensor], call: Call) -> None:
    """Run a kernel once, forward and backward: a backward that fails to compile would else do so in the user's.

    It is given leaves of its own, so that nothing of the graph before them runs.
    """
    leaves: dict[int, Tensor] = {}
    out = kernel(*_detached(tuple(call[:-1]), leaves))
    if out.requires_grad and leaves:
        torch.autograd.grad(out, list(leaves.values()), torch.zeros_like(out), allow_unused=True)


def _same(x: Tensor) -> Tensor:
    return x


def _detached(part: Any, leaves: dict[int, Tensor]) -> Any:
    """``part`` with a leaf for each tensor with gradient that it holds, or that a function in it has captured."""
    if isinstance(part, Tensor):
        if not part.requires_grad:
            return part
        return leaves.setdefault(id(part), part.detach().requires_grad_())
    if type(part) in (list, tuple):
        return type(part)(_detached(each, leaves) for each in part)
    if isinstance(part, FunctionType) and part.__closure__:
        cells = tuple(CellType(_detached(cell.cell_contents, leaves)) for cell in part.__closure__)
        return FunctionType(part.__code__, part.__globals__, part.__name__, part.__defaults__, cells)
    return part
