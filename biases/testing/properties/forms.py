"""Promises of subjects that come in several forms (``forms``): fast and plain, parallel, recurrent and in chunks.

Catalogue of published faults of this kind: microsoft/torchscale#77, Jamie-Stirling/RetNet#10, syncdoth/RetNet#10
(retention in chunks), huggingface/transformers#29623 (windows that differ by one), ml-explore/mlx#2608 (empty rows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import magnitude, promises, rounding_of
from biases.testing.properties.gradients import backward
from biases.testing.strategies import MODERATE
from biases.testing.subject import Layer, NotApplicable, Violation
from biases.testing.views import KINDS, VIEWED
from biases.traits import Traits

Run = Callable[..., Tensor]
_MASKS = ("none", "some pairs", "a row of nothing", "nothing")


def _drawn(traits: Traits) -> dict[str, Any]:
    longest = min(70, traits.max_length or 70)
    # What comes of a query without a key is a promise only where it is declared.
    masks = _MASKS[:1] if not traits.mask else _MASKS if traits.empty_row else _MASKS[:2]
    choices = {"masked": masks, "lengths": ("as drawn", "equal")}
    return {"among": MODERATE, "max_batch": 2, "max_length": longest, "keys": True, "choices": choices}


@promises(
    "forms-agree",
    "All forms of the computation give the same, for any lengths and masks that the first one takes.",
    trait="it has other forms",
    kinds=tuple(KINDS),
    drawn=_drawn,
)
def forms_agree(case: Case) -> None:
    for name, (run, other, inputs) in _pairs(case).items():
        expected = _first(run, inputs)
        tolerance = rounding_of(expected) + 8 * _noise(case, run, inputs, expected)
        what = f"output of the form {name!r}, inputs {_shapes(inputs)}"
        assert_tolerance(other(*inputs), expected, tolerance=tolerance, what=what, nan_equal=True)


@promises(
    "forms-agree-gradient",
    "All forms of the computation give the same gradients for their inputs.",
    trait="it has other forms",
    kinds=(*VIEWED, "gate"),
    drawn=_drawn,
)
def forms_agree_gradient(case: Case) -> None:
    for name, (run, other, inputs) in _pairs(case).items():
        _first(run, inputs)
        leaves = _leaves(inputs)
        out = run(*leaves, grad=True)
        incoming = case.normal(out, 2)
        expected = _gradients(out, leaves, incoming)
        near = [_leaves(each) for each in _nearby(case, inputs)]
        moved = [_gradients(run(*each, grad=True), each, incoming) for each in near]
        leaves = _leaves(inputs)
        got = _gradients(other(*leaves, grad=True), leaves, incoming)
        for k, (actual, want) in enumerate(zip(got, expected, strict=True)):
            noise = max(magnitude(each[k] - want) for each in moved)
            # A gradient is a sum of terms that may cancel; they are no larger than those of the other inputs.
            tolerance = max(rounding_of(each) for each in expected) + 8 * noise
            what = f"gradient for input {k} of the form {name!r}, inputs {_shapes(inputs)}"
            assert_tolerance(actual, want, tolerance=tolerance, what=what, nan_equal=True)


def _pairs(case: Case) -> dict[str, tuple[Run, Run, list[Any]]]:
    """name -> (the first form, the other one, their inputs)."""
    if not case.subject.forms:
        raise NotApplicable("it has no other forms: give them by forms={name: factory}, or the factory's attribute")
    inputs = _inputs(case)
    pairs = {}
    for name, make in case.subject.forms.items():
        first, other = case.raw(case.precise), case.raw(case.precise, make=make)
        if isinstance(first, torch.nn.Module) and isinstance(other, torch.nn.Module):
            state = {key: value for key, value in first.state_dict().items() if isinstance(value, Tensor)}
            theirs = other.state_dict()
            fitting = {k: v for k, v in state.items() if k in theirs and theirs[k].shape == v.shape}
            with torch.no_grad():
                other.load_state_dict(fitting, strict=False)
        pairs[name] = (_runner(case, first, inputs), _runner(case, other, inputs), inputs)
    return pairs


def _inputs(case: Case) -> list[Any]:
    length, keys = case.length, case.example["keys"]
    if case.example["lengths"] == "equal":
        keys = length
    match case.subject.kind:
        case "operator":
            batch, _, dim = case.shape
            sizes = [(batch, case.heads, n, dim // case.heads) for n in (length, keys, keys)]
            inputs = [case.tensor(size, case.precise, 4 + k) for k, size in enumerate(sizes)]
            return [*inputs, *_mask(case, length, keys)]
        case "bias" | "mask":
            return list(case.grid or (length, keys))
        case "slopes":
            return []
        case "layer" if case.grid is None:
            return [case.input(case.precise), *_keep(case)]
        case _:
            return [case.input(case.precise)]


def _mask(case: Case, length: int, keys: int) -> list[Tensor]:
    masked = case.example["masked"]
    if masked == "none":
        return []
    allowed = torch.rand(case.shape[0], 1, length, keys, generator=case.generator(8)) < 0.6
    allowed[..., torch.arange(length), torch.arange(length) % keys] = True
    if masked == "a row of nothing":
        allowed[..., length // 2, :] = False
    elif masked == "nothing":
        allowed[:] = False
    allowed = allowed.to(case.device)
    if "boolean" in case.subject.traits.mask:
        return [allowed]
    return [torch.zeros(allowed.shape, dtype=case.precise, device=case.device).masked_fill(~allowed, float("-inf"))]


def _keep(case: Case) -> list[Tensor]:
    masked = case.example["masked"]
    if masked == "none":
        return []
    keep = torch.rand(case.shape[:2], generator=case.generator(8)) < 0.6
    keep[:, 0] = True
    if masked != "some pairs":
        keep[-1] = False
    return [keep.to(case.device)]


def _runner(case: Case, raw: Layer, inputs: list[Any]) -> Run:
    viewed = case.subject.kind in VIEWED and case.subject.kind != "operator" and len(inputs) == 1
    called = case.subject.seen_as_layer(raw, case.heads, case.grid) if viewed else raw
    keep = inputs[1] if case.subject.kind == "layer" and len(inputs) == 2 else None

    def run(*given: Any, grad: bool = False) -> Tensor:
        out = case.invoke(called, *given, grad=grad)
        if not isinstance(out, Tensor):
            raise Violation(f"the {case.subject.kind} returned {type(out).__name__}, expected a tensor")
        # What stands at padding is not specified.
        out = out if keep is None else torch.where(keep[..., None], out, torch.zeros_like(out))
        if case.subject.kind == "mask":
            return out.double()
        return out.broadcast_to(case.heads, *out.shape[-2:]) if case.subject.kind == "bias" else out

    return run


def _first(run: Run, inputs: list[Any]) -> Tensor:
    try:
        return run(*inputs)
    except Violation as error:
        raise NotApplicable(f"the first form does not take inputs {_shapes(inputs)}: {error}") from error


def _noise(case: Case, run: Run, inputs: list[Any], out: Tensor) -> float:
    return max((magnitude(run(*each) - out) for each in _nearby(case, inputs)), default=0.0)


def _nearby(case: Case, inputs: list[Any]) -> Iterator[list[Any]]:
    """The inputs with what is floating rounded to float32, twice, as far as there is any."""
    eps = max(torch.finfo(torch.float32).eps, torch.finfo(case.precise).eps)
    if not any(isinstance(each, Tensor) for each in inputs):
        return
    for draw in range(2):
        generator = case.generator(40 + draw)
        near = []
        for each in inputs:
            if isinstance(each, Tensor) and each.is_floating_point():
                sign = torch.rand(each.shape, generator=generator, dtype=torch.float64).round() * 2 - 1
                each = each * (1 + eps * sign).to(each)
            near.append(each)
        yield near


def _leaves(inputs: list[Any]) -> list[Any]:
    def leaf(each: Any) -> Any:
        floating = isinstance(each, Tensor) and each.is_floating_point()
        return each.detach().requires_grad_() if floating and not each.isinf().any() else each

    return [leaf(each) for each in inputs]


def _gradients(out: Tensor, leaves: list[Any], incoming: Tensor) -> list[Tensor]:
    wanted = [each for each in leaves if isinstance(each, Tensor) and each.requires_grad]
    found = backward(out, wanted, incoming)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]


def _shapes(inputs: list[Any]) -> str:
    return ", ".join(str(tuple(each.shape)) if isinstance(each, Tensor) else str(each) for each in inputs)
