"""Triton kernels for CUDA: :mod:`~biases.backends.triton.pairwise` and :mod:`~biases.backends.triton.decomposed`.

This module itself needs no Triton; the kernels are imported, and compiled, when they are first used. On tensors of the
CPU they run only in Triton's interpreter, that is where ``TRITON_INTERPRET=1`` was set before Triton was imported.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from biases.backends.terms import Problem

__all__ = ["run", "why_no_kernels", "why_not"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CAPABILITY = (8, 0)
OLDEST = (3, 5)
_INSTALLED = importlib.util.find_spec("triton") is not None
_CPU = "on the CPU the kernels run in Triton's interpreter only (TRITON_INTERPRET=1 before it is first imported)"


def why_no_kernels(x: Tensor) -> str | None:
    """Why no kernel can run on tensors such as ``x``; ``None`` if kernels can."""
    if x.dtype not in DTYPES:
        return f"the kernels compute in float32, float16 or bfloat16, not in {x.dtype}"
    if x.device.type not in ("cuda", "cpu"):
        return f"the kernels run on CUDA devices, not on {x.device.type}"
    if not _INSTALLED:
        return "the package triton is not installed (pip install 'attention-biases[triton]')"
    if torch.compiler.is_compiling():
        # What follows asks Triton and the driver, which a traced function cannot.
        return None if x.device.type == "cuda" or _interpreted() else _CPU
    if _transformed(x):
        return "the kernels have no rule for torch.func transforms"
    if x.device.type == "cuda":
        capability = torch.cuda.get_device_capability(x.device)
        if capability < CAPABILITY:
            return f"the kernels need compute capability {CAPABILITY}, the device has {capability}"
    elif not _interpreted():
        return _CPU
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return None if version >= OLDEST else f"triton {triton.__version__} is older than {OLDEST[0]}.{OLDEST[1]}"


def _interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which is decided when Triton is imported."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    from biases.backends.triton.tiles import sigmoid

    return type(sigmoid).__name__ == "InterpretedFunction"


def _transformed(x: Tensor) -> bool:
    """Whether ``x`` is a tensor of ``torch.func.vmap`` or another transform."""
    wrapped = getattr(getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor", None)
    return wrapped is not None and bool(wrapped(x))


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
