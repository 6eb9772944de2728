"""RMT (arXiv 2309.11523): a backbone of Manhattan attention, in its sizes T, S, B and L and one for 8 x 8 digits.

Sizes are those of the paper's Tables 10 and 12, which its code (qhfan/RMT, commit 32ea214, ``RMT_T3``, ``RMT_S``,
``RMT_M2``, ``RMT_L6``) shares. Where the two differ, the code is followed, as its parameter counts are the published
ones: the stem has four convolutions (the paper says five), and RMT-T decomposes attention in its first two stages only
(the paper says three).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biases._checks import fail, one_of, positive_int
from biases.layers.manhattan import ManhattanAttention
from biases.models.backbone import Backbone, Block, StageSize, build_attention, build_stages, stage_sizes
from biases.models.vision_parts import ConvolutionalFeedForward, ConvolutionalStem, Downsampling, ProjectedHead, listed
from biases.registry import register
from biases.traits import Traits

EPS = 1e-6
DECOMPOSED_TO_THE_LAST = ("decomposed", "decomposed", "decomposed", "full")

SIZES: dict[str, dict[str, Any]] = {
    "t": {
        "stages": (
            StageSize(64, 2, 4, ratio=3, span=4),
            StageSize(128, 2, 4, ratio=3, span=4),
            StageSize(256, 8, 8, ratio=3, span=6),
            StageSize(512, 2, 16, ratio=3, span=6),
        ),
        "forms": ("decomposed", "decomposed", "full", "full"),
        "drop_path": 0.1,
    },
    "s": {
        "stages": (
            StageSize(64, 3, 4, ratio=4, span=4),
            StageSize(128, 4, 4, ratio=4, span=4),
            StageSize(256, 18, 8, ratio=3, span=6),
            StageSize(512, 4, 16, ratio=3, span=6),
        ),
        "forms": DECOMPOSED_TO_THE_LAST,
        "drop_path": 0.15,
    },
    "b": {
        "stages": (
            StageSize(80, 4, 5, ratio=4, span=5),
            StageSize(160, 8, 5, ratio=4, span=5),
            StageSize(320, 25, 10, ratio=3, span=6, layer_scale=True),
            StageSize(512, 8, 16, ratio=3, span=6, layer_scale=True),
        ),
        "forms": DECOMPOSED_TO_THE_LAST,
        "drop_path": 0.4,
    },
    "l": {
        "stages": (
            StageSize(112, 4, 7, ratio=4, span=6),
            StageSize(224, 8, 7, ratio=4, span=6),
            StageSize(448, 25, 14, ratio=3, span=6, layer_scale=True),
            StageSize(640, 8, 20, ratio=3, span=6, layer_scale=True),
        ),
        "forms": DECOMPOSED_TO_THE_LAST,
        "drop_path": 0.5,
    },
    "digits": {
        "stages": (StageSize(32, 2, 2, ratio=2, span=4), StageSize(64, 2, 4, ratio=2, span=6)),
        "forms": ("decomposed", "full"),
        "classes": 10,
        "channels": 1,
        "strides": (1, 1),
        "projection": 64,
    },
}


class RMT(Backbone):
    """RMT: images (B, channels, H, W) -> logits (B, classes), any H, W of at least the stem's stride, 4.

    Every block is ``x + DWConv_3x3(x)``, then Manhattan attention, then a feed-forward with a depthwise convolution,
    each behind a layer normalisation (eps 1e-6) and beside its input.

    Args:
        stages: sizes of the stages; :meth:`of` knows the published ones.
        forms: of the attention in each stage, ``"decomposed"`` or ``"full"``.
        classes, channels: of logits and images.
        initial: a of the decay rates, the same in all stages.
        strides: of the stem, see :class:`~biases.models.vision_parts.ConvolutionalStem`.
        projection: width of the classifier's hidden layer.
        drop_path: rate of stochastic depth of the last block; it grows linearly from 0 at the first.
        attention_options: options of :class:`~biases.layers.ManhattanAttention` that replace those of the stages.
        backend: see :func:`biases.attend`.

    Raises:
        ValueError: sizes that do not fit, another number of forms than of stages, unknown options.
    """

    def __init__(
        self,
        stages: Sequence[StageSize],
        *,
        forms: Sequence[str],
        classes: int = 1000,
        channels: int = 3,
        initial: float = 2.0,
        strides: Sequence[int] = (2, 2),
        projection: int = 1024,
        drop_path: float = 0.0,
        attention_options: Mapping[str, Any] | None = None,
        backend: str = "auto",
    ) -> None:
        sizes = stage_sizes("RMT stages", stages)
        of_stage = listed("RMT forms", forms, "a sequence of 'decomposed' or 'full'")
        if len(of_stage) != len(sizes):
            fail("RMT forms", f"one for each stage, {len(sizes)} given", of_stage)

        def block(stage: int, number: int, rate: float) -> Block:
            size = sizes[stage]
            defaults = {"form": of_stage[stage], "initial": initial, "span": size.span, "backend": backend}
            return Block(
                size.dim,
                build_attention(ManhattanAttention, size.dim, size.heads, defaults, attention_options),
                ConvolutionalFeedForward(size.dim, size.hidden),
                position=True,
                layer_scale=size.layer_scale,
                drop_path=rate,
                eps=EPS,
            )

        built = build_stages(sizes, drop_path, block, Downsampling)
        stem = ConvolutionalStem(positive_int("RMT channels", channels), sizes[0].dim, strides)
        super().__init__(channels, stem, built, ProjectedHead(sizes[-1].dim, projection, classes))

    @classmethod
    def of(cls, size: str, **options: Any) -> RMT:
        """RMT of a size: ``"t"``, ``"s"``, ``"b"``, ``"l"`` (published) or ``"digits"`` (ours: one channel, two stages,
        maps of 8 x 8 and 4 x 4 for images of 8 x 8). ``options`` are those of the class and replace the size's.

        Raises:
            ValueError: unknown size.
        """
        one_of("RMT size", size, SIZES)
        return cls(**{**SIZES[size], **options})


NOTES = (
    "The paper says that the stem has five convolutions; the code has four, which the published counts need.",
    "The paper prints the decay as a product after the softmax; the code adds its logarithm before it, as done here.",
)
T_NOTE = "The paper says that the first three stages decompose attention; in the code of RMT-T the first two do."


def _factory(size: str) -> Callable[..., RMT]:
    given = SIZES[size]

    def rmt(
        *,
        classes: int = given.get("classes", 1000),
        channels: int = given.get("channels", 3),
        drop_path: float = given.get("drop_path", 0.0),
        attention_options: Mapping[str, Any] | None = None,
        backend: str = "auto",
    ) -> RMT:
        return RMT.of(
            size,
            classes=classes,
            channels=channels,
            drop_path=drop_path,
            attention_options=attention_options,
            backend=backend,
        )

    return rmt


for _size, _summary, _parameters in (
    ("t", "RMT-T: Manhattan attention, decomposed in the first two of four stages", "14,334,216 (1000 classes)"),
    ("s", "RMT-S: Manhattan attention, decomposed in the first three of four stages", "26,967,240 (1000 classes)"),
    ("b", "RMT-B: Manhattan attention, decomposed in the first three of four stages", "54,154,896 (1000 classes)"),
    ("l", "RMT-L: Manhattan attention, decomposed in the first three of four stages", "95,464,864 (1000 classes)"),
    ("digits", "RMT for images of 8 x 8: two stages, the first one decomposed", "134,906 (10 classes, 1 channel)"),
):
    register(
        f"rmt-{_size}",
        kind="model",
        family="models",
        summary=_summary,
        traits=Traits(domain="image", training_differs=True, published="2309.11523 Table 12"),
        parameters=_parameters,
        notes=(*NOTES, T_NOTE) if _size == "t" else NOTES,
    )(_factory(_size))
