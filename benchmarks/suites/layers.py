"""The layers of the zoo."""

from __future__ import annotations

from biases.bench.workloads import names

from . import _bases
from ._common import DIRECTIONS

NAMES = names("layer")


class Cpu(_bases.CpuLatency):
    level = "layer"
    params = (NAMES, (1024,), ("float32", "bfloat16"), ("cpu",), DIRECTIONS)


class Cuda(_bases.CudaLatency):
    level = "layer"
    batch = 4
    heads = 16
    params = (NAMES, (4096,), ("bfloat16",), ("cuda",), DIRECTIONS)


class Counts(_bases.Counts):
    level = "layer"
    params = (NAMES, (1024,), ("float32",), ("cpu", "cuda"), DIRECTIONS)


class Kernels(_bases.Kernels):
    level = "layer"
    params = (NAMES, (1024,), ("bfloat16",), ("cuda",), DIRECTIONS)


class Compiled(_bases.GraphBreaks):
    level = "layer"
    params = (NAMES, (256,), ("float32",), ("cpu",), DIRECTIONS[:1])
