"""Attention of other libraries, in the form that the battery takes.

Each module has a few generic adapters, which make a factory ``make(dim, heads)`` out of somebody's class or function in
one call, and below them factories that are made so::

    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig

    from biases.testing import Traits, check_attention
    from biases.testing.adapters import huggingface

    check_attention(huggingface.attention(LlamaAttention, LlamaConfig, traits=Traits(causal=True)))

What a factory returns is said by its attribute ``kind``, what that promises by its attribute ``traits``.
:func:`~biases.testing.adapters.catalogue.peers` has the ready ones by name. Importing this package imports torch alone;
each library is imported when a factory is called.
"""

from biases.testing.adapters import catalogue, flex, huggingface, pytorch, timm, x_transformers
from biases.testing.adapters.adapter import Adapter
from biases.testing.adapters.catalogue import missing, peers

__all__ = [
    "Adapter",
    "catalogue",
    "flex",
    "huggingface",
    "missing",
    "peers",
    "pytorch",
    "timm",
    "x_transformers",
]
