"""Attention inductive biases: implemented, verified, benchmarked and compared."""

from biases import zoo
from biases.attention import attend, formulation
from biases.backends import KeyBias, KeyGate, LowRankBias
from biases.decays import ALiBi, ExponentialDecay, ManhattanDecay
from biases.layers import SelfAttention, set_backend, specification
from biases.models import RMT, CharGPT, GatedSwinRMT, Swin
from biases.traits import Decay, Traits

__version__ = "0.1.0"

__all__ = [
    "RMT",
    "ALiBi",
    "CharGPT",
    "Decay",
    "ExponentialDecay",
    "GatedSwinRMT",
    "KeyBias",
    "KeyGate",
    "LowRankBias",
    "ManhattanDecay",
    "SelfAttention",
    "Swin",
    "Traits",
    "attend",
    "formulation",
    "set_backend",
    "specification",
    "zoo",
]
