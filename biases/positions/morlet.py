"""MoPE: Morlet positional encoding (arXiv 2605.26355 Eq. 6-7; arXiv 2606.01258 Def. 1, Eq. 7-10, Alg. 1).

For position b and pair i,

    MoPE(b, 2 i) = cos(omega_i b) exp(-b^2 / (2 sigma_i^2)),   MoPE(b, 2 i + 1) = sin(omega_i b) exp(-b^2 / (2
    sigma_i^2)),

added to the token embeddings. Known problems of the published form, each an entry of the property suite:

* the envelope is centred on position 0 and at most 5 tokens wide: beyond some 15 tokens the encoding is zero, so it is
  close to no encoding plus a start marker;
* omega sigma = 5 is where the initialisation lies, and weight decay 0.1 on the logarithms pushes below it, where the
  clamp holds the product: "all pairs converge to the admissibility boundary" is close to an artefact;
* the averaged kernel cos(omega tau) exp(-tau^2 / 4 sigma^2) (arXiv 2606.01258 Eq. 17) holds for a sum over all integer
  positions, and not for the positions b >= 0 that occur.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biases._checks import even, fail, one_of, positive_int, rank
from biases.registry import register
from biases.traits import Traits

ADMISSIBILITY = 5.0
FREQUENCY_LIMIT = 0.95 * math.pi
SMALLEST_SIGMA = 1e-3
ENVELOPE_EPS = 1e-8


def morlet_encoding(positions: Tensor, omega: Tensor, sigma: Tensor, centre: Tensor | float = 0.0) -> Tensor:
    """The encoding straight from the equation: positions (T,), omega and sigma (C / 2,) -> (T, C)."""
    b = positions[:, None]
    envelope = torch.exp(-((b - centre) ** 2) / (2 * sigma**2))
    return torch.stack([torch.cos(omega * b) * envelope, torch.sin(omega * b) * envelope], -1).flatten(1)


def published_initialisation(pairs: int, product: float = ADMISSIBILITY) -> tuple[Tensor, Tensor]:
    """``omega_i = exp(i / (C / 2 - 1) ln(0.99 pi))``, 1 to 3.110 rad/token, ``sigma_i = product / omega_i``.

    arXiv 2605.26355 Eq. 12-13, where the product is 5, the bound of admissibility.
    """
    step = torch.arange(pairs, dtype=torch.float64) / max(pairs - 1, 1)
    omega = torch.exp(step * math.log(0.99 * math.pi))
    return omega, product / omega


def free_initialisation(pairs: int, context: int) -> tuple[Tensor, Tensor]:
    """Wavelengths log-spaced from 4 tokens to the context, every envelope one context wide: omega sigma >= 2 pi, away
    from the admissibility boundary, and wide enough to tell positions apart everywhere."""
    slowest, fastest = 2 * math.pi / max(context, 8), 2 * math.pi / 4
    step = torch.arange(pairs, dtype=torch.float64) / max(pairs - 1, 1)
    omega = slowest * (fastest / slowest) ** (1 - step)
    return omega, torch.full_like(omega, float(context))


class MorletPosition(nn.Module):
    """MoPE, added to (B, T, C).

    Args:
        dim: C, even.
        constraint: ``"published"`` clamps in the order of the released code: omega <= 0.95 pi, sigma >= 1e-3, then
            omega := 5 / sigma wherever omega sigma < 5 (so that omega can exceed the first clamp, and gets no gradient
            there). ``"none"`` uses exp of the parameters as they are.
        initialisation: ``"published"`` or ``"free"``.
        product: omega sigma of every pair in the published initialisation, above 0. The published 5 is the bound that
            the clamp then holds.
        weight_decay: whether the optimiser may decay the logarithms (the authors did, by 0.1).
        learned_centre: learn the centre of each envelope (proposed in arXiv 2606.01258 Eq. 29, never run there).
        context: length that the free initialisation is made for.

    Raises:
        ValueError: odd width, unknown option, a product that is not above 0.
    """

    def __init__(
        self,
        dim: int,
        *,
        constraint: str = "published",
        initialisation: str = "published",
        product: float = ADMISSIBILITY,
        weight_decay: bool = True,
        learned_centre: bool = False,
        context: int = 256,
    ) -> None:
        super().__init__()
        one_of("MorletPosition constraint", constraint, ("published", "none"))
        one_of("MorletPosition initialisation", initialisation, ("published", "free"))
        positive_int("MorletPosition context", context)
        if isinstance(product, bool) or not isinstance(product, int | float) or not 0 < product < math.inf:
            fail("MorletPosition product", "a number above 0", repr(product))
        pairs = even("MorletPosition dim", dim) // 2
        self.dim, self.constraint = dim, constraint
        if initialisation == "published":
            omega, sigma = published_initialisation(pairs, product)
        else:
            omega, sigma = free_initialisation(pairs, context)
        self.log_omega = nn.Parameter(omega.log().float())
        self.log_sigma = nn.Parameter(sigma.log().float())
        self.centre = nn.Parameter(torch.zeros(pairs)) if learned_centre else None
        self.no_weight_decay = () if weight_decay else ("log_omega", "log_sigma", "centre")

    def effective(self) -> tuple[Tensor, Tensor]:
        """``(omega, sigma)`` as used: (C / 2,) each, rad/token and tokens."""
        dtype = torch.promote_types(self.log_omega.dtype, torch.float32)
        omega, sigma = self.log_omega.to(dtype).exp(), self.log_sigma.to(dtype).exp()
        if self.constraint == "published":
            omega = omega.clamp(max=FREQUENCY_LIMIT)
            sigma = sigma.clamp(min=SMALLEST_SIGMA)
            omega = torch.where(omega * sigma < ADMISSIBILITY, ADMISSIBILITY / sigma, omega)
        return omega, sigma

    def learned(self) -> dict[str, Tensor]:
        """Of every pair, (C / 2,): omega, sigma and their product as used, and the product of the parameters before any
        clamp, which tells what the optimiser did from what the clamp does."""
        omega, sigma = self.effective()
        raw = (self.log_omega + self.log_sigma).exp()
        return {"omega": omega, "sigma": sigma, "product": omega * sigma, "unclamped_product": raw}

    def encoding(self, length: int) -> Tensor:
        """(T, C)."""
        omega, sigma = self.effective()
        positions = torch.arange(length, device=omega.device, dtype=omega.dtype)
        centre: Tensor | float = 0.0 if self.centre is None else self.centre.to(omega.dtype)
        # The released code's denominator is 2 sigma^2 + 1e-8.
        return morlet_encoding(positions, omega, torch.sqrt(sigma**2 + ENVELOPE_EPS / 2), centre)

    def forward(self, x: Tensor) -> Tensor:
        rank("MorletPosition x", x, "B T C")
        if x.shape[-1] != self.dim:
            fail("MorletPosition x", f"width {self.dim}", x.shape[-1])
        return x + self.encoding(x.shape[1]).to(x.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, constraint={self.constraint!r}"


def _traits(options: Mapping[str, Any]) -> Traits:
    return Traits(position="absolute", published="2605.26355 Eq. 6-7, 12-13; 2606.01258 Alg. 1")


@register(
    "mope",
    kind="position",
    family="positions",
    summary="Morlet wavelets of the position, as published: clamped, centred on 0, decayed by the optimiser",
    traits=_traits,
    parameters="dim",
    notes=(
        "Zero beyond some 15 tokens.",
        "Initialised on the admissibility boundary, which weight decay and clamp then hold.",
    ),
)
def mope(
    dim: int,
    context: int,
    heads: int,
    *,
    weight_decay: bool = True,
    constraint: str = "published",
    product: float = ADMISSIBILITY,
) -> dict[str, object]:
    position = MorletPosition(dim, constraint=constraint, product=product, weight_decay=weight_decay, context=context)
    return {"embedding": position}


@register(
    "mope-free",
    kind="position",
    family="positions",
    summary="Morlet wavelets of the position without clamp or weight decay, initialised across the context",
    traits=_traits,
    parameters="dim, and dim / 2 more with a learned centre",
)
def mope_free(
    dim: int, context: int, heads: int, *, learned_centre: bool = False, initialisation: str = "free"
) -> dict[str, object]:
    position = MorletPosition(
        dim,
        constraint="none",
        initialisation=initialisation,
        weight_decay=False,
        learned_centre=learned_centre,
        context=context,
    )
    return {"embedding": position}
