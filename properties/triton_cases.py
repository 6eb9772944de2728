"""Problems for the Triton kernels, and their comparison with the specification in memory full of NaN.

Everything here is plain data or works on it, so that the comparison can run in a process of its own: Triton's
interpreter is switched on for a whole process, and would reach the compiled code of other tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, attend
from biases.axial import attend_decomposed
from biases.testing.compare import assert_within
from biases.testing.strategies import make_tensor

MARGIN = 5


@dataclass(frozen=True)
class Pairs:
    """A call of ``attend``. Terms that are named are learned."""

    L: int
    S: int
    alignment: str | None
    D: int
    Dv: int
    weights: str
    causal: bool = False
    window: int | None = None
    bias: tuple[str, ...] = ()
    gate: str | None = None
    decay: str | None = None
    symmetric: bool = True
    keep: bool = False
    heads: int = 2
    batch: int = 1
    dtype: str = "float32"
    blocks: tuple[int, int] | None = None
    heads_last: bool = False
    seed: int = 0
    device: str = "cpu"

    def leaves(self) -> dict[str, Tensor]:
        def normal(n: int, *shape: int) -> Tensor:
            return make_tensor(shape, "normal", self.seed + n, torch.float64)

        found = {
            "q": normal(0, self.batch, self.heads, self.L, self.D),
            "k": normal(1, self.batch, self.heads, self.S, self.D),
            "v": normal(2, self.batch, self.heads, self.S, self.Dv),
        }
        if "alibi" in self.bias:
            found["slopes"] = normal(3, 1, self.heads)[0] / 8
        if "alibi-symmetric" in self.bias:
            found["symmetric"] = normal(4, 1, self.heads)[0] / 8
        if "key" in self.bias:
            found["key"] = normal(5, self.batch, 1, self.S)
        if self.gate is not None:
            found["gate"] = 2 * normal(6, 1, self.heads, self.S)
        if self.decay is not None:
            found["rates"] = -normal(7, 1, self.heads)[0].abs() / 8 - 0.01
        return found

    def call(self, leaves: dict[str, Tensor], backend: str) -> Tensor:
        bias: list[Any] = []
        if "alibi" in self.bias:
            bias.append(ALiBi(leaves["slopes"], allow_negative=True))
        if "alibi-symmetric" in self.bias:
            bias.append(ALiBi(leaves["symmetric"], symmetric=True, allow_negative=True))
        if "key" in self.bias:
            bias.append(KeyBias(leaves["key"]))
        gate = decay = mask = None
        if self.gate is not None:
            gate = KeyGate(F.logsigmoid(leaves["gate"]), renormalise=self.gate == "renormalised")
        if self.decay is not None:
            decay = ExponentialDecay(leaves["rates"], symmetric=self.symmetric, placement=self.decay)
        if self.keep:
            kept = torch.rand(self.batch, 1, 1, self.S, generator=torch.Generator().manual_seed(self.seed)) < 0.7
            mask = kept.to(self.device)
        return attend(
            *(leaves["q"], leaves["k"], leaves["v"]),
            bias=bias,
            key_gate=gate,
            decay=decay,
            mask=mask,
            weights=self.weights,
            causal=self.causal,
            window=self.window,
            alignment=self.alignment,
            backend=backend,
        )


@dataclass(frozen=True)
class Maps:
    """A call of ``attend_decomposed``. Terms that are named are learned."""

    height: int
    width: int
    D: int
    Dv: int
    weights: str
    order: str = "width-first"
    bias: str | None = None
    decay: str | None = None
    masks: tuple[int, int] = (0, 0)
    heads: int = 2
    batch: int = 2
    dtype: str = "float32"
    tile: int | None = None
    heads_last: bool = False
    seed: int = 0
    device: str = "cpu"
    blocks: None = field(default=None, init=False)

    def leaves(self) -> dict[str, Tensor]:
        def normal(n: int, *shape: int) -> Tensor:
            return make_tensor(shape, "normal", self.seed + n, torch.float64)

        common = (self.batch, self.heads, self.height, self.width)
        found = {name: normal(n, *common, self.D) for n, name in enumerate("qk")}
        found["v"] = normal(2, *common, self.Dv)
        if self.bias is not None:
            found["slopes"] = normal(3, 1, self.heads)[0] / 4
        if self.decay is not None:
            found["rates"] = -normal(7, 1, self.heads)[0].abs() / 2
        return found

    def call(self, leaves: dict[str, Tensor], backend: str) -> Tensor:
        bias: tuple[Any, ...] = ()
        if self.bias is not None:
            bias = (ALiBi(leaves["slopes"], symmetric=self.bias == "alibi-symmetric", allow_negative=True),)
        decay = None
        if self.decay is not None:
            decay = ExponentialDecay(leaves["rates"], symmetric=True, placement=self.decay)
        generator = torch.Generator().manual_seed(self.seed)
        sides = zip(self.masks, (self.height, self.width), strict=True)
        masks = [(torch.rand(n, side, side, generator=generator) < 0.6).to(self.device) for n, side in sides]
        return attend_decomposed(
            *(leaves["q"], leaves["k"], leaves["v"]),
            bias=bias,
            weights=self.weights,
            decay=decay,
            masks=tuple(mask if len(mask) else None for mask in masks),  # type: ignore[arg-type]
            order=self.order,
            backend=backend,
        )


class Poison:
    """Memory full of NaN, parts of which are handed out."""

    def __init__(self) -> None:
        self.inputs: list[tuple[Tensor, int]] = []
        self.outputs: list[tuple[Tensor, Tensor]] = []

    def hold(self, x: Tensor, heads_last: bool = False) -> Tensor:
        """``x`` as a view of a larger tensor that holds NaN everywhere else."""
        order = (0, *range(2, x.ndim - 1), 1, x.ndim - 1) if heads_last and x.ndim > 3 else tuple(range(x.ndim))
        turned = x.permute(order)
        around = torch.full([size + 2 * MARGIN for size in turned.shape], torch.nan, dtype=x.dtype, device=x.device)
        inner = around[(slice(MARGIN, -MARGIN),) * x.ndim]
        inner.copy_(turned)
        self.inputs.append((around, int(around.isnan().sum())))
        return inner.permute(tuple(order.index(axis) for axis in range(x.ndim)))

    def empty(self, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """In place of ``memory.empty``: with gaps between rows where kernels are given strides (no dtype)."""
        gap = MARGIN if dtype is None and len(shape) > 3 else 0
        sizes = [*shape[:-2], shape[-2] + 2 * gap, shape[-1] + 2 * gap]
        count = torch.Size(sizes).numel()
        kind = like.dtype if dtype is None else dtype
        around = torch.full((count + 128,), torch.nan, dtype=kind, device=like.device)
        inner = around[64 : 64 + count].view(sizes)
        inner = inner[..., gap : sizes[-2] - gap, gap : sizes[-1] - gap]
        self.outputs.append((around, inner))
        return inner

    def check(self) -> None:
        """Nothing was written outside of the results, nothing in them was left, and the inputs are as they were."""
        for around, before in self.inputs:
            assert int(around.isnan().sum()) == before, "something was written around an input"
        assert self.outputs, "no kernel asked for memory"
        for around, inner in self.outputs:
            assert not inner.isnan().any(), f"NaN in a result of shape {tuple(inner.shape)}"
            written = int((~around.isnan()).sum())
            assert written == inner.numel(), f"{written - inner.numel()} numbers written around a result"


@contextmanager
def forced(case: Pairs | Maps) -> Iterator[None]:
    """Run the kernels with the block sizes of the case, if it names any."""
    from biases.backends.triton import decomposed_ops, pairwise
    from biases.backends.triton.blocks import Blocks

    if isinstance(case, Maps) and case.tile is not None:
        with mock.patch.object(decomposed_ops, "TILES", {2: case.tile, 4: case.tile}):
            yield
    elif case.blocks is not None:
        chosen = Blocks(*case.blocks, 4, 1)
        with mock.patch.object(pairwise, "blocks", return_value=chosen):
            yield
    else:
        yield


def direction_of(out: Tensor) -> Tensor:
    """The cotangent of which gradients are taken, the same for all backends and dtypes."""
    return make_tensor(tuple(out.shape), "normal", 7, torch.float64)


def gradients(
    case: Pairs | Maps, backend: str, dtype: torch.dtype, prepare: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of all leaves, of a fixed direction."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {}
    for name, x in case.leaves().items():
        # Queries, keys and values have the dtype under test; parameters stay in float32, as in training.
        x = x.to(dtype if name in "qkv" else wide).to(case.device)
        leaves[name] = (prepare(x) if x.ndim > 1 else x).detach().requires_grad_()
    out = case.call(leaves, backend)
    direction = prepare(direction_of(out).to(out))
    return out.detach(), dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), direction), strict=True))


def nudged(dtype: torch.dtype, seed: int) -> Callable[[Tensor], Tensor]:
    """Moves numbers by one rounding of ``dtype``: how far this moves a result, rounding may move it."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(x: Tensor) -> Tensor:
        signs = 2.0 * torch.randint(0, 2, x.shape, generator=generator).double() - 1.0
        return x * (1.0 + torch.finfo(dtype).eps * signs.to(x.device))

    return nudge


def compare(case: Pairs | Maps) -> list[str]:
    """Compare kernels and specification, forward and backward; names of what was compared."""
    from biases.backends.triton import memory

    dtype, poison = getattr(torch, case.dtype), Poison()
    specification = "reference" if isinstance(case, Pairs) else "dense"
    exact, exact_grads = gradients(case, specification, torch.float64, torch.clone)
    low, low_grads = gradients(case, "dense", dtype, torch.clone)
    with forced(case), mock.patch.object(memory, "empty", poison.empty):
        out, grads = gradients(case, "triton", dtype, lambda x: poison.hold(x, case.heads_last))
    poison.check()
    moved = [gradients(case, specification, torch.float64, nudged(dtype, seed)) for seed in range(3)]
    # Halved, as the largest of three draws is not the largest there is.
    eps = torch.finfo(dtype).eps / 2
    magnitude = max(largest(there - exact) for there, _ in moved) / eps
    assert_within(out, exact, low, magnitude=max(magnitude, largest(exact)))
    # Gradients of logits are differences of dO . v, a sum over channels.
    products = float(direction_of(exact).abs().sum(-1).max()) * largest(case.leaves()["v"])
    scale = max(products, *(largest(x) for x in exact_grads.values()))
    for name, grad in grads.items():
        magnitude = max(scale, max(largest(there[name] - exact_grads[name]) for _, there in moved) / eps)
        # Gradients of parameters are float32, but sums of what was rounded to ``dtype``.
        magnitude *= torch.finfo(dtype).eps / torch.finfo(grad.dtype).eps
        assert_within(grad, exact_grads[name], low_grads[name], what=f"gradient of {name}", magnitude=magnitude)
    return ["output", *grads]


def largest(x: Tensor) -> float:
    return float(x.detach().abs().max())
