"""Workloads: every variant of the zoo as something to run, to check and to compare with a floor.

Four levels:

========= ==========================================================================================================
operator  the calls of ``attend`` that a layer makes, on the tensors that the layer gives them; the floor is stock
          attention without a bias on the same shapes, so on the same windows, rows and columns
layer     the whole layer; the floor of a layer for sequences is ``standard``, that of a layer for images is the same
          layer with stock attention in place of ``attend``
model     logits, or with forward+backward the gradients of a loss; floors as for layers
training  one step: loss, gradients, AdamW at learning rate 0, so that every step starts from the same weights
========= ==========================================================================================================

Inputs and weights are drawn on the CPU from the seed, so that they are the same on every device. Modules have no
dropout unless their name asks for it, as in ``char-gpt[dropout=0.1]``; only models that run backward are in training
mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from biases import zoo
from biases._calls import Call, recorded
from biases._checks import fail, one_of, positive_int
from biases.attention import BACKENDS, attend
from biases.bench import operators
from biases.bench._device import measured_device
from biases.bench.cases import DIRECTIONS
from biases.bench.operators import Operator
from biases.registry import get

LEVELS = ("operator", "layer", "model", "training")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Setting:
    """What a workload is run at.

    Attributes:
        batch: B.
        heads: H; ``heads * head_dim`` is the width of a layer or of ``char-gpt``. Models for images have their own.
        length: tokens; for images, pixels of a square map, or of a square image at the levels of models.
        head_dim: D.
        dtype: name of a floating dtype, or the dtype.
        device: the CPU or a CUDA device.
        direction: ``"forward"`` or ``"forward+backward"``.
        seed: of weights and inputs.

    Raises:
        ValueError: sizes that are not positive, unknown dtype, device or direction.
    """

    batch: int = 1
    heads: int = 8
    length: int = 1024
    head_dim: int = 64
    dtype: str | torch.dtype = "float32"
    device: str | torch.device = "cpu"
    direction: str = "forward"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "heads", "length", "head_dim"):
            positive_int(name, getattr(self, name))
        dtype = str(self.dtype).removeprefix("torch.")
        one_of("dtype", dtype, DTYPES)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "device", str(measured_device(self.device)))
        one_of("direction", self.direction, DIRECTIONS)

    @property
    def dim(self) -> int:
        """C."""
        return self.heads * self.head_dim

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, str(self.dtype))

    @property
    def backward(self) -> bool:
        return self.direction == "forward+backward"

    @property
    def side(self) -> int:
        """Of the square map.

        Raises:
            ValueError: ``length`` is no square.
        """
        side = math.isqrt(self.length)
        if side * side != self.length:
            fail("length of an image", "a square number of pixels", self.length)
        return side

    def draw(self, *shape: int, offset: int = 0) -> Tensor:
        """Standard normal numbers, the same on every device."""
        generator = torch.Generator().manual_seed(self.seed + offset)
        return torch.randn(shape, generator=generator).to(self.device, self.torch_dtype)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dict(vars(self))


def has_own_heads(level: str, name: str) -> bool:
    """Whether number and width of heads are those of the model ``name``, and not those of a :class:`Setting`."""
    return level in ("model", "training") and get(name).traits.domain == "image"


@dataclass(frozen=True, eq=False)
class Workload:
    """Something to run, its floor and its check.

    Attributes:
        name: of the variant.
        level: one of :data:`LEVELS`.
        setting: what it was prepared for.
        causal: whether a token sees the tokens up to its own only.
        run: returns the tensors computed: outputs, then gradients.
        floor: the same without a bias; ``None`` where there is none.
        check: raises ``AssertionError`` where results differ from the specification.
        checked: what the check compares, in words.
        tokens: processed by one run.
        flops: counts the floating-point operations of the matrix products of a run, those of attention as if it were
            dense over the pairs that causality leaves.
        traffic: bytes that must be read and written at least once; ``None`` where it is not known.
        formulations: call by call, the name of the formulation that ``backend="auto"`` chooses, or of the backend that
            was named.
        weighed: what is run for the peak memory, where that has more in it than ``run``, as the building of it.
    """

    name: str
    level: str
    setting: Setting
    causal: bool
    run: Callable[[], Any]
    floor: Callable[[], Any] | None
    check: Callable[[], None]
    checked: str
    tokens: int
    flops: Callable[[], int]
    traffic: int | None
    formulations: Callable[[], tuple[str, ...]]
    weighed: Callable[[], Any] | None = None


def names(level: str) -> list[str]:
    """Names of the workloads of a level, from the zoo: its layers, or its models with each layer for sequences inside
    ``char-gpt``.

    Raises:
        ValueError: unknown level.
    """
    one_of("level", level, LEVELS)
    if level in ("operator", "layer"):
        return zoo.names("layer")
    inside = [name for name in zoo.names("layer", "sequence") if name != "standard"]
    return sorted([*zoo.names("model"), *(f"char-gpt[attention={name}]" for name in inside)])


def prepare(level: str, name: str, setting: Setting, *, backend: str = "auto") -> Workload:
    """Make a workload.

    Args:
        level: one of :data:`LEVELS`.
        name: of :func:`names`, or any name of the zoo of that kind, with options.
        setting: see :class:`Setting`.
        backend: of ``attend``.

    Raises:
        ValueError: unknown names, or a setting that does not fit, as a length that is no square for a layer of images.
    """
    from biases.bench import modules

    one_of("level", level, LEVELS)
    one_of("backend", backend, BACKENDS)
    if level == "operator":
        return from_calls(name, record(name, setting), setting, backend=backend)
    if level == "layer":
        return modules.layer(name, setting, backend)
    if level == "training" and not setting.backward:
        fail("direction of a training step", "'forward+backward'", repr(setting.direction))
    return modules.model(name, setting, backend, step=level == "training")


def record(name: str, setting: Setting) -> list[Call]:
    """The calls of ``attend`` that the layer ``name`` makes for an input of this setting, in their order."""
    from biases.bench import modules

    layer, x = modules.build_layer(name, setting, "auto")
    with recorded() as calls, torch.enable_grad():
        layer(x)
    return calls


def from_calls(name: str, calls: Sequence[Call], setting: Setting, *, backend: str = "auto") -> Workload:
    """The workload of these calls of ``attend``, one after the other.

    Raises:
        ValueError: no calls.
    """
    if not calls:
        fail(f"calls of attend by {name!r}", "at least one", "none")
    seeds = [setting.seed + 1 + n if setting.backward else None for n in range(len(calls))]
    run = partial(attend, backend=backend)
    with torch.set_grad_enabled(setting.backward):
        made = [Operator.of(call, seed=seed, function=run) for call, seed in zip(calls, seeds, strict=True)]
        floors = [each.floor() for each in made]
    sampled = [rows for rows in map(operators.rows_checked, made) if rows is not None]

    def check() -> None:
        for n, (each, call, seed) in enumerate(zip(made, calls, seeds, strict=True)):
            operators.check(each, call, name if len(made) == 1 else f"{name}, call {n + 1}", seed=seed)

    whole = "all queries"
    if sampled:
        whole = f"{len(sampled[0]):,} of {made[0].q.shape[2]:,} queries, and the gradients that they cause"
    return Workload(
        name=name,
        level="operator",
        setting=setting,
        causal=all(each.causal for each in made),
        run=lambda: [x for each in made for x in each.run()],
        floor=lambda: [x for each in floors for x in each.run()],
        check=check,
        checked=whole,
        tokens=setting.batch * setting.length,
        flops=lambda: sum(each.flops() for each in made),
        traffic=sum(each.traffic() for each in made),
        formulations=lambda: tuple(each.formulation.name if backend == "auto" else backend for each in made),
    )
