"""Triton kernels for CUDA: :mod:`~biases.backends.triton.pairwise` and :mod:`~biases.backends.triton.decomposed`.

This module itself needs no Triton; the kernels are imported, and compiled, when they are first used. On tensors of the
CPU they run only in Triton's interpreter, that is where ``TRITON_INTERPRET=1`` was set before Triton was imported.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from biases.backends.terms import Problem
from biases.backends.transforms import transformed, wrapped

__all__ = ["run", "why_no_kernels", "why_not"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRANSFORMED = "the kernels have no rule for torch.func transforms, nor for forward-mode derivatives"
_INSTALLED = importlib.util.find_spec("triton") is not None


def why_no_kernels(x: Tensor) -> str | None:
    """Why no kernel can run on tensors such as ``x``; ``None`` if kernels can."""
    if x.dtype not in DTYPES:
        return f"the kernels compute in float32, float16 or bfloat16, not in {x.dtype}"
    if x.device.type not in ("cuda", "cpu"):
        return f"the kernels run on CUDA devices, not on {x.device.type}"
    if not _INSTALLED:
        return "the package triton is not installed (pip install 'attention-biases[triton]')"
    if torch.compiler.is_compiling():
        from biases.backends.triton.traced import why_unsupported
    else:
        if wrapped(x):
            return TRANSFORMED
        from biases.backends.triton.support import why_unsupported
    return why_unsupported(x.device.type, x.device.index)


def why_not(problem: Problem) -> str | None:
    """Why :func:`run` cannot compute ``problem``; ``None`` if it can."""
    from biases.backends.triton.blocks import WIDEST
    from biases.backends.triton.plan import why_no_plan

    if problem.mask is not None:
        return "a mask over pairs"
    if problem.dropout:
        return "dropout on the weights draws a number for every pair"
    reason = why_no_plan(problem.weights, problem.biases, problem.decay, problem.key_gate, problem.geometry)
    if reason is not None:
        return reason
    if max(problem.q.shape[-1], problem.v.shape[-1]) > WIDEST:
        return f"a head is wider than {WIDEST}"
    if not torch.compiler.is_compiling() and transformed(problem):
        return TRANSFORMED
    return why_no_kernels(problem.q)


def run(problem: Problem) -> Tensor:
    """The output of ``problem``, (B, H, L, Dv), in the dtype of the queries.

    Raises:
        ValueError: the kernels cannot run it, saying why.
    """
    reason = why_not(problem)
    if reason is not None:
        raise ValueError(f"backend 'triton': {reason}")
    from biases.backends.triton import pairwise

    return pairwise.run(problem)
