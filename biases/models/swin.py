"""Swin Transformer (arXiv 2103.14030): attention in shifted windows, in its sizes T, S and B and one for 8 x 8 digits.

Facts of the code are those of microsoft/Swin-Transformer, commit f82860b, ``models/swin_transformer.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biases._checks import fail, one_of, positive_int
from biases.layers.swin import TABLE_DEVIATION, SwinAttention
from biases.models.backbone import Backbone, Block, StageSize, build_attention, build_stages
from biases.models.vision_parts import ConvolutionalStem, FeedForward, PatchEmbedding, PatchMerging, PooledHead, listed
from biases.registry import register
from biases.traits import Traits

SIZES: dict[str, dict[str, Any]] = {
    "t": {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "drop_path": 0.2},
    "s": {"dim": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24), "drop_path": 0.3},
    "b": {"dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "drop_path": 0.5},
    "digits": {
        "dim": 32,
        "depths": (2, 2),
        "heads": (2, 4),
        "window": 4,
        "ratio": 3.0,
        "strides": (1, 1),
        "classes": 10,
        "channels": 1,
    },
}


class Swin(Backbone):
    """Swin: images (B, channels, H, W) -> logits (B, classes), any H, W of at least the stride of the embedding.

    Blocks are ``x + attention(LN(x))``, then ``x + MLP(LN(x))``; those of odd number have shifted windows. Maps that
    the window does not divide are padded inside the attention, and images that the patch does not divide before the
    embedding, as Swin's code does for detection (its classifier refuses them).

    Args:
        dim: C of the first stage; every stage has twice that of the one before.
        depths, heads: of each stage.
        window: M.
        patch: side of a patch of the embedding.
        strides: put RMT's convolutional stem with these strides in place of the embedding of patches (ours), see
            :class:`~biases.models.vision_parts.ConvolutionalStem`; ``None`` (Swin): patches.
        ratio: width of the feed-forward over C.
        classes, channels: of logits and images.
        drop_path: rate of stochastic depth of the last block; it grows linearly from 0 at the first.
        attention_options: options of :class:`~biases.layers.swin.SwinAttention` that replace ours.
        backend: see :func:`biases.attend`.

    Raises:
        ValueError: sizes that do not fit, unknown options.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        *,
        window: int = 7,
        patch: int = 4,
        strides: Sequence[int] | None = None,
        ratio: float = 4.0,
        classes: int = 1000,
        channels: int = 3,
        drop_path: float = 0.0,
        attention_options: Mapping[str, Any] | None = None,
        backend: str = "auto",
    ) -> None:
        depths = listed("Swin depths", depths, "a sequence of integers, one for each stage")
        heads = listed("Swin heads", heads, "a sequence of integers, one for each stage")
        if not depths or len(depths) != len(heads):
            fail("Swin heads", f"one number for each of at least one stage, {len(depths)} given", heads)
        positive_int("Swin dim", dim)
        sizes = [StageSize(dim * 2**s, depths[s], heads[s], ratio=ratio) for s in range(len(depths))]

        def block(stage: int, number: int, rate: float) -> Block:
            size = sizes[stage]
            defaults = {"window": window, "shifted": number % 2 == 1, "backend": backend}
            attention = build_attention(SwinAttention, size.dim, size.heads, defaults, attention_options)
            return Block(size.dim, attention, FeedForward(size.dim, size.hidden), drop_path=rate)

        stages = build_stages(sizes, drop_path, block, PatchMerging)
        positive_int("Swin channels", channels)
        embedding = (
            PatchEmbedding(channels, dim, patch) if strides is None else ConvolutionalStem(channels, dim, strides)
        )
        super().__init__(channels, embedding, stages, PooledHead(sizes[-1].dim, classes))

    def initial_std(self, name: str) -> float | None:
        """As in every backbone; the tables of relative position start from N(0, 0.02) (Swin's code)."""
        return TABLE_DEVIATION if name.endswith(".relative_position") else super().initial_std(name)

    @classmethod
    def of(cls, size: str, **options: Any) -> Swin:
        """Swin of a size: ``"t"``, ``"s"``, ``"b"`` (published) or ``"digits"`` (ours: one channel, two stages with
        maps of 8 x 8 and 4 x 4 for images of 8 x 8, windows of 4). ``options`` are those of the class and replace the
        size's.

        The digits size has RMT's convolutional stem: patches that leave maps of 8 x 8 would be single pixels.

        Raises:
            ValueError: unknown size.
        """
        one_of("Swin size", size, SIZES)
        return cls(**{**SIZES[size], **options})


def _factory(size: str) -> Callable[..., Swin]:
    given = SIZES[size]

    def swin(
        *,
        classes: int = given.get("classes", 1000),
        channels: int = given.get("channels", 3),
        drop_path: float = given.get("drop_path", 0.0),
        attention_options: Mapping[str, Any] | None = None,
        backend: str = "auto",
    ) -> Swin:
        return Swin.of(
            size,
            classes=classes,
            channels=channels,
            drop_path=drop_path,
            attention_options=attention_options,
            backend=backend,
        )

    return swin


for _size, _summary, _parameters in (
    ("t", "Swin-T: attention in shifted windows of 7 x 7", "28,288,354 (1000 classes)"),
    ("s", "Swin-S: attention in shifted windows of 7 x 7", "49,606,258 (1000 classes)"),
    ("b", "Swin-B: attention in shifted windows of 7 x 7", "87,768,224 (1000 classes)"),
    ("digits", "Swin for images of 8 x 8: two stages, windows of 4 x 4, RMT's stem", "131,078 (10 classes, 1 channel)"),
):
    register(
        f"swin-{_size}",
        kind="model",
        family="models",
        summary=_summary,
        traits=lambda options: Traits(
            domain="image", training_differs=options["drop_path"] != 0, published="2103.14030 section 3.3"
        ),
        parameters=_parameters,
        notes=(
            "The code masks pairs of different regions by adding -100 to their logits; here they are excluded, unless "
            "the attention option mask_value is -100.",
        ),
    )(_factory(_size))
