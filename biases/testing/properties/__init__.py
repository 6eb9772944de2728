"""The properties: promises of attention layers, selected by traits, never by class."""

from biases.testing.properties import causality, independence, interface, precision, symmetry
from biases.testing.properties.base import PROPERTIES, Property

__all__ = ["PROPERTIES", "Property", "causality", "independence", "interface", "precision", "symmetry"]
