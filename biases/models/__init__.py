"""The smallest honest backbones for the ablations."""

from biases.models._optimiser import parameter_groups
from biases.models.backbone import StageSize
from biases.models.char_gpt import CharGPT
from biases.models.gated_swinrmt import GatedSwinRMT
from biases.models.rmt import RMT
from biases.models.rmt_checkpoint import load_official, official_names
from biases.models.swin import Swin

__all__ = [
    "RMT",
    "CharGPT",
    "GatedSwinRMT",
    "StageSize",
    "Swin",
    "load_official",
    "official_names",
    "parameter_groups",
]
