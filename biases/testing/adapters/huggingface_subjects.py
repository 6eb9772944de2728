"""Ready-made subjects of ``transformers``, one from each family of attention that it has."""

from __future__ import annotations

from typing import Any

from biases.testing.adapters import huggingface
from biases.testing.adapters.adapter import Adapter
from biases.traits import Decay, Traits

WINDOW = 4
_CAUSAL = huggingface._CAUSAL
_ROTARY = _CAUSAL.but(position="relative")
_ENCODER = _CAUSAL.but(causal=False, position="none", equivariant_to=("permutation",))
_ALIBI = _CAUSAL.but(position="relative", decay=Decay("linear", "past", "logits"))


def _model(name: str, module_class: str, config_class: str) -> tuple[str, str]:
    return f"transformers.models.{name}.modeling_{name}:{module_class}", f"transformers:{config_class}"


_LLAMA = _model("llama", "LlamaAttention", "LlamaConfig")
_MISTRAL = _model("mistral", "MistralAttention", "MistralConfig")
_GPT2 = _model("gpt2", "GPT2Attention", "GPT2Config")
_T5 = _model("t5", "T5Attention", "T5Config")
_WHISPER = _model("whisper", "WhisperAttention", "WhisperConfig")
_BIAS = {"has_relative_attention_bias": True}

llama = huggingface.attention(*_LLAMA, traits=_ROTARY)
llama_eager = huggingface.attention(*_LLAMA, traits=_ROTARY, implementation="eager")
llama_grouped = huggingface.attention(*_LLAMA, traits=_ROTARY, num_key_value_heads=1)
mistral = huggingface.attention(*_MISTRAL, traits=_ROTARY.but(window=WINDOW, equivariant_to=("shift",)))
qwen2 = huggingface.attention(*_model("qwen2", "Qwen2Attention", "Qwen2Config"), traits=_ROTARY)
gpt2 = huggingface.attention(*_GPT2, traits=_CAUSAL.but(position="none", training_differs=True))
gpt_neox = huggingface.attention(*_model("gpt_neox", "GPTNeoXAttention", "GPTNeoXConfig"), traits=_ROTARY)
bloom = huggingface.attention(
    *_model("bloom", "BloomAttention", "BloomConfig"),
    traits=_ALIBI.but(decay=Decay("linear", "past", "logits", "alibi")),
    implementation="eager",
)
falcon = huggingface.attention(
    *_model("falcon", "FalconAttention", "FalconConfig"),
    traits=_ALIBI,
    implementation="eager",
    alibi=True,
    multi_query=False,
)
bert = huggingface.attention(
    *_model("bert", "BertSelfAttention", "BertConfig"), traits=_ENCODER.but(training_differs=True)
)
vit = huggingface.attention(*_model("vit", "ViTAttention", "ViTConfig"), traits=_ENCODER)
t5_encoder = huggingface.attention(
    *_T5,
    traits=_ENCODER.but(position="relative", equivariant_to=(), training_differs=True),
    module_options=_BIAS,
)
t5_decoder = huggingface.attention(
    *_T5,
    traits=_ROTARY.but(training_differs=True),
    module_options={**_BIAS, "is_causal": True},
    is_decoder=True,
)
whisper_encoder = huggingface.attention(*_WHISPER, traits=_ENCODER)
whisper_decoder = huggingface.attention(
    *_WHISPER, traits=_CAUSAL.but(position="none"), module_options={"is_causal": True, "is_decoder": True}
)

_DECODING = Traits(causal=True)
llama_decoding = huggingface.decoder(*_LLAMA, traits=_DECODING)
mistral_decoding = huggingface.decoder(*_MISTRAL, traits=_DECODING.but(window=WINDOW))
gpt2_decoding = huggingface.decoder(*_GPT2, traits=_DECODING.but(training_differs=True))
bloom_decoding = huggingface.decoder(
    *_model("bloom", "BloomAttention", "BloomConfig"), traits=_DECODING, implementation="eager"
)

llama_rotary = huggingface.rotary(*_model("llama", "LlamaRotaryEmbedding", "LlamaConfig"))
bloom_slopes = huggingface.slopes("transformers.models.bloom.modeling_bloom:build_alibi_tensor")
falcon_slopes = huggingface.slopes("transformers.models.falcon.modeling_falcon:build_alibi_tensor")
causal_mask = huggingface.mask(
    "transformers.masking_utils:causal_mask_function", traits=Traits(causal=True, alignment="upper-left")
)
sliding_window_mask = huggingface.mask(
    "transformers.masking_utils:sliding_window_causal_mask_function",
    WINDOW,
    traits=Traits(causal=True, alignment="upper-left", window=WINDOW),
)
swin = huggingface.swin(WINDOW)
swin_shifted = huggingface.swin(WINDOW, WINDOW // 2)

_CONV1D = "Conv1D calls view on its input, which raises where that is not contiguous"
_OF_GPT2 = {"noncontiguous-input": _CONV1D}
_KNOWN_FAILURES = {
    "gpt2": _OF_GPT2,
    "gpt2_decoding": _OF_GPT2,
    "llama_rotary": {"dtype-cast-keeps-positions": "inv_freq is a buffer, which a cast of the module rounds"},
    "falcon_slopes": {"slopes-reference": "the slopes are rounded to bfloat16"},
}


def _named() -> dict[str, Adapter]:
    """Every adapter of this module, each told the name by which a script can import it."""
    here: dict[str, Any] = globals()
    found = [name for name, value in here.items() if isinstance(value, Adapter)]
    for name in found:
        here[name] = here[name].named("huggingface_subjects", name, known_failures=_KNOWN_FAILURES.get(name))
    return {f"transformers-{name.replace('_', '-')}": here[name] for name in found}


SUBJECTS = _named()
llama.forms = {"eager": llama_eager}
