"""SCALE-INIT (arXiv 2605.26355): standard attention whose heads start at different scales.

Head h has level ``h mod 4``; the rows of W_q and W_k that belong to it are drawn from N(0, 0.02 (1 + level / 4)), W_v
from N(0, 0.02). In the released code all *other* linear weights keep PyTorch's default initialisation, while the
baseline's are N(0, 0.02): the comparison confounds the two, and ``CharGPT`` follows the released code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from biases.layers.self_attention import SelfAttention
from biases.registry import register
from biases.traits import Traits

STD = 0.02


def query_key_std(layer: SelfAttention) -> torch.Tensor:
    """Standard deviation of the initial query and key weights by output channel, (C,)."""
    levels = torch.arange(layer.heads) % 4
    return (STD * (1 + levels / 4)).repeat_interleave(layer.head_dim)


@torch.no_grad()
def initialise_by_scale(layer: SelfAttention) -> None:
    """Draw the query, key and value weights anew."""
    std = query_key_std(layer)[:, None]
    for projection in (layer.query, layer.key):
        projection.weight.normal_().mul_(std)
    layer.value.weight.normal_(std=STD)
    nn.init.zeros_(layer.output.bias)


@register(
    "scale-init",
    family="layers",
    summary="standard attention, heads initialised at four scales",
    traits=Traits(
        causal=True,
        mask=("boolean",),
        masked_values="any",
        normalisation="row",
        empty_row="zero",
        position="none",
        memory="linear",
        fast_path="sdpa",
        published="2605.26355 (SCALE-INIT)",
    ),
    parameters="0",
    notes=("The published comparison also changes the initialisation of every other linear layer.",),
)
def scale_init(dim: int, heads: int) -> Mapping[str, object]:
    return {"causal": True, "initialise": initialise_by_scale}
