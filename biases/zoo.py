"""The zoo: every registered variant, by name.

A name may carry options: ``ega[statistics=prefix]``. Importing this module imports every bias; adding one takes its own
file and the line that imports it in its folder's ``__init__``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

import biases.models  # noqa: F401
from biases import _calls
from biases._checks import fail, one_of
from biases.layers.build import layer, position
from biases.registry import Variant, get, names

__all__ = [
    "Variant",
    "factory",
    "fast_paths",
    "get",
    "how_to_build",
    "layer",
    "model",
    "names",
    "position",
    "source_file",
    "table",
    "trial",
]

TRIAL_WIDTHS = ((64, 4), (64, 2), (48, 3), (16, 1))


def model(name: str, **options: Any) -> nn.Module:
    """Build the model ``name`` with the options of its class.

    Raises:
        ValueError: unknown name or option.
    """
    variant = get(name)
    if variant.kind != "model":
        fail(f"zoo name {name!r}", "a model", f"a {variant.kind}")
    for option in options:
        one_of(f"option of {variant.name}", option, sorted(variant.options))
    return variant.make(**{**variant.options, **options})


def factory(name: str) -> Callable[..., nn.Module]:
    """``factory(dim, heads, **options)`` of the layer ``name``, with its ``traits``, as the battery takes it."""
    variant = get(name)

    def make_layer(dim: int, heads: int, **options: Any) -> nn.Module:
        return layer(name, dim, heads, **options)

    make_layer.__name__ = name
    make_layer.traits = variant.traits  # type: ignore[attr-defined]
    make_layer.how_to_build = how_to_build(name)  # type: ignore[attr-defined]
    return make_layer


def trial(name: str, widths: Iterable[tuple[int, int]] = TRIAL_WIDTHS, **options: Any) -> Any:
    """Build what ``name`` names once, as its options are checked only then: layers and positions small, models on the
    meta device. The caller's random state is left as it was.

    Args:
        widths: pairs ``(dim, heads)``, of which a layer or position must be buildable with one.
        options: over those in the name.

    Returns:
        The module of a layer or model, the mapping of a position.

    Raises:
        ValueError: unknown name, or options with which it cannot be built.
    """
    pairs = list(widths)
    if not pairs:
        fail("widths", "at least one pair (dim, heads)", "none")
    kind, refused = get(name).kind, list[Exception]()
    with torch.random.fork_rng(devices=[]):
        for dim, heads in pairs:
            try:
                if kind == "layer":
                    return layer(name, dim, heads, **options)
                if kind == "position":
                    return position(name, dim, context=16, heads=heads, **options)
                with torch.device("meta"):
                    return model(name, **options)
            # What a part says to a value of a type that it does not take is anything.
            except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
                refused.append(error)
                if kind == "model":
                    break
    first = refused[0]
    if isinstance(first, ValueError):
        raise first
    reason = (str(first).splitlines() or [type(first).__name__])[0]
    raise ValueError(f"{name}: expected options that it can be built with, got {reason}") from first


def how_to_build(name: str) -> str:
    """Python that binds ``make_layer`` to the factory of ``name``, for scripts that reproduce a failure."""
    return f"from biases.zoo import factory\nmake_layer = factory({name!r})"


BOTH_PASSES = "triton (both passes)"


def fast_paths(name: str, *, length: int = 1024) -> dict[str, str] | None:
    """What attention uses by default in the layer ``name``, as calls of ``attend`` with these tensors would.

    Args:
        length: tokens; for images, pixels of a square map.

    Returns:
        Device -> the formulations of its calls, float32: ``"cpu"``; ``"cpu, fused"`` for where there is no C++
        compiler; and ``"cuda"``, which without such a device is what the table of choices names, in the order in
        which it is tried. There ``"triton (both passes)"`` is the kernel of ``attend_decomposed`` for small maps.
        ``None`` for what is no layer.

    Raises:
        ValueError: unknown name, or options with which it cannot be built.
    """
    from biases.backends import choice
    from biases.backends.fused import formulate

    if get(name).kind != "layer":
        return None
    built = trial(name).eval()
    side = math.isqrt(length)
    shape = (1, side, side) if get(name).traits.domain == "image" else (1, length)
    x = torch.zeros(*shape, built.dim)

    def joined(names: Iterable[str]) -> str:
        return " then ".join(dict.fromkeys(names))

    problems = _calls.problems(lambda: built(x))
    fused = [formulate(problem).name for problem in problems]
    orders = [choice.ORDER.get(("cuda", choice.family(problem))) for problem in problems]
    cuda = (" or ".join([*(order.order if order else ()), last]) for order, last in zip(orders, fused, strict=True))
    found = {"cpu": joined(choice.choose(problem).name for problem in problems), "cpu, fused": joined(fused)}
    available = torch.cuda.is_available()
    if available:
        built, x = built.cuda(), x.cuda()
        cuda = (choice.choose(problem).name for problem in _calls.problems(lambda: built(x)))
    both = _both_passes(lambda: built(x))
    names = [BOTH_PASSES] if both and available else [f"{BOTH_PASSES} or {joined(cuda)}"] if both else cuda
    return {**found, "cuda": joined(names)}


def _both_passes(run: Callable[[], object]) -> bool:
    """Whether on CUDA one kernel computes all calls of ``attend_decomposed`` in ``run()``, of which there are some."""
    from biases.backends import choice
    from biases.backends.triton import decomposed, why_no_kernels

    with _calls.maps() as maps:
        _calls.problems(run)
    for (q, k, v), given in maps:
        reason = decomposed.why_not(q, k, v, **given)
        # Without such a device the question is what the kernel would say on one.
        lacking = None if q.is_cuda else why_no_kernels(q)
        if reason not in (None, lacking) or not choice.one_kernel(q, k, v, device="cuda"):
            return False
    return bool(maps)


def source_file(name: str) -> str:
    """The file that declares ``name``."""
    return inspect.getsourcefile(get(name).make) or ""


def table(kind: str | None = None) -> list[dict[str, Any]]:
    """Every variant as plain values, in the order of :func:`names`: what ``biases list`` and the README show."""
    rows = []
    for name in names(kind):
        variant = get(name)
        traits = variant.traits.as_dict()
        rows.append(
            {
                "name": name,
                "kind": variant.kind,
                "family": variant.family,
                "domain": traits["domain"],
                "summary": variant.summary,
                "paper": traits["published"],
                "parameters": variant.parameters,
                "options": dict(variant.options),
                "fast_path": traits["fast_path"],
                "traits": traits,
                "known_failures": dict(variant.known_failures),
                "notes": list(variant.notes),
            }
        )
    return rows
