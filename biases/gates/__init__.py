"""What is let through: gates on keys, values and outputs."""

from biases.gates.energy import EnergyGate, LinearEnergy, standardise
from biases.gates.energy_conv import ConvolutionEnergy
from biases.gates.energy_daubechies import DaubechiesEnergy, daubechies
from biases.gates.energy_morlet import MorletFilters
from biases.gates.morlet_score import MorletScore
from biases.gates.output import HeadNorm, OutputGate
from biases.gates.swiglu import ValueGate

__all__ = [
    "ConvolutionEnergy",
    "DaubechiesEnergy",
    "EnergyGate",
    "HeadNorm",
    "LinearEnergy",
    "MorletFilters",
    "MorletScore",
    "OutputGate",
    "ValueGate",
    "daubechies",
    "standardise",
]
