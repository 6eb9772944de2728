"""Traces of variants of the zoo, or of anybody's layer, and what of their time is attention.

A trace is written by ``torch.profiler`` and opens in https://ui.perfetto.dev and in TensorBoard. Times in it are those
of a run under the profiler, which slows small operators down: to compare variants, measure them with ``biases bench``.
"""

from biases.bench.profile.attribution import Attention, attribute
from biases.bench.profile.record import Kernel, Operator, Profile, profile
from biases.bench.profile.targets import Target, find

__all__ = ["Attention", "Kernel", "Operator", "Profile", "Target", "attribute", "find", "profile"]
