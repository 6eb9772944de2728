"""What encodings of the position gain, and gates with them (arXiv 2605.26355, 2606.01258), beside two studies."""

from __future__ import annotations

from functools import partial

from biases.claims.compared import enter
from biases.claims.gate_training import ONE_SEED

P2, P3 = "2605.26355", "2606.01258"
STUDY, CONTROLS = "superadditivity", "mope-controls"
EXCESS = f"an excess of 0.059 nats (0.119 for 0.092 - 0.032), {ONE_SEED}"
RAW = "learned.position.unclamped_product.mean"
BOUNDARY = "omega sigma = 5.000, after the clamp, for all 128 pairs of one run that started there, with weight decay"


def corners(gate: str) -> dict[str, str]:
    """The arms of the interaction of a gate and MoPE."""
    first, second = "standard", gate
    return {
        "y00": f"{first}+learned",
        "y10": f"{second}+learned",
        "y01": f"{first}+mope",
        "y11": f"{second}+mope",
    }


_contrast = partial(enter, study=STUDY, stated="better", metric="full")
_raw_product = partial(
    enter,
    paper=P3,
    location="beside Table 5; the papers lack this control",
    kind="control",
    study=CONTROLS,
    stated="equivalent",
    published=BOUNDARY,
    metric=RAW,
    b="published",
)

_contrast(
    "superadditivity",
    paper=P2,
    location="Tables 1-3",
    statement="EGA and MoPE are complementary: together they gain more than the sum of their single effects.",
    published=EXCESS,
    **corners("ega"),
)
_contrast(
    "superadditivity-without-the-future",
    paper=P2,
    location="beside Tables 1-3",
    kind="control",
    statement="Is the excess of EGA and MoPE over the sum there also where the text ends at the token?",
    published=f"{EXCESS}, on whole windows only",
    metric="truncated",
    **corners("ega"),
)
_contrast(
    "superadditivity-of-a-causal-gate",
    paper=P2,
    location="beside Tables 1-3",
    kind="control",
    statement="Do a gate that is causal and MoPE gain more together than the sum of their single effects?",
    published=f"{EXCESS}, of the gate that sees the window; none with a causal gate",
    **corners("ega-prefix"),
)
_contrast(
    "ega-mope-gain",
    paper=P2,
    location="Table 1",
    statement="EGA with MoPE is better than the standard model with the learned encoding.",
    published=f"+0.119 (1.4742 to 1.3550), {ONE_SEED}",
    a="ega+mope",
    b="standard+learned",
)
_contrast(
    "mope-alone-is-worse",
    paper=P2,
    location="Table 2 (PE-MORLET)",
    statement="MoPE without the gate is worse than the learned encoding.",
    stated="worse",
    published=f"-0.032 (1.4742 to 1.5060), {ONE_SEED}",
    a="standard+mope",
    b="standard+learned",
)
_contrast(
    "mope-encodes-position",
    paper=P3,
    location="beside section 3; the papers lack this control",
    kind="control",
    statement="Is a model with MoPE better than one without any encoding?",
    published="no model without an encoding was run",
    a="standard+mope",
    b="standard+none",
)
_contrast(
    "mope-encodes-position-for-a-gate",
    paper=P3,
    location="beside section 3; the papers lack this control",
    kind="control",
    statement="With a causal gate, is MoPE better than no encoding?",
    published="no gated model without an encoding was run",
    a="ega-prefix+mope",
    b="ega-prefix+none",
)
_contrast(
    "mope-beats-sinusoidal",
    paper=P3,
    location="Corollary 1; Tables 2 and 4",
    statement='MoPE "strictly outperforms" the sinusoidal encoding, of which it is a generalisation.',
    published=f"+0.080 (1.5863 to 1.5060), {ONE_SEED}",
    departs="the sinusoidal encoding scaled to the embeddings, where the published one has an amplitude of 1 beside "
    "embeddings of deviation 0.02",
    a="standard+mope",
    b="standard+sinusoidal-scaled",
)
_contrast(
    "rope-gain",
    paper=P2,
    location="Table 2 (PE-ROPE)",
    statement="RoPE is better than the learned encoding.",
    published=f"+0.011 (1.4742 to 1.4637), {ONE_SEED}",
    departs="RoPE alone, where the published model keeps the learned encoding beside it",
    a="standard+rotary",
    b="standard+learned",
)
_raw_product(
    "mope-raw-product-from-elsewhere",
    statement="Started at 10 and without weight decay, does the raw product omega sigma, before the clamp, end where "
    "that of the published encoding does?",
    a="product-10-no-decay",
)
_raw_product(
    "mope-raw-product-without-decay",
    statement="Without weight decay, does the raw product omega sigma, before the clamp, end where it does with it?",
    a="no-decay",
)
