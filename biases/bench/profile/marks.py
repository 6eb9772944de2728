"""Operators of their own, in the events of a profile, around what computes attention.

The native kernel is called without torch's dispatcher where it can be, and would leave no event of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from biases import axial
from biases._calls import STAND_IN, replaced
from biases.attention import attend, formulation

ATTEND = "biases::attend"
DECOMPOSED = "biases::attend_decomposed (triton)"


class Marker:
    """Marks each call of ``attend`` by an operator ``biases::attend (HOW)``, HOW being the backend, or the formulation
    that ``backend="auto"`` chooses; and each call of the kernel of ``attend_decomposed``. Compiled code is not reached.

    A call is told by its place among those of a pass, so that HOW is found in the first pass, and costs the later ones
    nothing; passes must make the same calls.
    """

    def __init__(self) -> None:
        self._how: list[str] = []
        self._next = 0

    def begin_pass(self) -> None:
        self._next = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        from biases.backends.triton import decomposed

        with ExitStack() as stack:
            stack.enter_context(replaced(self._attend))
            # attend_decomposed leaves its kernel alone where calls of attend are replaced; these are run as ever.
            stack.enter_context(_swapped(axial, "_in_one_kernel", _as_ever))
            stack.enter_context(_swapped(decomposed, "run", _one_kernel))
            yield

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *, backend: str, **options: Any) -> Tensor:
        if self._next == len(self._how):
            self._how.append(backend if backend != "auto" else formulation(q, k, v, **options).name)
        how = self._how[self._next]
        self._next += 1
        token = STAND_IN.set(None)
        try:
            with _operator(f"{ATTEND} ({how})", q, k, v):
                return attend(q, k, v, backend=backend, **options)
        finally:
            STAND_IN.reset(token)


def _operator(name: str, *inputs: Tensor) -> AbstractContextManager[None]:
    """An operator with the shapes of ``inputs`` in the events of a profile; where torch makes none, a range of
    ``record_function``, which the plug-in of TensorBoard leaves out."""
    with suppress(AttributeError, TypeError):
        return torch._C._profiler._RecordFunctionFast(name, list(inputs), {})
    return record_function(name)


@contextmanager
def _swapped(module: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, wrap(original))
    try:
        yield
    finally:
        setattr(module, name, original)


def _as_ever(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, calls of ``attend`` not being replaced."""

    def call(*arguments: Any) -> Any:
        token = STAND_IN.set(None)
        try:
            return function(*arguments)
        finally:
            STAND_IN.reset(token)

    return call


def _one_kernel(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        with _operator(DECOMPOSED, q, k, v):
            return function(q, k, v, **options)

    return call
