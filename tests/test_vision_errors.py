"""Bad configurations and bad images of the backbones state what was expected and what was got."""

from __future__ import annotations

import math

import pytest
import torch
from vision_models import (
    SMALL,
    images,
    small,
)

from biases import zoo
from biases.models import (
    RMT,
    GatedSwinRMT,
    StageSize,
    Swin,
)
from biases.models.backbone import drop_path_rates
from biases.models.vision_parts import (
    DropPath,
)

STAGE = (StageSize(8, 1, 2),)
WRONG = {
    "heads not dividing": lambda: StageSize(8, 1, 3),
    "no depth": lambda: StageSize(8, 0, 2),
    "no feed-forward": lambda: StageSize(8, 1, 2, ratio=0.1),
    "negative ratio": lambda: StageSize(8, 1, 2, ratio=-1),
    "ratio that is no number": lambda: StageSize(8, 1, 2, ratio=math.nan),
    "ratio that is a word": lambda: StageSize(8, 1, 2, ratio="4"),
    "span that is a word": lambda: StageSize(8, 1, 2, span="4"),
    "span that is no number": lambda: StageSize(8, 1, 2, span=math.nan),
    "negative span": lambda: StageSize(8, 1, 2, span=-1),
    "stages that are numbers": lambda: RMT(((8, 1, 2),), forms=("full",)),
    "RMT with a number of stages": lambda: RMT(3, forms=("full",)),
    "RMT with forms None": lambda: RMT.of("digits", forms=None),
    "RMT with one form for all": lambda: RMT.of("digits", forms="full"),
    "RMT with one stride": lambda: RMT.of("digits", strides=5),
    "RMT with an initial rate that is a word": lambda: RMT.of("digits", initial="x"),
    "RMT with a negative initial rate": lambda: RMT.of("digits", initial=-5.0),
    "RMT with attention options that are a number": lambda: RMT.of("digits", attention_options=5),
    "RMT with attention options that are pairs": lambda: RMT.of("digits", attention_options=[("order", 1)]),
    "Swin with a number of blocks": lambda: Swin(8, 3, (2,)),
    "Swin with a number of heads": lambda: Swin(8, (1,), 2),
    "Swin without depths": lambda: Swin(8, None, None),
    "Swin with one stride": lambda: Swin(8, (1,), (2,), strides=5),
    "Gated-SwinRMT with a number of stages": lambda: GatedSwinRMT(3, kind="swat"),
    "Gated-SwinRMT without strides": lambda: GatedSwinRMT.of("test", kind="swat", strides=None),
    "Gated-SwinRMT with an initial rate that is a word": lambda: GatedSwinRMT.of("test", kind="swat", initial="x"),
    "RMT without stages": lambda: RMT((), forms=()),
    "RMT with too few forms": lambda: RMT(STAGE, forms=()),
    "RMT of unknown form": lambda: RMT(STAGE, forms=("axial",)),
    "RMT of unknown size": lambda: RMT.of("xl"),
    "RMT of odd width": lambda: RMT((StageSize(7, 1, 1),), forms=("full",)),
    "RMT of odd head width": lambda: RMT((StageSize(6, 1, 2),), forms=("full",)),
    "RMT without classes": lambda: RMT.of("digits", classes=0),
    "RMT without channels": lambda: RMT.of("digits", channels=0),
    "RMT with three strides": lambda: RMT.of("digits", strides=(2, 2, 2)),
    "RMT with stride 0": lambda: RMT.of("digits", strides=(0, 1)),
    "RMT without projection": lambda: RMT.of("digits", projection=0),
    "RMT with drop path 1": lambda: RMT.of("digits", drop_path=1.0),
    "RMT of unknown option": lambda: RMT.of("digits", attention_options={"orders": 1}),
    "RMT of unknown backend": lambda: RMT.of("digits", backend="flash"),
    "Swin of unknown size": lambda: Swin.of("xl"),
    "Swin without stages": lambda: Swin(8, (), ()),
    "Swin with too few heads": lambda: Swin(8, (1, 1), (2,)),
    "Swin of no width": lambda: Swin(0, (1,), (1,)),
    "Swin without a window": lambda: Swin.of("digits", window=0),
    "Swin without patches": lambda: Swin(8, (1,), (1,), patch=0),
    "Swin of odd width with a stem": lambda: Swin(7, (1,), (1,), strides=(1, 1)),
    "Swin without classes": lambda: Swin.of("digits", classes=0),
    "Swin of unknown option": lambda: Swin.of("digits", attention_options={"shift": 1}),
    "Gated-SwinRMT of unknown kind": lambda: GatedSwinRMT.of("test", kind="swa"),
    "Gated-SwinRMT of unknown size": lambda: GatedSwinRMT.of("large", kind="swat"),
    "Gated-SwinRMT of unknown block": lambda: GatedSwinRMT.of("test", kind="swat", block="vit"),
    "Gated-SwinRMT without stages": lambda: GatedSwinRMT((), kind="swat"),
    "Gated-SwinRMT of unknown option": lambda: GatedSwinRMT.of("test", kind="swat", attention_options={"gates": 1}),
    "unknown option of a model": lambda: zoo.model("rmt-t", depth=3),
    "drop path below 0": lambda: DropPath(-0.1),
    "drop path that is a switch": lambda: DropPath(True),
    "rates above 1": lambda: drop_path_rates(1.5, [2]),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_configurations_state_expected_and_got(name):
    with pytest.raises(ValueError, match=r"expected .*got "):
        WRONG[name]()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda c: torch.zeros(c, 8, 8), r"4 axes, got .*3 axes"),
        (lambda c: torch.zeros(1, c + 1, 8, 8), r"expected \d channels.*got \(1, \d, 8, 8\)"),
        (lambda c: torch.zeros(1, c, 8, 8, dtype=torch.int64), r"expected a floating dtype, got torch\.int64"),
        (
            lambda c: torch.zeros(1, c, 8, 8, dtype=torch.float64),
            r"dtype: expected torch\.float32, that of the parameters, got torch\.float64",
        ),
        (lambda c: torch.zeros(1, c, 0, 8), r"sides of at least 1 pixels, got 0 x 8"),
        (lambda c: [[1.0]], r"expected a tensor .*got list"),
    ],
)
def test_bad_images_state_expected_and_got(name, bad, message):
    model = zoo.model(name)
    with pytest.raises(ValueError, match=message):
        model(bad(model.channels))


@pytest.mark.parametrize("name", SMALL)
def test_autocast_takes_images_of_another_dtype(name):
    model = small(name)
    x = images(model.channels, 8, 8)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            # A rounding of bfloat16 at each of a few dozen layers.
            assert (model(x.to(dtype)).float() - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    "model",
    [
        lambda: RMT(STAGE, forms=("full",), channels=2, projection=4).eval(),
        lambda: Swin(8, (1, 1), (2, 2), classes=3, channels=2).eval(),
        lambda: GatedSwinRMT(STAGE, kind="swat", channels=2).eval(),
    ],
)
def test_images_hold_a_patch_at_least(model):
    built = model()
    with pytest.raises(ValueError, match=r"images: expected sides of at least 4 pixels, got 3 x 9"):
        built(images(2, 3, 9))
    for side in ((4, 4), (5, 30), (31, 6)):
        assert built(images(2, *side)).isfinite().all()
