"""What the kernels compute, and how an attention problem is brought to that form.

For logits ``s_ij = scale q_i . k_j + linear_inside(i - j) + key_inside_j`` and one of three kinds of weights,

    softmax         u_ij = exp(t_ij) / sum_k exp(t_ik),   t_ij = s_ij + linear_between(i - j) + key_between_j
    log-sigmoid     the same, with log sigma(s_ij) in place of s_ij: sigmoids divided by the sum of their row
    sigmoid         u_ij = sigma(s_ij)

the output is ``o_i = sum_j u_ij exp(linear_outside(i - j)) v_j`` over the keys that causality, window and ``-inf`` in
``key_inside`` leave. A linear term is ``-a_h (i - j) - b_h |i - j|``. Everything that divides a row by its sum divides
it once in the end, so that decays and gates which are renormalised are terms "between"; a gate that is not is a factor
of the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from biases.backends.geometry import Geometry
from biases.backends.score_mods import on_device
from biases.backends.terms import DecayTerm, KeyBias, KeyGate, LinearTerm, PairTerm, Problem

SOFTMAX, SIGMOID, LOG_SIGMOID = "softmax", "sigmoid", "log-sigmoid"


@dataclass(frozen=True)
class Plan:
    """A problem in the form of the module docstring.

    Attributes:
        kind: ``"softmax"``, ``"sigmoid"`` or ``"log-sigmoid"``.
        causal: only keys at or before the query count.
        inside, between, outside: ``a_h`` and ``b_h`` of each place, (2, H), float32, or ``None``.
        key_inside, key_between: (B or 1, H or 1, S), float32, or ``None``.
        values: factor of the values, (B or 1, H or 1, S), or ``None``.
    """

    kind: str
    causal: bool = False
    inside: Tensor | None = None
    between: Tensor | None = None
    outside: Tensor | None = None
    key_inside: Tensor | None = None
    key_between: Tensor | None = None
    values: Tensor | None = None


def why_no_plan(
    weights: str, biases: Sequence[PairTerm], decay: DecayTerm | None, gate: KeyGate | None, geometry: Geometry
) -> str | None:
    """Why these terms have no :class:`Plan`; ``None`` if they have one."""
    if weights == "linear":
        return "linear weights, whose fast path is chunkwise"
    for term in (*biases, *([] if decay is None else [decay])):
        if not isinstance(term, (LinearTerm, KeyBias)):
            return f"{type(term).__name__} is neither linear in the distance nor a bias of the key"
    if gate is not None and gate.eps:
        return "a gate with eps > 0 needs the sum of the gated weights"
    if decay is None:
        return None
    if not isinstance(decay, LinearTerm):
        return f"{type(decay).__name__} is not linear in the distance"
    outside = decay.placement == "weights" and not _renormalises(gate) and weights != "sigmoid"
    if outside and not decay.symmetric and not geometry.causal:
        return "a decay of the past alone after weights that are normalised over the future as well"
    return None


def plan(problem: Problem) -> Plan:
    """``problem`` in the form of the kernels; :func:`why_no_plan` must have found nothing against it."""
    heads = problem.q.shape[1]
    made = plan_terms(problem.weights, problem.biases, problem.decay, problem.key_gate, heads, problem.q.device)
    key = made.key_inside
    if problem.keep is not None:
        key = problem.q.new_zeros(problem.keep.shape, dtype=torch.float32) if key is None else key
        key = torch.where(problem.keep, key, -torch.inf)
    return replace(made, key_inside=key, causal=made.causal or problem.geometry.causal)


def plan_terms(
    weights: str,
    biases: Sequence[PairTerm],
    decay: DecayTerm | None,
    gate: KeyGate | None,
    heads: int,
    device: torch.device,
) -> Plan:
    """The :class:`Plan` of these terms, without masks.

    Args:
        weights: see :func:`biases.attend`, but not ``"linear"``.
        biases, decay, gate: the terms of the problem.
        heads: H.
        device: of the queries.
    """
    row = weights != "sigmoid" or _renormalises(gate) or (decay is not None and decay.placement.endswith("normalised"))
    kind = SIGMOID if not row else SOFTMAX if weights == "softmax" else LOG_SIGMOID
    linear: dict[str, list[LinearTerm]] = {"inside": [], "between": [], "outside": []}
    keys: dict[str, Tensor | None] = {"inside": None, "between": None}
    for term in biases:
        if isinstance(term, LinearTerm):
            linear["inside"].append(term)
        elif isinstance(term, KeyBias):
            keys["inside"] = _sum(keys["inside"], on_device(term.tensor, device, torch.float32))
    values = None
    if gate is not None:
        log = on_device(gate.log, device, torch.float32)
        if gate.renormalise:
            # Inside and between are one place where nothing lies between them.
            place = "inside" if kind == SOFTMAX else "between"
            keys[place] = _sum(keys[place], log)
        else:
            values = log.exp()
    causal = False
    if decay is not None and isinstance(decay, LinearTerm):
        after = decay.placement == "weights" and not _renormalises(gate)
        inside = decay.placement == "logits" or (kind == SOFTMAX and not after)
        linear["inside" if inside else "outside" if after else "between"].append(decay)
        causal = not decay.symmetric
    slopes = {place: _slopes(terms, heads, device) for place, terms in linear.items()}
    return Plan(
        kind,
        causal,
        slopes["inside"],
        slopes["between"],
        slopes["outside"],
        keys["inside"],
        keys["between"],
        values,
    )


def _renormalises(gate: KeyGate | None) -> bool:
    return gate is not None and gate.renormalise


def _sum(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more


def _slopes(terms: list[LinearTerm], heads: int, device: torch.device) -> Tensor | None:
    """Slopes of the signed and of the absolute distance, (2, H), float32."""
    total: Tensor | None = None
    for term in terms:
        slopes = (term._sign * on_device(term._slopes, device, torch.float32)).expand(heads)
        none = torch.zeros_like(slopes)
        total = _sum(total, torch.stack([none, slopes] if term.symmetric else [slopes, none]))
    return total
