"""Gated-SwinRMT (arXiv 2604.06014): what its abstract states, of which the equations are our reconstruction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from biases.axial import ORDERS, attend_decomposed, decomposed_weights
from biases.claims._judge import (
    EXACT,
    influence,
    limited,
    manhattan_distance,
    normal,
    parameters,
    reconstructed,
    rise,
)
from biases.claims.evidence import NOT_REPRODUCIBLE, Evidence
from biases.claims.ledger import claim
from biases.gates import OutputGate
from biases.layers import GatedSwinRetention, GatedSwinSigmoid, specification
from biases.models import RMT, GatedSwinRMT
from biases.windows import RULES, Windows

PAPER = "2604.06014"
SIDE, WINDOW, DIM, HEADS = 8, 4, 8, 4
LOWEST, HIGHEST = 77e6, 79e6
ACCURACY = {"RMT": 73.74, "Retention": 78.20, "SWAT": 80.22}
GAINS = {"Retention": 4.46, "SWAT": 6.48}
CIFAR_GAIN = 0.56
READING = "Equations are our reconstruction from the abstract."


def _model(kind: str) -> GatedSwinRMT:
    with torch.device("meta"):
        return GatedSwinRMT.of("paper", kind=kind)


@claim(
    id="gated-swinrmt-parameters",
    paper=PAPER,
    location="abstract",
    kind="count",
    statement="RMT and both gated variants have about 77 to 79 million parameters.",
)
def gated_parameters() -> Evidence:
    retention = _model("retention")
    counted = {"retention": parameters(retention), "swat": parameters(_model("swat"))}
    gates = [part for part in retention.modules() if isinstance(part, OutputGate)]
    elementwise = sum(parameters(gate) for gate in gates)
    with torch.device("meta"):
        headwise = sum(
            parameters(OutputGate(gate.heads * gate.head_dim, gate.heads, granularity="headwise")) for gate in gates
        )
        rmt = {f"RMT-{size.upper()}": parameters(RMT.of(size, classes=100)) for size in "tsbl"}
    without = counted["retention"] - elementwise

    def beyond(count: int) -> float:
        """How far a number of parameters is from the range, in 10^6."""
        return max(LOWEST - count, count - HIGHEST, 0.0) / 1e6

    nearest = min(rmt, key=lambda name: beyond(rmt[name]))
    inside = max(beyond(count) for count in counted.values())
    outside = max(beyond(without), beyond(rmt[nearest]))
    return limited(
        f"A backbone of our choice gives both variants {counted['retention']:,} and {counted['swat']:,}. Without the "
        f"gate, as RMT, it has {without:,}: an elementwise gate adds {elementwise:,}, more than the range is wide, one "
        f"of a number a head {headwise:,}. The published RMT of 100 classes have "
        f"{', '.join(f'{count:,}' for count in rmt.values())}; {nearest} is the nearest, {beyond(rmt[nearest]):.1f} M "
        "from the range.",
        inside=inside,
        outside=outside,
        tolerance=0.0,
        conditions="the gated variants, on a backbone of our choice; RMT on another one, or a gate of a number a head",
        counterexample={"ungated": without, **counted, "nearest": {nearest: rmt[nearest]}, "range": [LOWEST, HIGHEST]},
        values={**counted, "elementwise_gate": elementwise, "headwise_gate": headwise, **rmt},
        source="biases.models.GatedSwinRMT and RMT, biases.gates.OutputGate",
    )


def _regions() -> Tensor:
    """Which region of the shifted windows each pixel is in, by the cuts of rows and columns: (H, W)."""
    run = torch.bucketize(torch.arange(SIDE), torch.tensor([WINDOW // 2, SIDE - WINDOW // 2]), right=True)
    return 3 * run[:, None] + run


def _leak(layer: torch.nn.Module) -> float:
    """Largest influence of a pixel on one of another region."""
    region = _regions().flatten()
    found = influence(specification(layer), normal(1, 1, SIDE, SIDE, DIM))
    return found[region[:, None] != region].max().item()


@claim(
    id="gated-swinrmt-isolation",
    paper=PAPER,
    location="abstract",
    kind="invariance",
    statement="Retention runs in consecutive width-wise and height-wise passes within each shifted window.",
)
def isolation() -> Evidence:
    torch.manual_seed(0)
    options: dict[str, Any] = {"window": WINDOW, "shifted": True, "enhancement": 0}
    kinds = (GatedSwinRetention, GatedSwinSigmoid)
    leak = max(_leak(kind(DIM, HEADS, order=order, **options)) for kind in kinds for order in ORDERS)
    windows = Windows.of(SIDE, SIDE, WINDOW, shifted=True)
    down, across = windows.axis_masks()
    q = torch.zeros(windows.count, 1, *windows.size, 1, dtype=torch.float64)
    region = windows.partition(_regions()[None, :, :, None]).flatten(1)
    apart = region[:, :, None] != region[:, None]
    one_pass = {
        name: decomposed_weights(q, q, masks=masks)[:, 0][apart].max().item()
        for name, masks in (("width", (None, across)), ("height", (down, None)))
    }
    return reconstructed(
        "With the shift's mask in both passes, pixels that only the cyclic shift brought together have an influence "
        f"of {leak:g} on each other, softmax or sigmoid, in both orders of the passes. Masked in one pass alone "
        f"they would have weights of up to "
        f"{max(one_pass.values()):.2f}. (Local enhancement, a convolution of the whole map, is off here.) {READING}",
        error=leak,
        tolerance=0.0,
        counterexample={"influence_across_regions": leak},
        values={"weight_where_one_pass_is_masked": one_pass},
        source="biases.layers.GatedSwinRetention and GatedSwinSigmoid, specification; each pixel moved in turn",
    )


def _profile(layer: GatedSwinRetention | GatedSwinSigmoid, weights: str) -> Tensor:
    """By how much the weights of a window without content rise with the distance, a head."""
    q = torch.zeros(1, HEADS, WINDOW + 1, WINDOW + 1, 1, dtype=torch.float64)
    bias = () if layer.alibi is None else (layer.alibi,)
    found = decomposed_weights(q, q, weights=weights, bias=bias, decay=layer.decay)[0]
    return rise(found, manhattan_distance(WINDOW + 1, WINDOW + 1))


@claim(
    id="gated-swinrmt-locality",
    paper=PAPER,
    location="abstract",
    kind="invariance",
    statement="Exponential decay masks, one a head, give a two-dimensional locality prior without learned positional "
    "biases (-Retention).",
)
def locality() -> Evidence:
    layer = GatedSwinRetention(DIM, HEADS, window=WINDOW)
    learned = parameters(layer) - parameters(GatedSwinRetention(DIM, HEADS, window=WINDOW, decay=False))
    risen = _profile(layer, "softmax").max().item()
    return reconstructed(
        f"Without content, weights fall with the Manhattan distance in all {HEADS} heads (largest rise {risen:.0e}), "
        f"and the decay has {learned} parameters. {READING}",
        error=max(risen, learned),
        tolerance=EXACT,
        counterexample={"rise": risen, "parameters": learned},
        values={"rise": risen, "parameters": learned},
        source="biases.layers.GatedSwinRetention",
    )


@claim(
    id="gated-swinrmt-swat-locality",
    paper=PAPER,
    location="abstract",
    kind="invariance",
    statement="Exponential decay masks give a two-dimensional locality prior, beside balanced ALiBi slopes (-SWAT).",
)
def swat_locality() -> Evidence:
    rises = {
        reading: _profile(GatedSwinSigmoid(DIM, HEADS, window=WINDOW, alibi_distance=reading), "sigmoid").tolist()
        for reading in ("negative-absolute", "absolute", "signed")
    }
    inside, outside = max(rises["negative-absolute"]), max(max(rises["absolute"]), max(rises["signed"]))
    heads = sum(r > EXACT for r in rises["absolute"])
    return limited(
        f"Bias and decay act on one distance, and a positive slope works against the decay: with slopes s |d| of both "
        f"signs the weights of {heads} of {HEADS} heads rise with the distance, by up to {max(rises['absolute']):.2f} "
        f"without content, and with s d by up to {max(rises['signed']):.2f}. The abstract does not say what a slope "
        f"multiplies. {READING}",
        inside=inside,
        outside=outside,
        tolerance=EXACT,
        conditions="slopes -|s| |d| in all heads, which are then not balanced",
        counterexample={"rise_of_each_head": {name: [round(r, 4) for r in found] for name, found in rises.items()}},
        source="biases.layers.GatedSwinSigmoid",
    )


@claim(
    id="gated-swinrmt-normalised-output",
    paper=PAPER,
    location="abstract",
    kind="method",
    statement='"The Normalized output implicitly suppresses uninformative attention scores" (-SWAT).',
)
@torch.no_grad()
def normalised_output() -> Evidence:
    v = normal(1, 1, HEADS, WINDOW, WINDOW, DIM // HEADS)
    layer = GatedSwinSigmoid(DIM, HEADS, window=WINDOW).double()

    def out(logit: float, weights: str) -> Tensor:
        """Output of each pixel where all content logits are ``logit``: (1, M, M, C)."""
        q = torch.full((1, HEADS, WINDOW, WINDOW, 1), logit, dtype=torch.float64)
        decay = layer.decay if weights == "sigmoid" else None
        y = attend_decomposed(q, torch.ones_like(q), v, weights=weights, decay=decay, scale=1.0, backend="reference")
        return y.permute(0, 2, 3, 1, 4).flatten(3)

    low, high = out(-2.0, "sigmoid"), out(0.0, "sigmoid")
    kept = {
        "no normalisation": (low.norm() / high.norm()).item(),
        "output normalised": (layer.output_norm(low).norm() / layer.output_norm(high).norm()).item(),
        "rows normalised": (out(-2.0, "sigmoid-normalised").norm() / out(0.0, "sigmoid-normalised").norm()).item(),
    }
    return Evidence(
        verdict=NOT_REPRODUCIBLE,
        text="What is normalised is not stated. Where all scores of a pixel fall from 0 to -2, un-normalised sigmoid "
        f"weights leave {100 * kept['no normalisation']:.1f} % of its output; with a layer norm of the output "
        f"{100 * kept['output normalised']:.1f} % are left and with normalised rows "
        f"{100 * kept['rows normalised']:.1f} %: either reading takes the suppression of such pixels back.",
        values=kept,
        source="biases.layers.GatedSwinSigmoid, biases.axial.attend_decomposed",
    )


@claim(
    id="gated-swinrmt-global-windows",
    paper=PAPER,
    location="abstract",
    kind="count",
    statement="On the small feature maps of CIFAR-10, adaptive windowing collapses attention to global scope.",
)
def global_windows() -> Evidence:
    counts = {
        rule: {str(side): Windows.of(side, side, 7, shifted=True, rule=rule).count for side in (8, 4, 2, 1)}
        for rule in RULES
    }
    inside = max(counts["adaptive"].values()) - 1
    outside = max(max(counts[rule].values()) for rule in RULES if rule != "adaptive") - 1
    return limited(
        "Images of 32 x 32 behind a stem of stride 4 have maps of 8, 4, 2 and 1. With M = 7, windows of the nearest "
        f"whole number of a side leave {counts['adaptive']['8']} window on the first map; Swin's own rule pads it to "
        f"{counts['clamp']['8']} windows. The rule of the paper is not in its abstract.",
        inside=inside,
        outside=outside,
        tolerance=0.0,
        conditions="a rule that rounds the number of windows of a side, or M = 8",
        counterexample={"windows_by_side_of_map": counts},
        source="biases.windows.Windows",
    )


@claim(
    id="gated-swinrmt-mini-imagenet",
    paper=PAPER,
    location="abstract",
    kind="arithmetic",
    statement="-SWAT reaches 80.22 % and -Retention 78.20 % on Mini-ImageNet against 73.74 % of RMT; on CIFAR-10 the "
    "advantage of 6.48 points compresses to 0.56.",
)
def mini_imagenet() -> Evidence:
    gains = {name: round(ACCURACY[name] - ACCURACY["RMT"], 2) for name in GAINS}
    consistent = all(abs(gains[name] - GAINS[name]) < 0.005 for name in GAINS)
    return Evidence(
        verdict=NOT_REPRODUCIBLE,
        text=f"The differences {gains['Retention']:.2f} and {gains['SWAT']:.2f} points "
        f"{'follow' if consistent else 'do not follow'} from the accuracies, and {CIFAR_GAIN / GAINS['SWAT']:.0%} of "
        "the latter remain on CIFAR-10. Configuration, split (Mini-ImageNet has no standard one of 100 classes), "
        "epochs and seeds are not in the abstract, and the variants differ in activation, normalisation, gate and "
        "decay at once.",
        values={"gains": gains, "cifar_10": CIFAR_GAIN},
        source="arithmetic on the abstract",
    )
