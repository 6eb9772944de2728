"""Gates that are right, and gates with one fault: what they see, their range, their extremes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from biases.testing.mutants.base import mutant, sound
from biases.traits import Traits

TOKEN = Traits(gate_range=(0.0, 1.0), gate_sees="token")
PREFIX = Traits(causal=True, gate_range=(0.0, 1.0), gate_sees="prefix")
NORM = Traits(gate_range=(0.0, 1.0), gate_sees="token", gate_monotone_in="norm")


@sound("token-gate", TOKEN, kind="gate")
class TokenGate(nn.Module):
    """A gate for each head, (B, T, H), of an energy that is linear in the token."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.energy(x))

    def energy(self, x: Tensor) -> Tensor:
        return self.projection(x)

    def gate(self, energy: Tensor) -> Tensor:
        return energy.sigmoid()


@sound("prefix-gate", PREFIX, kind="gate")
class PrefixGate(TokenGate):
    """The energy less the mean of the tokens up to it, in units of their deviation."""

    def energy(self, x: Tensor) -> Tensor:
        energy = self.projection(x)
        # About the first token, equal tokens have a deviation of exactly zero.
        centred = energy - energy[:, :1]
        count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        mean = centred.cumsum(1) / count
        variance = (centred.square().cumsum(1) / count - mean.square()).clamp(min=0.0)
        return (centred - mean) / (variance + 1e-3).sqrt()


@sound("norm-gate", NORM, kind="gate")
class NormGate(nn.Module):
    """The larger the token, the more it lets through."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.rand(heads) + 0.5)
        self.threshold = nn.Parameter(torch.rand(heads))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.steepness.exp() * (self.size(x) - self.threshold))

    def size(self, x: Tensor) -> Tensor:
        return x.square().mean(-1, keepdim=True)


@mutant(
    "gate-centres-in-place",
    "the token is centred where it stands, and what comes after the gate reads it so",
    TOKEN,
    caught_by="gate-input-unchanged",
    kind="gate",
)
class CentresInPlace(TokenGate):
    def energy(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x.sub_(x.mean(-1, keepdim=True))
        return self.projection(x)


@mutant("gate-heads-first", "the heads are the first axis", TOKEN, caught_by="gate-shape", kind="gate")
class HeadsFirst(TokenGate):
    def gate(self, energy: Tensor) -> Tensor:
        return energy.sigmoid().permute(2, 0, 1)


@mutant(
    "gate-exponential-overflows",
    "the sigmoid is a ratio of exponentials, which overflow at large energies",
    TOKEN,
    caught_by="gate-finite",
    kind="gate",
    source="fla-org/flash-linear-attention#649",
)
class ExponentialOverflows(TokenGate):
    def gate(self, energy: Tensor) -> Tensor:
        return energy.exp() / (1 + energy.exp())


@mutant(
    "gate-where-of-exponentials",
    "the exponential that overflows is chosen away, and its gradient is not",
    TOKEN,
    caught_by="gate-finite",
    kind="gate",
)
class WhereOfExponentials(TokenGate):
    def gate(self, energy: Tensor) -> Tensor:
        return torch.where(energy > 0, 1 / (1 + (-energy).exp()), energy.exp() / (1 + energy.exp()))


@mutant(
    "gate-of-a-square-root-at-zero",
    "the norm is a square root without floor, whose gradient at a zero token is NaN",
    NORM,
    caught_by="gate-finite",
    kind="gate",
)
class SquareRootAtZero(NormGate):
    def size(self, x: Tensor) -> Tensor:
        return x.square().sum(-1, keepdim=True).sqrt()


@mutant(
    "gate-of-mean-one",
    "the gates are divided by their mean over the heads, and exceed 1",
    TOKEN,
    caught_by="gate-range",
    kind="gate",
)
class MeanOne(TokenGate):
    def gate(self, energy: Tensor) -> Tensor:
        return energy.sigmoid() / energy.sigmoid().mean(-1, keepdim=True).clamp(max=0.5)


@mutant("gate-of-tanh", "a tanh in place of the sigmoid", TOKEN, caught_by="gate-range", kind="gate")
class OfTanh(TokenGate):
    def gate(self, energy: Tensor) -> Tensor:
        return energy.tanh()


@mutant(
    "gate-of-the-whole-sequence",
    "the energy is normalised over the whole sequence before the causal mask",
    PREFIX,
    caught_by="gate-sight",
    kind="gate",
    source="HKUSTDial/flash-sparse-attention#146",
)
class WholeSequence(TokenGate):
    def energy(self, x: Tensor) -> Tensor:
        energy = self.projection(x)
        centred = energy - energy.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-3).sqrt()


@mutant(
    "gate-of-the-token-before",
    "a gate of the token alone sees the one before it too",
    TOKEN,
    caught_by="gate-sight",
    kind="gate",
)
class TokenBefore(TokenGate):
    def energy(self, x: Tensor) -> Tensor:
        return self.projection(x + 0.5 * nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])


@mutant(
    "gate-gradient-leaks",
    "the mean of the sequence is taken out of the value and left in the gradient",
    PREFIX,
    caught_by="gate-sight-gradient",
    kind="gate",
)
class GradientLeaks(PrefixGate):
    def energy(self, x: Tensor) -> Tensor:
        mean = self.projection(x).mean(1, keepdim=True)
        return super().energy(x) + (mean - mean.detach())


@mutant(
    "gate-normalised-over-the-batch",
    "the energy is normalised over the batch",
    TOKEN,
    caught_by="gate-batch-independence",
    kind="gate",
)
class OverTheBatch(TokenGate):
    def energy(self, x: Tensor) -> Tensor:
        energy = self.projection(x)
        return energy - energy.mean(0, keepdim=True)


@mutant(
    "gate-of-the-direction",
    "the energy is a projection, which falls as a token that points away grows",
    NORM,
    caught_by="gate-monotonicity",
    kind="gate",
)
class OfTheDirection(NormGate):
    def size(self, x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True)


@mutant(
    "gate-of-a-running-mean",
    "a running mean of the energies is updated in evaluation too",
    TOKEN,
    caught_by="calls-independent",
    kind="gate",
)
class RunningMean(TokenGate):
    running: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.register_buffer("running", torch.zeros(heads))

    def energy(self, x: Tensor) -> Tensor:
        energy = self.projection(x)
        out = energy - self.running
        self.running = 0.9 * self.running + 0.1 * energy.detach().mean((0, 1))
        return out
