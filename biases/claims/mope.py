"""Morlet positional encoding: definition, limits and kernels that arXiv 2605.26355 and arXiv 2606.01258 state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from biases import zoo
from biases.claims._judge import judged, limited
from biases.claims.evidence import Evidence
from biases.claims.ledger import claim
from biases.decays import ALiBi
from biases.positions import MorletPosition, Rotary, morlet_encoding, sinusoidal
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


def _kernel(b: Tensor, tau: float, omega: float, sigma: float) -> Tensor:
    """C(b, tau) = Re z(b)* z(b + tau)."""
    return (encoded(b, omega, sigma).conj() * encoded(b + tau, omega, sigma)).real


def _averaged(sigma: float, tau: int, *, first: int | None = None) -> float:
    """The envelope's kernel summed over all integers, or over b >= ``first``, relative to tau = 0."""
    reach = math.ceil(12 * sigma) + abs(tau)
    b = torch.arange(-reach if first is None else first, reach + 1, dtype=torch.float64)
    return (_kernel(b, tau, 0.0, sigma).sum() / _kernel(b, 0, 0.0, sigma).sum()).item()


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
    id="mope-kernel",
    paper=P3,
    location="Eq. 15, 18, 30-31",
    kind="identity",
    statement="Re z(b)* z(b + tau) = cos(omega tau) exp(-(2 b^2 + 2 b tau + tau^2) / (2 sigma^2)).",
)
def kernel() -> Evidence:
    error, b = 0.0, torch.arange(-40, 41, dtype=torch.float64)
    for omega, sigma in ((OMEGA, SIGMA), (FASTEST, NARROWEST), (0.3, 30.0)):
        for tau in range(-20, 21):
            formula = math.cos(omega * tau) * torch.exp(-(2 * b**2 + 2 * b * tau + tau**2) / (2 * sigma**2))
            error = max(error, (_kernel(b, tau, omega, sigma) - formula).abs().max().item())
    text = f"Both sides agree to {error:.2g} at three pairs, 81 positions and 41 distances."
    return judged(text=text, error=error, tolerance=ROUNDING)


@claim(
    id="mope-rope-kernel",
    paper=P3,
    location="Proposition 2",
    kind="theorem",
    statement='As sigma grows the kernel tends to cos(omega tau), the "RoPE kernel".',
)
def rope_kernel() -> Evidence:
    b, tau = torch.arange(0, 200, dtype=torch.float64), 7
    rotary = Rotary(2)
    constant = torch.zeros(1, 1, CONTEXT, 2, dtype=torch.float64)
    constant[..., 0] = 1.0
    content = torch.randn(2, 1, 1, CONTEXT, 2, dtype=torch.float64)

    def scores(q: Tensor, k: Tensor) -> Tensor:
        """Scores of RoPE at distance tau, whose one frequency is 1."""
        return (rotary(q) @ rotary(k).mT)[0, 0].diagonal(tau)[: len(b)]

    limit = _kernel(b, tau, 1.0, 1e8)
    error = (limit - scores(constant, constant)).abs().max().item()
    with_content = (limit - scores(*content)).abs().max().item()
    return limited(
        inside=error,
        outside=with_content,
        tolerance=1e-9,
        text=f"The limit equals the score of RoPE between constant queries and keys, to {error:.1g}. With random "
        f"content they differ by {with_content:.2g}: RoPE multiplies the content, MoPE is added to it.",
        conditions="sigma far above the context, and queries and keys without content",
        counterexample={"content": "random", "distance": tau, "largest difference": with_content},
    )


@claim(
    id="mope-averaged-kernel",
    paper=P3,
    location="Lemma 1, Eq. 17; 2605.26355 Eq. 9",
    kind="theorem",
    statement="Averaged over positions the kernel is cos(omega tau) exp(-tau^2 / (4 sigma^2)), up to a constant.",
)
def averaged_kernel() -> Evidence:
    taus = range(-12, 13)
    error = max(abs(_averaged(SIGMA, tau) - math.exp(-(tau**2) / (4 * SIGMA**2))) for tau in taus)
    one_sided = {str(tau): round(_averaged(SIGMA, tau, first=0), 3) for tau in (4, 8)}
    formula = {str(tau): round(math.exp(-(tau**2) / (4 * SIGMA**2)), 3) for tau in (4, 8)}
    return limited(
        inside=error,
        outside=max(abs(formula[tau] - one_sided[tau]) for tau in formula),
        tolerance=ROUNDING,
        text=f"Exact to {error:.1g} for a sum over all integers. For the positions b >= 0 that occur it is wrong: at "
        f"sigma {SIGMA} the sum is {one_sided['4']} at distance 4 where the formula has {formula['4']}, and "
        f"{one_sided['8']} for {formula['8']} at distance 8.",
        conditions="summed over all integers, negative positions included",
        counterexample={"positions": "b >= 0", "sum by distance": one_sided, "formula": formula},
    )


@claim(
    id="mope-eq-33",
    paper=P3,
    location="Eq. 33",
    kind="identity",
    statement="Averaged over positions the kernel falls as exp(-tau^2 / (2 sigma^2)).",
)
def equation_33() -> Evidence:
    tau = 6
    summed, printed = _averaged(SIGMA, tau), math.exp(-(tau**2) / (2 * SIGMA**2))
    return judged(
        text=f"At distance {tau} and sigma {SIGMA} the sum over all positions is {summed:.4f}; Eq. 33 gives "
        f"{printed:.4f}, its square. Eq. 17 of the same paper, exp(-tau^2 / (4 sigma^2)), gives "
        f"{math.sqrt(printed):.4f}.",
        error=abs(summed - printed),
        tolerance=ROUNDING,
        counterexample={"tau": tau, "sigma": SIGMA, "sum": round(summed, 6), "Eq. 33": round(printed, 6)},
    )


@claim(
    id="mope-eq-20",
    paper=P3,
    location="Eq. 20",
    kind="theorem",
    statement="Averaged over positions spread by sigma_b, the prefactor tends to 1 as sigma_b grows.",
)
def equation_20() -> Evidence:
    widths, tau = (10 * SIGMA, 100 * SIGMA, 1000 * SIGMA), 4
    prefactors, decays = [], []
    for width in widths:
        b = torch.linspace(-10 * SIGMA, 10 * SIGMA, 20001, dtype=torch.float64)
        density = torch.exp(-(b**2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi)) * (b[1] - b[0])
        prefactors.append((density * _kernel(b, 0, 0.0, SIGMA)).sum().item())
        decays.append((density * _kernel(b, tau, 0.0, SIGMA)).sum().item() / prefactors[-1])
    formula = [(1 + 2 * (width / SIGMA) ** 2) ** -0.5 for width in widths]
    return judged(
        text=f"At sigma_b = 10, 100 and 1000 sigma the prefactor is {', '.join(f'{p:.2g}' for p in prefactors)}, as "
        f"(1 + 2 sigma_b^2 / sigma^2)^(-1/2) says: it tends to 0. Relative to it the kernel at distance {tau} tends to "
        f"{decays[-1]:.3f} = exp(-tau^2 / (4 sigma^2)).",
        error=abs(prefactors[-1] - 1),
        tolerance=1e-2,
        counterexample={"sigma_b / sigma": 1000, "prefactor": prefactors[-1], "formula": formula[-1]},
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
    id="mope-alibi-special-case",
    paper=P2,
    location="beside Eq. 6-9; 2606.01258 Remark 1 says analogous",
    kind="theorem",
    statement="ALiBi is MoPE at omega = 0.",
)
def alibi_special_case() -> Evidence:
    distances = torch.arange(0, 9, dtype=torch.float64)[:, None]
    slopes = torch.ones(1, dtype=torch.float64)
    alibi = ALiBi(slopes).values(distances, torch.zeros(1, 1, dtype=torch.float64), torch.float64).flatten()

    def log_kernel(b: float) -> Tensor:
        """At distances 0 to 8 from position b, relative to distance 0."""
        values = torch.cat([_kernel(torch.tensor([b]), tau, 0.0, SIGMA).log() for tau in range(9)])
        return values - values[0]

    log, elsewhere = log_kernel(0.0), log_kernel(9.0)
    # The slope that fits best, and what is left.
    slope = (log @ alibi) / (alibi @ alibi)
    left = ((log - slope * alibi).abs().max() / log.abs().max()).item()
    between = (elsewhere - log).abs().max().item()
    return judged(
        text=f"The logarithm of the kernel is quadratic in the distance: {100 * left:.0f} % of it is left by the best "
        f"line of ALiBi. It also depends on where the pair stands, by {between:.2g} between positions 0 and 9, and "
        "MoPE is added to embeddings, not to logits.",
        error=left,
        tolerance=1e-9,
        counterexample={
            "distances": [1, 2, 4, 8],
            "log kernel": [round(log[tau].item(), 4) for tau in (1, 2, 4, 8)],
            "best line": [round((slope * alibi)[tau].item(), 4) for tau in (1, 2, 4, 8)],
        },
    )


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
