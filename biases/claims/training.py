"""What the papers found by training, beside the studies of this repository (``benchmarks/ablations``)."""

from __future__ import annotations

from functools import partial
from typing import Any

from biases.claims.analyses import PAPER, analyses_of, compared, measured, missing, setting
from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, INCONCLUSIVE, Evidence
from biases.claims.ledger import claim

P1, P2, P3, VISION = "2605.21842", "2605.26355", "2606.01258", "2604.06014"
ONE_SEED = "one seed, 6 layers x 8 heads x 256, context 256, 5000 updates of 64 windows"
IMAGES = "one run on Mini-ImageNet at 224 x 224, configuration not given"
PRODUCT = "learned.position.unclamped_product.mean"
FACTORS = {"y00": "standard+learned", "y10": "{gate}+learned", "y01": "standard+mope", "y11": "{gate}+mope"}


def _corners(gate: str) -> dict[str, str]:
    return {corner: arm.format(gate=gate) for corner, arm in FACTORS.items()}


def _enter(
    id: str,
    paper: str,
    location: str,
    statement: str,
    study: str,
    stated: str,
    published: str,
    metric: str,
    **arms: str,
) -> None:
    run = partial(compared, study, stated=stated, published=published, metric=metric, **arms)
    claim(id=id, paper=paper, location=location, kind="empirical", statement=statement)(run)


GATE_SIGHT = "gate-sight"
GAIN = f"+0.103 (1.4742 to 1.3712), {ONE_SEED}"
_enter(
    "ega-gain",
    P1,
    "Table 1",
    "EGA lowers the validation loss of the standard model, on whole windows, as the paper measures it.",
    GATE_SIGHT,
    "better",
    GAIN,
    "full",
    a="ega",
    b="standard",
)
_enter(
    "ega-gain-without-the-future",
    P1,
    "Table 1 with section 3.2",
    "EGA, called strictly causal, lowers the loss also where the text ends at the token, as in generation.",
    GATE_SIGHT,
    "better",
    f"{GAIN}, on whole windows only",
    "truncated",
    a="ega",
    b="standard",
)
_enter(
    "ega-gain-of-a-causal-gate",
    P1,
    "Table 1",
    "An energy gate normalised over the prefix of each key, which is causal, lowers the loss.",
    GATE_SIGHT,
    "better",
    f"{GAIN}, of the gate that sees the window",
    "full",
    a="ega-prefix",
    b="standard",
)
_enter(
    "ega-gain-without-statistics",
    P1,
    "Table 1",
    "The energy gate lowers the loss by itself, without normalisation.",
    GATE_SIGHT,
    "better",
    f"{GAIN}, of the gate that is normalised over the window",
    "full",
    a="ega-token",
    b="standard",
)

SUPERADDITIVITY = "superadditivity"
EXCESS = f"an excess of 0.059 nats (0.119 for 0.092 - 0.032), {ONE_SEED}"
_enter(
    "superadditivity",
    P2,
    "Tables 1-3",
    "EGA and MoPE are complementary: together they gain more than the sum of their single effects.",
    SUPERADDITIVITY,
    "better",
    EXCESS,
    "full",
    **_corners("ega"),
)
_enter(
    "superadditivity-without-the-future",
    P2,
    "Tables 1-3",
    "The excess of EGA and MoPE over the sum is there also where the text ends at the token.",
    SUPERADDITIVITY,
    "better",
    f"{EXCESS}, on whole windows only",
    "truncated",
    **_corners("ega"),
)
_enter(
    "superadditivity-of-a-causal-gate",
    P2,
    "Tables 1-3",
    "A gate that is causal and MoPE gain more together than the sum of their single effects.",
    SUPERADDITIVITY,
    "better",
    f"{EXCESS}, of the gate that sees the window",
    "full",
    **_corners("ega-prefix"),
)
_enter(
    "ega-mope-gain",
    P2,
    "Table 1",
    "EGA with MoPE is better than the standard model with the learned encoding.",
    SUPERADDITIVITY,
    "better",
    f"+0.119 (1.4742 to 1.3550), {ONE_SEED}",
    "full",
    a="ega+mope",
    b="standard+learned",
)
_enter(
    "mope-alone-is-worse",
    P2,
    "Table 2 (PE-MORLET)",
    "MoPE without the gate is worse than the learned encoding.",
    SUPERADDITIVITY,
    "worse",
    f"-0.032 (1.4742 to 1.5060), {ONE_SEED}",
    "full",
    a="standard+mope",
    b="standard+learned",
)
_enter(
    "mope-encodes-position",
    P3,
    "section 3; the papers lack this control",
    "MoPE encodes position: with it a model is better than without any encoding.",
    SUPERADDITIVITY,
    "better",
    "no model without an encoding was run",
    "full",
    a="standard+mope",
    b="standard+none",
)
_enter(
    "mope-encodes-position-for-a-gate",
    P3,
    "section 3; the papers lack this control",
    "With a causal gate, MoPE is better than no encoding.",
    SUPERADDITIVITY,
    "better",
    "no gated model without an encoding was run",
    "full",
    a="ega-prefix+mope",
    b="ega-prefix+none",
)
_enter(
    "mope-beats-sinusoidal",
    P3,
    "Corollary 1; Tables 2 and 4",
    'MoPE "strictly outperforms" the sinusoidal encoding, of which it is a generalisation.',
    SUPERADDITIVITY,
    "better",
    f"+0.080 (1.5863 to 1.5060), {ONE_SEED}, the sinusoidal encoding unscaled beside embeddings of deviation 0.02; "
    "here it is scaled to them",
    "full",
    a="standard+mope",
    b="standard+sinusoidal-scaled",
)
_enter(
    "rope-gain",
    P2,
    "Table 2 (PE-ROPE)",
    "RoPE is better than the learned encoding.",
    SUPERADDITIVITY,
    "better",
    f"+0.011 (1.4742 to 1.4637), {ONE_SEED}, with the learned encoding kept beside it",
    "full",
    a="standard+rotary",
    b="standard+learned",
)

CONTROLS = "mope-controls"
BOUNDARY = "omega sigma = 5.000 for all 128 pairs of one run that started there, with weight decay and clamp"
_enter(
    "mope-converges-from-elsewhere",
    P3,
    "learned values, Table 5",
    "The products omega sigma are drawn to the boundary by the data: from 10, without weight decay, they end where "
    "those that start at 5 do.",
    CONTROLS,
    "equivalent",
    BOUNDARY,
    PRODUCT,
    a="product-10-no-decay",
    b="published",
)
_enter(
    "mope-converges-without-decay",
    P3,
    "learned values, Table 5",
    "The products omega sigma are drawn to the boundary by the data: without weight decay they end where they do with "
    "it.",
    CONTROLS,
    "equivalent",
    BOUNDARY,
    PRODUCT,
    a="no-decay",
    b="published",
)

IMAGE_STUDY = "vision"
_enter(
    "gated-swinrmt-retention-gate",
    VISION,
    "abstract",
    "The G1 gate after the retention improves the model.",
    IMAGE_STUDY,
    "better",
    f"no model without the gate, {IMAGES}",
    "test_loss",
    a="retention",
    b="retention-no-gate",
)
_enter(
    "gated-swinrmt-retention-decay",
    VISION,
    "abstract",
    "The additive Manhattan decay improves the model with retention.",
    IMAGE_STUDY,
    "better",
    f"no model without the decay, {IMAGES}",
    "test_loss",
    a="retention",
    b="retention-no-decay",
)
_enter(
    "gated-swinrmt-swat-gate",
    VISION,
    "abstract",
    "Gating the values by SwiGLU improves the model with sigmoids.",
    IMAGE_STUDY,
    "better",
    f"no model without the gate, {IMAGES}",
    "test_loss",
    a="swat",
    b="swat-no-gate",
)
_enter(
    "gated-swinrmt-swat-decay",
    VISION,
    "abstract",
    "The multiplicative decay after the sigmoid improves the model.",
    IMAGE_STUDY,
    "better",
    f"no model without the decay, {IMAGES}",
    "test_loss",
    a="swat",
    b="swat-no-decay",
)
_enter(
    "gated-swinrmt-swat-slopes",
    VISION,
    "abstract",
    "Balanced ALiBi slopes improve the model with sigmoids.",
    IMAGE_STUDY,
    "better",
    f"no model without the slopes, {IMAGES}",
    "test_loss",
    a="swat",
    b="swat-no-slopes",
)
_enter(
    "gated-swinrmt-swat-over-retention",
    VISION,
    "abstract",
    "-SWAT is better than -Retention.",
    IMAGE_STUDY,
    "better",
    f"80.22 % for 78.20 %, {IMAGES}",
    "test_loss",
    a="swat",
    b="retention",
)
_enter(
    "gated-swinrmt-swat-over-rmt",
    VISION,
    "abstract",
    "-SWAT is better than RMT.",
    IMAGE_STUDY,
    "better",
    f"80.22 % for 73.74 %, {IMAGES}",
    "test_accuracy",
    a="swat",
    b="rmt",
)


@claim(
    id="ega-loss-without-the-future",
    paper=P1,
    location="section 3.2 with Table 1",
    kind="empirical",
    statement="The loss of trained EGA does not depend on later tokens, as it is strictly causal.",
)
def loss_without_the_future() -> Evidence:
    published = f"no truncated evaluation, {ONE_SEED}"
    for file, analysis in analyses_of(GATE_SIGHT):
        leak = analysis["arms"]["ega"]["leak"]
        if not leak or leak["interval"] is None:
            continue
        low, high = leak["interval"]
        margin, unit = analysis["statistics"]["smallest_effect"], analysis["statistics"]["unit"]
        text = (
            f"Cut off after each token, the loss of trained EGA is {leak['mean']:+.4g} [{low:+.4g}, {high:+.4g}] "
            f"{unit} above that in whole windows, n = {leak['n']}. Study {GATE_SIGHT}, size {analysis['size']} "
            f"({setting(analysis)}). Published: {published}."
        )
        more = measured(file, analysis, leak["interval"], leak["n"], unit)
        if low <= 0 <= high and max(-low, high) <= margin:
            verdict = HOLDS if analysis["size"] == PAPER else CONDITIONAL
        else:
            verdict = INCONCLUSIVE if low <= 0 <= high else FAILS
        conditions = f"size {analysis['size']}: {setting(analysis)}" if verdict == CONDITIONAL else ""
        return Evidence(verdict=verdict, text=text, conditions=conditions, **more)
    return missing(GATE_SIGHT, published)


def _converged(leaf: str, value: float, published: str) -> Evidence:
    """Whether a parameter of the gates of trained EGA ended at ``value``, by the mean over the heads of layer 0."""
    for file, analysis in analyses_of(GATE_SIGHT):
        arm = analysis["arms"]["ega"]
        found: dict[str, Any] = {name: each for name, each in arm["learned"].items() if name.endswith(f".{leaf}")}
        if not found or any(each["interval"] is None for each in found.values()):
            continue
        layers = sorted(found, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")])
        first = found[layers[0]]
        low, high = first["interval"]
        spread = [min(each["minimum"] for each in found.values()), max(each["maximum"] for each in found.values())]
        text = (
            f"{leaf} of layer 0 ends at {first['mean']:.3f} [{low:.3f}, {high:.3f}], n = {first['n']}, mean over "
            f"heads; single heads of all layers and seeds span {spread[0]:.3f} to {spread[1]:.3f}. Study "
            f"{GATE_SIGHT}, size {analysis['size']} ({setting(analysis)}). Published: {published}."
        )
        verdict = FAILS if not low <= value <= high else HOLDS if analysis["size"] == PAPER else CONDITIONAL
        conditions = f"layer 0, one start, size {analysis['size']}" if verdict == CONDITIONAL else ""
        more = measured(file, analysis, first["interval"], first["n"], f"value of {leaf}")
        values = {"by layer": {name: round(each["mean"], 4) for name, each in found.items()}, "heads": spread}
        return Evidence(verdict=verdict, text=text, conditions=conditions, **more, values=values)
    return missing(GATE_SIGHT, published)


@claim(
    id="ega-tau-converges",
    paper=P1,
    location="learned values",
    kind="empirical",
    statement="The threshold tau converges to about 0.35, independently of its initialisation.",
)
def tau_converges() -> Evidence:
    return _converged("tau", 0.35, "layer 0, head 0 of EGA-C and EGA-M-F, both started at 0; none of EGA-1 itself")


@claim(
    id="ega-alpha-converges",
    paper=P1,
    location="appendix C",
    kind="empirical",
    statement="The steepness alpha converges to about 2.2.",
)
def alpha_converges() -> Evidence:
    return _converged("alpha", 2.2, "layer 0, head 0 of EGA-C, started at 2.0; none of EGA-1 itself")
