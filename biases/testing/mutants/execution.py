"""Layers that depend on how they are run: under autocast, under vmap, compiled, exported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.layers import CAUSAL, Plain
from biases.traits import Traits


@sound("forgetting", CAUSAL)
class Forgetting(Plain):
    """Logits fall by a gate of each token that lies between, summed from the start (arXiv:2503.02130 Eq. 3)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.gate = nn.Linear(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        forgotten = self.summed((1 + nn.functional.softplus(self.gate(x))).mT)
        logits = q @ k.mT / q.shape[-1] ** 0.5 - (forgotten[..., :, None] - forgotten[..., None, :])
        return self.out((self.weights(logits) @ v.to(logits.dtype)).transpose(1, 2).flatten(2))

    def summed(self, rates: Tensor) -> Tensor:
        wide = torch.promote_types(rates.dtype, torch.float32)
        return rates.cumsum(-1, dtype=wide)


@mutant(
    "sums-under-autocast",
    "sums from the start are a product with a triangle of ones, which autocast rounds to bfloat16",
    CAUSAL,
    caught_by="autocast-agreement",
    source="huggingface/transformers#29285",
)
class SumsUnderAutocast(Forgetting):
    def summed(self, rates: Tensor) -> Tensor:
        return rates @ torch.ones(rates.shape[-1], rates.shape[-1], dtype=rates.dtype, device=rates.device).triu()


@sound("rotated", CAUSAL)
class Rotated(Plain):
    """Queries and keys are rotated by their positions; phases are float32."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        phases = self.phases(q)
        cos, sin = phases.cos().to(q.dtype), phases.sin().to(q.dtype)
        q, k = self.turned(q, cos, sin), self.turned(k, cos, sin)
        return self.out((self.weights(q @ k.mT / q.shape[-1] ** 0.5) @ v).transpose(1, 2).flatten(2))

    def turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def phases(self, x: Tensor) -> Tensor:
        rates = 10000.0 ** -(torch.arange(0, x.shape[-1], 2, device=x.device) / x.shape[-1])
        return torch.arange(x.shape[-2], device=x.device)[:, None] * rates


@mutant(
    "phases-in-input-dtype",
    "positions and phases are in the dtype of the input, which in bfloat16 is off by a radian from 256 on",
    CAUSAL,
    caught_by="bfloat16-budget",
    source="huggingface/transformers#29285",
)
class PhasesInInputDtype(Rotated):
    def phases(self, x: Tensor) -> Tensor:
        rates = 10000.0 ** -(torch.arange(0, x.shape[-1], 2, device=x.device) / x.shape[-1])
        return torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * rates.to(x.dtype)


class _MeanOff(torch.autograd.Function):
    """x less its mean over the tokens, (B, T, C)."""

    @staticmethod
    def forward(x: Any) -> Any:
        return x - x.mean(-2, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient - gradient.mean(-2, keepdim=True)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any) -> Any:
        return _MeanOff.apply(x.movedim(in_dims[0], 0)), 0


class _WrongVmap(_MeanOff):
    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any) -> Any:
        x = x.movedim(in_dims[0], 0)
        return x - x.mean(1, keepdim=True), 0


@sound("own-vmap", Traits(equivariant_to=("permutation",)))
class OwnVmap(Plain):
    """A function of its own with a rule for vmap."""

    causal = False
    function: Any = _MeanOff

    def before(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


@mutant(
    "vmap-axis",
    "the rule for vmap takes the mean over axis 1, which is the batch once there is an axis more",
    Traits(),
    caught_by="vmap-agreement",
)
class VmapAxis(OwnVmap):
    function = _WrongVmap


@mutant(
    "compiled-unmasked",
    "the path that is taken under torch.compile forgets the causal mask",
    CAUSAL,
    caught_by="compile-agreement",
    source="pytorch/pytorch#135161,fla-org/flash-linear-attention#52",
)
class CompiledUnmasked(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) if torch.compiler.is_compiling() else super().weights(logits)


@mutant(
    "export-constant",
    "the path that is taken under torch.export holds a constant in place of the size of each token",
    CAUSAL,
    caught_by="export-agreement",
)
class ExportConstant(Plain):
    def before(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return x / 2
        return x / (1 + x.detach().square().mean(-1, keepdim=True))
