"""RMT (arXiv 2309.11523): sizes, cost and training of its models."""

from __future__ import annotations

import functools

import torch
from torch import nn

from biases.claims._judge import judged, multiply_adds, parameters
from biases.claims.evidence import HOLDS, NOT_REPRODUCIBLE, Evidence
from biases.claims.ledger import claim
from biases.models import RMT

PAPER = "2309.11523"
SIZES = ("t", "s", "b", "l")
# n_parameters of the four training logs in qhfan/RMT 32ea214, RMT_log.
LOGGED = {"t": 14_334_216, "s": 26_967_240, "b": 54_154_896, "l": 95_464_864}
# Tables 10 and 12, in 10^9.
FLOPS = {"t": 2.5, "s": 4.5, "b": 9.7, "l": 18.2}
# Table 7, RMT-S with stage 3 decomposed or full.
TABLE_7 = {"decomposed": 4.5, "full": 4.8}
# Top-1 accuracy of RMT-S on ImageNet-1K: the best epoch of the moving average (README) and of the weights themselves.
BEST_AVERAGED, BEST_RAW = 84.10, 83.91
FIRST_THREE = ("decomposed", "decomposed", "decomposed", "full")
ROUNDING = 0.05


@functools.cache
def _model(size: str, forms: tuple[str, ...] | None = None) -> RMT:
    with torch.device("meta"):
        return RMT.of(size, **({} if forms is None else {"forms": forms})).eval()


@functools.cache
def _billions(size: str, forms: tuple[str, ...] | None = None) -> float:
    """Multiply-adds of an image of 224 x 224, in 10^9."""
    model = _model(size, forms)
    return multiply_adds(lambda: model(torch.empty(1, 3, 224, 224, device="meta"))) / 1e9


@claim(
    id="rmt-parameters",
    paper=PAPER,
    location="Tables 10 and 12; training logs",
    kind="count",
    statement="RMT-T, S, B and L have 14, 27, 54 and 96 million parameters (14,334,216 to 95,464,864 by the logs).",
)
def rmt_parameters() -> Evidence:
    counted = {size: parameters(_model(size)) for size in SIZES}
    error = max(abs(counted[size] - LOGGED[size]) for size in SIZES)
    return judged(
        f"Built from the configurations, the four models have {', '.join(f'{n:,}' for n in counted.values())} "
        f"parameters, {'the numbers' if error == 0 else f'off by up to {error:,} from those'} of the logs.",
        error=error,
        tolerance=0.0,
        counterexample={"counted": counted, "logged": LOGGED},
        values=counted,
        source="biases.models.RMT",
    )


@claim(
    id="rmt-flops",
    paper=PAPER,
    location="Tables 10 and 12",
    kind="count",
    statement="RMT-T, S, B and L take 2.5, 4.5, 9.7 and 18.2 GFLOPs at 224 x 224.",
)
def rmt_flops() -> Evidence:
    counted = {size: round(_billions(size), 3) for size in SIZES}
    error = max(abs(counted[size] - FLOPS[size]) for size in SIZES)
    excess = {size: f"{100 * (counted[size] / FLOPS[size] - 1):+.1f} %" for size in SIZES}
    return Evidence(
        verdict=HOLDS if error <= ROUNDING else NOT_REPRODUCIBLE,
        text=f"All matrix products and convolutions take {', '.join(f'{n:.2f}' for n in counted.values())} G "
        f"multiply-adds, which is {', '.join(excess.values())} against the tables, though the parameters agree to the "
        "last one. What the authors' counter leaves out is not stated; the same count gives Swin's numbers to the "
        "digit (swin-flops).",
        error=error,
        tolerance=ROUNDING,
        values={"counted": counted, "stated": FLOPS},
        source="biases.models.RMT, counted",
    )


@claim(
    id="rmt-decomposed-saving",
    paper=PAPER,
    location="Table 7",
    kind="count",
    statement="In stage 3 of RMT-S the decomposed form takes 4.5 GFLOPs in all where full MaSA takes 4.8.",
)
def decomposed_saving() -> Evidence:
    full = ("decomposed", "decomposed", "full", "full")
    counted = {"decomposed": _billions("s", FIRST_THREE), "full": _billions("s", full)}
    saved, stated = counted["full"] - counted["decomposed"], TABLE_7["full"] - TABLE_7["decomposed"]
    return judged(
        f"The counts are {counted['decomposed']:.2f} and {counted['full']:.2f} G multiply-adds: {saved:.2f} G saved, "
        f"{stated:.1f} G by the table. The totals themselves are higher than stated (rmt-flops).",
        error=abs(saved - stated),
        tolerance=2 * ROUNDING,
        counterexample={"saved": saved, "stated": stated},
        values=counted,
        source="biases.models.RMT, counted",
    )


@claim(
    id="rmt-stem",
    paper=PAPER,
    location="text on the architecture",
    kind="count",
    statement="The stem has five 3 x 3 convolutions.",
)
def stem() -> Evidence:
    model = _model("t")
    found = sum(isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) for part in model.embedding.modules())
    width = 64
    with torch.device("meta"):
        fifth = parameters(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)))
    with_five = parameters(model) + fifth * (5 - found)
    return judged(
        f"With {found} convolutions RMT-T has {parameters(model):,} parameters, and its log says {LOGGED['t']:,}. With "
        f"a fifth one (64 to 64 and its normalisation) it would have {with_five:,}.",
        error=abs(found - 5),
        tolerance=0.0,
        counterexample={"convolutions": found, "parameters": parameters(model), "with_five": with_five},
        values={"logged": LOGGED["t"]},
        source="biases.models.RMT",
    )


@claim(
    id="rmt-decomposed-stages",
    paper=PAPER,
    location="text on the architecture",
    kind="method",
    statement="The first three stages use the decomposed form, the last one full MaSA.",
)
def decomposed_stages() -> Evidence:
    forms = {
        size: tuple(stage.blocks[0].attention.form for stage in _model(size).stages)  # type: ignore[union-attr,index]
        for size in SIZES
    }
    other = {size: list(found) for size, found in forms.items() if found != FIRST_THREE}
    as_released, as_stated = _billions("t"), _billions("t", FIRST_THREE)
    return judged(
        f"True of {len(SIZES) - len(other)} of the four released sizes. RMT-T decomposes its first two stages only, "
        f"which takes {as_released:.2f} G multiply-adds instead of {as_stated:.2f} G.",
        error=len(other),
        tolerance=0.0,
        counterexample=other,
        values={"multiply_adds_released": as_released, "multiply_adds_as_stated": as_stated},
        source="biases.models.RMT, after chunkwise_recurrents of qhfan/RMT 32ea214",
    )


@claim(
    id="rmt-learning-rate",
    paper=PAPER,
    location="training settings; RMT_log of the code",
    kind="arithmetic",
    statement="Models are trained with a learning rate of 1e-3 and a batch of 1024.",
)
def learning_rate() -> Evidence:
    stated, batch = 1e-3, 1024
    per_image, logged = 5e-4 / 512, 2.0e-3  # the code's scaling rule, and the peak of the training logs
    by_rule, implied = per_image * batch, logged / per_image
    return judged(
        f"The code's rule 5e-4 batch / 512 gives {by_rule:g} for a batch of {batch}, as stated. The published logs "
        f"peak at {logged:g}, which by the rule is a batch of {implied:.0f}.",
        error=abs(logged - stated),
        tolerance=1e-9,
        counterexample={"stated": stated, "logged_peak": logged, "batch_implied": implied},
        values={"by_rule": by_rule},
        source="arithmetic on RMT_log of qhfan/RMT 32ea214",
    )


@claim(
    id="rmt-imagenet",
    paper=PAPER,
    location="ImageNet-1K table and README",
    kind="reading",
    statement="RMT-S reaches 84.1 % top-1 on ImageNet-1K.",
)
def imagenet() -> Evidence:
    return Evidence(
        verdict=NOT_REPRODUCIBLE,
        text=f"One run: {BEST_AVERAGED:.2f} % is the best of its epochs by the moving average of the weights, chosen "
        f"on the validation set that is reported; the best epoch of the weights themselves is {BEST_RAW:.2f} %, "
        f"{BEST_AVERAGED - BEST_RAW:.2f} points less. No seeds and no interval are published, and a rerun takes 32 "
        "GPUs for a day and a half.",
        values={"choice_of_epoch_and_average": round(BEST_AVERAGED - BEST_RAW, 2)},
        source="README and RMT_log of qhfan/RMT 32ea214",
    )
