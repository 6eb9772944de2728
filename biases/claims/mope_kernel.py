"""Kernels of Morlet positional encoding, beside RoPE and ALiBi, that arXiv 2605.26355 and arXiv 2606.01258 state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from biases.claims._judge import judged, limited
from biases.claims.evidence import Evidence
from biases.claims.ledger import claim
from biases.claims.mope import CONTEXT, FASTEST, NARROWEST, OMEGA, P2, P3, ROUNDING, SIGMA, encoded
from biases.decays import ALiBi
from biases.positions import Rotary


def _kernel(b: Tensor, tau: float, omega: float, sigma: float) -> Tensor:
    """C(b, tau) = Re z(b)* z(b + tau)."""
    return (encoded(b, omega, sigma).conj() * encoded(b + tau, omega, sigma)).real


def _averaged(sigma: float, tau: int, *, first: int | None = None) -> float:
    """The envelope's kernel summed over all integers, or over b >= ``first``, relative to tau = 0."""
    reach = math.ceil(12 * sigma) + abs(tau)
    b = torch.arange(-reach if first is None else first, reach + 1, dtype=torch.float64)
    return (_kernel(b, tau, 0.0, sigma).sum() / _kernel(b, 0, 0.0, sigma).sum()).item()


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
