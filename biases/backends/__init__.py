"""How an attention problem is computed: ``reference`` (the specification) and ``fused`` (the fast path)."""

from biases.backends.fused import Formulation, formulate, fused
from biases.backends.geometry import Geometry
from biases.backends.reference import reference
from biases.backends.terms import (
    WEIGHTS,
    DecayTerm,
    KeyBias,
    KeyGate,
    LinearTerm,
    LowRankBias,
    PairTerm,
    Problem,
    RelativeTerm,
)

__all__ = [
    "WEIGHTS",
    "DecayTerm",
    "Formulation",
    "Geometry",
    "KeyBias",
    "KeyGate",
    "LinearTerm",
    "LowRankBias",
    "PairTerm",
    "Problem",
    "RelativeTerm",
    "formulate",
    "fused",
    "reference",
]
