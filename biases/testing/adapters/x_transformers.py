"""Attention of ``x-transformers``, with its rotary embedding and its ALiBi."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from biases.testing.adapters.adapter import Adapter, fetch, script
from biases.traits import Decay, Traits

_HOME = "x_transformers.x_transformers"


class _Attended(nn.Module):
    """(B, T, C) to (B, T, C); ``keep`` (B, T) bool, True = the token counts."""

    def __init__(self, inner: nn.Module, rotary: nn.Module | None, alibi: nn.Module | None) -> None:
        super().__init__()
        self.inner, self.rotary, self.alibi = inner, rotary, alibi

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        arguments: dict[str, Any] = {"mask": keep, "rel_pos": self.alibi}
        if self.rotary is not None:
            embedding: Any = self.rotary
            arguments["rotary_pos_emb"] = embedding.forward_from_seq_len(x.shape[1])
        return self.inner(x, **arguments)


def attention(*, rotary: bool = False, alibi: bool = False, traits: Traits | None = None, **options: Any) -> Adapter:
    """A factory of layers out of ``x_transformers.Attention``.

    Args:
        rotary: whether to rotate queries and keys, all channels of a head.
        alibi: whether to add ``AlibiPositionalBias``.
        traits: by default what follows from the options ``causal`` and ``max_attend_past``.
        **options: of the class, such as ``causal``, ``flash``, ``kv_heads``.
    """

    def make(dim: int, heads: int, **more: Any) -> nn.Module:
        inner = fetch(f"{_HOME}:Attention")(dim, dim_head=dim // heads, heads=heads, **{**options, **more})
        embedding = fetch(f"{_HOME}:RotaryEmbedding")(dim // heads) if rotary else None
        bias = fetch(f"{_HOME}:AlibiPositionalBias")(heads) if alibi else None
        return _Attended(inner, embedding, bias)

    return Adapter(
        make,
        kind="layer",
        traits=traits or _traits(rotary, alibi, options),
        how_to_build=script(
            "x_transformers", "attention", [], {"rotary": rotary, "alibi": alibi, "traits": traits, **options}
        ),
        package="x_transformers",
    )


def _traits(rotary: bool, alibi: bool, options: dict[str, Any]) -> Traits:
    is_causal, past = bool(options.get("causal")), options.get("max_attend_past")
    equivariant: tuple[str, ...] = ("shift",) if past is not None else ()
    if not (rotary or alibi or is_causal or past is not None):
        equivariant = ("permutation",)
    return Traits(
        causal=is_causal,
        mask=("boolean",),
        window=past + 1 if past is not None else None,
        normalisation="row",
        decay=Decay("linear", "past" if is_causal else "absolute", "logits", "alibi") if alibi else None,
        position="relative" if rotary or alibi else "none",
        equivariant_to=equivariant,
    )


def _rotary_encoding(dim: int, heads: int) -> nn.Module:
    return _Rotary(fetch(f"{_HOME}:RotaryEmbedding")(dim // heads))


class _Rotary(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        frequencies, scale = self.inner(positions)
        return fetch(f"{_HOME}:apply_rotary_pos_emb")(x, frequencies, scale)


def _alibi_bias(dim: int, heads: int) -> nn.Module:
    return fetch(f"{_HOME}:AlibiPositionalBias")(heads)


def _alibi_slopes(dim: int, heads: int) -> Callable[[], Tensor]:
    bias: Any = _alibi_bias(dim, heads)
    return lambda: bias.slopes.flatten()


def _ready(
    make: Callable[..., Any], kind: str, traits: Traits, name: str, known_failures: Mapping[str, str] | None = None
) -> Adapter:
    built = Adapter(make, kind=kind, traits=traits, how_to_build="", package="x_transformers")
    return built.named("x_transformers", name, known_failures=known_failures)


WINDOW = 4
_SLOPES = Traits(decay=Decay("linear", "past", "logits", "alibi"))

_CAST = "inv_freq is a buffer, which a cast of the module rounds"
plain = attention().named("x_transformers", "plain")
causal = attention(causal=True).named("x_transformers", "causal")
causal_flash = attention(causal=True, flash=True).named("x_transformers", "causal_flash")
grouped = attention(causal=True, kv_heads=1).named("x_transformers", "grouped")
window = attention(causal=True, max_attend_past=WINDOW - 1).named("x_transformers", "window")
rotated = attention(causal=True, rotary=True).named(
    "x_transformers", "rotated", known_failures={"bfloat16-budget": _CAST}
)
alibi = attention(causal=True, alibi=True).named("x_transformers", "alibi")
alibi_flash = attention(causal=True, alibi=True, flash=True).named("x_transformers", "alibi_flash")
alibi_symmetric = attention(alibi=True).named("x_transformers", "alibi_symmetric")
rotary = _ready(
    _rotary_encoding,
    "encoding",
    Traits(position="relative"),
    "rotary",
    dict.fromkeys(("dtype-cast-keeps-positions", "bfloat16-budget"), _CAST),
)
alibi_bias = _ready(
    _alibi_bias,
    "bias",
    Traits(alignment="lower-right", decay=Decay("linear", "absolute", "logits", "alibi"), position="relative"),
    "alibi_bias",
)
alibi_slopes = _ready(_alibi_slopes, "slopes", _SLOPES, "alibi_slopes")

causal.forms = {"flash": causal_flash}
alibi.forms = {"flash": alibi_flash}

SUBJECTS = {
    "x-transformers-attention": plain,
    "x-transformers-causal": causal,
    "x-transformers-causal-flash": causal_flash,
    "x-transformers-grouped": grouped,
    "x-transformers-window": window,
    "x-transformers-rotated": rotated,
    "x-transformers-alibi": alibi,
    "x-transformers-alibi-flash": alibi_flash,
    "x-transformers-alibi-symmetric": alibi_symmetric,
    "x-transformers-rotary": rotary,
    "x-transformers-alibi-bias": alibi_bias,
    "x-transformers-alibi-slopes": alibi_slopes,
}
