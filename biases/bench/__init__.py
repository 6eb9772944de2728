"""Measuring tools: interleaved times, peak memory, machine facts, and the attention benchmark built on them.

Only ratios between what ran in the same rounds travel between machines; see :mod:`biases.bench.suite`.

:func:`names` and :func:`prepare` give every variant of the zoo as something to run, with its floor and its check; see
:mod:`biases.bench.workloads`. What ``biases bench`` does with them is :func:`biases.bench.run.bench`. An attention of
your own is measured in the same way by :func:`bench_attention`.
"""

from biases.bench.cases import Attention, Case
from biases.bench.ceilings import Ceilings, ceilings
from biases.bench.machine import facts
from biases.bench.memory import peak_bytes
from biases.bench.rows import Row
from biases.bench.suite import bench_attention
from biases.bench.table import render_rows
from biases.bench.timing import Progress, Ratio, Samples, interleaved
from biases.bench.workloads import LEVELS, Setting, Workload, names, prepare

__all__ = [
    "LEVELS",
    "Attention",
    "Case",
    "Ceilings",
    "Progress",
    "Ratio",
    "Row",
    "Samples",
    "Setting",
    "Workload",
    "bench_attention",
    "ceilings",
    "facts",
    "interleaved",
    "names",
    "peak_bytes",
    "prepare",
    "render_rows",
]
