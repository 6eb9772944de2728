"""Tensors that depend on sizes alone, made once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")
#: results that a function keeps; the least recently used ones go first
MOST = 64


def kept(make: Callable[..., Made]) -> Callable[..., Made]:
    """Decorates a function of hashable arguments that returns tensors, to be read only, on the device it is told.

    While torch traces, transforms or intercepts calls a tensor is part of that, so it is made for it and not kept.
    """

    @functools.lru_cache(MOST)
    def keep(*arguments: Any) -> Made:
        # A tensor made in inference mode could not take part in gradients later.
        with torch.inference_mode(False):
            return make(*arguments)

    @functools.wraps(make)
    def call(*arguments: Any) -> Made:
        return make(*arguments) if intercepted() else keep(*arguments)

    return call


def intercepted() -> bool:
    """Whether calls of torch are traced or go through modes or transforms; if this torch does not tell, they may."""
    if torch.compiler.is_compiling():
        return True
    modes = getattr(torch._C, "_len_torch_dispatch_stack", None)
    transformed = getattr(torch._C, "_are_functorch_transforms_active", None)
    return modes is None or transformed is None or modes() > 0 or transformed()
