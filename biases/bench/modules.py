"""Layers, models and training steps as workloads; see :mod:`biases.bench.workloads`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases import zoo
from biases._calls import problems, replaced
from biases.backends import choice
from biases.bench.counting import flops
from biases.bench.operators import stock
from biases.layers.self_attention import set_backend, specification
from biases.registry import get

if TYPE_CHECKING:
    from biases.bench.workloads import Setting, Workload

# A check holds dense float64 weights; longer inputs are cut, their calls of attend being checked as operators.
CHECKED_TOKENS = {"layer": 512, "model": 128}
CHECKED_SIDE = 64  # of images that models take
CHECKED_BATCH = 2
NO_DROPOUT = ("dropout", "drop_path")


def build_layer(name: str, setting: Setting, backend: str) -> tuple[nn.Module, Tensor]:
    """The layer ``name`` and an input, (B, T, C) or (B, H, W, C)."""
    image = get(name).traits.domain == "image"
    shape = (setting.side, setting.side) if image else (setting.length,)
    built = _seeded(setting, lambda: zoo.layer(name, setting.dim, setting.heads, backend=backend))
    return built.eval(), setting.draw(setting.batch, *shape, setting.dim)


def layer(name: str, setting: Setting, backend: str) -> Workload:
    """The workload of a whole layer."""
    traits = get(name).traits
    built, x = build_layer(name, setting, backend)
    run = run_layer(built, x, setting)
    if traits.domain == "image":
        floor = _floored(run)
    else:
        plain = _seeded(
            setting, lambda: zoo.layer("standard", setting.dim, setting.heads, causal=traits.causal, backend="fused")
        )
        floor = run_layer(plain.eval(), x, setting)
    smaller = checked_setting("layer", name, setting)

    def check() -> None:
        again, inputs = build_layer(name, smaller, backend)
        _check(again, inputs, _itself, smaller.draw(*inputs.shape, offset=1), smaller, name)

    return _workload("layer", name, setting, smaller, run, floor, check, traits.causal)


def run_layer(module: nn.Module, x: Tensor, setting: Setting) -> Callable[[], tuple[Tensor, ...]]:
    """A call of a layer: returns the output and, for forward+backward, the gradients."""
    return _pass(module, x, _itself, setting.draw(*x.shape, offset=1), setting)


def model(name: str, setting: Setting, backend: str, *, step: bool) -> Workload:
    """The workload of a model, or of a step of its training."""
    image = get(name).traits.domain == "image"
    built, x, finish = _build_model(name, setting, backend)
    built.train(setting.backward)
    run = _training_step(built, x, finish) if step else _pass(built, x, finish, None, setting)
    if image:
        floor = _floored(run)
    else:
        causal = zoo.get(get(name).options["attention"]).traits.causal
        plain, _, finish = _build_model(
            name, setting, "fused", attention="standard", attention_options={"causal": causal}
        )
        plain.train(setting.backward)
        floor = _training_step(plain, x, finish) if step else _pass(plain, x, finish, None, setting)
    smaller = checked_setting("model", name, setting)

    def check() -> None:
        again, inputs, loss = _build_model(name, smaller, backend)
        _check(again.eval(), inputs, loss, None, smaller, name)

    return _workload("training" if step else "model", name, setting, smaller, run, floor, check, not image and causal)


Finish = Callable[[Tensor], Tensor]
"""What follows the module, before gradients are taken."""


def _build_model(name: str, setting: Setting, backend: str, **options: Any) -> tuple[nn.Module, Tensor, Finish]:
    """The model, its input, and the loss (mean cross-entropy, in nats) of its logits; the logits themselves forward."""
    variant, usual = get(name), get(name.partition("[")[0]).options
    for option in NO_DROPOUT:
        if option in usual and variant.options[option] == usual[option]:
            options[option] = 0.0
    generator = torch.Generator().manual_seed(setting.seed)
    if variant.traits.domain == "image":
        built = _seeded(setting, lambda: zoo.model(name, backend=backend, **options))
        channels: Any = built.channels
        x = setting.draw(setting.batch, channels, setting.side, setting.side)
        shape: tuple[int, ...] = (setting.batch,)
    else:
        options |= {"context": setting.length, "heads": setting.heads, "dim": setting.dim}
        built = _seeded(setting, lambda: zoo.model(name, backend=backend, **options))
        shape = (setting.batch, setting.length)
        x = torch.randint(int(variant.options["vocab"]), shape, generator=generator).to(setting.device)
    target = torch.randint(1 << 30, shape, generator=generator).to(setting.device)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), target.flatten() % logits.shape[-1])

    return built, x, loss if setting.backward else lambda logits: logits


def _seeded(setting: Setting, make: Callable[[], nn.Module]) -> nn.Module:
    """Made on the CPU from the seed, then moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        return make().to(setting.device, setting.torch_dtype)


def _pass(
    module: nn.Module, x: Tensor, finish: Finish, grad: Tensor | None, setting: Setting
) -> Callable[[], tuple[Tensor, ...]]:
    """Returns the output and, for forward+backward, the gradients by the input, if it has any, and the parameters."""
    if not setting.backward:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (finish(module(x)),)

        return forward
    inputs = [x.requires_grad_()] if x.is_floating_point() else []
    wanted = [*inputs, *(parameter for parameter in module.parameters() if parameter.requires_grad)]

    def both() -> tuple[Tensor, ...]:
        out = finish(module(x))
        found = torch.autograd.grad(out, wanted, grad, allow_unused=True, materialize_grads=True)
        return (out.detach(), *found)

    return both


def _training_step(module: nn.Module, x: Tensor, loss: Finish) -> Callable[[], tuple[Tensor, ...]]:
    groups = module.parameter_groups(0.1)  # type: ignore[operator]
    optimiser = torch.optim.AdamW(groups, lr=0.0)

    def step() -> tuple[Tensor, ...]:
        optimiser.zero_grad(set_to_none=True)
        value = loss(module(x))
        value.backward()
        optimiser.step()
        return (value.detach(),)

    return step


def _floored(run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """The same with stock attention in place of ``attend``."""

    def floor() -> tuple[Tensor, ...]:
        with replaced(stock):
            return run()

    return floor


def checked_setting(level: str, name: str, setting: Setting) -> Setting:
    """The setting that a check takes: a long sequence is cut, a map has its side halved until it fits."""
    image = get(name).traits.domain == "image"
    tokens = CHECKED_SIDE**2 if image and level == "model" else CHECKED_TOKENS[level]
    batch = min(setting.batch, CHECKED_BATCH) if level == "model" else setting.batch
    length = min(setting.length, tokens)
    if image:
        side = setting.side
        while side * side > tokens:
            side = -(-side // 2)
        length = side * side
    return replace(setting, length=length, batch=batch)


def _check(module: nn.Module, x: Tensor, finish: Finish, grad: Tensor | None, setting: Setting, name: str) -> None:
    """Compare with the module in float64 on the reference backend.

    Raises:
        AssertionError: something is off by more than ``2 (max|low - ref64| + eps(dtype) max|ref64|)``, where ``low``
            is the module with dense attention in its dtype. Both maxima are taken over the gradients by everything:
            some are sums that cancel, and where rounding is amplified, by whom is chance.
    """
    from biases.testing.compare import assert_tolerance, assert_within, error_budget

    exact = specification(module)
    dense = set_backend(copy.deepcopy(module), "dense")
    wide = x.detach().double() if x.is_floating_point() else x
    reference = _pass(exact, wide, finish, None if grad is None else grad.double(), setting)()
    low = _pass(dense, x.detach().clone(), finish, grad, setting)()
    actual = _pass(module, x.detach().clone(), finish, grad, setting)()
    assert_within(actual[0], reference[0], low[0], what=f"{name}: output")
    largest = max((float(each.abs().max()) for each in reference[1:]), default=0.0)
    budgets = (error_budget(*each, magnitude=largest) for each in zip(reference[1:], low[1:], strict=True))
    budget = max(budgets, default=0.0)
    labels = ["the input"] if x.is_floating_point() else []
    labels += [label for label, parameter in module.named_parameters() if parameter.requires_grad]
    for label, got, wanted in zip(labels[: len(actual) - 1], actual[1:], reference[1:], strict=True):
        assert_tolerance(got.double(), wanted, tolerance=budget, what=f"{name}: gradient of {label}")


def check_same_function(other: nn.Module, ours: nn.Module, x: Tensor, setting: Setting, name: str) -> None:
    """Compare another layer of the same weights with ours: outputs, and gradients by the input.

    Raises:
        AssertionError: as for a layer of our own.
    """
    from biases.testing.compare import assert_within

    wide = replace(setting, dtype="float64")
    reference = run_layer(specification(ours), x.detach().double(), wide)()
    low = run_layer(set_backend(copy.deepcopy(ours), "dense"), x.detach().clone(), setting)()
    actual = run_layer(other, x.detach().clone(), setting)()
    for label, got, wanted, rounded in zip(("output", "gradient of the input"), actual, reference, low, strict=False):
        assert_within(got, wanted, rounded, what=f"{name}: {label}")


def _itself(x: Tensor) -> Tensor:
    return x


def _workload(
    level: str,
    name: str,
    setting: Setting,
    smaller: Setting,
    run: Callable[[], Any],
    floor: Callable[[], Any],
    check: Callable[[], None],
    causal: bool,
) -> Workload:
    from biases.bench.workloads import Workload

    checked = "outputs and gradients" if setting.backward else "outputs"
    if smaller != setting:
        checked += f" of {smaller.batch} x {smaller.length} tokens"
    return Workload(
        name=name,
        level=level,
        setting=setting,
        causal=causal,
        run=run,
        floor=floor,
        check=check,
        checked=checked,
        tokens=setting.batch * setting.length,
        flops=lambda: flops(run, backward=setting.backward),
        traffic=None,
        formulations=lambda: tuple(choice.choose(problem).name for problem in problems(run)),
    )
