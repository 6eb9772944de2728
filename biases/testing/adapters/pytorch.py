"""PyTorch's own attention: ``scaled_dot_product_attention``, ``MultiheadAttention`` and the encoder made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from biases.testing.adapters import flex
from biases.testing.adapters.adapter import Adapter, output_of, package_of, script
from biases.traits import Traits

_PLAIN = Traits(normalisation="row", position="none", equivariant_to=("permutation",))


class _MultiHead(nn.Module):
    """``MultiheadAttention`` of x with itself, (B, T, C) to (B, T, C); ``keep`` (B, T) bool, True = it counts."""

    def __init__(self, inner: nn.Module, *, causal: bool, need_weights: bool) -> None:
        super().__init__()
        self.inner, self.causal, self.need_weights = inner, causal, need_weights

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        arguments: dict[str, Any] = {"need_weights": self.need_weights}
        if self.causal:
            # True forbids here, as in nn.Transformer.
            length = x.shape[1]
            arguments["attn_mask"] = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            # The hint may only stand alone: with a padding mask the module has to merge the two.
            arguments["is_causal"] = keep is None and not self.need_weights
        if keep is not None:
            arguments["key_padding_mask"] = ~keep
        return output_of(self.inner(x, x, x, **arguments))


class _Encoder(nn.Module):
    """An encoder of x, (B, T, C) to (B, T, C); ``keep`` (B, T) bool, True = the token counts."""

    def __init__(self, inner: nn.Module, causal: bool) -> None:
        super().__init__()
        self.inner, self.causal = inner, causal

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        arguments: dict[str, Any] = {}
        if self.causal:
            length = x.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            name = "mask" if isinstance(self.inner, nn.TransformerEncoder) else "src_mask"
            arguments |= {name: mask, "is_causal": True}
        if keep is not None:
            arguments["src_key_padding_mask"] = ~keep
        return self.inner(x, **arguments)


def multihead(
    module_class: Callable[..., nn.Module] = nn.MultiheadAttention,
    *,
    causal: bool = False,
    need_weights: bool = False,
    traits: Traits | None = None,
    **options: Any,
) -> Adapter:
    """A factory of layers out of a class that is called as :class:`torch.nn.MultiheadAttention` is.

    Args:
        module_class: called with ``(dim, heads, batch_first=True, **options)``.
        causal: whether to give it a causal mask.
        need_weights: whether to ask for the weights too, which takes another path.
        traits: by default those of dot-product attention without positions.
        **options: further arguments of the class.
    """

    def make(dim: int, heads: int, **more: Any) -> nn.Module:
        inner = module_class(dim, heads, batch_first=True, **{**options, **more})
        return _MultiHead(inner, causal=causal, need_weights=need_weights)

    default = _PLAIN.but(mask=("boolean",))
    if causal:
        default = default.but(causal=True, equivariant_to=())
    keywords = {"causal": causal, "need_weights": need_weights, "traits": traits, **options}
    return Adapter(
        make,
        kind="layer",
        traits=traits or default,
        how_to_build=script("pytorch", "multihead", [module_class], keywords),
        package=package_of(module_class),
    )


def encoder(depth: int = 0, *, causal: bool = False, traits: Traits | None = None, **options: Any) -> Adapter:
    """A factory of :class:`torch.nn.TransformerEncoderLayer`, or of a ``TransformerEncoder`` of ``depth`` of them.

    Args:
        depth: number of layers; 0 for the bare layer.
        causal: whether to give it a causal mask.
        traits: by default those of an encoder without positions and without dropout.
        **options: further arguments of the layer.
    """

    def make(dim: int, heads: int, **more: Any) -> nn.Module:
        settings = {"dim_feedforward": 2 * dim, "dropout": 0.0, "batch_first": True, **options, **more}
        layer = nn.TransformerEncoderLayer(dim, heads, **settings)
        return _Encoder(nn.TransformerEncoder(layer, depth) if depth else layer, causal)

    default = Traits(mask=("boolean",), position="none", equivariant_to=("permutation",))
    if causal:
        default = default.but(causal=True, equivariant_to=())
    return Adapter(
        make,
        kind="layer",
        traits=traits or default,
        how_to_build=script("pytorch", "encoder", [depth], {"causal": causal, "traits": traits, **options}),
    )


def operator(function: Callable[..., Tensor], *, traits: Traits) -> Adapter:
    """A factory out of a plain function ``(q, k, v)`` or ``(q, k, v, mask)``, the same for every width.

    Args:
        function: (B, H, L, D), (B, H, S, D), (B, H, S, Dv) -> (B, H, L, Dv).
        traits: what it promises.
    """

    def make(dim: int, heads: int) -> Callable[..., Tensor]:
        return function

    return Adapter(
        make,
        kind="operator",
        traits=traits,
        how_to_build=script("pytorch", "operator", [function], {"traits": traits}),
        package=package_of(function),
    )


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _sdpa_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _sdpa_lower_right(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention.bias import causal_lower_right

    mask: Any = causal_lower_right(q.shape[-2], k.shape[-2])
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


# A row without keys gives zeros since PyTorch 2.5, whose softmax there is _safe_softmax.
_OPERATOR = Traits(normalisation="row", empty_row="zero", position="none", equivariant_to=("heads",))
_CAUSAL = _OPERATOR.but(causal=True)

sdpa = operator(
    _sdpa, traits=_OPERATOR.but(mask=("boolean", "additive"), equivariant_to=("permutation", "heads"))
).named("pytorch", "sdpa")
sdpa_causal = operator(_sdpa_causal, traits=_CAUSAL.but(alignment="upper-left")).named("pytorch", "sdpa_causal")
sdpa_lower_right = operator(_sdpa_lower_right, traits=_CAUSAL.but(alignment="lower-right")).named(
    "pytorch", "sdpa_lower_right"
)

mha = multihead().named("pytorch", "mha")
_PADDED = "an example that is all padding: its softmax over nothing is NaN, where need_weights=False gives zeros"
mha_weights = multihead(need_weights=True).named(
    "pytorch", "mha_weights", known_failures={"full-padding-finite": _PADDED}
)
mha_causal = multihead(causal=True).named("pytorch", "mha_causal")
encoder_layer = encoder().named("pytorch", "encoder_layer")
encoder_layer_causal = encoder(causal=True).named("pytorch", "encoder_layer_causal")
encoder_stack = encoder(2).named("pytorch", "encoder_stack")

sdpa_causal.forms = {"flex": flex.flex_causal}
mha.forms = {"weights": mha_weights}

SUBJECTS = {
    "torch-sdpa": sdpa,
    "torch-sdpa-causal": sdpa_causal,
    "torch-sdpa-lower-right": sdpa_lower_right,
    "torch-mha": mha,
    "torch-mha-weights": mha_weights,
    "torch-mha-causal": mha_causal,
    "torch-encoder-layer": encoder_layer,
    "torch-encoder-layer-causal": encoder_layer_causal,
    "torch-encoder-stack": encoder_stack,
}
