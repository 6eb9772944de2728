"""One training step of each model of the zoo."""

from __future__ import annotations

from biases.bench.workloads import names

from . import _bases
from ._common import AXES, DIRECTIONS

AXIS_NAMES = ("model", *AXES[1:])
NAMES = names("training")


class Cpu(_bases.CpuLatency):
    level = "training"
    param_names = AXIS_NAMES
    batch = 2
    heads = 4
    params = (NAMES, (1024,), ("float32",), ("cpu",), DIRECTIONS[1:])


class Cuda(_bases.CudaLatency):
    level = "training"
    param_names = AXIS_NAMES
    batch = 16
    heads = 16
    params = (NAMES, (4096,), ("bfloat16",), ("cuda",), DIRECTIONS[1:])


class Counts(_bases.Counts):
    level = "training"
    param_names = AXIS_NAMES
    batch = 2
    heads = 4
    params = (NAMES, (1024,), ("float32",), ("cpu", "cuda"), DIRECTIONS[1:])
