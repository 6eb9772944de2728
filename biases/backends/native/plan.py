"""A problem of :func:`biases.attend` in the terms of the kernel."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad

from biases._cache import intercepted, kept
from biases._checks import fail
from biases.backends.fused import formulate
from biases.backends.native import arguments, ops, retention
from biases.backends.native.arguments import FACTOR, LOGARITHM, LOGITS, Index, Spec
from biases.backends.native.build import BuildError
from biases.backends.terms import DecayTerm, Form, LowRank, PairTerm, PerKey, Problem, RelativeTable, Toeplitz

HALF = (torch.float16, torch.bfloat16)


# None until it has been tried; then "", or why the kernel cannot be built.
_failure: str | None = None


def _why_not_built() -> str:
    """Why the kernel cannot be built, ``""`` if it can; tried once a process."""
    global _failure
    if _failure is None:
        try:
            arguments.kernel()
            _failure = ""
        except BuildError as error:
            _failure = str(error)
    return _failure


@torch.compiler.assume_constant_result
def _why_not_available() -> str:
    return "switched off by BIASES_NATIVE=0" if os.environ.get("BIASES_NATIVE") == "0" else _why_not_built()


def available() -> tuple[bool, str]:
    """Whether the kernel can be used here, and if not, why. The first call compiles it."""
    reason = _why_not_available()
    return not reason, reason


def why_not(problem: Problem) -> str | None:
    """Why the kernel cannot run ``problem``; ``None`` if it can."""
    q = problem.q
    if q.device.type != "cpu":
        return f"the native kernel runs on the CPU, not on {q.device.type}"
    if q.dtype == torch.float64:
        return "the native kernel computes in float32"
    if problem.weights == "linear":
        return _why_not_linear(problem) or _why_no_operator()
    if problem.dropout:
        return "dropout on the weights draws a number for every pair"
    if problem.key_gate is not None and problem.key_gate.eps:
        return "a gate with eps > 0 needs the sum of the gated weights"
    terms = problem.biases if problem.decay is None else (*problem.biases, problem.decay)
    if len(terms) > arguments.MOST_TABLES:
        return f"the native kernel adds at most {arguments.MOST_TABLES} terms"
    for term in terms:
        placement = term.placement if isinstance(term, DecayTerm) else "logits"
        if not _structured(term, problem, placement):
            return f"{type(term).__name__} has no structured form"
    return _why_no_operator()


def _why_not_linear(problem: Problem) -> str | None:
    plan = formulate(problem)
    if plan.name != "chunkwise":
        return plan.reason
    if torch.is_grad_enabled() and _log_rates(problem).requires_grad:
        return "the native kernel has no gradient for the rate of linear weights"
    return None


def _why_no_operator() -> str | None:
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "the native kernel has no forward-mode derivatives"
    if torch.jit.is_tracing():
        return "torch.jit.trace records nothing of the native kernel"
    return _why_not_available() or None


def _log_rates(problem: Problem) -> Tensor:
    """``log gamma`` of linear weights, (H,), which decay exponentially."""
    return -problem.decay.slopes  # type: ignore[union-attr]


def _structured(term: PairTerm, problem: Problem, placement: str) -> bool:
    """Whether the term has a form that the kernel takes; told by the class where that is enough."""
    if type(term).form is PairTerm.form:
        return False
    if type(term).__module__.startswith("biases."):
        return True
    form = term.form(problem.geometry, torch.float32, problem.q.device, row_free=False)
    return isinstance(form, Toeplitz | RelativeTable) or (form is not None and placement == "logits")


def run(problem: Problem) -> Tensor:
    """The output of ``problem``, for which :func:`why_not` is ``None``: (B, H, L, Dv), in the dtype of the queries."""
    q, k, v = (x.float() for x in (problem.q, problem.k, problem.v))
    if problem.weights == "linear":
        gamma = _log_rates(problem).to(device=q.device, dtype=torch.float64).exp()
        out = retention.retention(q, k, v, gamma.expand(q.shape[:2]), scale=problem.scale)
    else:
        out = _Lowering(problem, q, k, v).run()
    return out.to(problem.q.dtype)


@dataclass
class _Lowering:
    """Collects what the kernel takes.

    Attributes:
        problem: what is asked for.
        q, k, v: float32; low-rank terms become channels, gates that are not renormalised part of the values.
        tables: of a stage and of what the index vectors were made from, the sum of the tables and the vectors.
        biases: of a stage, the sum of the biases of the key, (B or 1, H or 1, S).
    """

    problem: Problem
    q: Tensor
    k: Tensor
    v: Tensor
    tables: dict[tuple[object, ...], tuple[Tensor, Index]] = field(default_factory=dict)
    biases: dict[int, Tensor] = field(default_factory=dict)

    def run(self) -> Tensor:
        problem, geometry = self.problem, self.problem.geometry
        gate, decay = problem.key_gate, problem.decay
        renormalised = gate is not None and gate.renormalise
        last = decay is not None and decay.placement == "weights-renormalised"
        softmax = problem.weights == "softmax"
        # Dividing by row sums at the end undoes any division before; sigmoids then are as if normalised at once.
        mode = problem.weights if softmax or not (renormalised or last) else "sigmoid-normalised"
        joins = LOGITS if softmax else LOGARITHM
        for term in problem.biases:
            self.add(term, LOGITS)
        if decay is not None:
            after = decay.placement == "weights" and not renormalised
            self.add(decay, LOGITS if decay.placement == "logits" else FACTOR if after else joins)
        if gate is not None:
            if renormalised:
                self.add_to_keys(joins, gate.log.float())
            else:
                self.v = self.v * gate.log.float().exp()[..., None]
        if problem.keep is not None:
            logits = self.biases.get(LOGITS)
            logits = torch.zeros_like(problem.keep, dtype=torch.float32) if logits is None else logits
            self.biases[LOGITS] = torch.where(problem.keep, logits, -torch.inf)
        if joins in self.biases:
            self.biases[joins] = self._below_zero(self.biases[joins])
        stages = tuple(int(key[0]) for key in self.tables)  # type: ignore[call-overload]
        indices = tuple(index for _, index in self.tables.values())
        where = (geometry.offset, geometry.causal, geometry.window)
        spec = Spec(mode, problem.scale, *where, stages, indices, direct=not intercepted())
        tables = tuple(
            self._factors(stage, table) for stage, (table, _) in zip(stages, self.tables.values(), strict=True)
        )
        key_bias, post_bias = (self._of_all(self.biases.get(stage)) for stage in (LOGITS, LOGARITHM))
        return ops.attention(spec, self.q, self.k, self.v, key_bias, post_bias, problem.mask, tables)

    def add(self, term: PairTerm, stage: int) -> None:
        geometry = self.problem.geometry
        # Differences stay small where positions do not, so no term is taken as one of the key alone.
        form: Form | None = term.form(geometry, torch.float32, self.q.device, row_free=False)
        if isinstance(form, Toeplitz):
            self.add_table(stage, ("distance",), form.table, _distances(geometry.L, geometry.S))
        elif isinstance(form, RelativeTable):
            self.add_table(stage, form.key, form.table, Index(form.row, form.column))
        elif isinstance(form, PerKey) and stage != FACTOR:
            self.add_to_keys(stage, form.values)
        elif isinstance(form, LowRank) and stage == LOGITS:
            left, right = form.left / self.problem.scale, form.right
            self.q = torch.cat([self.q, left.expand(*self.q.shape[:3], -1)], -1)
            self.k = torch.cat([self.k, right.expand(*self.k.shape[:3], -1)], -1)
        else:
            fail("attend backend 'native'", "terms with a structured form", type(term).__name__)

    def add_table(self, stage: int, key: tuple[object, ...], table: Tensor, index: Index) -> None:
        known = self.tables.get((stage, *key))
        self.tables[stage, *key] = (table if known is None else known[0] + table, index)

    def add_to_keys(self, stage: int, values: Tensor) -> None:
        self.biases[stage] = self.biases[stage] + values if stage in self.biases else values

    def _below_zero(self, bias: Tensor) -> Tensor:
        """``bias`` less the largest of those that count: row sums undo it, and small numbers are resolved better."""
        keep = self.problem.keep
        top = (bias if keep is None else torch.where(keep, bias, -torch.inf)).detach().amax(-1, keepdim=True)
        return bias - torch.where(torch.isfinite(top), top, 0.0)

    def _of_all(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias.expand(self.k.shape[:3])

    def _factors(self, stage: int, table: Tensor) -> Tensor:
        return (table.exp() if stage == FACTOR else table)[None]


@kept
def _distances(L: int, S: int) -> Index:
    """Places in a table of all distances, ascending."""
    row, column = (torch.arange(n, dtype=torch.int32, device="cpu") for n in (L, S))
    return Index(row + (S - 1), column)
