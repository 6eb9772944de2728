"""Any attention problem in O(L + S) memory: the dense formulas on one tile of queries after another.

Nothing of a tile is kept for the backward pass; it is computed again. This is the fast path of what has no row
statistics that a fused kernel could share (sigmoid weights), of decays placed after the weights, of learned Toeplitz
biases, of biases without structure and of dropout. A tile visits only those keys that causality and window leave to any
of its queries, so that a window of w keys costs O(L (w + tile)).

Where all terms have a structured form, :mod:`biases.backends.tile_attention` reads them through views and has gradients
of its own. What is left (dropout, a gate with eps, terms without a form, transforms of ``torch.func``, forward-mode
derivatives, ``torch.compile``) goes through the specification, tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from biases.backends.forms import Form, LowRank, PerKey, RelativeTable, Toeplitz
from biases.backends.reference import dense_weights
from biases.backends.terms import PairTerm, Problem
from biases.backends.tile_attention import FACTOR, LOGARITHM, LOGITS, TILE, Index, Spec, without_subnormal
from biases.backends.tile_gradients import TileAttention, transformed


def tiled(problem: Problem, tile: int = TILE) -> Tensor:
    """The output of ``problem``, (B, H, L, Dv)."""
    if not _traced():
        structured = _lowered(problem)
        if structured is not None:
            return structured.run()
    return _checkpointed(problem, tile)


def _traced() -> bool:
    """Whether something looks into the call that the own gradients have no rule for."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or getattr(forward_ad, "_current_level", -1) >= 0
        or transformed()
    )


def _checkpointed(problem: Problem, tile: int) -> Tensor:
    q = problem.q
    compute = _accumulation(q.dtype)
    i, j = problem.geometry.positions(q.device)
    geometry = problem.geometry
    queries, keys_of, values_of = (cutter(x, tile, geometry.window) for x in (q, problem.k, problem.v))

    def one(start: int, stop: int) -> Tensor:
        first, last = geometry.reach(start, stop)
        # A row without keys is zero by its mask; one key keeps it in the graph.
        last = max(last, 1)
        rows, keys = slice(start, stop), slice(min(first, last - 1), last)
        weights = dense_weights(problem, queries(rows), keys_of(keys), i[rows], j[:, keys], compute, rows, keys)
        return (weights @ values_of(keys).to(compute)).to(q.dtype)

    bounds = [(start, min(start + tile, q.shape[2])) for start in range(0, q.shape[2], tile)]
    if len(bounds) == 1 or not torch.is_grad_enabled():
        outputs = [one(*bound) for bound in bounds]
    else:
        outputs = [checkpoint(one, *bound, use_reentrant=False) for bound in bounds]
    return torch.cat(outputs, 2)


def cutter(x: Tensor, tile: int, window: int | None) -> Callable[[slice], Tensor]:
    """A function from a slice of tokens to that part of ``x``, (B, H, T, D).

    The gradient of a slice is as large as the whole. Where a window makes parts small, they are joined from pieces of
    ``tile`` tokens, whose gradients are no larger than the parts.
    """
    if window is None:
        return lambda tokens: x[:, :, tokens]
    pieces = x.split(tile, 2)

    def cut(tokens: slice) -> Tensor:
        first = tokens.start // tile
        joined = torch.cat(pieces[first : (tokens.stop - 1) // tile + 1], 2)
        return joined[:, :, tokens.start - first * tile : tokens.stop - first * tile]

    return cut


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _lowered(problem: Problem) -> _Lowering | None:
    """The problem in the terms of :mod:`biases.backends.tile_attention`; ``None`` where they do not hold it."""
    gate, decay = problem.key_gate, problem.decay
    if problem.dropout or (gate is not None and gate.eps):
        return None
    q = problem.q
    compute = _accumulation(q.dtype)
    scaled = q.to(compute) * problem.scale
    found = _Lowering(problem, problem.weights, scaled, problem.k.to(compute), problem.v.to(compute))
    renormalised = gate is not None and gate.renormalise
    placement = "logits" if decay is None else decay.placement
    # Dividing by row sums at the end undoes any division before, so multipliers join the logarithms of the weights.
    joins = LOGITS if problem.weights == "softmax" else LOGARITHM
    if problem.weights == "sigmoid" and (renormalised or placement == "weights-renormalised"):
        found.mode = "sigmoid-normalised"
    stages = {"logits": LOGITS, "weights": joins if renormalised else FACTOR, "weights-renormalised": joins}
    added = [(term, LOGITS) for term in problem.biases]
    if decay is not None:
        added.append((decay, stages[placement]))
    if not all(found.add(term, stage) for term, stage in added):
        return None
    if gate is not None and renormalised:
        found.add_to_keys(joins, gate.log.to(compute))
    elif gate is not None:
        found.v = found.v * gate.log.to(compute).exp()[..., None]
    if joins in found.biases and found.mode in ("softmax", "sigmoid-normalised"):
        found.biases[joins] = _below_zero(found.biases[joins], problem.keep)
    return found


def _below_zero(bias: Tensor, keep: Tensor | None) -> Tensor:
    """``bias`` less the largest of those that count: row sums undo it, and small numbers are resolved better."""
    top = (bias if keep is None else torch.where(keep, bias, -torch.inf)).detach().amax(-1, keepdim=True)
    return bias - torch.where(torch.isfinite(top), top, torch.zeros_like(top))


@dataclass
class _Lowering:
    """Collects what :class:`~biases.backends.tile_attention.TileAttention` takes.

    Attributes:
        problem: what is asked for.
        mode: of the weights; sigmoids that are divided by a sum of their row at the end are normalised at once.
        q, k, v: (B, H, T, D), in the dtype of the logits, queries scaled; low-rank terms become channels.
        tables: of a stage and of what the index vectors were made from, the sum of the tables and where to read it.
        biases: of a stage, the sum of the biases of the key, (B or 1, H or 1, S).
    """

    problem: Problem
    mode: str
    q: Tensor
    k: Tensor
    v: Tensor
    tables: dict[tuple[object, ...], tuple[Tensor, Index]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)

    def add(self, term: PairTerm, stage: str) -> bool:
        """Add a term to a stage; ``False`` if it has no form that the stage takes."""
        # Differences stay small where positions do not, so no term is taken as one of the key alone.
        form: Form | None = term.form(self.problem.geometry, self.q.dtype, self.q.device, row_free=False)
        if isinstance(form, Toeplitz):
            self._add_table((stage, "distance"), form.table.flip(-1), Index(stage))
        elif isinstance(form, RelativeTable):
            index = Index(stage, form.row.to(self.q.device).flip(0), form.column.to(self.q.device))
            self._add_table((stage, *form.key), form.table, index)
        elif isinstance(form, PerKey) and stage != FACTOR:
            self.add_to_keys(stage, form.values)
        elif isinstance(form, LowRank) and stage == LOGITS:
            self.q = torch.cat([self.q, form.left.expand(*self.q.shape[:3], -1)], -1)
            self.k = torch.cat([self.k, form.right.expand(*self.k.shape[:3], -1)], -1)
        else:
            return False
        return True

    def _add_table(self, key: tuple[object, ...], table: Tensor, index: Index) -> None:
        known = self.tables.get(key)
        self.tables[key] = (table if known is None else known[0] + table, index)

    def add_to_keys(self, stage: str, values: Tensor) -> None:
        self.biases[stage] = self.biases[stage] + values if stage in self.biases else values

    def run(self) -> Tensor:
        """The output, (B, H, L, Dv), in the dtype of the queries."""
        problem, (batch, heads) = self.problem, self.q.shape[:2]
        keys = (batch, heads, self.k.shape[2])
        indices = tuple(index for _, index in self.tables.values())
        tables = (
            without_subnormal(table.exp()) if index.stage == FACTOR else table for table, index in self.tables.values()
        )
        keep = None if problem.keep is None else problem.keep.expand(keys).flatten(0, 1)
        spec = Spec(self.mode, problem.geometry, heads, indices, keep, problem.mask)
        out = TileAttention.apply(
            spec,
            *(x.flatten(0, 1).contiguous() for x in (self.q.flip(2), self.k, self.v)),
            *(None if x is None else x.expand(keys).flatten(0, 1) for x in map(self.biases.get, (LOGITS, LOGARITHM))),
            *(table.expand(heads, -1) for table in tables),
        )
        return out.unflatten(0, (batch, heads)).flip(2).to(problem.q.dtype)
