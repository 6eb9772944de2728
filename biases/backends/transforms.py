"""Whether a problem is being transformed by ``torch.func``: generated kernels have no rules for that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from biases.backends.terms import PairTerm, Problem


def transformed(problem: Problem) -> bool:
    """Whether any tensor of ``problem`` is one of a transform.

    Queries, keys, values, the gate, masks and the tensors of the terms are asked, see :func:`wrapped`. Not for use in
    functions that are being compiled.
    """
    gate = problem.key_gate
    own = [problem.q, problem.k, problem.v, problem.keep, problem.mask, None if gate is None else gate.log]
    terms = problem.biases if problem.decay is None else (*problem.biases, problem.decay)
    return any(x is not None and wrapped(x) for x in own) or any(wrapped(x) for x in tensors(terms))


def wrapped(x: Tensor) -> bool:
    """Whether ``x`` is a tensor inside ``torch.func.vmap``, ``grad`` or another transform, or carries a tangent."""
    functorch = getattr(torch._C, "_functorch", None)
    of_transform = getattr(functorch, "is_functorch_wrapped_tensor", None)
    if of_transform is not None and of_transform(x):
        return True
    return forward_ad.unpack_dual(x).tangent is not None


def tensors(part: Any) -> Iterator[Tensor]:
    """The tensors of a term, of the terms that it is made of, or of all in a list or tuple; of anything else none."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, PairTerm):
        for each in vars(part).values():
            yield from tensors(each)
    elif isinstance(part, list | tuple):
        for each in part:
            yield from tensors(each)
