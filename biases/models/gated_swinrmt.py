"""Gated-SwinRMT (arXiv 2604.06014): a backbone of gated attention in shifted windows, in its two kinds.

The abstract was all we had. It states the attention layers (see :mod:`biases.layers.gated_swin`), about 77 to 79
million parameters for images of 224 x 224 in 100 classes, and adaptive windows that make attention global on CIFAR-10.
Widths, depths, heads, windows, decay intervals and the rest of the block are **unknown**. The size ``"paper"`` is ours:
a backbone in the manner of RMT-B and RMT-L that has the stated number of parameters in both kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from biases._checks import one_of, positive_int
from biases.layers.gated_swin_retention import GatedSwinRetention
from biases.layers.gated_swin_sigmoid import GatedSwinSigmoid
from biases.models.backbone import Backbone, Block, StageSize, build_attention, build_stages, stage_sizes
from biases.models.vision_parts import (
    ConvolutionalFeedForward,
    ConvolutionalStem,
    Downsampling,
    FeedForward,
    ProjectedHead,
)
from biases.registry import register
from biases.traits import Traits

EPS = 1e-6
KINDS: dict[str, Callable[..., nn.Module]] = {"retention": GatedSwinRetention, "swat": GatedSwinSigmoid}
BLOCKS = ("rmt", "swin")

# "paper": heads are even in number, so that the slopes of every stage balance, and of even width.
SIZES: dict[str, dict[str, Any]] = {
    "paper": {
        "stages": (
            StageSize(96, 4, 4, ratio=3, span=6),
            StageSize(192, 8, 6, ratio=3, span=6),
            StageSize(384, 25, 12, ratio=3, span=6, layer_scale=True),
            StageSize(576, 8, 18, ratio=3, span=6, layer_scale=True),
        ),
        "classes": 100,
        "drop_path": 0.4,
    },
    "test": {
        "stages": (StageSize(8, 2, 2, ratio=2, span=4), StageSize(16, 1, 2, ratio=2, span=6)),
        "classes": 10,
        "window": 4,
        "strides": (1, 1),
        "projection": 16,
    },
    "digits": {
        "stages": (StageSize(32, 2, 2, ratio=2, span=4), StageSize(64, 2, 4, ratio=2, span=6)),
        "classes": 10,
        "channels": 1,
        "window": 4,
        "strides": (1, 1),
        "projection": 64,
    },
}


class GatedSwinRMT(Backbone):
    """Gated-SwinRMT: images (B, channels, H, W) -> logits (B, classes), any H, W of at least the stem's stride.

    Blocks of even number have windows that are not shifted, those of odd number shifted ones (Swin's alternation). The
    attention gets the input of the block's first normalisation beside its output, as the abstract says that the gate is
    "projected from the block input". In a block of kind ``"rmt"`` that is the map after the position encoding (ours).

    Args:
        stages: sizes of the stages; :meth:`of` knows ours.
        kind: ``"retention"`` (:class:`~biases.layers.gated_swin_retention.GatedSwinRetention`) or ``"swat"``
            (:class:`~biases.layers.gated_swin_sigmoid.GatedSwinSigmoid`).
        block: what surrounds the attention; the abstract does not say. ``"rmt"``: a conditional position encoding
            before, a feed-forward with a depthwise convolution after; ``"swin"``: no position encoding, a plain
            feed-forward. Either has layer normalisations (eps 1e-6) before both branches.
        window: M of all stages, about the side of a window.
        classes, channels: of logits and images.
        initial: a of the decay rates, the same in all stages.
        strides: of the stem, see :class:`~biases.models.vision_parts.ConvolutionalStem`.
        projection: width of the classifier's hidden layer.
        drop_path: rate of stochastic depth of the last block; it grows linearly from 0 at the first.
        attention_options: options of the attention layer that replace those of the stages: the switches of the paper's
            unknowns.
        backend: see :func:`biases.attend`.

    Raises:
        ValueError: sizes that do not fit, unknown kind, block or option.
    """

    def __init__(
        self,
        stages: Sequence[StageSize],
        *,
        kind: str,
        block: str = "rmt",
        window: int = 7,
        classes: int = 100,
        channels: int = 3,
        initial: float = 2.0,
        strides: Sequence[int] = (2, 2),
        projection: int = 1024,
        drop_path: float = 0.0,
        attention_options: Mapping[str, Any] | None = None,
        backend: str = "auto",
    ) -> None:
        one_of("GatedSwinRMT kind", kind, KINDS)
        one_of("GatedSwinRMT block", block, BLOCKS)
        sizes = stage_sizes("GatedSwinRMT stages", stages)

        def make_block(stage: int, number: int, rate: float) -> Block:
            size = sizes[stage]
            defaults = {
                "window": window,
                "shifted": number % 2 == 1,
                "initial": initial,
                "span": size.span,
                "backend": backend,
            }
            feed_forward = ConvolutionalFeedForward if block == "rmt" else FeedForward
            return Block(
                size.dim,
                build_attention(KINDS[kind], size.dim, size.heads, defaults, attention_options),
                feed_forward(size.dim, size.hidden),
                position=block == "rmt",
                layer_scale=size.layer_scale,
                drop_path=rate,
                eps=EPS,
                block_input=True,
            )

        built = build_stages(sizes, drop_path, make_block, Downsampling)
        stem = ConvolutionalStem(positive_int("GatedSwinRMT channels", channels), sizes[0].dim, strides)
        super().__init__(channels, stem, built, ProjectedHead(sizes[-1].dim, projection, classes))
        self.kind = kind

    @classmethod
    def of(cls, size: str, *, kind: str, **options: Any) -> GatedSwinRMT:
        """Gated-SwinRMT of a size, all of them ours.

        ``"paper"``: 78,365,012 (retention) and 78,381,140 (swat) parameters with 100 classes; ``"digits"``: one
        channel, two stages with maps of 8 x 8 and 4 x 4 for images of 8 x 8, windows of 4, 145,338 and 145,530
        parameters; ``"test"``: a few thousand parameters. ``options`` are those of the class and replace the size's.

        Raises:
            ValueError: unknown size.
        """
        one_of("GatedSwinRMT size", size, SIZES)
        return cls(**{**SIZES[size], "kind": kind, **options})


def _factory(kind: str) -> Callable[..., GatedSwinRMT]:
    def gated_swinrmt(
        *,
        size: str = "paper",
        classes: int | None = None,
        channels: int | None = None,
        drop_path: float | None = None,
        block: str = "rmt",
        attention_options: Mapping[str, Any] | None = None,
        backend: str = "auto",
    ) -> GatedSwinRMT:
        of_size = {"classes": classes, "channels": channels, "drop_path": drop_path}
        given = {name: value for name, value in of_size.items() if value is not None}
        return GatedSwinRMT.of(
            size, kind=kind, block=block, attention_options=attention_options, backend=backend, **given
        )

    return gated_swinrmt


for _kind, _summary, _parameters in (
    (
        "retention",
        "Gated-SwinRMT-Retention: softmax retention in shifted windows with an output gate, sizes paper, digits, test",
        "78,365,012 (size paper, 100 classes), 145,338 (size digits)",
    ),
    (
        "swat",
        "Gated-SwinRMT-SWAT: sigmoid attention in shifted windows with gated values, sizes paper, digits, test",
        "78,381,140 (size paper, 100 classes), 145,530 (size digits)",
    ),
):
    register(
        f"gated-swinrmt-{_kind}",
        kind="model",
        family="models",
        summary=_summary,
        traits=Traits(domain="image", training_differs=True, published="2604.06014 abstract"),
        parameters=_parameters,
        notes=(
            "The paper was known to us from its abstract alone; its configuration is unknown, and this one is ours.",
            "One range of about 77 to 79 M parameters is given for the gated models and RMT alike; an elementwise gate "
            "alone adds 6 to 7 M, so their backbones differ, or the gate is headwise, or the range leaves out RMT.",
        ),
    )(_factory(_kind))
