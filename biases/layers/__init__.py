"""Whole attention layers."""

from biases.layers.conv_lag import KeyLag
from biases.layers.gated_swin_retention import GatedSwinRetention
from biases.layers.gated_swin_sigmoid import GatedSwinSigmoid
from biases.layers.manhattan import ManhattanAttention
from biases.layers.scale_init import initialise_by_scale
from biases.layers.self_attention import SelfAttention, set_backend, specification
from biases.layers.swat import swat_bias
from biases.layers.swin import SwinAttention

__all__ = [
    "GatedSwinRetention",
    "GatedSwinSigmoid",
    "KeyLag",
    "ManhattanAttention",
    "SelfAttention",
    "SwinAttention",
    "initialise_by_scale",
    "set_backend",
    "specification",
    "swat_bias",
]
