"""RetNet (arXiv 2307.08621): the three forms of retention."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from biases.claims._judge import EXACT, exponent, gap, judged, limited, multiply_adds, normal
from biases.claims.evidence import Evidence
from biases.claims.ledger import claim
from biases.decays import retention_chunkwise, retention_parallel, retention_recurrent, retnet_log_rates
from biases.gates import HeadNorm

PAPER = "2307.08621"
HEADS, LENGTH, WIDTH = 3, 24, 4
CHUNKS = (1, 2, 3, 4, 6, 8, 12, 24)


def _drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (normal(n, 2, HEADS, LENGTH, WIDTH) for n in (1, 2, 3))
    return q, k, v, retnet_log_rates(HEADS).exp()


@claim(
    id="retnet-three-forms",
    paper=PAPER,
    location="the three representations; location in the paper not known to us",
    kind="identity",
    statement="The parallel, recurrent and chunkwise forms of retention are one function.",
)
def three_forms() -> Evidence:
    q, k, v, gamma = _drawn()
    parallel = retention_parallel(q, k, v, gamma)
    recurrent = gap(retention_recurrent(q, k, v, gamma), parallel)
    chunkwise = {chunk: gap(retention_chunkwise(q, k, v, gamma, chunk=chunk), parallel) for chunk in CHUNKS}
    return judged(
        f"From the parallel form the recurrent one differs by {recurrent:.0e} and the chunkwise one by at most "
        f"{max(chunkwise.values()):.0e}, over the {len(CHUNKS)} chunk lengths that divide {LENGTH} tokens, with the "
        "factor gamma^(B - 1 - j) on the keys of a chunk (retnet-first-chunkwise).",
        error=max(recurrent, *chunkwise.values()),
        tolerance=EXACT,
        counterexample={"recurrent": recurrent, "chunkwise": {str(c): e for c, e in chunkwise.items()}},
        source="biases.decays.retention_parallel, retention_recurrent, retention_chunkwise",
    )


def _without_zeta(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, chunk: int) -> Tensor:
    """The chunkwise form of the first version: ``R_i = K^T V + gamma^B R_{i-1}``."""
    rate = gamma.view(1, -1, 1, 1)
    inner = rate ** (torch.arange(chunk, dtype=q.dtype)[:, None] + 1.0)
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
    out = []
    for a, b, c in zip(*(x.split(chunk, 2) for x in (q, k, v)), strict=True):
        a = a / q.shape[3] ** 0.5
        out.append(retention_parallel(a, b, c, gamma, scale=1.0) + (a @ state) * inner)
        state = b.mT @ c + rate**chunk * state
    return torch.cat(out, 2)


@claim(
    id="retnet-first-chunkwise",
    paper=PAPER,
    location="chunkwise representation of the first version; location in the paper not known to us",
    kind="identity",
    statement="R_i = K^T V + gamma^B R_(i-1) carries the state from chunk to chunk.",
)
def first_chunkwise() -> Evidence:
    q, k, v, gamma = _drawn()
    parallel = retention_parallel(q, k, v, gamma)
    found = {chunk: gap(_without_zeta(q, k, v, gamma, chunk), parallel) for chunk in (1, 4, 8)}
    one = torch.ones(1, 1, 3, 1, dtype=torch.float64)
    half = torch.tensor([0.5], dtype=torch.float64)
    small = _without_zeta(one, one, one, half, 2).flatten().tolist()
    exact = retention_parallel(one, one, one, half).flatten().tolist()
    return judged(
        "Without the factor gamma^(B - 1 - j) on the keys of a chunk, which later versions have, the chunkwise form "
        f"is off by {found[4]:.2f} in chunks of 4 and {found[8]:.2f} in chunks of 8; it is right in chunks of one "
        f"token ({found[1]:.0e}).",
        error=max(found.values()),
        tolerance=EXACT,
        counterexample={
            "q, k, v": "1 for each of 3 tokens",
            "gamma": 0.5,
            "chunk": 2,
            "first_version": small,
            "parallel": exact,
        },
        source="the formula as first printed, and biases.decays.retention_parallel",
    )


@claim(
    id="retnet-score-normalisation",
    paper=PAPER,
    location="microsoft/torchscale 4d1e0e8; location in the paper not known to us",
    kind="invariance",
    statement="Dividing queries' scores, rows of the decay and rows of the retention by positive numbers changes "
    "nothing, as the norm of each head is invariant to scale.",
)
def score_normalisation() -> Evidence:
    q, k, v, gamma = _drawn()
    step = torch.arange(LENGTH, dtype=torch.float64)
    power = gamma[:, None, None] ** (step[:, None] - step).clamp(min=0)
    decay = power.tril()

    def both(scale: float, eps: float) -> float:
        values = scale * v
        scores = (q @ k.mT / WIDTH**0.5) * decay / decay.sum(-1, keepdim=True).sqrt()
        scores = scores / scores.abs().sum(-1, keepdim=True).clamp(1.0, 5e4)
        norm = HeadNorm(eps)
        return gap(norm(scores @ values), norm(retention_parallel(q, k, values, gamma)))

    inside, outside = both(1.0, 0.0), both(1e-3, 1e-6)
    return limited(
        f"With an epsilon of 0 in the head norm the normalised and the plain retention differ by {inside:.0e} after "
        f"it. With 1e-6 and values of about 1e-3 they differ by {outside:.2f}.",
        inside=inside,
        outside=outside,
        tolerance=EXACT,
        conditions="an epsilon of the head norm that is negligible beside the squared output",
        counterexample={"epsilon": 1e-6, "values": "standard normal times 1e-3", "largest_difference": outside},
        source="biases.gates.HeadNorm, biases.decays.retention_parallel; divisors of microsoft/torchscale 4d1e0e8",
    )


@claim(
    id="retnet-linear-complexity",
    paper=PAPER,
    location="chunkwise representation; location in the paper not known to us",
    kind="count",
    statement="The chunkwise form models long sequences with linear complexity; the parallel form is quadratic.",
)
def retention_complexity() -> Evidence:
    gamma = retnet_log_rates(1).exp()

    def cost(length: int, form: str) -> int:
        x = torch.empty(1, 1, length, 16, device="meta")
        run = retention_chunkwise if form == "chunkwise" else retention_parallel
        return multiply_adds(lambda: run(x, x, x, gamma))

    powers = {form: exponent(partial(cost, form=form), 8192, 32768) for form in ("chunkwise", "parallel")}
    return judged(
        f"From 8,192 to 32,768 tokens counted multiply-adds grow with the {powers['chunkwise']:.3f}-th power of the "
        f"length in chunks, with the {powers['parallel']:.3f}-th in the parallel form.",
        error=abs(powers["chunkwise"] - 1.0) + abs(powers["parallel"] - 2.0),
        tolerance=0.01,
        counterexample=powers,
        values=powers,
        source="biases.decays.retention_chunkwise and retention_parallel, counted",
    )
