"""Where a token is."""

from biases.positions.absolute import LearnedPosition, SinusoidalPosition, sinusoidal
from biases.positions.morlet import MorletPosition, morlet_encoding
from biases.positions.relative_position import AxisSum, RelativePositionBias
from biases.positions.rotary import Rotary, rotate
from biases.positions.theta_shift import ThetaShift

__all__ = [
    "AxisSum",
    "LearnedPosition",
    "MorletPosition",
    "RelativePositionBias",
    "Rotary",
    "SinusoidalPosition",
    "ThetaShift",
    "morlet_encoding",
    "rotate",
    "sinusoidal",
]
