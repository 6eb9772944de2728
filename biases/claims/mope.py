"""Morlet positional encoding: definition, limit and admissibility that arXiv 2605.26355 and arXiv 2606.01258 state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from biases import zoo
from biases.claims._judge import judged, limited
from biases.claims.evidence import Evidence
from biases.claims.ledger import claim
from biases.positions import MorletPosition, morlet_encoding, sinusoidal
from biases.positions.morlet import ADMISSIBILITY

P2, P3 = "2605.26355", "2606.01258"
DIM, CONTEXT = 256, 256
ROUNDING = 1e-11
# The widest learned envelope, and one with the narrowest (2606.01258 Table 5).
SIGMA, OMEGA = 4.4977, 1.1117
NARROWEST, FASTEST = 1.4942, 3.3462


def published_position() -> MorletPosition:
    """The encoding of the published width and context, as it starts, in float64."""
    return zoo.position("mope", DIM, context=CONTEXT, heads=8)["embedding"].double()


def encoded(positions: Tensor | list[float], omega: float, sigma: float) -> Tensor:
    """z(b) of one pair, complex, (T,)."""
    at = torch.as_tensor(positions, dtype=torch.float64)
    pair = [torch.tensor([value], dtype=torch.float64) for value in (omega, sigma)]
    return torch.view_as_complex(morlet_encoding(at, *pair))


@claim(
    id="mope-initialisation",
    paper=P2,
    location="Eq. 12-13",
    kind="identity",
    statement="The 128 pairs start at omega from 1.0 to 3.110 rad/token, log-spaced, and sigma = 5 / omega.",
)
def initialisation() -> Evidence:
    position = published_position()
    omega, sigma = (p.detach().exp() for p in (position.log_omega, position.log_sigma))
    spaced = (0.99 * math.pi) ** (torch.arange(DIM // 2, dtype=torch.float64) / (DIM // 2 - 1))
    error = torch.stack([omega / spaced - 1, sigma * spaced / 5 - 1]).abs().max().item()
    return judged(
        text=f"omega runs from {omega[0]:.3f} to {omega[-1]:.3f}, sigma from {sigma[0]:.3f} to {sigma[-1]:.3f} tokens; "
        f"their product is 5 for every pair, up to {error:.1g} of rounding of the float32 parameters.",
        error=error,
        tolerance=1e-6,
    )


@claim(
    id="mope-sinusoidal-limit",
    paper=P3,
    location="Proposition 1; 2605.26355 Eq. 8",
    kind="theorem",
    statement="As sigma grows the pair tends to (cos omega b, sin omega b).",
)
def sinusoidal_limit() -> Evidence:
    b, worst = torch.arange(CONTEXT, dtype=torch.float64), 0.0
    errors = {}
    for sigma in (1e2, 1e4, 1e6):
        difference = (encoded(b, OMEGA, sigma) - torch.polar(torch.ones_like(b), OMEGA * b)).abs()
        worst = max(worst, (difference - b**2 / (2 * sigma**2)).max().item())
        errors[f"sigma {sigma:g}"] = difference.max().item()
    return judged(
        text=f"Over 256 positions the distance from the limit is {errors['sigma 100']:.2g}, "
        f"{errors['sigma 10000']:.2g} and {errors['sigma 1e+06']:.2g} at sigma 100, 1e4 and 1e6, nowhere above b^2 / "
        "(2 sigma^2).",
        error=max(worst, 0.0),
        tolerance=ROUNDING,
        values=errors,
    )


@claim(
    id="mope-generalises-sinusoidal",
    paper=P3,
    location="Proposition 1 beside Eq. 2-3",
    kind="theorem",
    statement="The sinusoidal encoding of the Transformer is a special case of MoPE.",
)
def generalises_sinusoidal() -> Evidence:
    frequencies = 10000.0 ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    b = torch.arange(CONTEXT, dtype=torch.float64)
    wide = morlet_encoding(b, frequencies, torch.full_like(frequencies, 1e7)).unflatten(1, (-1, 2))
    published = sinusoidal(CONTEXT, DIM).unflatten(1, (-1, 2))
    error, unswapped = ((wide.flip(-1) - published).abs().max().item(), (wide - published).abs().max().item())
    omega, _ = published_position().effective()
    return limited(
        inside=error,
        outside=unswapped,
        tolerance=1e-9,
        text=f"With the Transformer's frequencies and sigma = 1e7 the encodings differ by {error:.1g} once the two "
        f"components of each pair are swapped ({unswapped:.2g} if not). The published frequencies are others, "
        f"{omega.min():.2f} to {omega.max():.2f} rad/token, with sigma at most 5.",
        conditions="components swapped, frequencies 10000^(-2i/d), sigma far above the context",
        counterexample={"components": "not swapped", "largest difference": unswapped},
    )


@claim(
    id="mope-uncertainty-product",
    paper=P3,
    location="Eq. 11-12",
    kind="theorem",
    statement="The wavelets reach the smallest product of widths in position and frequency, 1/2.",
)
def uncertainty_product() -> Evidence:
    at, frequency = _widths()
    return judged(
        text=f"The widths of |z|^2 and of its spectrum are {at:.4f} tokens and {frequency:.4f} rad/token at sigma = "
        f"{SIGMA}; their product is {at * frequency:.6f}, position taken as continuous. The introduction has 1.",
        error=abs(at * frequency - 0.5),
        tolerance=1e-9,
        counterexample={"product": at * frequency},
    )


@claim(
    id="mope-uncertainty-widths",
    paper=P3,
    location="Eq. 11-12",
    kind="identity",
    statement="The widths are sigma tokens and 1 / (2 sigma) rad/token.",
)
def uncertainty_widths() -> Evidence:
    at, frequency = _widths()
    return judged(
        text=f"At sigma = {SIGMA} they are {at:.4f} and {frequency:.4f}, that is sigma / sqrt(2) and 1 / (sqrt(2) "
        "sigma): the density is the square of the envelope. The product is the same.",
        error=max(abs(at / SIGMA - 1), abs(frequency * 2 * SIGMA - 1)),
        tolerance=1e-9,
        counterexample={"sigma": SIGMA, "width in position": round(at, 5), "width in frequency": round(frequency, 5)},
    )


def _widths() -> tuple[float, float]:
    """Standard deviations of |z|^2 in position and of its spectrum in frequency, the position continuous."""
    step = SIGMA / 32
    b = step * torch.arange(-320, 320, dtype=torch.float64)
    z = encoded(b, ADMISSIBILITY / SIGMA, SIGMA)
    frequency = 2 * math.pi * torch.fft.fftfreq(len(z), step, dtype=torch.float64)

    def deviation(x: Tensor, density: Tensor) -> float:
        share = density / density.sum()
        return ((x - (x * share).sum()).square() * share).sum().sqrt().item()

    return deviation(b, z.abs().square()), deviation(frequency, torch.fft.fft(z).abs().square())


@claim(
    id="mope-phase",
    paper=P3,
    location="Eq. 21-25",
    kind="identity",
    statement="The phase of a pair is omega b, so that it advances by omega tau, as the angle of RoPE does.",
)
def phase() -> Evidence:
    b = torch.arange(0, 20, dtype=torch.float64)
    turned = encoded(b, OMEGA, SIGMA).angle() - OMEGA * b
    error = torch.remainder(turned + math.pi, 2 * math.pi).sub(math.pi).abs().max().item()
    return judged(text=f"atan2 of the pair is omega b modulo 2 pi, to {error:.1g}.", error=error, tolerance=ROUNDING)


@claim(
    id="mope-product-bound",
    paper=P3,
    location="Algorithm 1",
    kind="invariance",
    statement="The clamp keeps omega sigma >= 5 for every pair, whatever the parameters.",
)
def product_bound() -> Evidence:
    position, lowest, highest = published_position(), math.inf, 0.0
    with torch.no_grad():
        for _ in range(50):
            position.log_omega.normal_(std=3.0)
            position.log_sigma.normal_(std=3.0)
            omega, sigma = position.effective()
            lowest, highest = min(lowest, (omega * sigma).min().item()), max(highest, omega.max().item())
    return judged(
        text=f"Over 6,400 random pairs the smallest product is 5 - {max(5 - lowest, 0.0):.1g}. The clamp raises omega "
        f"to do so, up to {highest:.3g} rad/token here, past pi and past the released limit of 0.95 pi.",
        error=max(5 - lowest, 0.0),
        tolerance=1e-12,
        counterexample={"product": lowest},
    )


@claim(
    id="mope-admissible",
    paper=P3,
    location="appendix A.2",
    kind="theorem",
    statement="At omega sigma = 5 the response at frequency 0 is exp(-12.5) = 3.7e-6: the wavelets are admissible.",
)
def admissible() -> Evidence:
    step = SIGMA / 64
    grid = step * torch.arange(-1024, 1025, dtype=torch.float64)

    def share(b: Tensor) -> float:
        """Response at frequency 0 over the sum of the envelope."""
        z = encoded(b, ADMISSIBILITY / SIGMA, SIGMA)
        return (z.sum().abs() / z.abs().sum()).item()

    whole, occurring = share(grid), share(torch.arange(0, CONTEXT, dtype=torch.float64))
    return limited(
        inside=abs(whole / math.exp(-12.5) - 1),
        outside=abs(occurring / math.exp(-12.5) - 1),
        tolerance=1e-6,
        text=f"{whole:.3g} for the whole wavelet. The positions b >= 0 that occur are half of it, whose response at "
        f"frequency 0 is {occurring:.2f} of the largest possible one: what is added to the embeddings is no zero-mean "
        "wavelet.",
        conditions="the whole wavelet, on both sides of position 0",
        counterexample={"positions": "b >= 0", "response": occurring},
    )
