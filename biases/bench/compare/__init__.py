"""Comparison of two commits of any git repository with an asv-style suite, on one machine, interleaved.

:func:`compare` measures; :mod:`~biases.bench.compare.statistics` judges, and can be used by itself on values that were
measured in pairs.
"""

from biases.bench.compare.options import Options
from biases.bench.compare.results import Comparison, Row
from biases.bench.compare.run import compare
from biases.bench.compare.statistics import Estimate, estimate, judge, judge_quantity

__all__ = ["Comparison", "Estimate", "Options", "Row", "compare", "estimate", "judge", "judge_quantity"]
