"""Layers, models and training steps as workloads; see :mod:`biases.bench.workloads`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases import zoo
from biases._calls import problems
from biases.backends import choice
from biases.bench.counting import flops
from biases.bench.module_checks import assert_finite, compare
from biases.bench.passes import Finish, floored, itself, run_layer, training_step, whole_pass
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
        floor = floored(run)
    else:
        plain = _seeded(
            setting, lambda: zoo.layer("standard", setting.dim, setting.heads, causal=traits.causal, backend="fused")
        )
        floor = run_layer(plain.eval(), x, setting)
    smaller = checked_setting("layer", name, setting)

    def check() -> None:
        again, inputs = build_layer(name, smaller, backend)
        compare(again, inputs, itself, smaller.draw(*inputs.shape, offset=1), smaller, name)

    checked = "outputs and gradients" if setting.backward else "outputs"
    return _workload("layer", name, setting, smaller, run, floor, check, checked, traits.causal, backend)


def model(name: str, setting: Setting, backend: str, *, step: bool) -> Workload:
    """The workload of a model, or of a step of its training."""
    image = get(name).traits.domain == "image"
    built, x, finish = _build_model(name, setting, backend)
    built.train(setting.backward)
    run = training_step(built, x, finish) if step else whole_pass(built, x, finish, None, setting)
    if image:
        floor = floored(run)
    else:
        causal = zoo.get(get(name).options["attention"]).traits.causal
        plain, _, finish = _build_model(
            name, setting, "fused", attention="standard", attention_options={"causal": causal}
        )
        plain.train(setting.backward)
        floor = training_step(plain, x, finish) if step else whole_pass(plain, x, finish, None, setting)
    smaller = checked_setting("model", name, setting)

    def check() -> None:
        again, inputs, loss = _build_model(name, smaller, backend, **dropout_left_out(name))
        batch_norms(again.train(setting.backward), training=False)
        compare(again, inputs, loss, None, smaller, name, step=step)

    checked = "logits"
    if setting.backward:
        left_out = ["dropout"] if dropout_left_out(name) else []
        left_out += ["statistics of the batch"] if batch_norms(built, training=True) else []
        checked = "loss and gradients in training mode" + (f" without {' and '.join(left_out)}" if left_out else "")
    level = "training" if step else "model"
    return _workload(level, name, setting, smaller, run, floor, check, checked, not image and causal, backend)


def batch_norms(module: nn.Module, *, training: bool) -> int:
    """Set the mode of the batch norms alone; returns how many there are. On maps of a pixel the statistics of a small
    batch have variances near 0, and amplify rounding without limit."""
    found = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    for part in found:
        part.train(training)
    return len(found)


def dropout_left_out(name: str) -> dict[str, float]:
    """Options that turn off the dropout that ``name`` asks for: two runs with it differ by chance."""
    usual, asked = get(name.partition("[")[0]).options, name.partition("[")[2]
    return {option: 0.0 for option in NO_DROPOUT if option in usual and re.search(rf"(^|,)\s*{option}\s*=", asked)}


def _build_model(name: str, setting: Setting, backend: str, **options: Any) -> tuple[nn.Module, Tensor, Finish]:
    """The model, its input, and the loss (mean cross-entropy, in nats) of its logits; the logits themselves forward."""
    variant, asked = get(name), dropout_left_out(name)
    options |= {option: 0.0 for option in NO_DROPOUT if option in variant.options and option not in asked}
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


def _workload(
    level: str,
    name: str,
    setting: Setting,
    smaller: Setting,
    run: Callable[[], Any],
    floor: Callable[[], Any],
    against: Callable[[], None],
    checked: str,
    causal: bool,
    backend: str,
) -> Workload:
    from biases.bench.workloads import Workload

    def check() -> None:
        against()
        if smaller != setting:
            assert_finite(run(), name, setting)

    if smaller != setting:
        checked += f", of {smaller.batch} x {smaller.length} tokens; of all only that results are finite"

    def formulations() -> tuple[str, ...]:
        posed = problems(run)
        return tuple(choice.choose(each).name if backend == "auto" else backend for each in posed)

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
        formulations=formulations,
    )
