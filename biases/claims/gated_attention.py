"""Gated attention for language models, the G1 gate (arXiv 2505.06708)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from biases import zoo
from biases.attention import pair_weights
from biases.claims._judge import EXACT, gap, judged, normal, parameters
from biases.claims.evidence import CONDITIONAL, FAILS, INCONCLUSIVE, Evidence, decided
from biases.claims.ledger import claim
from biases.gates import OutputGate
from biases.layers import SelfAttention, specification

PAPER = "2505.06708"
DIM, HEADS, LENGTH = 16, 4, 10
HEAD_DIM = DIM // HEADS
# Parameters added by each gate, in 10^6 (Table 1).
ADDED = {"G1 elementwise": 201, "G1 headwise": 1.6, "G2 elementwise": 25, "G2 headwise": 0.2, "G5": 100}
# Layers, width, query heads, key-value heads and head width that the numbers of Table 1 amount to (our inference).
LAYERS, WIDTH, QUERY_HEADS, VALUE_HEADS, WIDE_HEAD = 24, 2048, 32, 4, 128
# GSM8k of the elementwise gate of the values, and of G1 elementwise in Table 1.
GSM8K, GSM8K_G1 = {"Tables 1 and 3": 53.97, "Table 4": 51.33}, 55.27


def _gate(granularity: str = "elementwise") -> OutputGate:
    torch.manual_seed(0)
    return OutputGate(DIM, HEADS, granularity=granularity).double()


@claim(
    id="g1-range",
    paper=PAPER,
    location="Eq. 5",
    kind="identity",
    statement="Y' = Y . sigmoid(X W): the gate lies in (0, 1) and only ever weakens the output of attention.",
)
@torch.no_grad()
def gate_range() -> Evidence:
    gate, x, y = _gate(), 3.0 * normal(1, 2, LENGTH, DIM), normal(2, 2, HEADS, LENGTH, HEAD_DIM)
    values = gate.gate(x)
    outside = int(((values <= 0) | (values >= 1) | (gate(y, x).abs() >= y.abs())).sum())
    logits = x @ gate.projection.weight.mT + gate.projection.bias
    equation = gap(gate(y, x), y * torch.sigmoid(logits).unflatten(-1, (HEADS, -1)).transpose(1, 2))
    gate.projection.weight.zero_()
    gate.projection.bias.zero_()
    half = gap(gate(y, x), 0.5 * y)
    return judged(
        f"{outside} of {values.numel()} gates leave (0, 1) or fail to weaken, and the layer differs from the equation "
        f"by {equation:.0e}. With zero weights, outputs are halved (within {half:.0e}).",
        error=max(float(outside), equation, half),
        tolerance=EXACT,
        counterexample={"outside": outside, "equation": equation, "half": half},
        values={"smallest": values.min().item(), "largest": values.max().item()},
        source="biases.gates.OutputGate",
    )


@claim(
    id="g1-headwise",
    paper=PAPER,
    location="Eq. 5, headwise",
    kind="invariance",
    statement="A headwise gate is one scalar a head: it scales the output of a head and leaves its direction.",
)
@torch.no_grad()
def headwise() -> Evidence:
    x, y = normal(1, 2, LENGTH, DIM), normal(2, 2, HEADS, LENGTH, HEAD_DIM)

    def turned(granularity: str) -> float:
        cosine = torch.cosine_similarity(_gate(granularity)(y, x), y, dim=-1)
        return (1.0 - cosine).max().item()

    by_head, by_channel = turned("headwise"), turned("elementwise")
    return judged(
        f"The cosine between gated and ungated output of a head is 1 within {abs(by_head):.0e}; elementwise gates "
        f"bring it down to {1 - by_channel:.2f}.",
        error=abs(by_head),
        tolerance=EXACT,
        counterexample={"one_minus_cosine": by_head},
        values={"one_minus_cosine_elementwise": by_channel},
        source="biases.gates.OutputGate",
    )


def _attention() -> SelfAttention:
    torch.manual_seed(0)
    return cast(SelfAttention, zoo.layer("standard", DIM, HEADS).double())


def _low_rank_maps(layer: SelfAttention) -> Tensor:
    """W_V W_O of each head, (H, C, C)."""
    values, outputs = layer.value.weight.mT, layer.output.weight.mT
    return values.unflatten(1, (HEADS, HEAD_DIM)).transpose(0, 1) @ outputs.unflatten(0, (HEADS, HEAD_DIM))


@claim(
    id="g1-low-rank",
    paper=PAPER,
    location="argument on the low rank of W_V W_O; location in the paper not known to us",
    kind="theorem",
    statement="The output of a head is sum_j S_ij X_j (W_V W_O): a linear map of rank at most d_k < d_model.",
)
@torch.no_grad()
def low_rank() -> Evidence:
    layer, x = _attention(), normal(6, 1, LENGTH, DIM)
    maps = _low_rank_maps(layer)
    rank = int(torch.linalg.matrix_rank(maps).max())
    q, k = (part(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for part in (layer.query, layer.key))
    by_maps = (pair_weights(q, k, causal=True) @ (x[:, None] @ maps)).sum(1) + layer.output.bias
    apart = gap(specification(layer)(x), by_maps)
    return judged(
        f"The output of a layer with {HEADS} heads of d_k = {HEAD_DIM} in d_model = {DIM} is the sum of such maps "
        f"within {apart:.0e}, and each of them has rank {rank} or less.",
        error=max(float(max(0, rank - HEAD_DIM)), apart),
        tolerance=EXACT,
        counterexample={"rank": rank, "d_k": HEAD_DIM, "difference": apart},
        values={"rank": rank, "d_k": HEAD_DIM, "d_model": DIM},
        source="zoo layer standard, specification",
    )


@claim(
    id="g1-non-linearity",
    paper=PAPER,
    location="argument on the low rank of W_V W_O; location in the paper not known to us",
    kind="theorem",
    statement="A gate between W_V and W_O makes the low-rank map non-linear, and so more expressive.",
)
@torch.no_grad()
def non_linearity() -> Evidence:
    layer, gate, pattern = _attention(), _gate(), torch.softmax(normal(5, LENGTH, LENGTH), -1)

    def head(x: Tensor, gated: bool) -> Tensor:
        """What the first head adds to the stream, for a fixed pattern: (T, C) -> (T, C)."""
        y = (pattern @ layer.value(x)).unflatten(-1, (HEADS, HEAD_DIM)).transpose(0, 1)[None]
        return (gate(y, x[None]) if gated else y)[0, 0] @ layer.output.weight.mT[:HEAD_DIM]

    first, second = normal(8, LENGTH, DIM), normal(9, LENGTH, DIM)
    gaps = {
        name: gap(head(first + second, gated), head(first, gated) + head(second, gated))
        for name, gated in (("plain", False), ("gated", True))
    }
    many = torch.cat([head(normal(100 + n, LENGTH, DIM), True) for n in range(20)])
    span = int(torch.linalg.matrix_rank(many))
    text = (
        f"With the pattern held fixed the plain head is additive within {gaps['plain']:.0e}; the gated one is not, by "
        f"up to {gaps['gated']:.2g}. But {len(many)} gated outputs still span {span} of {DIM} dimensions, those of "
        "W_O's rows: the map becomes non-linear, its range does not grow."
    )
    found = {"additivity": gaps, "dimensions_spanned": span}
    limit = "expressive as a function of the input; the rank of what a head can add to the stream stays d_k"
    return decided(
        text,
        gaps["gated"] > EXACT and gaps["plain"] <= 1e-10,
        found,
        conditions="" if span > HEAD_DIM else limit,
        source="zoo layer standard, biases.gates.OutputGate",
    )


@claim(
    id="g1-parameters",
    paper=PAPER,
    location="Table 1",
    kind="count",
    statement="On the 15B model G1 adds 201 M parameters elementwise and 1.6 M headwise; a gate of the values adds 25 "
    "M and 0.2 M, one of the layer's output 100 M.",
)
def gate_parameters() -> Evidence:
    with torch.device("meta"):
        square, by_head = (
            parameters(OutputGate(WIDTH, QUERY_HEADS, granularity=granularity, bias=False))
            for granularity in ("elementwise", "headwise")
        )
    # OutputGate gates C channels; the model has heads of 128, 4,096 channels in all, on a stream of 2,048.
    wider = QUERY_HEADS * WIDE_HEAD // WIDTH
    counted = {
        "G1 elementwise": LAYERS * square * wider,
        "G1 headwise": LAYERS * by_head,
        "G2 elementwise": LAYERS * square * wider * VALUE_HEADS // QUERY_HEADS,
        "G2 headwise": LAYERS * by_head * VALUE_HEADS // QUERY_HEADS,
        "G5": LAYERS * square,
    }
    error = max(abs(counted[name] / 1e6 / ADDED[name] - 1.0) for name in ADDED)
    tolerance = 0.02  # of numbers given to two digits
    text = (
        f"One model fits all five: {LAYERS} layers of width {WIDTH:,} with {QUERY_HEADS} query and {VALUE_HEADS} "
        f"value heads of {WIDE_HEAD} give {', '.join(f'{n / 1e6:.2f}' for n in counted.values())} M, within "
        f"{error:.1%} of the table. Its five sizes were chosen to fit these five numbers."
    )
    fits = error <= tolerance
    return Evidence(
        verdict=CONDITIONAL if fits else FAILS,
        text=text,
        conditions="a model whose five sizes we inferred from the table" if fits else "",
        error=error,
        tolerance=tolerance,
        counterexample={"counted": counted, "stated_in_millions": ADDED},
        values=counted,
        source="biases.gates.OutputGate; the configuration is our inference from the table",
    )


@claim(
    id="g1-tables-agree",
    paper=PAPER,
    location="Tables 1, 3 and 4",
    kind="arithmetic",
    statement="An elementwise gate of the values gives 53.97 on GSM8k.",
)
def tables_agree() -> Evidence:
    first, second = GSM8K.values()
    return judged(
        f"Tables 1 and 3 give {first:.2f}, Table 4 gives {second:.2f}: {first - second:.2f} points apart, more than "
        f"the {GSM8K_G1 - first:.2f} between this gate and G1 elementwise in Table 1.",
        error=abs(first - second),
        tolerance=0.0,
        counterexample=GSM8K,
        source="arithmetic on the tables",
    )


# Largest activation and attention to the first token (Table 4).
SINKS = {"baseline": (1053, 0.467), "G1 elementwise": (94, 0.048), "G1 headwise": (98, 0.073), "G2": (125, 0.297)}


@claim(
    id="g1-sinks",
    paper=PAPER,
    location="section 5.2 beside section 4.3 and Table 4",
    kind="reading",
    statement='Massive activations "are necessary" for attention sinks.',
)
def sinks() -> Evidence:
    activation, share = SINKS["G2"]
    other, less = SINKS["G1 headwise"]
    return Evidence(
        verdict=INCONCLUSIVE,
        text='Section 4.3 says the contrary, "massive activations are not a necessary condition for sinks", and Table '
        f"4 sides with it: a gate of the values leaves {share:.3f} of the attention on the first token at a largest "
        f"activation of {activation}, where the headwise gate G1 at {other} leaves {less:.3f} and the baseline at "
        f"{SINKS['baseline'][0]} {SINKS['baseline'][1]:.3f}.",
        values={name: {"largest activation": a, "first token": f} for name, (a, f) in SINKS.items()},
        source="sections 4.3 and 5.2, Table 4",
    )
