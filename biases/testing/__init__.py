"""The conformance battery: which promises an attention layer keeps, which it breaks, and on what.

It works on any ``make_layer(dim, heads, **options)`` that returns a callable (B, T, C) -> (B, T, C), and on other parts
of attention as :mod:`biases.testing.kinds` describes them::

    from biases.testing import Traits, check_attention

    for result in check_attention(make_layer, Traits(causal=True)):
        print(result.status, result.property, result.message)

Importing this module needs torch and numpy only; checking needs Hypothesis.
"""

from biases.testing import kinds
from biases.testing.check import check_attention, replay
from biases.testing.compare import assert_close_to, assert_same, assert_tolerance, assert_within, error_budget
from biases.testing.parametrize import parametrize_with_properties
from biases.testing.properties import PROPERTIES, Property
from biases.testing.result import STATUSES, Result, exit_code, summary
from biases.testing.strategies import REGIMES, WIDTHS, make_tensor
from biases.traits import Decay, Traits

__all__ = [
    "PROPERTIES",
    "REGIMES",
    "STATUSES",
    "WIDTHS",
    "Decay",
    "Property",
    "Result",
    "Traits",
    "assert_close_to",
    "assert_same",
    "assert_tolerance",
    "assert_within",
    "check_attention",
    "error_budget",
    "exit_code",
    "kinds",
    "make_tensor",
    "parametrize_with_properties",
    "replay",
    "summary",
]
