"""Attention of ``timm``: the plain module of its vision transformers, and blocks that attend in windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biases.testing.adapters.adapter import Adapter, fetch, package_of, script
from biases.traits import Traits


class _Attended(nn.Module):
    """(B, T, C) to (B, T, C); ``keep`` (B, T) bool, True = the token counts."""

    def __init__(self, inner: nn.Module, causal: bool) -> None:
        super().__init__()
        self.inner, self.causal = inner, causal

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is None:
            return self.inner(x, is_causal=True) if self.causal else self.inner(x)
        mask = keep[:, None, None, :]
        if self.causal:
            length = x.shape[1]
            mask = mask & torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        return self.inner(x, attn_mask=mask)


def attention(
    module_class: type[nn.Module] | str = "timm.layers:Attention",
    *,
    causal: bool = False,
    fused: bool = True,
    traits: Traits | None = None,
    **options: Any,
) -> Adapter:
    """A factory of layers out of a class called as ``timm.layers.Attention`` is.

    Args:
        module_class: called with ``(dim, num_heads=heads, **options)``.
        causal: whether to ask for causal attention.
        fused: whether it may call ``scaled_dot_product_attention``.
        traits: by default those of dot-product attention without positions.
        **options: further arguments of the class.
    """

    def make(dim: int, heads: int, **more: Any) -> nn.Module:
        inner = fetch(module_class)(dim, num_heads=heads, **{**options, **more})
        inner.fused_attn = inner.fused_attn and fused
        return _Attended(inner, causal)

    default = Traits(mask=("boolean",), normalisation="row", position="none", equivariant_to=("permutation",))
    if causal:
        default = default.but(causal=True, equivariant_to=())
    keywords = {"causal": causal, "fused": fused, "traits": traits, **options}
    return Adapter(
        make,
        kind="layer",
        traits=traits or default,
        how_to_build=script("timm", "attention", [module_class], keywords),
        package=package_of(module_class),
    )


def block(
    window: int,
    shift: int = 0,
    *,
    block_class: type[nn.Module] | str = "timm.models.swin_transformer:SwinTransformerBlock",
    **options: Any,
) -> Adapter:
    """A factory of image layers, (B, H, W, C), out of a block called as ``SwinTransformerBlock`` is.

    It is built for images of any size: windows are not clamped to the image, the mask is made at each call.
    """

    def make(dim: int, heads: int, **more: Any) -> nn.Module:
        settings: dict[str, Any] = {"always_partition": True, "dynamic_mask": True, **options, **more}
        resolution = (2 * window, 2 * window)
        return fetch(block_class)(dim, resolution, num_heads=heads, window_size=window, shift_size=shift, **settings)

    return Adapter(
        make,
        kind="layer",
        traits=Traits(domain="image", window=window, shift=shift, position="relative"),
        how_to_build=script("timm", "block", [window, shift], {"block_class": block_class, **options}),
        package=package_of(block_class),
    )


WINDOW = 4

plain = attention().named("timm", "plain")
_PADDED = "an example that is all padding: its softmax over nothing is NaN, where the fused form gives zeros"
plain_unfused = attention(fused=False).named("timm", "plain_unfused", known_failures={"full-padding-finite": _PADDED})
causal = attention(causal=True).named("timm", "causal")
gated = attention(gated=True, traits=attention().traits.but(normalisation=None)).named("timm", "gated")
swin = block(WINDOW).named("timm", "swin")
_PADDED_LATE = "the map is padded after the roll and the mask made for it before: opposite borders meet"
swin_shifted = block(WINDOW, WINDOW // 2).named(
    "timm", "swin_shifted", known_failures={"receptive-field": _PADDED_LATE}
)

plain.forms = {"unfused": plain_unfused}

SUBJECTS = {
    "timm-attention": plain,
    "timm-attention-unfused": plain_unfused,
    "timm-attention-causal": causal,
    "timm-attention-gated": gated,
    "timm-swin": swin,
    "timm-swin-shifted": swin_shifted,
}
