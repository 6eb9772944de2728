"""What the parts of Gated-SwinRMT (arXiv 2604.06014) contribute by training, beside the study ``vision``."""

from __future__ import annotations

from biases.claims.compared import enter

PAPER, STUDY = "2604.06014", "vision"
IMAGES = "one run on Mini-ImageNet at 224 x 224, configuration not given"

SWITCHES = {
    "gated-swinrmt-retention-gate": ("Does the G1 gate after the retention improve the model?", "retention", "gate"),
    "gated-swinrmt-retention-decay": (
        "Does the additive Manhattan decay improve the model with retention?",
        "retention",
        "decay",
    ),
    "gated-swinrmt-swat-gate": ("Does gating the values by SwiGLU improve the model with sigmoids?", "swat", "gate"),
    "gated-swinrmt-swat-decay": (
        "Does the multiplicative decay after the sigmoid improve the model?",
        "swat",
        "decay",
    ),
    "gated-swinrmt-swat-slopes": ("Do balanced ALiBi slopes improve the model with sigmoids?", "swat", "slopes"),
}
for _id, (_question, _model, _part) in SWITCHES.items():
    enter(
        _id,
        paper=PAPER,
        location="beside the abstract, which names the part",
        kind="control",
        statement=_question,
        study=STUDY,
        stated="better",
        published=f"no model without it, {IMAGES}",
        metric="test_loss",
        a=_model,
        b=f"{_model}-no-{_part}",
    )

enter(
    "gated-swinrmt-swat-over-retention",
    paper=PAPER,
    location="abstract",
    statement="-SWAT is better than -Retention.",
    study=STUDY,
    stated="better",
    published=f"80.22 % for 78.20 %, {IMAGES}",
    metric="test_loss",
    a="swat",
    b="retention",
)
enter(
    "gated-swinrmt-swat-over-rmt",
    paper=PAPER,
    location="abstract",
    statement="-SWAT is better than RMT.",
    study=STUDY,
    stated="better",
    published=f"80.22 % for 73.74 %, {IMAGES}",
    metric="test_loss",
    a="swat",
    b="rmt",
)
