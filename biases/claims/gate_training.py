"""What the energy gate gains by training (arXiv 2605.21842), beside the study ``gate-sight``."""

from __future__ import annotations

from functools import partial

from biases.claims.compared import enter
from biases.claims.evidence import INCONCLUSIVE, Evidence
from biases.claims.ledger import claim

PAPER, STUDY = "2605.21842", "gate-sight"
ONE_SEED = "one seed, 6 layers x 8 heads x 256, context 256, 5000 updates of 64 windows"
GAIN = f"+0.103 (1.4742 to 1.3712), {ONE_SEED}"
LOSSES = {"EGA-1": 1.3712, "EGA-C": 1.3745, "EGA-2": 1.3950, "EGA-4": 1.4088}  # Table 1
REPLICATES = 0.0109  # the author's two runs of EGA-1, 1.3712 and 1.3821 (2605.26355 Table 1)

_beside_standard = partial(enter, paper=PAPER, study=STUDY, stated="better", metric="full", b="standard")

_beside_standard(
    "ega-gain",
    location="Table 1",
    statement="EGA lowers the validation loss of the standard model, on whole windows, as the paper measures it.",
    published=GAIN,
    a="ega",
)
_beside_standard(
    "ega-gain-without-the-future",
    location="Table 1 with section 3.2",
    statement="EGA, called strictly causal, lowers the loss also where the text ends at the token, as in generation.",
    published=f"{GAIN}, on whole windows only",
    metric="truncated",
    a="ega",
)
_beside_standard(
    "ega-gain-of-a-causal-gate",
    location="beside Table 1",
    kind="control",
    statement="Does an energy gate that is normalised over the prefix of each key, and so causal, lower the loss?",
    published=f"{GAIN}, of the gate that sees the window; none with a causal gate",
    a="ega-prefix",
)
_beside_standard(
    "ega-gain-without-statistics",
    location="beside Table 1",
    kind="control",
    statement="Does the energy gate lower the loss by itself, without normalisation?",
    published=f"{GAIN}, of the gate that is normalised over the window; none without",
    a="ega-token",
)


@claim(
    id="ega-one-scale-is-best",
    paper=PAPER,
    location="Table 1",
    kind="empirical",
    statement="One linear projection (EGA-1) is better than two or four of them (EGA-2, EGA-4) and than convolutions "
    "(EGA-C).",
)
def one_scale_is_best() -> Evidence:
    behind = {name: round(loss - LOSSES["EGA-1"], 4) for name, loss in LOSSES.items() if name != "EGA-1"}
    near = [name for name, difference in behind.items() if difference < REPLICATES]
    return Evidence(
        verdict=INCONCLUSIVE,
        text=f"No study here has these arms; it takes `ega-2`, `ega-4` and `ega-conv` beside `ega` in "
        f"benchmarks/ablations/gate-sight-paper.toml, 24 further trainings for eight seeds. By Table 1, {ONE_SEED}, "
        f"they are {', '.join(f'{value:.4f} ({name})' for name, value in behind.items())} nats behind; "
        f"{' and '.join(near)} by less than the {REPLICATES:.4f} between the author's two runs of EGA-1.",
        values=behind,
        source="arithmetic on Table 1",
    )
