"""Attention modules of ``transformers``, with the masks and positions that their models give them.

Written against transformers 5. Classes and functions may be given themselves or as ``"module:name"``, which imports
them when the factory is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from biases._checks import fail
from biases.testing.adapters.adapter import Adapter, fetch, output_of, package_of, pick, script, takes
from biases.traits import Decay, Traits

_MASKING = "transformers.masking_utils"
_CAUSAL = Traits(causal=True, mask=("boolean",), normalisation="row")


class Attended(nn.Module):
    """A ``transformers`` attention module as its model calls it: (B, T, C) to (B, T, C).

    Attributes:
        inner: the module.
        rotary: the module of the same model that makes ``position_embeddings``, where it has one.
        alibi: the function of the same model that makes the ``alibi`` argument, where it takes one.
    """

    def __init__(self, inner: nn.Module, config: Any, causal: bool) -> None:
        super().__init__()
        self.inner, self.config, self.causal = inner, config, causal
        source, names = type(inner).__module__, takes(inner.forward)
        self.takes = names
        self.rotary: nn.Module | None = None
        if "position_embeddings" in names:
            self.rotary = _only(source, "RotaryEmbedding")(config)
        self.alibi = fetch(f"{source}:build_alibi_tensor") if "alibi" in names else None

    def forward(self, x: Tensor, keep: Tensor | None = None, past: Any = None) -> Tensor:
        """``keep`` (B, T) bool, True = the token counts; ``past``, a ``Cache``, is changed in place."""
        seen = past.get_seq_length() if past is not None else 0
        positions = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
        mask = self.mask(x, keep, past)
        offered: dict[str, Any] = {
            "attention_mask": mask,
            "mask": mask,
            "position_ids": positions,
            "past_key_values": past,
            "layer_past": past,
            "residual": torch.zeros_like(x),
        }
        if self.rotary is not None:
            offered["position_embeddings"] = self.rotary(x, positions)
        if self.alibi is not None:
            counted = keep.long() if keep is not None else x.new_ones(x.shape[0], seen + x.shape[1], dtype=torch.long)
            offered["alibi"] = self.alibi(counted, self.config.num_attention_heads, x.dtype)
        return output_of(self.inner(x, **{name: value for name, value in offered.items() if name in self.takes}))

    def mask(self, x: Tensor, keep: Tensor | None, past: Any) -> Tensor | None:
        """The mask that a model of this configuration makes."""
        name = "create_bidirectional_mask"
        if self.causal:
            windowed = getattr(self.config, "sliding_window", None) is not None
            name = "create_sliding_window_causal_mask" if windowed else "create_causal_mask"
        return fetch(f"{_MASKING}:{name}")(
            config=self.config, inputs_embeds=x, attention_mask=keep, past_key_values=past
        )


class Decoding(nn.Module):
    """``(x, state) -> (out, state)`` with a ``DynamicCache``, which is the state and is changed in place."""

    def __init__(self, attended: Attended) -> None:
        super().__init__()
        self.attended = attended

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        past = state if state is not None else fetch("transformers:DynamicCache")(config=self.attended.config)
        return self.attended(x, None, past), past


def attention(
    module_class: type[nn.Module] | str,
    config_class: type | str,
    *,
    traits: Traits | None = None,
    implementation: str = "sdpa",
    module_options: dict[str, Any] | None = None,
    **config: Any,
) -> Adapter:
    """A factory of layers out of a ``transformers`` attention class.

    The configuration gets the width and the heads under the names that all configurations share, the mask is made by
    ``transformers.masking_utils``, and rotary embeddings or ALiBi come from the module that defines the class.

    Args:
        module_class: such as ``LlamaAttention``.
        config_class: such as ``LlamaConfig``.
        traits: what the layer promises; by default causal softmax attention. ``Traits.causal`` decides which mask it is
            given, ``Traits.window`` sets ``sliding_window`` of the configuration.
        implementation: ``"sdpa"`` or ``"eager"``.
        module_options: further arguments of ``module_class``.
        **config: further arguments of ``config_class``.
    """
    return _adapter("attention", "layer", module_class, config_class, traits, implementation, module_options, config)


def decoder(
    module_class: type[nn.Module] | str,
    config_class: type | str,
    *,
    traits: Traits | None = None,
    implementation: str = "sdpa",
    module_options: dict[str, Any] | None = None,
    **config: Any,
) -> Adapter:
    """A factory of decoders: the layer of :func:`attention` with a ``DynamicCache``; arguments as there."""
    return _adapter("decoder", "decoder", module_class, config_class, traits, implementation, module_options, config)


def _adapter(
    call: str,
    kind: str,
    module_class: Any,
    config_class: Any,
    traits: Traits | None,
    implementation: str,
    module_options: dict[str, Any] | None,
    config: dict[str, Any],
) -> Adapter:
    default = _CAUSAL if kind == "layer" else _CAUSAL.but(mask=())
    declared = traits or default

    def make(dim: int, heads: int, **more: Any) -> nn.Module:
        settings = {**config, **more}
        if declared.window is not None:
            settings.setdefault("sliding_window", declared.window)
        made = configure(fetch(config_class), dim, heads, implementation, **settings)
        offered: dict[str, Any] = {"config": made, "layer_idx": 0, "embed_dim": dim, "num_heads": heads}
        built = fetch(module_class)
        inner = built(**{**pick(built, offered), **(module_options or {})})
        attended = Attended(inner, made, declared.causal)
        return attended if kind == "layer" else Decoding(attended)

    keywords = {"traits": traits, "implementation": implementation, "module_options": module_options, **config}
    return Adapter(
        make,
        kind=kind,
        traits=declared,
        how_to_build=script("huggingface", call, [module_class, config_class], keywords),
        package=package_of(module_class),
    )


def configure(config_class: type, dim: int, heads: int, implementation: str, **settings: Any) -> Any:
    """A configuration of one layer of this width; names that the class has its own words for are translated."""
    default = config_class()
    known = {"hidden_size": dim, "num_attention_heads": heads, "num_hidden_layers": 1}
    for name, value in (("num_key_value_heads", heads), ("head_dim", dim // heads), ("d_kv", dim // heads)):
        if hasattr(default, name) and not isinstance(getattr(config_class, name, None), property):
            known[name] = value
    own = getattr(config_class, "attribute_map", {})
    config = config_class(**{own.get(name, name): value for name, value in {**known, **settings}.items()})
    config._attn_implementation = implementation
    return config


def rotary(rotary_class: type[nn.Module] | str, config_class: type | str, **config: Any) -> Adapter:
    """A factory of encodings ``(x, positions)``, x (B, H, T, D), out of a rotary embedding of ``transformers``.

    ``apply_rotary_pos_emb`` is that of the module which defines the class.
    """

    def make(dim: int, heads: int, **more: Any) -> nn.Module:
        built = fetch(rotary_class)
        return _Rotary(built(configure(fetch(config_class), dim, heads, "eager", **{**config, **more})))

    return Adapter(
        make,
        kind="encoding",
        traits=Traits(position="relative"),
        how_to_build=script("huggingface", "rotary", [rotary_class, config_class], config),
        package=package_of(rotary_class),
    )


class _Rotary(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self.inner(x, positions[None])
        return fetch(f"{type(self.inner).__module__}:apply_rotary_pos_emb")(x, x, cos, sin)[0]


def slopes(build: Callable[..., Tensor] | str) -> Adapter:
    """A factory of slopes ``() -> (H,)`` out of a ``build_alibi_tensor(attention_mask, heads, dtype)``."""

    def make(dim: int, heads: int) -> Callable[[], Tensor]:
        def values() -> Tensor:
            # The bias is slope * position, so that it is the slope at position 1.
            alibi: Tensor = fetch(build)(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)
            return alibi.reshape(heads, 2)[:, 1]

        return values

    return Adapter(
        make,
        kind="slopes",
        traits=Traits(decay=Decay("linear", "past", "logits", "alibi")),
        how_to_build=script("huggingface", "slopes", [build], {}),
        package=package_of(build),
    )


def mask(mask_function: Callable[..., Any] | str, *arguments: Any, traits: Traits) -> Adapter:
    """A factory of masks ``(L, S) -> (L, S)`` bool out of a function of ``transformers.masking_utils``.

    Args:
        mask_function: ``(batch_idx, head_idx, q_idx, kv_idx) -> bool``, or, with arguments, what returns one.
        *arguments: of the function that returns it, such as the size of a window.
        traits: what it promises.
    """

    def make(dim: int, heads: int) -> Callable[[int, int], Tensor]:
        function = fetch(mask_function)
        inner = function(*arguments) if arguments else function

        def masked(length: int, keys: int) -> Tensor:
            return inner(0, 0, torch.arange(length)[:, None], torch.arange(keys)[None])

        return masked

    return Adapter(
        make,
        kind="mask",
        traits=traits,
        how_to_build=script("huggingface", "mask", [mask_function, *arguments], {"traits": traits}),
        package=package_of(mask_function),
    )


def swin(window: int, shift: int = 0, *, layer_class: type[nn.Module] | str | None = None, **config: Any) -> Adapter:
    """A factory of image layers, (B, H, W, C), out of ``SwinLayer``: attention in windows, with its MLP.

    It is called with ``always_partition=True``: without it the layer shrinks its window to an image that is no larger,
    for that call and all later ones, which its table of relative positions does not follow.
    """
    chosen = layer_class or "transformers.models.swin.modeling_swin:SwinLayer"

    def make(dim: int, heads: int, **more: Any) -> nn.Module:
        settings = fetch("transformers:SwinConfig")(window_size=window, **{**config, **more})
        settings._attn_implementation = "sdpa"
        return _Swin(fetch(chosen)(settings, dim, (2 * window, 2 * window), heads, shift_size=shift))

    return Adapter(
        make,
        kind="layer",
        traits=Traits(domain="image", window=window, shift=shift, position="relative"),
        how_to_build=script("huggingface", "swin", [window, shift], {"layer_class": layer_class, **config}),
        package=package_of(chosen),
    )


class _Swin(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return output_of(self.inner(x.flatten(1, 2), tuple(x.shape[1:3]), always_partition=True)).view(x.shape)


def _only(module: str, ending: str) -> Any:
    """The class of a module whose name ends so."""
    found = [value for name, value in vars(sys.modules[module]).items() if name.endswith(ending)]
    if len(found) != 1:
        fail(f"classes of {module} named ...{ending}", "one", len(found))
    return found[0]
