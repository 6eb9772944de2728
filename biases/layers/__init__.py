"""Whole attention layers."""

from biases.layers.conv_lag import KeyLag
from biases.layers.scale_init import initialise_by_scale
from biases.layers.self_attention import SelfAttention, set_backend, specification

__all__ = ["KeyLag", "SelfAttention", "initialise_by_scale", "set_backend", "specification"]
