"""Promises of a module over its life: modes, copies, casts, moves to another device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_same
from biases.testing.properties.base import assert_alike, promises
from biases.testing.strategies import MODERATE
from biases.testing.subject import CastError, Layer, NotApplicable, Raised, Violation, move_parameters, told
from biases.traits import Traits

_OTHER_DEVICE = ("is not on the expected device", "to be on the same device, but found")


def _same_in_training(traits: Traits) -> str | None:
    return "Traits.training_differs is True" if traits.training_differs else None


@promises(
    "train-eval-agreement",
    "Training mode gives the same output as evaluation mode.",
    trait="Traits.training_differs is False; declare True where dropout or batch statistics are meant",
    reason=_same_in_training,
    among=MODERATE,
)
def train_eval_agreement(case: Case) -> None:
    evaluated, training, x = case.module(case.precise), case.module(case.precise), case.input(case.precise)
    out = case.call(evaluated, x)
    try:
        training.train()
    except Exception as error:
        raise Violation(f"the layer's train() raised {told(error)}") from error
    assert_alike(case, evaluated, x, out, (case.call(training, x), out), "output in training mode")


@promises(
    "deepcopy-agreement",
    "A deep copy computes the same, and goes on doing so when the original is trained.",
    among=MODERATE,
)
def deepcopy_agreement(case: Case) -> None:
    layer, x = case.module(case.precise), case.input(case.precise)
    try:
        copied = copy.deepcopy(layer)
    except Exception as error:
        raise NotApplicable(f"the layer cannot be copied: copy.deepcopy raised {told(error)}") from error
    out = case.call(layer, x)
    assert_alike(case, layer, x, out, (case.call(copied, x), out), "output of the copy")
    untouched = case.module(case.precise)
    move_parameters(layer, case.example["seed"] + 1)
    # Called again, so that what a shared cache holds by now is seen too.
    case.call(layer, x)
    what = "output of the copy once the original's parameters have moved"
    assert_alike(case, untouched, x, out, (case.call(copied, x), out), what)


@promises(
    "dtype-round-trip",
    "Casting the layer to another dtype and back to float32 leaves its float32 output as it was.",
    among=("normal", "alternating-sign", "one-hot"),
    choices={"through": ("bfloat16", "float64"), "first": ("the other", "float32")},
)
def dtype_round_trip(case: Case) -> None:
    """Parameters and buffers are put back, so that only what is kept beside them is seen."""
    layer, untouched = _uncast(case), _uncast(case)
    held = {each.dtype for each in (*layer.parameters(), *layer.buffers()) if each.dtype.is_complex}
    held |= {each.dtype for each in layer.parameters() if each.is_floating_point()} - {torch.float32}
    if held:
        raise NotApplicable(f"the layer is made in {', '.join(sorted(map(str, held)))}")
    name, first = case.example["through"], case.example["first"]
    other = getattr(torch, name)
    x = case.input(torch.float32)
    out = case.call(untouched, x)
    if first == "float32":
        case.call(layer, x)
    before = _state(layer)
    try:
        layer.to(other)
    except Exception as error:
        raise NotApplicable(f"the layer's to({name}) raised {told(error)}") from error
    try:
        # What is cached in the other dtype must not be left over.
        case.call(layer, x.to(other))
    except Violation as error:
        raise NotApplicable(f"the layer does not take {name}: {error}") from error
    try:
        layer.to(torch.float32)
    except Exception as error:
        raise Violation(f"to(float32) after to({name}) raised {told(error)}") from error
    if other != torch.float64:
        _put_back(layer, before)
    what = f"output after to({name}) and to(float32), the first call being in {name if first != 'float32' else first}"
    assert_alike(case, untouched, x, out, (case.call(layer, x), out), what)


def _put_back(layer: torch.nn.Module, before: dict[str, Tensor]) -> None:
    """Undo the rounding of a cast."""
    with torch.no_grad():
        for name, each in (*layer.named_parameters(), *layer.named_buffers()):
            if name not in before or before[name].shape != each.shape:
                raise NotApplicable(f"{name} is made by a call, and a cast to a lower precision rounds it")
            each.copy_(before[name])


def _uncast(case: Case) -> torch.nn.Module:
    """The layer as its factory makes it: a cast may be what breaks it."""
    raw = case.subject.build(case.dim, case.heads, seed=case.example["seed"])
    if not isinstance(raw, torch.nn.Module):
        raise NotApplicable(f"the {case.subject.kind} is not a torch.nn.Module")
    if case.example["parameters"] == "moved":
        move_parameters(raw, case.example["seed"])
    placed = raw if case.device.type == "cpu" else raw.to(case.device)
    seen = case.subject.seen_as_layer(placed, case.heads, case.grid)
    assert isinstance(seen, torch.nn.Module)
    return seen


@promises(
    "state-unchanged",
    "In evaluation mode, a call changes no parameter and no persistent buffer.",
    among=MODERATE,
)
def state_unchanged(case: Case) -> None:
    layer, x = case.module(case.precise), case.input(case.precise)
    before = _kept(layer)
    case.call(layer, x)
    # A second call: some of what is updated starts from what the first would give.
    case.call(layer, case.normal(x))
    after = _kept(layer)
    if missing := before.keys() ^ after.keys():
        raise Violation(
            f"parameters and buffers after two calls: expected the same names, got a change in {sorted(missing)}"
        )
    for name, value in before.items():
        assert_same(after[name], value, f"{name} after two calls")


def _kept(layer: torch.nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds: a buffer that is not persistent may be a table that grows when it is asked for more."""
    passing = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in layer.named_modules()
        for name in module._non_persistent_buffers_set
    }
    return {name: each for name, each in _state(layer).items() if name not in passing}


def _state(layer: torch.nn.Module) -> dict[str, Tensor]:
    named = (*layer.named_parameters(), *layer.named_buffers())
    return {name: each.detach().clone() for name, each in named}


@promises(
    "grad-mode-agreement",
    "The output is the same whether gradients are recorded or not.",
    among=MODERATE,
    choices={"mode": ("enabled", "input requires grad", "parameters frozen", "inference mode")},
)
def grad_mode_agreement(case: Case) -> None:
    layer, x, out = case.run(case.precise)
    match case.example["mode"]:
        case "enabled":
            got = case.call(layer, x, grad=True)
        case "input requires grad":
            got = case.call(layer, x.detach().requires_grad_(), grad=True)
        case "parameters frozen":
            frozen = case.layer(case.precise)
            if isinstance(frozen, torch.nn.Module):
                frozen.requires_grad_(False)
            got = case.call(frozen, x.detach().requires_grad_(), grad=True)
        case _:
            with torch.inference_mode():
                got = case.call(layer, x).clone()
    assert_alike(case, layer, x, out, (got.detach(), out), f"output, {case.example['mode']}, against no_grad")


@promises(
    "device-moves",
    "What the layer makes or keeps is on the device of its parameters and its input, also after a move.",
    among=("normal",),
)
def device_moves(case: Case) -> None:
    """Tried on the meta device, which every machine has: it computes nothing, but refuses to mix devices.

    What is no module cannot be moved, and may have been made for one device.
    """
    layer, x = case.module(case.single), case.input(case.single)
    case.call(layer, x)
    try:
        moved = _moved(layer, torch.device("meta"))
        with torch.device("cpu"):
            out = case.call(moved, x.to("meta"))
    except (CastError, Raised, NotImplementedError) as error:
        if any(each in str(error) for each in _OTHER_DEVICE):
            what = "after a move to another device: expected one device, got tensors on two"
            raise Violation(f"{what}: {str(error).splitlines()[0]}") from error
        raise NotApplicable(f"the layer cannot be followed on the meta device: {error}") from error
    if out.device.type != "meta":
        raise Violation(f"output for an input on another device: expected device meta, got {out.device}")


def _moved(layer: Layer, device: torch.device) -> Layer:
    if not isinstance(layer, torch.nn.Module):
        return layer
    with _swapping():
        try:
            return layer.to(device)
        except Exception as error:
            raise CastError(f"the layer's to({device}) raised {told(error)}") from error


@contextmanager
def _swapping() -> Iterator[None]:
    """Moving keeps parameters the same objects, as moves between real devices do."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
