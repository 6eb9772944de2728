"""The calls of ``attend`` that each layer of the zoo makes, by themselves."""

from __future__ import annotations

from biases.bench.workloads import names

from . import _bases
from ._common import DIRECTIONS

NAMES = names("operator")


class Cpu(_bases.CpuLatency):
    level = "operator"
    params = (NAMES, (1024, 4096), ("float32", "bfloat16"), ("cpu",), DIRECTIONS)


class Cuda(_bases.CudaLatency):
    level = "operator"
    batch = 4
    heads = 16
    params = (NAMES, (4096, 16384), ("bfloat16", "float16"), ("cuda",), DIRECTIONS)


class Counts(_bases.Counts):
    level = "operator"
    params = (NAMES, (256, 1024), ("float32",), ("cpu", "cuda"), DIRECTIONS)


class Kernels(_bases.Kernels):
    level = "operator"
    params = (NAMES, (1024,), ("bfloat16",), ("cuda",), DIRECTIONS)


class Memory(_bases.PeakBytes):
    """At the lengths at which an N x N tensor cannot hide."""

    level = "operator"
    batch = 4
    heads = 16
    params = (NAMES, (4096, 16384), ("bfloat16",), ("cuda",), DIRECTIONS)
