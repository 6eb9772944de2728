"""RMT (arXiv 2309.11523): Manhattan decay and its decomposed attention."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch
from torch import Tensor

from biases.attention import attend, pair_weights
from biases.axial import ORDERS, attend_decomposed, decomposed_weights
from biases.claims._judge import EXACT, exponent, gap, judged, limited, multiply_adds, normal
from biases.claims.evidence import Evidence
from biases.claims.ledger import claim
from biases.decays import ExponentialDecay, ManhattanDecay
from biases.positions import ThetaShift

PAPER = "2309.11523"
HEIGHT, WIDTH, HEADS = 4, 5, 4
INITIAL, SPAN = 2.0, 4.0


def _decay(placement: str = "logits", height: int = HEIGHT, width: int = WIDTH, heads: int = HEADS) -> ManhattanDecay:
    return ManhattanDecay(height, width, heads, placement=placement)


def _over_the_map(q: Tensor, k: Tensor, decay: ManhattanDecay) -> Tensor:
    """Weights of attention over all pixels (Eq. 5), of q and k (B, heads, H, W, D)."""
    return pair_weights(q.flatten(2, 3), k.flatten(2, 3), decay=decay)


@claim(
    id="rmt-manhattan-decay",
    paper=PAPER,
    location="Eq. 4 and 8",
    kind="identity",
    statement="The decay of two pixels is gamma^(|dx| + |dy|), with gamma_i = 1 - 2^(-a - (b - a) i / N) for head i.",
)
def manhattan_decay() -> Evidence:
    found = _decay().dense(HEIGHT * WIDTH, HEIGHT * WIDTH)[0].exp()
    gammas = [1.0 - 2.0 ** (-INITIAL - SPAN * i / HEADS) for i in range(HEADS)]
    pixels = list(product(range(HEIGHT), range(WIDTH)))
    expected = torch.tensor(
        [[[gamma ** (abs(y - v) + abs(x - u)) for v, u in pixels] for y, x in pixels] for gamma in gammas],
        dtype=torch.float64,
    )
    error = gap(found, expected)
    worst = (found - expected).abs().flatten().argmax().item()
    return judged(
        f"On a {HEIGHT} x {WIDTH} map with a = 2, b = 6 and {HEADS} heads the decay of ManhattanDecay is off by at "
        f"most {error:.1e}. The rates run from {gammas[0]} to {gammas[-1]}: as i stops at N - 1, the end 1 - 2^-b = "
        f"{1 - 2.0 ** -(INITIAL + SPAN)} of the interval [a, b] is not reached.",
        error=error,
        tolerance=EXACT,
        counterexample={"flat_index": worst},
        values={"rates": gammas},
        source="biases.decays.ManhattanDecay",
    )


@claim(
    id="rmt-decay-separable",
    paper=PAPER,
    location="Eq. 4 and 6; abstract",
    kind="identity",
    statement="Decomposing attention does not disrupt the spatial decay matrix: the decays along the columns and along "
    "the rows make up that of the map.",
)
def decay_separable() -> Evidence:
    decay = _decay()
    whole = decay.dense(HEIGHT * WIDTH, HEIGHT * WIDTH)[0].exp()
    down, across = decay.axes()
    columns, rows = down.dense(HEIGHT, HEIGHT)[0].exp(), across.dense(WIDTH, WIDTH)[0].exp()
    error = max(gap(torch.kron(d, a), w) for d, a, w in zip(columns, rows, whole, strict=True))
    return judged(
        f"The Kronecker product of the two one-dimensional decays and the decay of the {HEIGHT} x {WIDTH} map differ "
        f"by at most {error:.1e}. This is a statement about the decay; the attention is another matter "
        "(rmt-decomposed-attention).",
        error=error,
        tolerance=EXACT,
        counterexample={"largest_difference": error},
        source="ManhattanDecay.axes",
    )


@claim(
    id="rmt-log-decay-before-softmax",
    paper=PAPER,
    location="author's answer in issue 21 of qhfan/RMT",
    kind="identity",
    statement="Adding the log decay before the softmax equals softmax, then multiplication by the decay, then "
    "normalisation.",
)
def log_decay_before_softmax() -> Evidence:
    q, k = (normal(n, 2, HEADS, HEIGHT, WIDTH, 6) for n in (1, 2))
    before, after = (_over_the_map(q, k, _decay(placement)) for placement in ("logits", "weights-renormalised"))
    error = gap(before, after)
    return judged(
        f"The two orders give weights that differ by at most {error:.1e}. The last step, the normalisation, is not in "
        "the paper's Eq. 5 (rmt-equation-5).",
        error=error,
        tolerance=EXACT,
        counterexample={"largest_difference": error},
        source="biases.attention.pair_weights",
    )


@claim(
    id="rmt-equation-5",
    paper=PAPER,
    location="Eq. 5; issue 21 of qhfan/RMT",
    kind="control",
    statement="Is MaSA(X) = (Softmax(Q K^T) . D) V, as printed, the attention of the released model?",
)
def equation_5() -> Evidence:
    q, k = (normal(n, 1, HEADS, HEIGHT, WIDTH, 6) for n in (1, 2))
    error = gap(_over_the_map(q, k, _decay("weights")), _over_the_map(q, k, _decay("logits")))
    line = torch.zeros(1, 1, 1, 3, 1, dtype=torch.float64)
    printed, code = (_over_the_map(line, line, _decay(p, 1, 3, 1))[0, 0] for p in ("weights", "logits"))
    sums = printed.sum(-1).tolist()
    return judged(
        "The code adds the log decay before the softmax, so that rows sum to 1; as printed, the product after the "
        f"softmax is not normalised. Weights differ by up to {error:.2f}; on a line of three pixels without content "
        f"the printed rows sum to {min(sums):.3f} to {max(sums):.3f}.",
        error=error,
        tolerance=EXACT,
        counterexample={
            "map": [1, 3],
            "gamma": 0.75,
            "queries": "zero",
            "printed": [[round(w, 4) for w in row] for row in printed.tolist()],
            "code": [[round(w, 4) for w in row] for row in code.tolist()],
        },
        source="biases.attention.pair_weights, placement 'weights' and 'logits'; qhfan/RMT 32ea214",
    )


def _splitting() -> tuple[Tensor, Tensor]:
    """Queries and keys with q . k = f(rows) + g(columns)."""
    rows, columns = normal(3, 2, 1, HEADS, HEIGHT, 3), normal(4, 2, 1, HEADS, WIDTH, 3)
    down = rows[:, :, :, :, None].expand(-1, -1, -1, -1, WIDTH, -1)
    across = columns[:, :, :, None].expand(-1, -1, -1, HEIGHT, -1, -1)
    q, k = torch.cat([down, across], -1)
    return q, k


def _apart(q: Tensor, k: Tensor, order: str = "width-first") -> float:
    """Largest difference of decomposed attention and attention over the map, both with the Manhattan decay."""
    decay = _decay()
    down, _ = decay.axes()
    return gap(decomposed_weights(q, k, decay=down, order=order), _over_the_map(q, k, decay))


@claim(
    id="rmt-decomposed-attention",
    paper=PAPER,
    location="Eq. 5 and 6",
    kind="identity",
    statement="Attention along the rows and then along the columns (Eq. 6) is MaSA(X), which Eq. 5 defines over the "
    "whole map.",
)
def decomposed_attention() -> Evidence:
    q, k = (normal(n, 1, HEADS, HEIGHT, WIDTH, 6) for n in (1, 2))
    error = max(_apart(q, k, order) for order in ORDERS)
    down, _ = _decay().axes()
    first, second = (decomposed_weights(q, k, decay=down, order=order) for order in ORDERS)
    # One channel on a 2 x 2 map, a query at the upper left, and a key beside it on the row below.
    query, key = (torch.zeros(1, 1, 2, 2, 1, dtype=torch.float64) for _ in range(2))
    query[0, 0, 0, 0, 0], key[0, 0, 1, 1, 0] = 3.0, 1.0
    plain = ExponentialDecay(torch.zeros(1, dtype=torch.float64), symmetric=True)
    small = decomposed_weights(query, key, decay=plain)[0, 0, 0]
    full = pair_weights(query.flatten(2, 3), key.flatten(2, 3))[0, 0, 0]
    return judged(
        f"For random queries and keys the weights of the two differ by up to {error:.2f}, as the pass of a row uses "
        "the query that stands in that row; the order of the passes alone changes them by up to "
        f"{gap(first, second):.2f}. Without content, or where q . k is a sum of a part of the rows and one of the "
        f"columns, the two agree within {max(_apart(torch.zeros_like(k), k), _apart(*_splitting())):.0e}.",
        error=error,
        tolerance=EXACT,
        counterexample={
            "map": [2, 2],
            "gamma": 1.0,
            "query": "3 at (0, 0), 0 elsewhere",
            "key": "1 at (1, 1), 0 elsewhere",
            "weights_of_query_(0,0)_decomposed": [round(w, 4) for w in small.tolist()],
            "weights_of_query_(0,0)_full": [round(w, 4) for w in full.tolist()],
        },
        values={"orders_differ_by": gap(first, second)},
        source="biases.axial.decomposed_weights",
    )


@claim(
    id="rmt-decomposed-receptive-field",
    paper=PAPER,
    location="text on the decomposition",
    kind="invariance",
    statement="The decomposed form has the same shape of receptive field as full MaSA and fully preserves the prior.",
)
def decomposed_receptive_field() -> Evidence:
    q, k = (normal(n, 1, HEADS, HEIGHT, WIDTH, 6) for n in (1, 2))
    down, _ = _decay().axes()
    reached = (decomposed_weights(q, k, decay=down) > 0).all().item()
    inside = max(_apart(torch.zeros_like(k), k), _apart(*_splitting()), 0.0 if reached else 1.0)
    outside = _apart(q, k)
    return limited(
        f"Every pixel reaches every other in both forms, and without content their weights agree within {inside:.0e}: "
        f"the prior is preserved. With content the weights of the field differ by up to {outside:.2f}.",
        inside=inside,
        outside=outside,
        tolerance=EXACT,
        conditions="q . k splits into a part of the rows and a part of the columns, as without any content",
        counterexample={"queries and keys": "standard normal, seeds 1 and 2", "weights_differ_by": outside},
        source="biases.axial.decomposed_weights",
    )


def _cost(side: int, form: str) -> int:
    q = torch.empty(1, 1, side, side, 8, device="meta")
    if form == "decomposed":
        return multiply_adds(lambda: attend_decomposed(q, q, q))
    return multiply_adds(lambda: attend(*[q.flatten(2, 3)] * 3))


@claim(
    id="rmt-linear-complexity",
    paper=PAPER,
    location="abstract",
    kind="count",
    statement="The decomposed form brings the spatial prior into the backbone with linear complexity.",
)
def linear_complexity() -> Evidence:
    # The exponent is of the number of pixels, the square of the side.
    decomposed, full = (exponent(partial(_cost, form=form), 28, 112) / 2 for form in ("decomposed", "full"))
    per_pixel = {str(side): _cost(side, "decomposed") / (side * side * 8) for side in (28, 56, 112)}
    return judged(
        f"Counted multiply-adds of the two passes grow with the {decomposed:.2f}-th power of the number of pixels on "
        f"square maps, N^(3/2), against {full:.2f} for attention over the map: less than quadratic, but not linear. "
        "Linear it would be inside windows of fixed size.",
        error=abs(decomposed - 1.0),
        tolerance=1e-9,
        counterexample={"side_of_map": "multiply-adds a pixel and channel", **per_pixel},
        values={"exponent_decomposed": decomposed, "exponent_full": full},
        source="biases.axial.attend_decomposed, counted",
    )


@claim(
    id="rmt-theta-relative",
    paper=PAPER,
    location="Eq. 1; theta shift of the code",
    kind="invariance",
    statement="With the rotations e^(i n theta) of queries and keys, scores depend on the relative position alone.",
)
def theta_relative() -> Evidence:
    shift, length = ThetaShift(8), 12
    q, k = (normal(n, 8).expand(1, 1, length, 8) for n in (1, 2))
    scores = (shift(q) @ shift(k).mT)[0, 0]
    line = max((scores.diagonal(d) - scores.diagonal(d)[0]).abs().max().item() for d in range(1 - length, length))

    def below(width: int) -> float:
        maps = (shift.on_map(x[:, :, :1, None].expand(1, 1, 2, width, 8)) for x in (q, k))
        a, b = maps
        return (a[0, 0, 1, 0] @ b[0, 0, 0, 0]).item()

    found = {str(width): round(below(width), 6) for width in (4, 6, 8)}
    outside = max(found.values()) - min(found.values())
    return limited(
        f"Along a line, scores of equal offset agree within {line:.0e}. On a map the code rotates by the raster index: "
        f"the score of two pixels one row apart is {', '.join(f'{s:.3f} on width {w}' for w, s in found.items())}, so "
        "it depends on the width of the map.",
        inside=line,
        outside=outside,
        tolerance=EXACT,
        conditions="one dimension, or maps of one width",
        counterexample={"offset": [1, 0], "score_by_width_of_map": found},
        source="biases.positions.ThetaShift",
    )
