"""The models of the zoo: logits, and the gradients of a loss."""

from __future__ import annotations

from biases.bench.workloads import names

from . import _bases
from ._common import AXES, DIRECTIONS

AXIS_NAMES = ("model", *AXES[1:])
NAMES = names("model")


class Cpu(_bases.CpuLatency):
    level = "model"
    param_names = AXIS_NAMES
    batch = 2
    heads = 4
    params = (NAMES, (1024,), ("float32",), ("cpu",), DIRECTIONS)


class Cuda(_bases.CudaLatency):
    level = "model"
    param_names = AXIS_NAMES
    batch = 16
    heads = 16
    params = (NAMES, (4096,), ("bfloat16",), ("cuda",), DIRECTIONS)


class Counts(_bases.Counts):
    level = "model"
    param_names = AXIS_NAMES
    batch = 2
    heads = 4
    params = (NAMES, (1024,), ("float32",), ("cpu", "cuda"), DIRECTIONS)
