"""ALiBi (arXiv 2108.12409) and RoPE (arXiv 2104.09864): biases of the distance alone."""

from __future__ import annotations

import torch

from biases import zoo
from biases.attention import pair_weights
from biases.backends import KeyBias
from biases.claims._judge import EXACT, gap, judged, limited, normal, parameters, rise
from biases.claims.evidence import Evidence
from biases.claims.ledger import claim
from biases.decays import ALiBi, alibi_slopes
from biases.layers import specification
from biases.positions import Rotary

PAPER = "2108.12409"
HEADS, LENGTH = 4, 12


@claim(
    id="alibi-slopes",
    paper=PAPER,
    location="ofirpress/attention_with_linear_biases 4b92f28; location in the paper not known to us",
    kind="identity",
    statement="For n heads the slopes are the geometric sequence that starts at 2^(-8/n) and has that as its ratio.",
)
def slopes() -> Evidence:
    def apart(heads: int) -> float:
        stated = 2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
        return gap(alibi_slopes(heads), stated)

    inside = max(apart(n) for n in (1, 2, 4, 8, 16, 32))
    others = {n: apart(n) for n in (3, 6, 12, 20)}
    worst = max(others, key=others.__getitem__)
    return limited(
        f"For 1 to 32 heads, powers of two, the difference is {inside:.0e}. For other numbers the authors' code takes "
        "the slopes of the largest power of two below and every second one of twice that power, up to "
        f"{others[worst]:.2f} from the sequence (for {worst} heads).",
        inside=inside,
        outside=others[worst],
        tolerance=EXACT,
        conditions="a number of heads that is a power of two",
        counterexample={
            "heads": 6,
            "code": [round(s, 4) for s in alibi_slopes(6).tolist()],
            "stated": [round(2.0 ** (-8.0 * k / 6), 4) for k in range(1, 7)],
        },
        source="biases.decays.alibi_slopes, after ofirpress/attention_with_linear_biases 4b92f28",
    )


@claim(
    id="alibi-key-bias",
    paper=PAPER,
    location="author's answer in issue 9 of ofirpress/attention_with_linear_biases",
    kind="identity",
    statement="Adding slope * j, the same for all queries, is the same as adding -slope * (i - j).",
)
def key_bias() -> Evidence:
    q, k = (normal(n, 1, HEADS, LENGTH, 4) for n in (1, 2))
    step = torch.arange(LENGTH, dtype=torch.float64)
    by_key = KeyBias((alibi_slopes(HEADS)[:, None] * step)[None])

    def apart(weights: str) -> float:
        found = (pair_weights(q, k, bias=bias, weights=weights, causal=True) for bias in (by_key, ALiBi(HEADS)))
        first, second = found
        return gap(first, second)

    inside, outside = apart("softmax"), apart("sigmoid")
    return limited(
        f"Softmax weights differ by {inside:.0e}, as a constant of a row cancels. Sigmoid weights differ by up to "
        f"{outside:.2f}.",
        inside=inside,
        outside=outside,
        tolerance=EXACT,
        conditions="softmax weights",
        counterexample={"weights": "sigmoid", "largest_difference": outside},
        source="biases.KeyBias and ALiBi, pair_weights",
    )


@claim(
    id="alibi-any-length",
    paper=PAPER,
    location="location in the paper not known to us",
    kind="invariance",
    statement="ALiBi adds no parameters and no position embeddings, and its penalty for distance, a bias towards "
    "recency, is defined for inputs longer than those of training.",
)
@torch.no_grad()
def any_length() -> Evidence:
    torch.manual_seed(0)
    layer = zoo.layer("alibi", 16, HEADS)
    added = parameters(layer) - parameters(zoo.layer("standard", 16, HEADS))
    exact, x = specification(layer), normal(3, 1, 4 * LENGTH, 16)
    prefix = gap(exact(x)[:, :LENGTH], exact(x[:, :LENGTH]))
    q = torch.zeros(1, HEADS, LENGTH, 1, dtype=torch.float64)
    step = torch.arange(LENGTH)
    weights = pair_weights(q, q, bias=ALiBi(HEADS), causal=True)[0]
    risen = rise(weights[:, -1:], (step[-1] - step)[None]).max().item()
    return judged(
        f"{added} parameters are added, the output of {LENGTH} tokens is that of the first {LENGTH} of {4 * LENGTH} "
        f"within {prefix:.0e}, and without content weights fall with the distance in all heads (largest rise "
        f"{risen:.0e}). That perplexity keeps at greater lengths is empirical, and not tested here.",
        error=max(added, prefix, risen),
        tolerance=EXACT,
        counterexample={"parameters": added, "prefix": prefix, "rise": risen},
        source="zoo layer alibi, specification",
    )


@claim(
    id="rope-relative",
    paper="2104.09864",
    location="location in the paper not known to us",
    kind="invariance",
    statement="Rotating queries and keys by their positions makes scores depend on the relative position alone, and "
    "keeps their norms.",
)
def rope_relative() -> Evidence:
    rotary = Rotary(8)
    q, k = (normal(n, 1, 1, 1, 8) for n in (1, 2))
    places = (0, 1, 7, 100, 4096)

    def score(i: int, j: int) -> float:
        return (rotary(q, start=i) * rotary(k, start=j)).sum().item()

    shifted = max(abs(score(p + d, p) - score(d, 0)) for p in places for d in (0, 1, 5))
    norm = max(abs((rotary(q, start=p).norm() - q.norm()).item()) for p in places)
    return judged(
        f"Over positions up to {places[-1]:,} and three offsets, scores of one offset differ by at most {shifted:.0e} "
        f"and norms by {norm:.0e}, in float64.",
        error=max(shifted, norm),
        tolerance=1e-11,  # angles of 4,096 rounded to float64, over four pairs of channels
        counterexample={"scores": shifted, "norms": norm},
        source="biases.positions.Rotary",
    )
