"""How an attention problem is computed: ``reference`` (the specification), or a fast path: ``native`` (a C++ kernel for
the CPU), ``fused`` (algebra over stock kernels), ``flex`` (FlexAttention), ``triton``; ``choice`` says which."""

from biases.backends import choice
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
    RelativeTable,
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
    "RelativeTable",
    "RelativeTerm",
    "choice",
    "formulate",
    "fused",
    "reference",
]
