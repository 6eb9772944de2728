"""Calls of :func:`biases.attend`, seen from outside: recorded, or given to something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from biases.backends import Problem

Call = tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]
"""``((q, k, v), options)``, all options of ``attend`` by name."""

STAND_IN: ContextVar[Callable[..., Tensor] | None] = ContextVar("stand-in of attend", default=None)

Map = tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]
"""``((q, k, v), terms)`` of a call of :func:`biases.attend_decomposed`."""

MAPS: ContextVar[list[Map] | None] = ContextVar("calls of attend_decomposed", default=None)


@contextmanager
def maps() -> Iterator[list[Map]]:
    """The calls of ``attend_decomposed`` inside this context, in their order; they are run as ever. Compiled code is
    not reached."""
    calls: list[Map] = []
    token = MAPS.set(calls)
    try:
        yield calls
    finally:
        MAPS.reset(token)


@contextmanager
def replaced(stand_in: Callable[..., Tensor]) -> Iterator[None]:
    """Inside this context ``attend`` hands its arguments, all but q, k, v by name, to ``stand_in`` and returns what
    that returns. Compiled code is not reached."""
    token = STAND_IN.set(stand_in)
    try:
        yield
    finally:
        STAND_IN.reset(token)


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls of ``attend`` inside this context, in their order; they are run as ever."""
    from biases.attention import attend

    calls: list[Call] = []

    def record(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        calls.append(((q, k, v), options))
        token = STAND_IN.set(None)
        try:
            return attend(q, k, v, **options)
        finally:
            STAND_IN.reset(token)

    with replaced(record):
        yield calls


def problems(run: Callable[[], object]) -> list[Problem]:
    """The problems that the calls of ``attend`` in ``run()`` pose; they are not solved."""
    from biases.attention import _problem

    found: list[Problem] = []

    def note(q: Tensor, k: Tensor, v: Tensor, *, backend: str, **options: Any) -> Tensor:
        found.append(_problem(q, k, v, **options))
        return values_alone(q, k, v)

    with replaced(note):
        run()
    return found


def values_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of the shape of attention's output and depending on all inputs, but without a matrix product."""
    rest = (q.sum() + k.sum()) * 0.0
    return v.mean((1, 2), keepdim=True).expand(*q.shape[:3], v.shape[3]) + rest
