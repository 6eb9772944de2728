"""The smallest honest backbones for the ablations."""

from biases.models.char_gpt import CharGPT

__all__ = ["CharGPT"]
