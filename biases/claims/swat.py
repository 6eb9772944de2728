"""SWAT, sliding window attention training (arXiv 2502.18845)."""

from __future__ import annotations

import torch

from biases import zoo
from biases.attention import pair_weights
from biases.claims._judge import EXACT, gap, judged, normal, rise
from biases.claims.evidence import NOT_REPRODUCIBLE, Evidence
from biases.claims.ledger import claim
from biases.decays import ALiBi, alibi_slopes
from biases.layers import specification, swat_bias

PAPER = "2502.18845"
HEADS, LENGTH = 4, 32
# Averages of Table 3, lower is better, of sigmoid attention in sliding windows by how many heads have which sign.
TABLE_3 = {"12:0": 2.6200, "8:4": 2.6492, "6:6": 2.7275}
# Averages of Table 3 of other settings of full length.
OTHERS = {"softmax RoPE": 5.5149, "sigmoid RoPE": 10.5744, "sliding softmax RoPE": 4.9217, "AliRope-6:6": 2.5099}


@claim(
    id="swat-balanced-slopes",
    paper=PAPER,
    location="Eq. 4",
    kind="identity",
    statement="Half of the heads have the slopes -2^-k and half have 2^-k, k = 1 .. h / 2: the slopes are balanced.",
)
def balanced_slopes() -> Evidence:
    error, total = 0.0, 0.0
    for heads in (2, 4, 8, 12):
        found = alibi_slopes(heads, "halving", balanced=True)
        size = [2.0**-k for k in range(1, heads // 2 + 1)]
        stated = torch.tensor(sorted([*size, *(-s for s in size)]), dtype=torch.float64)
        error = max(error, gap(found.sort().values, stated))
        total = max(total, abs(found.sum().item()))
    return judged(
        f"Over 2 to 12 heads the slopes differ from the equation's by {error:g} and sum to {total:g}. For an odd "
        "number of heads the equation is silent.",
        error=max(error, total),
        tolerance=0.0,
        counterexample={"slopes": error, "sum": total},
        source="biases.decays.alibi_slopes",
    )


@claim(
    id="swat-receptive-field",
    paper=PAPER,
    location="location in the paper not known to us",
    kind="count",
    statement="After l layers with windows of w tokens a token sees 1 + (w - 1) l tokens.",
)
def receptive_field() -> Evidence:
    window, seen = 4, {}
    torch.manual_seed(0)
    layers = [specification(zoo.layer("swat", 8, 2, window=window)) for _ in range(5)]
    for depth in range(1, len(layers) + 1):
        x = normal(1, 1, LENGTH, 8).requires_grad_()
        y = x
        for layer in layers[:depth]:
            y = layer(y)
        (grad,) = torch.autograd.grad(y[0, -1].square().sum(), x)
        seen[str(depth)] = int((grad[0].abs().amax(-1) > 0).sum())
    error = max(abs(count - 1 - (window - 1) * int(depth)) for depth, count in seen.items())
    return judged(
        f"With w = {window}, the last token has gradients by {', '.join(map(str, seen.values()))} tokens after 1 to "
        f"{len(layers)} layers, and by no others.",
        error=error,
        tolerance=0.0,
        counterexample=seen,
        values=seen,
        source="zoo layer swat, specification, differentiated",
    )


@claim(
    id="swat-no-normalisation",
    paper=PAPER,
    location="Eq. 2",
    kind="invariance",
    statement="Sigmoid weights are not normalised over keys: tokens do not compete for weight as under softmax.",
)
def no_normalisation() -> Evidence:
    q, k = (normal(n, 1, HEADS, LENGTH, 4) for n in (1, 2))
    louder = k.clone()
    louder[:, :, 0] *= 10.0

    def moved(weights: str) -> float:
        before, after = (pair_weights(q, keys, weights=weights, causal=True) for keys in (k, louder))
        return gap(before[..., 1:], after[..., 1:])

    sigmoid, softmax = moved("sigmoid"), moved("softmax")
    sums = pair_weights(q, k, weights="sigmoid", causal=True).sum(-1)
    return judged(
        f"Making one key ten times as long moves the sigmoid weights of the others by {sigmoid:g}, softmax weights by "
        f"up to {softmax:.2f}. Rows of sigmoid weights then sum to anything below their length, here to "
        f"{sums.min().item():.2f} to {sums.max().item():.2f}.",
        error=sigmoid,
        tolerance=0.0,
        counterexample={"sigmoid": sigmoid, "softmax": softmax},
        values={"softmax_weights_moved": softmax},
        source="biases.attention.pair_weights",
    )


@claim(
    id="swat-forward-looking",
    paper=PAPER,
    location="section 4.2 and Eq. 4",
    kind="invariance",
    statement="SWAT(+), with positive slopes throughout, is purely forward-looking.",
)
def forward_looking() -> Evidence:
    q = torch.zeros(1, HEADS, LENGTH, 1, dtype=torch.float64)
    past = (torch.arange(LENGTH - 1, -1, -1))[None]

    def of(slopes: str) -> torch.Tensor:
        bias = swat_bias(HEADS, slopes)
        return pair_weights(q, q, bias=bias, weights="sigmoid", causal=True)[0, :, -1:]

    risen, fallen = rise(of("positive"), past).max().item(), rise(of("negative"), past).max().item()
    return judged(
        f"By Eq. 3 a positive slope adds s (m - n): without content weights rise by up to {risen:.2f} with the "
        "distance into the past, so such heads favour the history. Eq. 4 itself calls negative slopes "
        f"forward-looking, and with them weights fall (largest rise {fallen:.0e}).",
        error=risen,
        tolerance=EXACT,
        counterexample={
            "slope": 0.5,
            "weights_at_distance_0_to_3": [round(w, 4) for w in of("positive")[0, 0].flip(0)[:4].tolist()],
        },
        source="biases.layers.swat_bias, pair_weights",
    )


@claim(
    id="swat-balanced-outperforms",
    paper=PAPER,
    location="Table 3 and the text on it",
    kind="arithmetic",
    statement="ALiBi with slopes of both signs, 8:4 and 6:6, outperforms 12:0 by the averages of Table 3.",
)
def balanced_outperforms() -> Evidence:
    worse = {name: round(TABLE_3[name] - TABLE_3["12:0"], 4) for name in ("8:4", "6:6")}
    return judged(
        f"The averages, lower being better, are {TABLE_3['12:0']:.4f} for 12:0, {TABLE_3['8:4']:.4f} for 8:4 and "
        f"{TABLE_3['6:6']:.4f} for 6:6: both are worse, by {worse['8:4']:.4f} and {worse['6:6']:.4f}, each "
        "a single run.",
        error=max(0.0, *worse.values()),
        tolerance=0.0,
        counterexample={"averages": TABLE_3, "worse_by": worse},
        source="arithmetic on Table 3",
    )


@claim(
    id="swat-average-accuracy",
    paper=PAPER,
    location="Table 3 and the text on it",
    kind="arithmetic",
    statement='The averages of Table 3 are "average accuracy".',
)
def average_accuracy() -> Evidence:
    averages = {**TABLE_3, **OTHERS}
    best, worst = max(averages, key=averages.__getitem__), min(averages, key=averages.__getitem__)
    return judged(
        f"Read so, {best} ({averages[best]}) would be the most accurate and the paper's own {worst} "
        f"({averages[worst]}) the least: lower must be better.",
        error=0.0 if best == "AliRope-6:6" else 1.0,
        tolerance=0.0,
        counterexample={"highest": {best: averages[best]}, "lowest": {worst: averages[worst]}},
        source="arithmetic on Table 3",
    )


@claim(
    id="swat-released-code",
    paper=PAPER,
    location="beside Eq. 5; Fzkuji/swat-attention 91e222e",
    kind="control",
    statement="Are the results those of sigmoid attention with balanced ALiBi and rotated queries and keys (Eq. 5), by "
    "the released code?",
)
def released_code() -> Evidence:
    q, k = (normal(n, 1, HEADS, LENGTH, 4) for n in (1, 2))
    window = 8
    printed = pair_weights(q, k, bias=swat_bias(HEADS), weights="sigmoid", causal=True, window=window)
    released = pair_weights(q, k, bias=ALiBi(HEADS, rule="geometric"), causal=True, window=window)
    apart, rows = gap(printed, released), printed.sum(-1)
    return Evidence(
        verdict=NOT_REPRODUCIBLE,
        text="The layer of the released code calls softmax attention with slopes 2^(-8 k / h) of one sign; a sigmoid "
        f"is not in it. On the same queries and keys its weights differ from those of Eq. 5 by up to {apart:.2f}, and "
        f"rows of the latter sum to up to {rows.max().item():.2f} rather than 1. Which of the two gave the tables "
        "is not known.",
        values={"largest_difference": apart, "largest_row_sum": rows.max().item()},
        source="biases.layers.swat_bias and ALiBi, pair_weights; both rotate alike",
    )
