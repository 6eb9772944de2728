"""Measuring tools: interleaved times, peak memory, machine facts, and the attention benchmark built on them.

Only ratios between what ran in the same rounds travel between machines; see :mod:`biases.bench.suite`.
"""

from biases.bench.cases import Attention, Case
from biases.bench.ceilings import Ceilings, ceilings
from biases.bench.machine import facts
from biases.bench.memory import peak_bytes
from biases.bench.results import BenchResult, Measurement
from biases.bench.suite import bench_attention, nominal_flops
from biases.bench.table import render
from biases.bench.timing import Progress, Ratio, Samples, interleaved

__all__ = [
    "Attention",
    "BenchResult",
    "Case",
    "Ceilings",
    "Measurement",
    "Progress",
    "Ratio",
    "Samples",
    "bench_attention",
    "ceilings",
    "facts",
    "interleaved",
    "nominal_flops",
    "peak_bytes",
    "render",
]
