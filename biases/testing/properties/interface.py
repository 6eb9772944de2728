"""What every attention layer (B, T, C) -> (B, T, C) must satisfy at its surface."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_same
from biases.testing.properties.base import assert_alike, promises
from biases.testing.strategies import MODERATE, make_tensor, strided
from biases.testing.subject import BuildError, CastError, NotApplicable, Raised, Violation, cast, told


@promises(
    "shape-dtype-device",
    "The output has the shape, the dtype and the device of the input.",
    choices={"dtype": ("float32", "float64", "bfloat16")},
)
def shape_dtype_device(case: Case) -> None:
    dtype = getattr(torch, case.example["dtype"])
    try:
        _, x, out = case.run(dtype)
    except (CastError, Raised):
        # Not every layer takes every dtype; one that does has to return it.
        if dtype == torch.float32:
            raise
        return
    for name in ("dtype", "device"):
        got, expected = getattr(out, name), getattr(x, name)
        if got != expected:
            raise Violation(f"output: expected {name} {expected}, got {got}")


@promises("finite-output", "A finite input gives a finite output.")
def finite_output(case: Case) -> None:
    assert_finite(case.run(case.single)[2], "output")


@promises("finite-gradient", "A finite input gives finite gradients for the input and for every parameter.")
def finite_gradient(case: Case) -> None:
    layer, x = case.layer(case.single), case.input(case.single)
    x = x.detach().requires_grad_()
    parameters = dict(layer.named_parameters()) if isinstance(layer, torch.nn.Module) else {}
    trained = {name: each for name, each in parameters.items() if each.requires_grad}
    out = case.call(layer, x, grad=True)
    if trained and not out.requires_grad:
        count = f"{len(trained)} trainable parameters, {next(iter(trained))!r} the first of them"
        raise Violation(f"output: expected gradients for the input and for {count}, got an output without a graph")
    gradients = gradients_of(case, out, [x, *trained.values()])
    if gradients[0] is None:
        raise Violation("gradient for the input: expected one, got an output whose graph does not reach the input")
    for name, gradient in zip(["input", *trained], gradients, strict=True):
        if gradient is not None:
            assert_finite(gradient, f"gradient for the {name}" if name == "input" else f"gradient for {name}")


@promises("deterministic", "In evaluation mode, the same input gives the same bits twice.")
def deterministic(case: Case) -> None:
    layer, _, out = case.run(case.single)
    assert_same(case.call(layer, case.input(case.single)), out, "second output")


@promises("input-unchanged", "The layer does not write to its input.")
def input_unchanged(case: Case) -> None:
    layer, x = case.layer(case.single), case.input(case.single)
    before = x.clone()
    case.call(layer, x)
    assert_same(x, before, "input after the call")


@promises("single-token", "A sequence of one token gives one finite token.", max_length=1)
def single_token(case: Case) -> None:
    assert_finite(case.run(case.single)[2], "output for one token")


@promises(
    "noncontiguous-input",
    "The output depends on the values of the input, not on its strides.",
    among=MODERATE,
    choices={"layout": ("transposed", "strided", "expanded")},
)
def noncontiguous_input(case: Case) -> None:
    layer, x = case.layer(case.precise), case.input(case.precise).contiguous()
    match case.example["layout"]:
        case "transposed":
            laid_out = x.transpose(1, 2).contiguous().transpose(1, 2)
        case "strided":
            laid_out = strided(x)
        case _:
            laid_out = x[:1].expand_as(x)
            x = laid_out.contiguous()
    out = case.call(layer, x)
    assert_alike(
        case, layer, x, out, (case.call(layer, laid_out, as_laid_out=True), out), "output for the other layout"
    )


@promises(
    "invalid-arguments",
    "Bad heads, and an input of the wrong rank or width, raise or are served in full.",
    among=("normal",),
    kinds=("layer",),
    choices={"fault": ("an axis less", "an axis more", "wrong width", "heads do not divide")},
)
def invalid_arguments(case: Case) -> None:
    """A layer may accept more than it promises; a silent result of another shape or NaN is the fault."""
    batch, _, dim = case.shape
    fault = case.example["fault"]
    inner = case.grid or (case.length,)
    shapes = {
        "an axis less": (*inner, dim),
        "an axis more": (batch, 2, *inner, dim),
        "wrong width": (batch, *inner, dim + 1),
    }
    x = make_tensor(shapes.get(fault, (batch, *inner, dim)), seed=case.example["seed"], dtype=case.single)
    x = x.to(case.device)
    if fault == "heads do not divide":
        try:
            layer = case.subject.build(dim, dim // 2 + 1, seed=case.example["seed"])
        except BuildError:
            return
        layer = cast(layer, case.single, case.device)
        fault = f"dim {dim} with {dim // 2 + 1} heads"
    else:
        layer = case.raw(case.single)
    with torch.no_grad():
        try:
            out = layer(x)
        except Exception:
            return
    what = f"{fault}, input {tuple(x.shape)}: expected an exception or a full result"
    if not isinstance(out, Tensor) or out.shape != x.shape:
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise Violation(f"{what}, got {got} in silence")
    assert_finite(out, what)


@promises("state-dict-round-trip", "A layer loaded from another's saved state computes the same.", among=MODERATE)
def state_dict_round_trip(case: Case) -> None:
    source = case.module(case.precise)
    target = case.module(case.precise, seed_offset=1)
    x = case.input(case.precise)
    expected = case.call(source, x)
    try:
        state = copy.deepcopy(source.state_dict())
    except Exception as error:
        raise Violation(f"state_dict, or a deep copy of it, raised {told(error)}") from error
    try:
        target.load_state_dict(state, strict=True)
    except Exception as error:
        raise Violation(f"load_state_dict raised {told(error)}") from error
    assert_alike(case, source, x, expected, (case.call(target, x), expected), "output of the loaded layer")


def assert_finite(values: Tensor, what: str) -> None:
    """Assert that there is no NaN and no infinity."""
    wrong = ~values.isfinite()
    if wrong.any():
        index = tuple(wrong.nonzero()[0].tolist())
        size = f"{int(wrong.sum())} of {wrong.numel()} elements, shape {tuple(values.shape)}, {values.dtype}"
        raise Violation(f"{what}: expected finite values, got {values[index].item()} at index {index}; {size}")


def gradients_of(case: Case, out: Tensor, inputs: list[Tensor], rows: slice = slice(None)) -> tuple[Tensor | None, ...]:
    """Gradients of a fixed random weighting of ``out[:, rows]``.

    Raises:
        NotApplicable: the output carries no gradient.
        Violation: the backward pass raised.
    """
    if not out.requires_grad:
        raise NotApplicable("the output carries no gradient")
    part = out[:, rows]
    weighting = case.normal(part, 2)
    try:
        return torch.autograd.grad((part * weighting).sum(), inputs, allow_unused=True)
    except Exception as error:
        raise Violation(f"the backward pass raised {told(error)}") from error
