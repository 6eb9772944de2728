"""The properties: promises of attention layers, selected by traits, never by class."""

from biases.testing.properties import (
    bias_symmetry,
    causality,
    decoding,
    encoding_precision,
    encoding_tables,
    encodings,
    execution,
    forms,
    gates,
    generators,
    gradients,
    images,
    independence,
    interface,
    length,
    lifecycle,
    locality,
    mask_forms,
    masking,
    operators,
    padding,
    precision,
    slopes,
    support,
    symmetry,
)
from biases.testing.properties.base import PROPERTIES, Property

# The order in which they are checked and listed: the surface first, what only some kinds promise last.
FAMILIES = (
    interface,
    independence,
    lifecycle,
    precision,
    gradients,
    execution,
    length,
    forms,
    causality,
    padding,
    support,
    symmetry,
    images,
    operators,
    masking,
    mask_forms,
    encodings,
    encoding_tables,
    encoding_precision,
    decoding,
    slopes,
    generators,
    locality,
    bias_symmetry,
    gates,
)
_ENTERED = dict(PROPERTIES)
PROPERTIES.clear()
for _family in FAMILIES:
    PROPERTIES.update({n: each for n, each in _ENTERED.items() if each.check.__module__ == _family.__name__})
if left := _ENTERED.keys() - PROPERTIES.keys():
    raise ImportError(f"expected every module of properties among FAMILIES, not those of {sorted(left)}")

__all__ = ["FAMILIES", "PROPERTIES", "Property"]
